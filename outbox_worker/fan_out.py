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
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.database import while_database_returns
from outbox_worker.lane import ALREADY, START_LIMIT
from outbox_worker.model import FannedOut, FanOutAsk, Room
from outbox_worker.wakeup import WakeUp, WakeUps

if TYPE_CHECKING:
    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store

BATCH = 400
SMALLEST = 16
"""Events taken however little room there is: what nobody here has room for may be another worker's."""
BUCKETS = 256
UNLIMITED = 10_000
"""What the statement says of an endpoint whose row names no limit."""
PRIORITIES = 3
TOO_SLOW = (psycopg.errors.QueryCanceled, TimeoutError)
RING = [
    place
    for i in range(BUCKETS)
    for place in ((0, i), (1, i), (0, (i + BUCKETS // 2) % BUCKETS), *((p, i) for p in range(2, PRIORITIES)))
]
"""Places, priority and bucket, that the fair rounds look into for one event each, beside those known to be full:
a part of the ring each round, urgent ones twice in a cycle."""
SWEEP_PAUSE_MOST = 5.0
"""Longest wait, in seconds, between two looks from the start of the queue, also after an outage of the database."""
LITTLE_ROOM = 0.1
"""Share of free slots below which the fan-out waits for more, at most ROOM_SECONDS."""
ROOM_SECONDS = 0.05
DOORBELL_PAUSE = 0.02
"""Wait when a publisher is under way that will not ring, seconds."""


class Reader:
    """How far the queue was read: marks above which nothing is dead, and who is known to wait."""

    def __init__(self) -> None:
        self.batch = BATCH  # most events at once; less after a batch that ran too long
        self.per_event = 1.0  # deliveries an event makes, lately
        self.mark = 0
        self.marks: dict[tuple[int, int], int] = {}
        self.full: deque[tuple[int, int]] = deque()
        self.fair = False
        self.place = random.randrange(len(RING))  # noqa: S311  (workers start at different places, guards nothing)
        self.swept_at = 0.0
        self.sweep_pause = 0.25
        self.looks_left = 0
        self.cycle_count = 0

    def from_the_start(self) -> None:
        self.fair = False
        self.mark = 0

    def ask(self, now: float, free: int) -> FanOutAsk:
        """What to take next. From time to time from the start: sequences commit out of order."""
        if now - self.swept_at >= self.sweep_pause:
            self.mark = 0
            self.marks.clear()
            self.swept_at = now
        batch = (
            min(self.batch, max(int(free / self.per_event), SMALLEST))
            if self.batch > SMALLEST
            else self.batch
        )
        if not self.fair:
            return FanOutAsk(fair=False, mark=self.mark, batch=batch)
        looks = min(max(batch // 2, 1), len(RING))
        shares = {RING[(self.place + i) % len(RING)]: 1 for i in range(looks)}
        self.place = (self.place + looks) % len(RING)
        left = batch - looks
        quota = max(1, left // max(1, len(self.full)))
        self.full.rotate(-left)  # with more of them than events to take they take turns
        for place in list(self.full)[:left]:
            shares[place] = quota if place[0] < PRIORITIES - 1 else max(1, quota // 2)
        return FanOutAsk(
            fair=True,
            mark=0,
            batch=batch,
            shares=[(*place, self.marks.get(place, 0), share) for place, share in sorted(shares.items())],
        )

    def learn(self, ask: FanOutAsk, result: FannedOut, seconds: float) -> None:
        """Move the marks; turn to fair rounds while more waits than one batch holds."""
        self.batch = min(self.batch + 10, BATCH)
        if result.taken:
            made = len(result.handed_over) + len(result.waiting)
            self.per_event += (max(made / len(result.taken), 1.0) - self.per_event) / 8
        if not ask.fair:
            self.mark = max([self.mark, *(seq for seq, _, _ in result.taken)])
            if ask.mark == 0:
                self.sweep_pause = min(max(0.25, 20 * seconds), SWEEP_PAUSE_MOST)
            if len(result.taken) >= ask.batch:
                self.fair = True
                self.looks_left = len(RING)
                self.cycle_count = 0
            return
        self.learn_fair(ask, result)

    def learn_fair(self, ask: FanOutAsk, result: FannedOut) -> None:
        counts: dict[tuple[int, int], int] = {}
        for seq, bucket, priority in result.taken:
            place = (priority, bucket)
            counts[place] = counts.get(place, 0) + 1
            self.marks[place] = max(self.marks.get(place, 0), seq)
        known = set(self.full)
        for priority, bucket, _, quota in ask.shares:
            place = (priority, bucket)
            if counts.get(place, 0) < quota:
                known.discard(place)
            elif place not in known:
                self.full.append(place)
                known.add(place)
        self.full = deque(place for place in self.full if place in known)
        self.cycle_count += len(result.taken)
        self.looks_left -= max(ask.batch // 2, 1)
        if self.looks_left <= 0:  # every bucket was looked into once
            self.fair = self.cycle_count >= ask.batch
            self.looks_left = len(RING)
            self.cycle_count = 0
        if not result.taken:  # little waits, if anything: a plain look finds it at once
            self.fair = False


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
    """Fan out while there is work; then ask publishers to ring, look once more, and sleep."""
    reader = Reader()
    while not stopping.is_set():
        await room_for_some(flights)
        count = await fan_out_once(store, flights, lanes, shards, reader)
        if count:
            await while_database_returns(wakeups.disarm)
            pass_on(await while_database_returns(wakeups.seen), wanted)
            continue
        armed = await while_database_returns(wakeups.arm)
        if armed and await fan_out_once(store, flights, lanes, shards, reader):
            continue
        jitter = 0.75 + random.random() / 2  # noqa: S311  (spreads polls, guards nothing)
        pause = poll_seconds * jitter if armed or type(wakeups) is WakeUps else DOORBELL_PAUSE
        pass_on(await while_database_returns(partial(wakeups.wait, pause)), wanted)


async def room_for_some(flights: Flights) -> None:
    """While every slot is taken, deliveries made now would only wait for a claim: leave the events in their queue."""
    if flights.free >= flights.lanes.slots * LITTLE_ROOM or flights.draining:
        return
    flights.room_wanted.clear()
    try:
        async with asyncio.timeout(ROOM_SECONDS):
            await flights.room_wanted.wait()
    except TimeoutError:
        return


def pass_on(wakeup: WakeUp, wanted: asyncio.Queue[WakeUp]) -> None:
    if (wakeup.shards or wakeup.balance) and not wanted.full():
        wanted.put_nowait(wakeup)


async def fan_out_once(store: Store, flights: Flights, lanes: Lanes, shards: set[int], reader: Reader) -> int:
    """One batch; returns the number of events taken. Half of the room is left to a claim that others wait for."""
    free = max(flights.free - flights.claiming, 0)
    flights.handing_over = free - free // 2 if lanes.ready else free
    try:
        return await fan_out_with(store, flights, lanes, shards, reader, flights.handing_over)
    finally:
        flights.handing_over = 0


async def fan_out_with(
    store: Store, flights: Flights, lanes: Lanes, shards: set[int], reader: Reader, free: int
) -> int:
    sent = time.monotonic()
    ask = reader.ask(sent, free)
    room = Room(sorted(shards), lanes.handed_over_room(sent), int(START_LIMIT), free)
    fan_out = partial(store.fan_out, ask, room)
    try:
        try:
            result = await while_database_returns(fan_out, but=TOO_SLOW)
        except psycopg.errors.UniqueViolation:  # a replay made one of these deliveries before its fan-out
            result = await while_database_returns(partial(fan_out, careful=True), but=TOO_SLOW)
    except TOO_SLOW:
        reader.batch = max(reader.batch // 2, 10)
        await set_slow_filters_aside(store, reader.batch)
        return 1
    except psycopg.Error as error:
        await set_bad_event_aside(store, reader, error)
        return 1
    now = time.monotonic()
    reader.learn(ask, result, now - sent)
    if not result.taken:
        return 0
    learn_endpoints(lanes, shards, result)
    flights.start(result.handed_over, sent)
    others: set[int] = set()
    for endpoint_id, shard, due in result.waiting:
        if shard in shards:
            wait = (due - result.found_at).total_seconds()
            lanes.work_is_due(endpoint_id, now + wait if wait > 0 else ALREADY)
        else:
            others.add(shard)
    if others:
        await while_database_returns(partial(store.notify, "shards:" + ",".join(map(str, sorted(others)))))
    if result.waiting:
        flights.room_changed.set()
    telemetry.event_fanned_out(
        len(result.taken), len(result.handed_over) + len(result.waiting), len(result.handed_over)
    )
    return len(result.taken)


def learn_endpoints(lanes: Lanes, shards: set[int], result: FannedOut) -> None:
    for endpoint_id, (shard, cap, per_second, changed) in result.endpoints.items():
        if shard in shards:
            lane = lanes.lane(endpoint_id)
            lane.shard = shard
            lane.max_in_flight = min(cap, lanes.endpoint_limit) if cap == UNLIMITED else cap
            lane.max_per_second = per_second
            lanes.state_seen(lane, changed)


async def set_bad_event_aside(store: Store, reader: Reader, error: psycopg.Error) -> None:
    """The database refuses what it finds: halve the batch until one event stands alone, and set that aside."""
    reader.from_the_start()
    if reader.batch > 1:
        reader.batch = max(reader.batch // 2, 1)
        return
    text = f"{type(error).__name__}: {error.sqlstate}"
    event_id = await while_database_returns(partial(store.call, "set_first_event_aside", text))
    telemetry.event_set_aside(event_id, text)


async def set_slow_filters_aside(store: Store, batch: int) -> None:
    """A batch ran into the deadline: find whose filter it was, by halves, and let it match nothing."""
    for endpoint_id in await while_database_returns(partial(store.slow_filters, batch)):
        await while_database_returns(
            partial(
                store.call,
                "quarantine_filter",
                endpoint_id,
                "the filter ran past its deadline and matches nothing until it is changed",
            )
        )
        telemetry.filter_quarantined(endpoint_id)
