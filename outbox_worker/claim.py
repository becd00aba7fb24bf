"""Claim: lease due deliveries for the endpoints that have room, round and round.

Reads: open deliveries that are due. Writes: leases (sql/queries/claim.sql, claim_ordered.sql).
Guarantee: the lease is committed before the first byte goes out; an endpoint is asked for no more than it has room
for; every endpoint with due work and room gets its turn in each round.
If it dies: leases without a request expire and are recorded as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import TOO_SLOW, while_database_returns
from outbox_worker.lane import CLAIM_REST, CLAIM_REST_SHARE

if TYPE_CHECKING:
    from uuid import UUID

    from outbox_worker.flights import Flights
    from outbox_worker.lane import Lane
    from outbox_worker.limits import Lanes
    from outbox_worker.model import Leased
    from outbox_worker.store import Store


FAILURES_MOST = 16
"""Statements of one round that may fail: two endpoints among 128 are found with these, and a database that is too slow for
all is not asked for each."""


async def claim_loop(
    store: Store, flights: Flights, lanes: Lanes, poll_seconds: float, stopping: asyncio.Event
) -> None:
    while not stopping.is_set():
        flights.room_changed.clear()  # before: a bell during the claim is of what it may not have seen
        if await claim_once(store, flights, lanes) == 0:
            await room_or_timer(flights, lanes, poll_seconds)


async def room_or_timer(flights: Flights, lanes: Lanes, poll_seconds: float) -> None:
    wait = min(poll_seconds, max(lanes.next_timer() - time.monotonic(), 0.001))
    try:
        async with asyncio.timeout(wait):
            await flights.room_changed.wait()
    except TimeoutError:
        return


async def claim_once(store: Store, flights: Flights, lanes: Lanes) -> int:
    """One round; returns how many deliveries were claimed, and counts each lane where more is to be looked at."""
    asks = lanes.plan(time.monotonic(), flights.free - flights.handing_over)
    try:
        return await claim_by_halves(store, flights, lanes, asks) if asks else 0
    finally:
        flights.claiming = 0


async def claim_by_halves(store: Store, flights: Flights, lanes: Lanes, asks: list[tuple[Lane, int]]) -> int:
    """One endpoint whose deliveries cannot be claimed, or not in time, is found by halves and rests.

    The search takes a deadline for each half, once: as long as it fails it is then asked alone, after the others.
    """
    claimed = failures = 0
    groups = [[ask] for ask in asks if ask[0].claim_failures]
    groups.append([ask for ask in asks if not ask[0].claim_failures])
    while groups and failures < FAILURES_MOST and not (failures and flights.draining):
        group = groups.pop()
        began = time.monotonic()
        if failures:  # meanwhile others may have started
            group = [(lane, min(room, lanes.room(lane, lane.host, began))) for lane, room in group]
            group = [(lane, room) for lane, room in group if room > 0]
        flights.claiming = sum(room for _, room in group)
        try:
            claimed += await claim_asked(store, flights, lanes, group) if group else 0
        except TimeoutError:  # no answer: no endpoint's fault
            telemetry.statement_failed("claim", "TimeoutError")
            break
        except psycopg.Error as error:
            telemetry.statement_failed("claim", f"{type(error).__name__}: {error.sqlstate}")
            failures += 1
            if len(group) > 1:
                groups += [group[len(group) // 2 :], group[: len(group) // 2]]
                continue
            ((lane, _),) = group
            now = time.monotonic()
            times = min(2**lane.claim_failures, CLAIM_REST_SHARE)
            lane.claim_failures = min(lane.claim_failures + 1, CLAIM_REST_SHARE)
            lane.rests_until = now + times * max(CLAIM_REST, now - began)
            lanes.rest(lane, now)
        else:
            for lane, _ in group if len(group) == 1 else ():
                lane.claim_failures = 0
    return claimed


async def claim_asked(store: Store, flights: Flights, lanes: Lanes, asks: list[tuple[Lane, int]]) -> int:
    """First what has no ordering key, then what has one; an endpoint with both gives each its half of the room."""
    plain = {lane.endpoint_id: plain_share(lane, room) for lane, room in asks}
    sent = time.monotonic()
    first = [(lane, plain[lane.endpoint_id]) for lane, _ in asks if plain[lane.endpoint_id]]
    leases = await while_database_returns(partial(store.claim, first), but=TOO_SLOW) if first else []
    got = counted(leases)
    note_marks(lanes, leases)
    flights.start(leases, sent)
    keyed = [
        (lane, room - got[lane.endpoint_id])
        for lane, room in asks
        if lane.keyed and room > got[lane.endpoint_id]
    ]
    # What had less than the whole room, and used that up, may have more.
    cut = {
        lane.endpoint_id
        for lane, room in asks
        if plain[lane.endpoint_id] < room and got[lane.endpoint_id] >= plain[lane.endpoint_id]
    }
    if keyed:
        sent = time.monotonic()
        for lane, _ in keyed:
            if not lane.after_key:
                lane.round_began_at = sent
        ordered = await while_database_returns(partial(store.claim_ordered, keyed), but=TOO_SLOW)
        flights.start(ordered, sent)
        got += counted(ordered)
    walking = {lane.endpoint_id for lane, _ in keyed if lane.after_key}
    walked = {lane.endpoint_id for lane, _ in keyed} - walking
    for lane, asked in asks:
        # What came due behind a round of the keys is known only since the round began.
        since = lane.round_began_at if lane.endpoint_id in walked else sent
        more = lane.endpoint_id in walking or lane.endpoint_id in cut
        lanes.claimed(lane, asked, asked if more else got[lane.endpoint_id], since)
    return got.total() + len(walking | cut)


def plain_share(lane: Lane, room: int) -> int:
    """How much of the room is for deliveries without an ordering key: all, or by turns the larger and smaller half."""
    if not lane.keyed:
        return room
    lane.keys_turn = not lane.keys_turn
    return room // 2 if lane.keys_turn else room - room // 2


def note_marks(lanes: Lanes, leases: list[Leased]) -> None:
    """How far each priority of each endpoint was read, and how many turns it has used."""
    taken: dict[UUID, list[int]] = {}
    for leased in leases:
        endpoint_id, priority = leased.delivery.endpoint_id, leased.delivery.priority
        marks = lanes.lane(endpoint_id).marks
        marks[priority] = max(marks[priority], leased.next_attempt_at)
        taken.setdefault(endpoint_id, [0, 0, 0])[priority] += 1
    for endpoint_id, counts in taken.items():
        lane = lanes.lane(endpoint_id)
        lane.took(counts)
        if lane.came_in is not None:
            lane.read_again(lane.came_in)


def counted(leases: list[Leased]) -> Counter[UUID]:
    return Counter(leased.delivery.endpoint_id for leased in leases)
