"""python -m tests.campaign.seeds --seeds N --minutes M: campaigns of one seed after the other, and the README's table.

Reads: its arguments, the reports of python -m tests.campaign. Writes: a row for each seed on standard output.
Guarantee: exit code 0 if and only if every campaign held every invariant; a seed without a report is named.
If it is wrong: the README's table is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

COLUMNS = (
    "seed", "events", "deliveries", "requests", "attempts", "lost leases", "late results", "lost", "phantom", "unaccounted",
    "duplicates: total / most of one / per kill", "slowest recovery", "violated",
)  # fmt: skip


def row(told: dict[str, Any]) -> str:
    slowest = max(told["faults"].items(), key=lambda item: item[1]["recovery_most"])
    duplicates = told["duplicates"]
    cells = [
        *(f"{told[name.replace(' ', '_')]:,}" for name in COLUMNS[:10]),
        f"{duplicates['total']} / {duplicates['most']} / {duplicates['per_kill']}",
        f"{slowest[1]['recovery_most']:.1f} s ({slowest[0]})",
        ", ".join(told["violations"]) or "0",
    ]
    return f"| {' | '.join(cells)} |"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many, counted from --first")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for faults in each campaign")
    given, more = parser.parse_known_args()  # what is not ours is the campaign's
    failed = 0
    say(f"| {' | '.join(COLUMNS)} |")
    say(f"|{'---|' * len(COLUMNS)}")
    for seed in range(given.first, given.first + given.seeds):
        words = [
            sys.executable,
            "-m",
            "tests.campaign",
            "--json",
            "--seed",
            str(seed),
            "--minutes",
            str(given.minutes),
        ]
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
        failed += done.returncode != 0
        if done.returncode not in (0, 1) or not done.stdout:
            say(f"seed {seed}: no report (exit {done.returncode}): {done.stderr[-1500:]}")
        else:
            told = json.loads(done.stdout)
            say(row(told))
            versions = told["versions"]
    if failed < given.seeds:
        say(f"\ncommit {told['commit']}, {versions}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
