"""python -m tests.campaign --seed N --minutes M [--json]: one campaign from nothing but the repository.

Reads: its arguments. Writes: a temporary folder (kept with --keep), the report on standard output.
Guarantee: exit code 0 if and only if every invariant held.
If it crashes: see stage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.campaign import invariants, meter, report
from tests.campaign.disk import own_mounts
from tests.campaign.faults import BY_NAME, FAULTS, calm
from tests.campaign.stage import DRAIN_SECONDS, open_stage

BASELINE_SECONDS = 6.0


async def campaign(
    seed: int, minutes: float, *, faults: list[str] | None = None, folder: Path, operators: bool = True,
    rate: float = 12.0, drain_seconds: float = DRAIN_SECONDS, mounts: bool = False, say=lambda _line: None,
) -> dict[str, Any]:  # fmt: skip
    """Play faults in a random order until the time is up, or exactly those that are named; drain; judge."""
    rng = random.Random(seed)
    began = time.monotonic()
    held = 10.0 if minutes >= 3 else 3.0
    async with open_stage(
        folder, seed, rate=rate, held_seconds=held, operators=operators, mounts=mounts
    ) as stage:
        await asyncio.sleep(BASELINE_SECONDS)
        baseline = {place.name: meter.footprint(place.pid) for place in stage.fleet.places if place.pid}
        chosen = [BY_NAME[name] for name in faults] if faults else endless(rng)
        started = time.monotonic()
        for fault in chosen:
            if not faults and time.monotonic() - started > minutes * 60:
                break
            await stage.play(fault, random.Random(rng.random()))
            say(
                f"{time.monotonic() - began:6.1f} s  {stage.played[-1].name}: {stage.played[-1].recovery} s {stage.played[-1].note}"
            )
        await stage.play(calm, rng)
        drained = await stage.drain(drain_seconds)
        say(f"{time.monotonic() - began:6.1f} s  drained: {drained}")
        left = await meter.leftovers(stage, baseline)
        await stage.fleet.close()
        evidence = report.gather(stage, drained=drained, left=left)
        violations = invariants.check(evidence)
        return report.report(stage, evidence, violations, time.monotonic() - began)


def endless(rng: random.Random):
    """Every fault once in a random order, then again."""
    while True:
        order = list(FAULTS)
        rng.shuffle(order)
        yield from order


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time for faults; start and drain come on top"
    )
    parser.add_argument(
        "--fault", action="append", choices=sorted(BY_NAME), help="play exactly these, in this order"
    )
    parser.add_argument("--no-operators", action="store_true")
    parser.add_argument("--rate", type=float, default=12.0, help="transactions a second")
    parser.add_argument(
        "--drain-seconds", type=float, default=DRAIN_SECONDS, help="time for the work that is left at the end"
    )
    parser.add_argument("--keep", type=Path, help="folder for journal, ledger and worker logs; kept")
    parser.add_argument("--json", action="store_true", help="the report as one object")
    given = parser.parse_args()
    mounts = own_mounts()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="outbox-campaign-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    say = (lambda _line: None) if given.json else (lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    told = asyncio.run(
        campaign(given.seed, given.minutes, faults=given.fault, folder=folder, operators=not given.no_operators,
                 rate=given.rate, drain_seconds=given.drain_seconds, mounts=mounts, say=say)
    )  # fmt: skip
    sys.stdout.write((json.dumps(told) if given.json else report.text(told)) + "\n")
    if given.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if told["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
