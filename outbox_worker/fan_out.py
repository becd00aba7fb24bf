"""Fan out: events become deliveries, once each; what this worker has room for starts at once.

Reads: fan_out_queue, events, endpoints. Writes: open deliveries (sql/queries/fan_out.sql).
Guarantee: an event is fanned out exactly once per matching endpoint; workspaces take turns when more waits than one
batch holds; a filter that runs too long is found and set aside, it stops nobody else's events.
If it dies: the statement rolls back and the events wait for the next worker.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import TOO_SLOW, while_database_returns
from outbox_worker.lane import ALREADY, START_LIMIT
from outbox_worker.model import FannedOut, FanOutAsk, Room
from outbox_worker.reader import LOOKS, Place, Reader

if TYPE_CHECKING:
    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store
    from outbox_worker.wakeup import WakeUp, WakeUps

UNLIMITED = 10_000
"""What the statement says of an endpoint whose row names no limit."""
HANDED_OVER_MOST = 256
"""Deliveries of one fan-out that start at once, and so what its look takes: more of them leave the processor's caches
before they are recorded."""
LITTLE_ROOM = 0.1
"""Share of free slots below which the fan-out waits for more, at most for these seconds."""
ROOM_SECONDS = 0.05
ROOM_SECONDS_FAIR = 0.01
"""While many wait, a lone event may be among them, for an endpoint that has room."""
LITTLE = 200
GATHER_SECONDS = 0.003
"""Wait for more after a look that took so few events: each look and each bell costs as much as for a batch."""
STREAM = 16
STREAM_GATHER_SECONDS = 0.012
"""So many in one look come from publishers at full speed: each look takes from them the processor that they need."""
LISTEN_SECONDS = 0.025
"""While busy, ask so often what other workers have said."""
CONTENT = frozenset({"21", "22", "23", "P0", "XX", "OB"})
"""Classes of SQLSTATE that an event's content can cause: data, constraints, our own refusals, a damaged page."""
DOORBELL_PAUSE = 0.02
"""Wait when a publisher is under way that will not ring, seconds."""


async def fan_out_loop(
    store: Store,
    flights: Flights,
    lanes: Lanes,
    shards: set[int],
    wakeups: WakeUps,
    wanted: asyncio.Queue[WakeUp],
    poll_seconds: float,
    stopping: asyncio.Event,
) -> None:
    """Fan out while there is work; then ask publishers to ring, look once more, from the start if that is quick, and sleep."""
    reader = Reader()
    listen_at = 0.0
    while not stopping.is_set():
        await room_for_some(flights, ROOM_SECONDS_FAIR if reader.fair else ROOM_SECONDS)
        fair = reader.fair
        count = await fan_out_once(store, flights, lanes, shards, reader)
        if fair and not count:  # the look beside the round before told of places that it emptied
            continue
        if count:
            await wakeups.disarm()
            # Not after each look: the next one is to be at the database before what this one brought takes the processor.
            if time.monotonic() >= listen_at:
                pass_on(await wakeups.seen(), wanted)
                listen_at = time.monotonic() + LISTEN_SECONDS
            if (
                count < LITTLE and not reader.fair and not stopping.is_set()
            ):  # what comes meanwhile rings no bell
                await asyncio.sleep(STREAM_GATHER_SECONDS if count >= STREAM else GATHER_SECONDS)
            continue
        reader.sweep_soon()
        armed = await wakeups.arm()
        if armed and await fan_out_once(store, flights, lanes, shards, reader):
            continue
        jitter = 0.75 + random.random() / 2  # noqa: S311  (spreads polls, guards nothing)
        pause = poll_seconds * jitter if armed or not wakeups.listening else DOORBELL_PAUSE
        pass_on(await wakeups.wait(pause), wanted)


async def room_for_some(flights: Flights, seconds: float) -> None:
    """While every slot is taken, deliveries made now would only wait for a claim: leave the events in their queue."""
    if flights.free >= flights.lanes.slots * LITTLE_ROOM or flights.draining:
        return
    flights.room_wanted.clear()
    try:
        async with asyncio.timeout(seconds):
            await flights.room_wanted.wait()
    except TimeoutError:
        return


def pass_on(wakeup: WakeUp, wanted: asyncio.Queue[WakeUp]) -> None:
    if (wakeup.shards or wakeup.balance) and not wanted.full():
        wanted.put_nowait(wakeup)


async def fan_out_once(store: Store, flights: Flights, lanes: Lanes, shards: set[int], reader: Reader) -> int:
    """One batch; returns the number of events taken. Half of the room is left to a claim that others wait for."""
    free = max(flights.free - flights.claiming, 0)
    flights.handing_over = min(free - free // 2 if lanes.ready else free, HANDED_OVER_MOST)
    try:
        return await fan_out_with(store, flights, lanes, shards, reader, flights.handing_over)
    finally:
        flights.handing_over = 0


async def fan_out_with(
    store: Store, flights: Flights, lanes: Lanes, shards: set[int], reader: Reader, free: int
) -> int:
    if starts := reader.starts(time.monotonic()):
        if not reader.knows_places:
            await look_for_places(store, reader, starts)
        else:  # beside the statement, for the next one
            async with asyncio.TaskGroup() as beside:
                beside.create_task(look_for_places(store, reader, starts))
                return await fan_out_known(store, flights, lanes, shards, reader, free)
    return await fan_out_known(store, flights, lanes, shards, reader, free)


async def fan_out_known(
    store: Store, flights: Flights, lanes: Lanes, shards: set[int], reader: Reader, free: int
) -> int:
    sent = time.monotonic()
    ask = reader.ask(sent, free)
    room = Room(sorted(shards), lanes.handed_over_room(sent), int(START_LIMIT), free)
    try:
        result = await ask_database(store, ask, room)
    except (TimeoutError, psycopg.Error) as error:
        return await fan_out_failed(store, reader, ask, error, sent)
    now = time.monotonic()
    reader.learn(ask, result, now - sent)
    if not result.taken:
        return 0
    learn_endpoints(lanes, shards, result)
    flights.start(result.handed_over, sent)
    flights.handing_over = 0  # what is left is the claim's, while the look for places may still be under way
    others: set[int] = set()
    for endpoint_id, shard, due in result.waiting:
        if shard in shards:
            wait = (due - result.found_at).total_seconds()
            lanes.lane(endpoint_id).read_again(due)
            lanes.work_is_due(endpoint_id, now + wait if wait > 0 else ALREADY)
        else:
            others.add(shard)
    if others:
        await while_database_returns(partial(store.notify, "shards:" + ",".join(map(str, sorted(others)))))
    if result.waiting:
        flights.room_changed.set()
    telemetry.event_fanned_out(
        result.events, len(result.handed_over) + len(result.waiting), len(result.handed_over)
    )
    return result.events


async def ask_database(store: Store, ask: FanOutAsk, room: Room) -> FannedOut:
    fan_out = partial(store.fan_out, ask, room)
    try:
        return await while_database_returns(fan_out, but=TOO_SLOW)
    except psycopg.errors.UniqueViolation:  # a replay made one of these deliveries before its fan-out
        return await while_database_returns(partial(fan_out, careful=True), but=TOO_SLOW)


async def fan_out_failed(store: Store, reader: Reader, ask: FanOutAsk, error: Exception, sent: float) -> int:
    """Find whose fault it was, and set that aside; nothing counts as taken if it would fail whatever it read."""
    if isinstance(error, TOO_SLOW):
        now = time.monotonic()
        if not reader.too_slow(ask, now, now - sent):
            reader.batch = max(reader.batch // 2, 10)
            await set_slow_filters_aside(store, reader.batch)
        return 1
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate[:2] not in CONTENT:
        telemetry.statement_failed("fan_out", f"{type(error).__name__}: {sqlstate}")
        reader.fair = False  # an empty fair round would be followed by the next at once
        return 0
    await set_bad_event_aside(store, reader, f"{type(error).__name__}: {sqlstate}")
    return 1


async def look_for_places(store: Store, reader: Reader, starts: list[Place]) -> None:
    """Who waits. An error here ends no fan-out: what an old snapshot keeps may make just this look too slow."""
    sent = time.monotonic()
    try:
        places = await while_database_returns(partial(store.find_places, starts, LOOKS), but=TOO_SLOW)
    except (TimeoutError, psycopg.Error) as error:
        telemetry.statement_failed("find_places", type(error).__name__)
        now = time.monotonic()
        reader.not_found(now, now - sent)
        return
    now = time.monotonic()
    reader.looked(places, now, now - sent)


def learn_endpoints(lanes: Lanes, shards: set[int], result: FannedOut) -> None:
    for endpoint_id, (shard, cap, per_second, changed) in result.endpoints.items():
        if shard in shards:
            lane = lanes.lane(endpoint_id)
            lane.shard = shard
            lane.max_in_flight = min(cap, lanes.endpoint_limit) if cap == UNLIMITED else cap
            lane.max_per_second = per_second
            lanes.state_seen(lane, changed)


async def set_bad_event_aside(store: Store, reader: Reader, text: str) -> None:
    """The database refuses what it finds: halve the batch until one event stands alone, and set that aside."""
    reader.from_the_start()
    if reader.batch > 1:
        reader.batch = max(reader.batch // 2, 1)
        return
    event_id = await while_database_returns(partial(store.call, "set_first_event_aside", text))
    telemetry.event_set_aside(event_id, text)


async def set_slow_filters_aside(store: Store, batch: int) -> None:
    """A batch ran into the deadline: find whose filter it was, by halves, and let it match nothing."""
    try:
        slow = await while_database_returns(partial(store.slow_filters, batch), but=TOO_SLOW)
    except TOO_SLOW as error:  # then it is no filter: the queue itself is slow to read
        telemetry.statement_failed("filtered_endpoints", type(error).__name__)
        return
    for endpoint_id in slow:
        why = "the filter ran past its deadline and matches nothing until it is changed"
        quarantine = partial(store.call, "quarantine_filter", endpoint_id, why)
        try:
            await while_database_returns(quarantine, but=TOO_SLOW)
        except (
            TOO_SLOW
        ) as error:  # somebody has changed it and not committed: the next deadline tells the same
            telemetry.statement_failed("quarantine_filter", type(error).__name__)
        else:
            telemetry.filter_quarantined(endpoint_id)
