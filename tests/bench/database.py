"""database: the database's share alone: fan-out, claim, settle per second on one connection, no HTTP, no loops.

Reads and writes: a database of its own, by the worker's own `*_once` steps.
Guarantee: fsync is on; what counts is the time of the statements, commit and rows included, and apart from it that of
the whole step with its Python; the queue is long or short as the figure says, and the same number of events is taken
from it, since each insertion into `open_deliveries` takes longer the more is there.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report
from tests.bench.place import open_place
from tests.bench.steps import Steps, open_steps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.place import Place

QUEUES = (10_000, 1_000_000)
LONGEST = 60.0
"""Seconds for a fan-out that is counted in events, in case it stands still."""
SLOTS, UNLIMITED = 1_000, 1_000_000_000


def run(plan: Plan) -> Report:
    seconds = plan.seconds(default=60, short=20) / 4
    queues = (QUEUES[0], 100_000) if plan.short else QUEUES
    with open_place(plan, unheard=True) as place:
        load.make_endpoints(place, place.receiver.url)
        detail = asyncio.run(measured(place, queues, seconds))
    first, last = (detail[f"fan_out_{size}"]["fan_out"] for size in queues)
    both = detail["claim_settle"]
    figures = [
        Figure(f"fan-out, {queues[0]:,} events waiting", first, "deliveries/s"),
        Figure(f"fan-out, {queues[1]:,} events waiting", last, "deliveries/s"),
        Figure("fan-out with many against few waiting", last / first, ""),
        Figure("claim", both["claim"], "/s"),
        Figure("settle with the attempt's record", both["settle"], "/s"),
        Figure(
            "claim + settle + attempt, no HTTP",
            in_turn(both["claim"], both["settle"]),
            "deliveries/s",
            "≥ 25,000/s",
            "one connection, in turn",
        ),
        Figure(
            "the same with what the worker's Python does between",
            in_turn(both["claim with Python"], both["settle with Python"]),
            "deliveries/s",
        ),
    ]
    return Report("database", plan.seed, figures, detail)


def in_turn(first: float, second: float) -> float:
    return 1 / (1 / first + 1 / second)


async def measured(place: Place, queues: tuple[int, int], seconds: float) -> dict[str, dict[str, float]]:
    few, many = queues
    detail: dict[str, dict[str, float]] = {}
    fan_outs: dict[int, list[float]] = {few: [], many: []}
    for size in (few, many, few):
        fan_outs[size].append(await fan_out(place, size, few))
    for size, rates in fan_outs.items():
        detail[f"fan_out_{size}"] = {"fan_out": sum(rates) / len(rates)}
    place.db.execute("truncate outbox.fan_out_queue, outbox.open_deliveries")
    load.add_waiting(place, int(seconds * 2 * 30_000))
    load.settled_database(place)
    async with open_steps(place.dsn("worker_login"), slots=SLOTS) as steps:
        await steps.sweep()
        detail["claim_settle"] = await timed(
            steps, {"claim": steps.claim, "settle": steps.settle}, seconds * 2
        )
    return detail


async def fan_out(place: Place, waiting: int, most: int) -> float:
    """Give the deliveries per second of so many events, the first of those that wait."""
    place.db.execute("truncate outbox.fan_out_queue, outbox.open_deliveries")
    load.add_queued(place, waiting)
    load.settled_database(place)
    # Slots without end: the fan-out leaves events in their queue while slots are short.
    async with open_steps(place.dsn("worker_login"), slots=UNLIMITED) as steps:
        rates = await timed(steps, {"fan_out": steps.fan_out}, seconds=LONGEST, most=most)
    return rates["fan_out"] * load.MATCHING


async def timed(
    steps: Steps, calls: dict[str, Callable[[], Awaitable[int]]], seconds: float, most: float = math.inf
) -> dict[str, float]:
    """Call each in turn until it finds nothing to do; give its rate by the time of its statements, and by all of its time."""
    spent = dict.fromkeys(calls, 0.0)
    waited = dict.fromkeys(calls, 0.0)
    done = dict.fromkeys(calls, 0)
    end = time.monotonic() + seconds
    found = True
    while found and time.monotonic() < end and max(done.values()) < most:
        found = False
        for name, call in calls.items():
            count = 1
            while count and time.monotonic() < end and done[name] < most:
                began, before = time.perf_counter(), steps.store.seconds
                count = await call()
                waited[name] += steps.store.seconds - before
                # Before the next statement, which would seem to take as long as their Python.
                await steps.landed()
                spent[name] += time.perf_counter() - began
                done[name] += count
                found = found or count > 0
    rates = {name: done[name] / waited[name] for name in calls}
    return rates | {f"{name} with Python": done[name] / spent[name] for name in calls}
