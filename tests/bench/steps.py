"""Single steps of the worker, driven by hand with fixed batches: no HTTP, no loops, no timers.

Reads: a place's database as worker_login. Writes: what the step writes.
Guarantee: the same steps on the same rows make the same statements and, but for the ids, the same rows.
If it is wrong: the regression check of the costs guards nothing.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outbox_worker import telemetry
from outbox_worker.backoff import DEFAULT_SCHEDULE
from outbox_worker.claim import claim_once
from outbox_worker.database import open_pool
from outbox_worker.endpoint_book import EndpointBook, Entry
from outbox_worker.fan_out import fan_out_once, fan_out_with
from outbox_worker.flights import Flights
from outbox_worker.lane import MOMENTS_A_SECOND
from outbox_worker.limits import Lanes
from outbox_worker.model import Endpoint, Outcome, Request
from outbox_worker.reader import Reader
from outbox_worker.settle import settle_once
from outbox_worker.store import Store
from outbox_worker.sweep import sweep_once
from outbox_worker.vault import Keyring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outbox_worker.rows import Row

SHARDS = range(64)
SECRET = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
HEADERS = ((b"content-type", b"text/plain"), (b"server", b"nginx"), (b"content-length", b"2"))


async def answer_at_once(_request: Request) -> Outcome:
    return Outcome(200, None, "", HEADERS, b"ok", 1.0)


class TimedStore(Store):
    """A store that knows how long statements of it were under way, from the call to the last row."""

    seconds = 0.0
    under_way = 0
    began = 0.0

    async def rows(self, name: str, /, **parameters: object) -> list[Row]:
        if not self.under_way:
            self.began = time.perf_counter()
        self.under_way += 1
        try:
            return await super().rows(name, **parameters)
        finally:
            self.under_way -= 1
            if not self.under_way:
                self.seconds += time.perf_counter() - self.began


@dataclass
class Steps:
    store: TimedStore
    flights: Flights
    lanes: Lanes
    reader: Reader

    async def fan_out(self) -> int:
        return await fan_out_once(self.store, self.flights, self.lanes, set(SHARDS), self.reader)

    async def fan_out_whole(self) -> int:
        """As far as there are slots, not as many as a worker hands over at once."""
        free = self.flights.free
        return await fan_out_with(self.store, self.flights, self.lanes, set(SHARDS), self.reader, free)

    async def claim(self) -> int:
        return await claim_once(self.store, self.flights, self.lanes)

    async def landed(self) -> None:
        """Let every delivery in flight get its answer."""
        while self.lanes.in_flight:  # noqa: ASYNC110  (not a wait: the answers are there)
            await asyncio.sleep(0)

    async def settle(self) -> int:
        waiting = len(self.flights.unsettled)
        locked = await settle_once(self.store, self.flights, self.lanes)
        return waiting - len(self.flights.unsettled) - len(locked)

    async def sweep(self) -> int:
        found = await sweep_once(self.store, self.flights, self.lanes, list(SHARDS))
        await asyncio.sleep(1 / MOMENTS_A_SECOND)  # due times are rounded up
        return found


@asynccontextmanager
async def open_steps(dsn: str, *, slots: int = 1000, endpoint_limit: int = 128) -> AsyncIterator[Steps]:
    """Take all shards; hold endpoints with a known secret, since opening sealed ones is not what is measured."""
    telemetry.configure("warning")
    async with open_pool(dsn, poll_only=False, deadline=600.0, name="bench") as pool:
        store = TimedStore(pool, lease_seconds=3600.0, deadline=600.0)
        await store.register("bench:0", "bench", slots, 3600.0)
        await store.balance([])
        lanes = Lanes(slots=slots, endpoint_limit=endpoint_limit, host_limit=slots, suspect_share=0.2)
        book = EndpointBook(store, Keyring({}), 15.0)
        flights = Flights(
            lanes=lanes,
            book=book,
            send=answer_at_once,
            lease_seconds=3600.0,
            margin_seconds=5.0,
            presence_until=lambda: time.monotonic() + 3600,
        )
        async with store.pool.connection() as connection:
            cursor = await connection.execute(
                "select e.endpoint_id, e.workspace_id, e.url from outbox.endpoints e"
            )
            for endpoint_id, workspace_id, url in await cursor.fetchall():
                endpoint = Endpoint(
                    endpoint_id,
                    workspace_id,
                    1,
                    url,
                    (SECRET,),
                    (),
                    15.0,
                    DEFAULT_SCHEDULE,
                    "Edesy-Signature",
                )
                book.entries[endpoint_id] = Entry(endpoint, float("inf"))
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            owner = tasks.create_task(flights.fly(stopped))
            await asyncio.sleep(0)  # it begins
            try:
                yield Steps(store, flights, lanes, Reader())
            finally:
                stopped.set()
                await owner
        await store.stop_worker()
        book.opener.shutdown()
