"""Wake-up: LISTEN on a connection of our own and a doorbell that asks publishers to ring; a hint, never data.

Reads: channel outbox_wake. Writes: an advisory lock while this worker sleeps.
Guarantee: a publisher that finds the lock taken notifies at its commit; whoever misses that is found by the poll.
If it dies: the server drops the lock with the session; polling goes on.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from outbox_worker.database import KEEPALIVE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DOORBELL = (0x6F757462, 2)  # "outb"; as in outbox.accept_event()
CHANNEL = "outbox_wake"


@dataclass(frozen=True, slots=True)
class WakeUp:
    """What the notifications said; all empty after a poll."""

    events: bool = False
    shards: frozenset[int] = frozenset()
    balance: bool = False


class WakeUps:
    """Poll only: waits are bounded sleeps."""

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

    async def connected(self) -> psycopg.AsyncConnection:
        if self.connection is None or self.connection.closed:
            self.armed = False
            async with asyncio.timeout(self.deadline):
                conninfo = make_conninfo(
                    self.conninfo, application_name=f"outbox-listen {self.name}"[:60], **KEEPALIVE
                )
                self.connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
                await self.connection.execute(f"listen {CHANNEL}".encode())
        return self.connection

    async def arm(self) -> bool:
        connection = await self.connected()
        if not self.armed:
            async with asyncio.timeout(self.deadline):
                cursor = await connection.execute("select pg_try_advisory_lock(%s, %s)", DOORBELL)
                row = await cursor.fetchone()
            self.armed = bool(row and row[0])
        return self.armed

    async def disarm(self) -> None:
        if self.armed and self.connection is not None and not self.connection.closed:
            self.armed = False
            async with asyncio.timeout(self.deadline):
                await self.connection.execute("select pg_advisory_unlock(%s, %s)", DOORBELL)

    async def wait(self, seconds: float) -> WakeUp:
        return await self.collect(seconds)

    async def seen(self) -> WakeUp:
        return await self.collect(0)

    async def collect(self, seconds: float) -> WakeUp:
        connection = await self.connected()
        payloads = [notify.payload async for notify in connection.notifies(timeout=seconds, stop_after=1)]
        shards: set[int] = set()
        for payload in payloads:
            if payload.startswith("shards:"):
                shards.update(
                    int(part) for part in payload.removeprefix("shards:").split(",") if part.isdigit()
                )
        return WakeUp("" in payloads, frozenset(shards), "balance" in payloads)

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
