"""A worker with one of its choices undone: `python -m tests.bench.variant CHOICE`, for tests.bench.choices.

Reads: the OUTBOX_ settings. Writes: what a worker writes.
Guarantee: everything but the named choice is the product's own; an unknown name is an error.
If it is wrong: the README's Decisions quote figures of another worker.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from contextlib import asynccontextmanager

import httpx
import psycopg
import uvloop

from outbox_worker import database, fan_out, settings, settle, sqlfiles, telemetry, worker
from outbox_worker.cli.run import collect_seldom
from outbox_worker.lane import BEGINNING
from outbox_worker.limits import Lanes
from outbox_worker.store import Store
from outbox_worker.transport import Transport
from tests.bench.instant import send


def as_it_is() -> None:
    collect_seldom()


def collector_as_python_has_it() -> None:
    gc.enable()


def asyncio_loop() -> None:
    collect_seldom()
    uvloop.run = asyncio.run


def one_settlement_a_statement() -> None:
    collect_seldom()
    settle.MOST_AT_ONCE = 1


def nothing_handed_over() -> None:
    """Every delivery is inserted as pending and claimed by a second statement."""
    collect_seldom()
    fan_out.START_LIMIT = 0
    Lanes.handed_over_room = lambda self, _now: {  # type: ignore[method-assign]
        endpoint_id: (0, lane.in_flight) for endpoint_id, lane in self.lanes.items()
    }


def nothing_prepared() -> None:
    collect_seldom()
    configured = database.AsyncConnectionPool

    class Unprepared(configured):  # type: ignore[misc, valid-type]
        def __init__(self, *words, configure=None, **named) -> None:
            async def unprepared(connection) -> None:
                await configure(connection)
                connection.prepare_threshold = 1_000_000

            super().__init__(*words, configure=unprepared, **named)

    database.AsyncConnectionPool = Unprepared


def text_results() -> None:
    collect_seldom()

    async def as_text(self, name, /, **parameters):
        async with database.borrow(self.pool, self.deadline) as connection:
            text, names = sqlfiles.statement(name)
            cursor = psycopg.AsyncRawCursor(connection)
            await cursor.execute(text, [parameters[one] for one in names])
            return await cursor.fetchall() if cursor.description else []

    Store.rows = as_text  # type: ignore[method-assign]


def settle_not_flushed() -> None:
    """A settlement that a crash of the server may undo: it would be a recorded lost lease and a duplicate."""
    collect_seldom()
    database.SESSION["synchronous_commit"] = "off"


def no_low_water_marks() -> None:
    collect_seldom()
    claim = Store.claim

    async def from_the_start(self, asks):
        for lane, _ in asks:
            lane.read_again(BEGINNING)
        return await claim(self, asks)

    Store.claim = from_the_start  # type: ignore[method-assign]


def httpx_own_pool() -> None:
    """No egress guard: httpx cannot be told which address to connect to."""
    collect_seldom()

    @asynccontextmanager
    async def open_transport(policy, *, bounds, **_named):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=1024)
        transport = Transport(httpx.AsyncHTTPTransport(limits=limits), policy)
        yield transport
        await transport.aclose()

    worker.open_transport = open_transport


def aiohttp_below() -> None:
    """The connections of aiohttp below httpx's interface; the guard would be its resolver."""
    collect_seldom()
    import aiohttp  # noqa: PLC0415  (only where it is installed)

    class Below(httpx.AsyncBaseTransport):
        def __init__(self) -> None:
            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )

        async def handle_async_request(self, request):
            async with self.session.post(
                str(request.url),
                data=await request.aread(),
                headers=dict(request.headers),
                allow_redirects=False,
            ) as answer:
                body = await answer.content.read(16 * 1024)
                return httpx.Response(
                    answer.status, headers=answer.raw_headers, stream=httpx.ByteStream(body)
                )

        async def aclose(self) -> None:
            await self.session.close()

    @asynccontextmanager
    async def open_transport(policy, *, bounds, **_named):
        transport = Transport(Below(), policy)
        yield transport
        await transport.aclose()

    worker.open_transport = open_transport


CHOICES = {
    undone.__name__: undone
    for undone in (
        as_it_is, collector_as_python_has_it, asyncio_loop, one_settlement_a_statement, nothing_handed_over,
        nothing_prepared, text_results, settle_not_flushed, no_low_water_marks, httpx_own_pool, aiohttp_below,
    )
}  # fmt: skip


if __name__ == "__main__":
    CHOICES[sys.argv[1]]()
    loaded = settings.load()
    telemetry.configure(loaded.log_level)
    without_http = {"send": send} if sys.argv[2:] == ["instant"] else {}
    uvloop.run(worker.run(loaded, name=f"{socket.gethostname()}:{os.getpid()}", **without_http))
