"""Sweep: look at the endpoints of some shards for due work and expired leases; the truth behind every hint.

Reads: endpoints, open deliveries (sql/queries/find_due.sql). Writes: lost leases (sql/queries/reap.sql).
Guarantee: whatever hint was missed, due work is found here; an expired lease is recorded as lost and its delivery is
due again, or dead after too many; a resumed endpoint has a clean slate.
If it dies: the next sweep finds the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outbox_worker import telemetry
from outbox_worker.lane import ALREADY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store


async def sweep_once(store: Store, flights: Flights, lanes: Lanes, shards: Sequence[int]) -> int:
    """Returns the number of endpoints with open work."""
    rows = await store.find_due(shards)
    now = time.monotonic()
    expired = []
    for row in rows:
        endpoint_id, shard, next_due, has_expired, keyed, max_in_flight, max_per_second, found_at, changed = (
            row
        )
        lane = lanes.configure(endpoint_id, max_in_flight, max_per_second)
        lane.shard = shard
        lane.keyed = keyed
        lanes.state_seen(lane, changed)
        if has_expired:
            expired.append(endpoint_id)
        if next_due is not None:
            if next_due <= found_at and next_due < max(lane.marks):
                lane.read_from_start()
            wait = (next_due - found_at).total_seconds()
            lanes.work_is_due(endpoint_id, now + wait if wait > 0 else ALREADY)
    if expired:
        flights.on_point("reaping")
        for event_id, endpoint_id, _, _, lost_count, crash_loop in await store.reap(expired):
            telemetry.lease_reaped(event_id, endpoint_id, lost_count, crash_loop=crash_loop)
            lanes.work_is_due(endpoint_id, ALREADY)
    if rows:
        flights.room_changed.set()
    return len(rows)
