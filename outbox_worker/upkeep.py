"""Upkeep: sweeps, reports, partitions, retention, slices of large replays; whatever is not one delivery's business.

Reads: shards owned, what the lanes know, the database's own tasks. Writes: lost leases, endpoint_minutes, partitions.
Guarantee: each task is a bounded step that any worker may do; a missed hint is made good within one sweep.
If it dies: the next round, here or elsewhere, does the same step.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import AWAY
from outbox_worker.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outbox_worker.flights import Flights
    from outbox_worker.lane import Lane
    from outbox_worker.limits import Lanes
    from outbox_worker.presence import Presence
    from outbox_worker.store import Store
    from outbox_worker.wakeup import WakeUp

SHARDS_AT_ONCE = 8
REST_MOST = 60.0
"""Longest rest, in seconds, that a step earns by taking long."""
SLICE = 500
"""Rows that one step of a large replay, a cancellation or a purge touches."""


async def sweep_loop(
    store: Store,
    flights: Flights,
    lanes: Lanes,
    presence: Presence,
    wanted: asyncio.Queue[WakeUp],
    stopping: asyncio.Event,
) -> None:
    """Sweep what a hint names at once, everything once a second or, if that is long, a twentieth of the time.

    At most half a lease apart: a sweep that waited for the database says nothing about the work there is.
    """
    due_at = time.monotonic() + 1.0
    while not stopping.is_set():
        try:
            async with asyncio.timeout(max(due_at - time.monotonic(), 0.0)):
                wakeup = await wanted.get()
        except TimeoutError:
            due = True
        else:
            due = time.monotonic() >= due_at  # however many hints come
            if wakeup.balance:
                presence.wanted.set()
            if hinted := sorted(wakeup.shards & presence.shards):
                await sweep(store, flights, lanes, hinted, hinted=True)
        if due and not stopping.is_set():
            started = time.monotonic()
            owned = sorted(presence.shards)
            for i in range(0, len(owned), SHARDS_AT_ONCE):
                await sweep(store, flights, lanes, owned[i : i + SHARDS_AT_ONCE])
            ended = time.monotonic()
            due_at = ended + min(max(1.0, 20 * (ended - started)), presence.seconds)


async def upkeep_loop(store: Store, lanes: Lanes, stopping: asyncio.Event) -> None:
    """Every task at its own pace."""
    tasks: list[tuple[str, float, Callable[[], Awaitable[int]]]] = [
        ("report", 60.0, partial(report_once, store, lanes, everything=True)),
        ("circuits", 1.0, partial(report_once, store, lanes, everything=False)),
        ("replay", 1.0, partial(slice_once, store, "replay_slice")),
        ("cancel", 1.0, partial(slice_once, store, "cancel_slice")),
        ("purge", 60.0, partial(slice_once, store, "purge")),
        ("create_partitions", 600.0, partial(count_once, store, "create_partitions")),
        ("drop_partitions", 600.0, partial(count_once, store, "drop_partitions")),
        ("strip_partitions", 600.0, partial(count_once, store, "strip_partitions")),
        ("partition_alarm", 600.0, partial(alarm_once, store)),
    ]
    due = {name: time.monotonic() + pause for name, pause, _ in tasks}
    while not stopping.is_set():
        for name, pause, task in tasks:
            if time.monotonic() >= due[name] and not stopping.is_set():
                due[name] = time.monotonic() + await rest_after(name, pause, task)
        try:
            async with asyncio.timeout(0.5):
                await stopping.wait()
        except TimeoutError:
            continue


async def rest_after(name: str, pause: float, task: Callable[[], Awaitable[int]]) -> float:
    """Do one step; how long the task rests now. What fails is tried again in its turn and holds up no other task.

    One that finds nothing takes a twentieth of the time at most: it may walk what an old snapshot keeps.
    """
    started = time.monotonic()
    try:
        count = await task()
    except AWAY:
        return min(pause, 5.0)
    except psycopg.Error as error:
        telemetry.upkeep_failed(name, f"{type(error).__name__}: {error.sqlstate}")
        return pause
    if count and name not in {"report", "circuits"}:
        telemetry.upkeep_done(name, count)
    # one partition, or one slice, a call
    again = count >= (1 if name in {"drop_partitions", "strip_partitions"} else SLICE)
    return 0.1 if again else max(pause, min(20 * (time.monotonic() - started), REST_MOST))


async def count_once(store: Store, function: str) -> int:
    return int(await store.call(function) or 0)


async def slice_once(store: Store, function: str) -> int:
    return int(await store.call(function, SLICE) or 0)


async def alarm_once(store: Store) -> int:
    text = await store.call("partition_alarm")
    if text:
        telemetry.partitions_alarm(str(text))
    return 0


async def report_once(store: Store, lanes: Lanes, *, everything: bool) -> int:
    """Append what changed: circuits at once, the minute's counts of every active endpoint each minute."""
    now = time.monotonic()
    if everything:
        reported = [
            *lanes.gone,
            *(
                lane
                for lane in lanes.lanes.values()
                if lane.attempts or lane.in_flight or lanes.waits_for(lane, now)
            ),
        ]
    else:
        reported = [
            lanes.lanes[endpoint_id] for endpoint_id in lanes.circuits_changed if endpoint_id in lanes.lanes
        ]
    lanes.circuits_changed.clear()
    if not reported:
        return 0
    rows = [report_of(lanes, lane, now) for lane in reported]
    await store.report(rows)
    for lane, row in zip(reported, rows, strict=True):  # others have ended meanwhile
        lane.attempts -= row["attempts"]
        lane.successes -= row["successes"]
        lane.timeouts -= row["timeouts"]
        lane.latency_counts = [
            now - then for now, then in zip(lane.latency_counts, row["latency_counts"], strict=True)
        ]
    lanes.gone = [lane for lane in lanes.gone if lane.attempts]
    return len(reported)


def report_of(lanes: Lanes, lane: Lane, now: float) -> dict[str, Any]:
    return {
        "endpoint_id": str(lane.endpoint_id),
        "workspace_id": lane.workspace_id,
        "attempts": lane.attempts,
        "successes": lane.successes,
        "timeouts": lane.timeouts,
        "latency_counts": list(lane.latency_counts),
        "in_flight": lane.in_flight,
        "in_flight_limit": min(int(lane.limit), lane.max_in_flight),
        "circuit": lane.circuit,
        "waits_for": lanes.waits_for(lane, now),
    }
