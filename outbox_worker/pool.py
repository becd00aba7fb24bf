"""Pool: connections that are kept for a while, by scheme, host name and port.

Reads: nothing. Writes: nothing of its own.
Guarantee: a connection lives at most `age_seconds`, idle at most `idle_seconds`, so that a change of DNS or of the
deny list bites; a host has at most `max_per_host` requests in flight; every connection is closed at the end.
If it dies: connections close.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from outbox_worker.connection import Answer, Bounds, Connection
from outbox_worker.model import Failure
from outbox_worker.resolver import Dialer, ExchangeError

if TYPE_CHECKING:
    from outbox_worker.connection import Key
    from outbox_worker.egress import Target


class ConnectionPool:
    """Connections by scheme, host name and port: kept for a while, never shared between names."""

    def __init__(self, dialer: Dialer, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._loop = asyncio.get_running_loop()
        self._dialer = dialer
        self._idle: dict[Key, list[Connection]] = {}
        self._by_idleness: dict[Connection, None] = {}  # the longest idle first
        self._sweeper: asyncio.TimerHandle | None = None
        self._in_flight: dict[str, int] = {}
        self._open: set[Connection] = set()
        self._all_closed: asyncio.Future[None] | None = None

    def in_flight(self, host: str) -> int:
        return self._in_flight.get(host, 0)

    async def exchange(self, target: Target, message: bytes, *, timeout_seconds: float) -> Answer:
        """Write the message, whole, and return the answer to it. Raises ExchangeError, EgressRefused."""
        host = target.host
        busy = self._in_flight.get(host, 0)
        if busy >= self.bounds.max_per_host or self._all_closed is not None:
            raise ExchangeError(
                Failure.LOCAL, f"connecting to {host}:{target.port}: {busy} in flight, the limit of a host"
            )
        deadline = self._loop.time() + timeout_seconds
        self._in_flight[host] = busy + 1
        try:
            key = (target.scheme, host, target.port)
            connection = self._kept(key)
            if connection is None:
                until = min(deadline, self._loop.time() + self.bounds.connect_seconds)
                connection = await self._dialer.dial(target, until, partial(Connection, key, self))
            answer = await connection.exchange(message, deadline)
            if connection.reusable:
                self._keep(connection)
            return answer
        finally:
            busy = self._in_flight[host] - 1
            if busy:
                self._in_flight[host] = busy
            else:
                del self._in_flight[host]

    async def aclose(self) -> None:
        """Close every connection; what is in flight breaks off."""
        if self._all_closed is None:
            self._all_closed = self._loop.create_future()
            if self._sweeper is not None:
                self._sweeper.cancel()
            for connection in tuple(self._open):
                connection.close()
            if self._open:
                await self._all_closed

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        if self._all_closed is not None:
            connection.close()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._all_closed is not None and not self._open and not self._all_closed.done():
            self._all_closed.set_result(None)

    def _kept(self, key: Key) -> Connection | None:
        now = self._loop.time()
        connections = self._idle.get(key, [])
        while connections:
            connection = connections.pop()
            del self._by_idleness[connection]
            if not connections:
                del self._idle[key]
            if connection.usable(now):
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        connection.idle_since = self._loop.time()
        self._idle.setdefault(connection.key, []).append(connection)
        self._by_idleness[connection] = None
        if len(self._by_idleness) > self.bounds.max_idle:
            self._drop(next(iter(self._by_idleness)))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self.bounds.idle_seconds, self._sweep)

    def _drop(self, connection: Connection) -> None:
        del self._by_idleness[connection]
        kept = self._idle[connection.key]
        kept.remove(connection)
        if not kept:
            del self._idle[connection.key]
        connection.close()

    def _sweep(self) -> None:
        oldest = self._loop.time() - self.bounds.idle_seconds
        while self._by_idleness and (first := next(iter(self._by_idleness))).idle_since <= oldest:
            self._drop(first)
        self._sweeper = None
        if self._by_idleness:
            waits = next(iter(self._by_idleness)).idle_since - oldest
            self._sweeper = self._loop.call_later(waits, self._sweep)
