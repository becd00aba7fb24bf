"""Presence: this process's number, its heartbeat, and the shards of endpoints that it owns.

Reads and writes: worker_processes, shards.
Guarantee: a shard has one owner at a time; a worker whose heartbeat is late stops starting requests before anybody
else may own its shards, by the monotonic clock.
If it dies: its presence expires and the others take its shards.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from outbox_worker import telemetry
from outbox_worker.database import while_database_returns
from outbox_worker.errors import RestoredCopy
from outbox_worker.sweep import sweep

if TYPE_CHECKING:
    from outbox_worker.flights import Flights
    from outbox_worker.limits import Lanes
    from outbox_worker.store import Store


class Presence:
    def __init__(self, *, name: str, version: str, seconds: float) -> None:
        self.name = name
        self.version = version
        self.seconds = seconds
        self.until = 0.0  # monotonic
        self.shards: set[int] = set()  # owned; the same set for every loop
        self.leaving: set[int] = set()  # fallen to others, to be released when nothing is in flight there
        self.held: set[int] = set()  # owned or leaving, until the release is asked for: requests may start
        self.wanted = asyncio.Event()
        self.refused: RestoredCopy | None = None  # nobody may send from this database; the process ends

    async def renew_once(self, store: Store, lanes: Lanes) -> None:
        sent = time.monotonic()
        if store.worker_no == 0 or not await store.renew(lanes.in_flight, self.seconds):
            if store.worker_no:
                telemetry.presence_lost(store.worker_no)
            self.shards.clear()
            self.leaving.clear()
            self.held.clear()
            sent = time.monotonic()
            await store.register(self.name, self.version, lanes.slots, self.seconds)
            await store.notify("balance")
        self.until = sent + self.seconds

    async def balance_once(self, store: Store, lanes: Lanes) -> set[int]:
        """Release what fell to others and is quiet, take what fell to us; returns the shards gained."""
        released = sorted(self.leaving - lanes.shards_in_flight())
        self.held.difference_update(
            released
        )  # before the call: a claim that comes back during it starts nothing
        rows = await store.balance(released)
        mine = {shard: heir for shard, owner, heir in rows if owner == store.worker_no}
        self.leaving = {shard for shard, heir in mine.items() if heir != store.worker_no}
        keep = set(mine) - self.leaving
        self.held = set(mine)
        gained = keep - self.shards
        if keep != self.shards:
            telemetry.shards_changed(len(keep))
            self.shards.clear()
            self.shards.update(keep)
            lanes.keep_only(keep)
        if released:
            await store.notify("balance")
        return gained


async def presence_loop(
    store: Store,
    presence: Presence,
    flights: Flights,
    lanes: Lanes,
    stopped: asyncio.Event,
    stopping: asyncio.Event,
) -> None:
    """Until the last request has ended: a draining worker is still present. One that is refused asks to stop."""
    while not stopped.is_set():
        await while_database_returns(partial(renew_and_balance, store, presence, flights, lanes))
        if presence.refused:
            stopping.set()
            return
        presence.wanted.clear()
        try:
            async with asyncio.timeout(0.2 if presence.leaving else presence.seconds / 6):
                await presence.wanted.wait()
        except TimeoutError:
            continue


async def renew_and_balance(store: Store, presence: Presence, flights: Flights, lanes: Lanes) -> None:
    try:
        await presence.renew_once(store, lanes)
    except RestoredCopy as refused:
        presence.refused = refused
        return
    gained = await presence.balance_once(store, lanes)
    if gained:
        await sweep(store, flights, lanes, sorted(gained))
