"""Settle: record attempts and new states in batches, and give back what never started.

Reads: settlements of the deliveries in flight. Writes: sql/queries/settle.sql, release.sql.
Guarantee: a settlement is applied at most once, and only while its lease token is current; one that the database
refuses never blocks the others.
If it dies: the leases expire, upkeep reaps them, the endpoints may see the same webhook-id twice.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import while_database_returns
from outbox_worker.lane import ALREADY, BEGINNING
from outbox_worker.model import Settlement, Verdict

if TYPE_CHECKING:
    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.model import Delivery
    from outbox_worker.store import Store

MOST_AT_ONCE = 400
LITTLE = 64
GATHER_SECONDS = 0.003
"""Wait for more when so few results are there: nobody waits for a record, and a commit costs as much for one."""
LOCKED_SECONDS = 0.25
"""Wait before what another session's lock prevented is tried again."""
RELEASED_SECONDS = 0.1
"""Wait before this worker claims again what it gave back."""
REFUSED = psycopg.DatabaseError
"""Whatever is left when the database is not AWAY: a trigger's own SQLSTATE too, ours or somebody else's."""


async def settle_loop(store: Store, flights: Flights, lanes: Lanes, stopped: asyncio.Event) -> None:
    """Write as fast as the database takes them; what gathers meanwhile is the next batch."""
    locked: list[Settlement] = []  # another session holds these rows: tried again a little later
    held: list[Delivery] = []  # the same, of what never started
    again_at = 0.0  # a time, not a quiet moment: a busy worker has none
    while not (stopped.is_set() and flights.idle and not locked and not held):
        with suppress(TimeoutError):
            async with asyncio.timeout(max(again_at - time.monotonic(), 0) if locked or held else None):
                await flights.settle_wanted.wait()
        flights.settle_wanted.clear()
        if (locked or held) and time.monotonic() >= again_at:
            flights.recording -= len(locked) + len(held)
            flights.unsettled.extend(locked)
            flights.unstarted.extend(held)
            locked.clear()
            held.clear()
        while flights.unsettled or flights.unstarted:
            if len(flights.unsettled) < LITTLE and not stopped.is_set():
                await asyncio.sleep(GATHER_SECONDS)  # one commit for what ends within a moment, not one each
            if not locked and not held:
                again_at = time.monotonic() + LOCKED_SECONDS
            locked += await settle_once(store, flights, lanes)
            held += await release_once(store, flights, lanes)


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
    locked, disabled = [], set()
    for place, applied, held, endpoint_disabled in rows:
        settlement = batch[place - 1]
        delivery = settlement.delivery
        if held:
            locked.append(settlement)
        elif not applied and settlement.verdict is not Verdict.NOT_ATTEMPTED:
            telemetry.settlement_late(delivery.event_id, delivery.endpoint_id, delivery.attempt_no)
        else:
            note_what_is_due(settlement, lanes)
        if endpoint_disabled:
            disabled.add(delivery.endpoint_id)
    for endpoint_id in disabled:
        telemetry.endpoint_disabled(endpoint_id)
    return locked


def note_what_is_due(settlement: Settlement, lanes: Lanes) -> None:
    delivery = settlement.delivery
    if settlement.retry_in is not None:
        lanes.work_is_due(delivery.endpoint_id, time.monotonic() + settlement.retry_in.total_seconds())
    if delivery.ordering_key is not None:  # the next of its key may go
        lanes.work_is_due(delivery.endpoint_id, ALREADY)


async def release_once(store: Store, flights: Flights, lanes: Lanes) -> list[Delivery]:
    """Give back one batch; returns what could not be, since another session holds its rows."""
    batch = [flights.unstarted.popleft() for _ in range(min(len(flights.unstarted), MOST_AT_ONCE))]
    if not batch:
        return []
    flights.recording += len(batch)
    try:
        rows = await while_database_returns(partial(store.release, batch))
    except REFUSED as error:  # their leases expire, and are recorded as lost
        telemetry.statement_failed("release", f"{type(error).__name__}: {error.sqlstate}")
        rows = []
    locked = {(event_id, endpoint_id) for event_id, endpoint_id, _, held in rows if held}
    held = [delivery for delivery in batch if (delivery.event_id, delivery.endpoint_id) in locked]
    flights.recording -= len(batch) - len(held)
    for delivery in batch:
        lanes.lane(delivery.endpoint_id).read_again(BEGINNING)
        lanes.work_is_due(delivery.endpoint_id, time.monotonic() + RELEASED_SECONDS)
    count = sum(released for _, _, released, _ in rows)
    telemetry.delivery_released(count, "not started: stopping, held, or too little lease left")
    flights.room_changed.set()
    flights.room_wanted.set()
    return held
