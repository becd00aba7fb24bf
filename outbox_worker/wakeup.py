"""Wake-up: LISTEN on a connection of our own and a doorbell that asks publishers to ring; a hint, never data.

Reads: channel outbox_wake. Writes: an advisory lock while this worker sleeps.
Guarantee: a publisher that finds the lock taken notifies at its commit; whoever misses that is found by the poll. While
this connection is gone the worker polls, and tries it again for a fifth of the time at most.
If it dies: the server drops the lock with the session; polling goes on.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from outbox_worker import telemetry
from outbox_worker.database import AWAY, KEEPALIVE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")

DOORBELL = (0x6F757462, 2)  # "outb"; as in outbox.accept_event()
CHANNEL = "outbox_wake"
ARM = b"""
    select pg_try_advisory_lock(%s, %s),
           exists (select from pg_catalog.pg_locks l
                   where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted and l.objsubid = 2
                     and l.classid = 1869968482 and l.objid = 2 and l.pid <> pg_backend_pid()
                     and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))"""


@dataclass(frozen=True, slots=True)
class WakeUp:
    """What the notifications said; all empty after a poll."""

    shards: frozenset[int] = frozenset()
    balance: bool = False


RETRY_SECONDS = 1.0
RETRY_SHARE = 4
"""A connection that was refused is tried again after so long, or so many times as long as the refusal took."""


class WakeUps:
    """Poll only: waits are bounded sleeps."""

    @property
    def listening(self) -> bool:
        """Whether a publisher could be heard."""
        return False

    async def arm(self) -> bool:
        """Ask publishers to ring from now on. False: some publisher is under way that will not; poll soon."""
        return False

    async def disarm(self) -> None:
        return

    async def wait(self, seconds: float) -> WakeUp:
        await asyncio.sleep(seconds)
        return WakeUp()

    async def seen(self) -> WakeUp:
        """What has arrived, without waiting."""
        return WakeUp()


class Listener(WakeUps):
    def __init__(self, conninfo: str, name: str, deadline: float) -> None:
        self.conninfo = conninfo
        self.name = name
        self.deadline = deadline
        self.connection: psycopg.AsyncConnection | None = None
        self.armed = False
        self.lost = False
        self.retry_at = 0.0

    @property
    def listening(self) -> bool:
        return self.connection is not None and not self.connection.closed

    async def unless_lost(self, call: Callable[[], Awaitable[T]], otherwise: T) -> T:
        """Do it; while the connection is gone, which is said once, give what a worker without one would."""
        started = time.monotonic()
        if not self.listening and started < self.retry_at:
            return otherwise
        try:
            result = await call()
        except AWAY as error:
            if not self.lost:
                telemetry.listener_lost(f"{type(error).__name__}: {error}".split("\n")[0])
            self.lost = True
            ended = time.monotonic()
            self.retry_at = ended + max(RETRY_SECONDS, RETRY_SHARE * (ended - started))
            return otherwise
        if self.lost:
            telemetry.listener_recovered()
        self.lost = False
        return result

    async def connected(self) -> psycopg.AsyncConnection:
        if self.connection is None or not self.listening:
            self.armed = False
            conninfo = make_conninfo(
                self.conninfo, application_name=f"outbox-listen {self.name}"[:60], **KEEPALIVE
            )
            async with asyncio.timeout(self.deadline):
                fresh = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
                try:
                    await fresh.execute(f"listen {CHANNEL}".encode())
                except BaseException:  # canceled too: a connection that does not listen must not be kept
                    await fresh.close()
                    raise
            self.connection = fresh
        return self.connection

    async def arm(self) -> bool:
        """True too when another worker holds the doorbell: publishers ring, and everybody listens."""
        return await self.unless_lost(self.take, otherwise=False)

    async def take(self) -> bool:
        connection = await self.connected()
        if not self.armed:
            row = await self.ask(connection, ARM, DOORBELL)
            self.armed = bool(row[0])
            return self.armed or bool(row[1])
        return True

    async def disarm(self) -> None:
        if self.armed and self.listening:
            await self.unless_lost(self.give_up, None)

    async def give_up(self) -> None:
        await self.ask(await self.connected(), b"select pg_advisory_unlock(%s, %s)", DOORBELL)
        self.armed = False

    async def ask(
        self, connection: psycopg.AsyncConnection, text: bytes, key: tuple[int, int]
    ) -> tuple[Any, ...]:
        """One row, or no connection any more: a session's lock is counted, and must not be left behind."""
        try:
            async with asyncio.timeout(self.deadline):
                cursor = await connection.execute(text, key)
                return await cursor.fetchone() or (False, False)
        except BaseException:  # canceled too: only closing gives up a lock that may or may not be held
            await connection.close()
            raise

    async def wait(self, seconds: float) -> WakeUp:
        wakeup = await self.unless_lost(partial(self.collect, seconds), None)
        return await super().wait(seconds) if wakeup is None else wakeup

    async def seen(self) -> WakeUp:
        return await self.unless_lost(partial(self.collect, 0), WakeUp())

    async def collect(self, seconds: float) -> WakeUp:
        connection = await self.connected()
        payloads = [notify.payload async for notify in connection.notifies(timeout=seconds, stop_after=1)]
        shards: set[int] = set()
        for payload in payloads:
            if payload.startswith("shards:"):
                shards.update(
                    int(part) for part in payload.removeprefix("shards:").split(",") if part.isdigit()
                )
        return WakeUp(frozenset(shards), "balance" in payloads)

    async def close(self) -> None:
        if self.connection is not None:
            with suppress(psycopg.Error):
                await self.connection.close()


@asynccontextmanager
async def open_wakeups(
    conninfo: str, *, poll_only: bool, name: str, deadline: float
) -> AsyncIterator[WakeUps]:
    if poll_only:
        yield WakeUps()
        return
    listener = Listener(conninfo, name, deadline)
    try:
        yield listener
    finally:
        await listener.close()
