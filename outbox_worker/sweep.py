"""Sweep: look at the endpoints of some shards for due work and expired leases; the truth behind every hint.

Reads: endpoints, open deliveries (sql/queries/find_due.sql). Writes: lost leases (sql/queries/reap.sql).
Guarantee: whatever hint was missed, due work is found here; an expired lease is recorded as lost and its delivery is
due again, or dead after too many; a resumed endpoint has a clean slate.
If it dies: the next sweep finds the same.
"""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import TOO_SLOW, while_database_returns
from outbox_worker.lane import ALREADY, BEGINNING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store

COMMITTED_WITHIN = timedelta(seconds=2)
"""What a hint is of became due at most so long before what was claimed last; what was later is found by the next sweep."""


async def sweep(
    store: Store, flights: Flights, lanes: Lanes, shards: Sequence[int], *, hinted: bool = False
) -> None:
    """Sweep these shards. What is too slow or fails is left to the next sweep: it holds up no other shards."""
    once = partial(sweep_once, store, flights, lanes, shards, hinted=hinted)
    try:
        await while_database_returns(once, but=TOO_SLOW)
    except (TimeoutError, psycopg.Error) as error:
        telemetry.statement_failed("sweep", type(error).__name__)


async def sweep_once(
    store: Store, flights: Flights, lanes: Lanes, shards: Sequence[int], *, hinted: bool = False
) -> int:
    """Returns the number of endpoints with open work. A hint is of what came just now, so not all that is dead is walked."""
    # As they are before the look: a claim meanwhile moves them past what the look still finds waiting.
    swept, unread = set(shards), [BEGINNING] * 3
    marks = {
        lane.endpoint_id: list(lane.marks)
        for lane in lanes.lanes.values()
        if lane.shard in swept and lane.marks != unread
    }
    rows = await store.find_due(
        shards, {key: [recent(mark) for mark in found] for key, found in marks.items()} if hinted else {}
    )
    now = time.monotonic()
    expired = []
    for row in rows:
        endpoint_id, shard, next_due, has_expired, keyed = row[:5]
        max_in_flight, max_per_second, found_at, changed, fronts = row[5:]
        lane = lanes.configure(endpoint_id, max_in_flight, max_per_second)
        lane.shard = shard
        lane.keyed = keyed
        lanes.state_seen(lane, changed)
        if has_expired:
            expired.append(endpoint_id)
        for priority, (front, mark) in enumerate(zip(fronts, marks.get(endpoint_id, ()), strict=False)):
            if front is not None and front < mark:  # it was committed late, behind the mark
                lane.marks[priority] = front
        if next_due is not None:
            wait = (next_due - found_at).total_seconds()
            lanes.work_is_due(endpoint_id, now + wait if wait > 0 else ALREADY)
    if rows:
        flights.room_changed.set()  # whatever becomes of the expired leases
    if expired:
        flights.on_point("reaping")
        for event_id, endpoint_id, _, _, lost_count, crash_loop in await store.reap(expired):
            telemetry.lease_reaped(event_id, endpoint_id, lost_count, crash_loop=crash_loop)
            lanes.work_is_due(endpoint_id, ALREADY)
        flights.room_changed.set()
    return len(rows)


def recent(mark: datetime) -> datetime:
    return mark - COMMITTED_WITHIN if mark > BEGINNING else mark
