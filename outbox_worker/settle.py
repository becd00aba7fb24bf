"""Settle: record attempts and new states in batches, and give back what never started.

Reads: settlements of the deliveries in flight. Writes: sql/queries/settle.sql, release.sql.
Guarantee: a settlement is applied at most once, and only while its lease token is current; one that the database
refuses never blocks the others.
If it dies: the leases expire, upkeep reaps them, the endpoints may see the same webhook-id twice.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import while_database_returns
from outbox_worker.model import Settlement, Verdict

if TYPE_CHECKING:
    import asyncio

    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store

MOST_AT_ONCE = 400


async def settle_loop(store: Store, flights: Flights, lanes: Lanes, stopped: asyncio.Event) -> None:
    """Write as fast as the database takes them; what gathers meanwhile is the next batch."""
    while not (stopped.is_set() and flights.idle):
        await flights.settle_wanted.wait()
        flights.settle_wanted.clear()
        while flights.unsettled or flights.unstarted:
            await settle_once(store, flights, lanes)
            await release_once(store, flights, lanes)


async def settle_once(store: Store, flights: Flights, lanes: Lanes) -> int:
    batch = [flights.unsettled.popleft() for _ in range(min(len(flights.unsettled), MOST_AT_ONCE))]
    if not batch:
        return 0
    flights.recording = len(batch)
    flights.on_point("settling")
    # Sorted, so that two settlements never wait for each other's rows in opposite order.
    batch.sort(key=lambda s: (s.delivery.event_id.int, s.delivery.endpoint_id.int))
    await record(store, batch, lanes)
    flights.recording = 0
    flights.room_changed.set()
    flights.room_wanted.set()
    return len(batch)


async def record(store: Store, batch: list[Settlement], lanes: Lanes) -> None:
    """Write a batch; halve it when the database refuses its content, until the bad one stands alone."""
    try:
        rows = await while_database_returns(partial(store.settle, batch))
    except (
        psycopg.DataError,
        psycopg.IntegrityError,
        psycopg.ProgrammingError,
        psycopg.InternalError,
    ) as error:
        if len(batch) == 1:
            delivery = batch[0].delivery
            telemetry.settlement_failed(
                delivery.event_id, delivery.endpoint_id, f"{type(error).__name__}: {error.sqlstate}"
            )
            return
        middle = len(batch) // 2
        await record(store, batch[:middle], lanes)
        await record(store, batch[middle:], lanes)
        return
    applied = {(row[0], row[1]): row[2] for row in rows}
    for settlement in batch:
        delivery = settlement.delivery
        if (
            not applied.get((delivery.event_id, delivery.endpoint_id))
            and settlement.verdict is not Verdict.NOT_ATTEMPTED
        ):
            telemetry.settlement_late(delivery.event_id, delivery.endpoint_id, delivery.attempt_no)
        elif settlement.retry_in is not None:
            lanes.work_is_due(delivery.endpoint_id, time.monotonic() + settlement.retry_in.total_seconds())
        if delivery.ordering_key is not None:
            lanes.work_is_due(delivery.endpoint_id, time.monotonic())
    for endpoint_id in {row[1] for row in rows if row[3]}:
        telemetry.endpoint_disabled(endpoint_id)


async def release_once(store: Store, flights: Flights, lanes: Lanes) -> int:
    batch = [flights.unstarted.popleft() for _ in range(min(len(flights.unstarted), MOST_AT_ONCE))]
    if not batch:
        return 0
    flights.recording = len(batch)
    count = await while_database_returns(partial(store.release, batch))
    flights.recording = 0
    for delivery in batch:
        lanes.lane(delivery.endpoint_id).read_from_start()
    telemetry.delivery_released(count, "not started: stopping, held, or too little lease left")
    flights.room_changed.set()
    flights.room_wanted.set()
    return count
