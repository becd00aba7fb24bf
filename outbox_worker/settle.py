"""Settle: record attempts and new states in batches, and give back what never started.

Reads: settlements of the deliveries in flight. Writes: sql/queries/settle.sql, release.sql.
Guarantee: a settlement is applied at most once, and only while its lease token is current; one that the database
refuses never blocks the others.
If it dies: the leases expire, upkeep reaps them, the endpoints may see the same webhook-id twice.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import while_database_returns
from outbox_worker.lane import ALREADY
from outbox_worker.model import Settlement, Verdict

if TYPE_CHECKING:
    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store

MOST_AT_ONCE = 400
LOCKED_SECONDS = 0.25
"""Wait before a settlement is tried again whose row another session holds."""
RELEASED_SECONDS = 0.1
"""Wait before this worker claims again what it gave back."""
REFUSED = psycopg.DatabaseError
"""Whatever is left when the database is not AWAY: a trigger's own SQLSTATE too, ours or somebody else's."""


async def settle_loop(store: Store, flights: Flights, lanes: Lanes, stopped: asyncio.Event) -> None:
    """Write as fast as the database takes them; what gathers meanwhile is the next batch."""
    locked: list[Settlement] = []  # another session holds the row: tried again a little later
    while not (stopped.is_set() and flights.idle and not locked):
        try:
            async with asyncio.timeout(LOCKED_SECONDS if locked else None):
                await flights.settle_wanted.wait()
        except TimeoutError:
            flights.unsettled.extend(locked)
            flights.recording -= len(locked)
            locked.clear()
        flights.settle_wanted.clear()
        while flights.unsettled or flights.unstarted:
            locked += await settle_once(store, flights, lanes)
            await release_once(store, flights, lanes)


async def settle_once(store: Store, flights: Flights, lanes: Lanes) -> list[Settlement]:
    """Record one batch; returns what could not be, since another session holds its rows."""
    batch = [flights.unsettled.popleft() for _ in range(min(len(flights.unsettled), MOST_AT_ONCE))]
    if not batch:
        return []
    flights.recording += len(batch)
    flights.on_point("settling")
    locked = await record(store, batch, lanes)
    flights.recording -= len(batch) - len(locked)
    flights.room_changed.set()
    flights.room_wanted.set()
    return locked


async def record(store: Store, batch: list[Settlement], lanes: Lanes) -> list[Settlement]:
    """Write a batch; halve it when the database refuses its content, until the bad one stands alone."""
    try:
        rows = await while_database_returns(partial(store.settle, batch))
    except REFUSED as error:
        if len(batch) == 1:
            delivery = batch[0].delivery
            telemetry.settlement_failed(
                delivery.event_id, delivery.endpoint_id, f"{type(error).__name__}: {error.sqlstate}"
            )
            return []
        middle = len(batch) // 2
        return await record(store, batch[:middle], lanes) + await record(store, batch[middle:], lanes)
    results = {(event_id, endpoint_id): (applied, held) for event_id, endpoint_id, applied, held, _ in rows}
    locked = []
    for settlement in batch:
        delivery = settlement.delivery
        applied, held = results[delivery.event_id, delivery.endpoint_id]
        if held:
            locked.append(settlement)
        elif not applied and settlement.verdict is not Verdict.NOT_ATTEMPTED:
            telemetry.settlement_late(delivery.event_id, delivery.endpoint_id, delivery.attempt_no)
        else:
            note_what_is_due(settlement, lanes)
    for endpoint_id in {endpoint_id for _, endpoint_id, _, _, disabled in rows if disabled}:
        telemetry.endpoint_disabled(endpoint_id)
    return locked


def note_what_is_due(settlement: Settlement, lanes: Lanes) -> None:
    delivery = settlement.delivery
    if settlement.retry_in is not None:
        lanes.work_is_due(delivery.endpoint_id, time.monotonic() + settlement.retry_in.total_seconds())
    if delivery.ordering_key is not None:  # the next of its key may go
        lanes.work_is_due(delivery.endpoint_id, ALREADY)


async def release_once(store: Store, flights: Flights, lanes: Lanes) -> int:
    batch = [flights.unstarted.popleft() for _ in range(min(len(flights.unstarted), MOST_AT_ONCE))]
    if not batch:
        return 0
    flights.recording += len(batch)
    count = await while_database_returns(partial(store.release, batch))
    flights.recording -= len(batch)
    for delivery in batch:
        lanes.lane(delivery.endpoint_id).read_from_start()
        lanes.work_is_due(delivery.endpoint_id, time.monotonic() + RELEASED_SECONDS)
    telemetry.delivery_released(count, "not started: stopping, held, or too little lease left")
    flights.room_changed.set()
    flights.room_wanted.set()
    return count
