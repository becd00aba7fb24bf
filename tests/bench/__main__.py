"""`python -m tests.bench NAME [--json] [--minutes M] [--full] [--seed N]`: one benchmark, or all of them.

Reads: the command line. Writes: figures on standard output, progress on standard error.
Guarantee: a benchmark that fails makes the exit code 1 and hides none of the others.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
import traceback

from tests.bench.figures import Plan, Report, as_json, say, table

NAMES = (
    "publish",
    "trigger",
    "throughput",
    "latency",
    "backlog",
    "snapshot",
    "isolation",
    "memory",
    "cost",
    "database",
    "peers",
    "choices",
    "soak",
)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure outbox-worker.")
    parser.add_argument(
        "name", choices=(*NAMES, "all"), help="which benchmark; all runs each in its short form"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line instead of the README's table"
    )
    parser.add_argument("--minutes", type=float, help="time to measure, instead of the benchmark's own")
    parser.add_argument("--full", action="store_true", help="the largest sizes too: ten million rows")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default: 1)")
    parser.add_argument("--short", action="store_true", help="the short form, for all the only one")
    parser.add_argument(
        "--statements", action="store_true", help="say which SQL took the time (costs a little)"
    )
    parser.add_argument("--workspaces", type=int, default=500, help="of two endpoints each (default: 500)")
    asked = parser.parse_args(words)
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # servers and workers end too
    plan = Plan(
        minutes=asked.minutes,
        full=asked.full,
        short=asked.short or asked.name == "all",
        seed=asked.seed,
        statements=asked.statements,
        workspaces=asked.workspaces,
    )
    reports: list[Report] = []
    failed = 0
    for name in NAMES if asked.name == "all" else (asked.name,):
        began = time.monotonic()
        say(f"{name} …")
        try:
            report = importlib.import_module(f"tests.bench.{name}").run(plan)
        except Exception:  # noqa: BLE001  (the others are worth having)
            traceback.print_exc()
            failed += 1
            continue
        say(f"{name}: {time.monotonic() - began:.0f} s")
        reports.append(report)
        if asked.json:
            sys.stdout.write(as_json(report) + "\n")
            sys.stdout.flush()
    if not asked.json:
        sys.stdout.write(table(reports))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
