"""Lanes in a given state, without a worker: requests that fly and land, circuits that trip.

Reads: nothing. Writes: nothing; every time is an argument.
Guarantee: what a test does not name is what a worker begins with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outbox_worker.lane import TRIP_AFTER
from outbox_worker.limits import Lanes

if TYPE_CHECKING:
    from uuid import UUID


def lanes(slots=100, share=0.2, endpoint_limit=128, host_limit=1000) -> Lanes:
    return Lanes(slots=slots, endpoint_limit=endpoint_limit, host_limit=host_limit, suspect_share=share)


def fly(all_lanes: Lanes, lane, count: int, host: str = "h") -> None:
    for _ in range(count):
        all_lanes.started(lane, host)


def land(all_lanes: Lanes, lane, now: float, *, suspect: bool = False, host: str = "h") -> None:
    all_lanes.ended(lane, host, now, was_suspect=suspect)


def trip(all_lanes: Lanes, endpoint_id: UUID, now: float = 0.0):
    lane = all_lanes.lane(endpoint_id)
    for _ in range(TRIP_AFTER):
        all_lanes.unreachable(lane, lane.host, 100, now)
    return lane
