"""Exchange one request for one answer over a checked connection: connect, keep alive, read within bounds.

Reads: the resolver's addresses, the receiver's bytes. Writes: one request's bytes, once, to one receiver.
Guarantee: no byte goes to an address that the policy refuses; every exchange ends by its deadline with an
answer or one ExchangeError; memory per exchange is bounded; nothing that was sent is sent again.
If it crashes: connections close, receivers may have acted on what was sent, the leases expire.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import httptools

from outbox_worker.model import Failure
from outbox_worker.resolver import ExchangeError

if TYPE_CHECKING:
    import socket

    from outbox_worker.pool import ConnectionPool

    Key = tuple[str, str, int]

MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADER_COUNT: Final = 256
_TOO_LARGE: Final = f"more than {MAX_HEADER_COUNT} headers or {MAX_HEADER_BYTES} bytes before the body"
# Framing that a receiver may put around the bytes that are kept: chunk sizes, extensions, trailers.
_FRAMING_FACTOR: Final = 8


class Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes  # the first bytes, undecoded
    complete: bool  # False: the body was longer, slower or shorter than it should be; the status counts


@dataclass(frozen=True, slots=True)
class Bounds:
    connect_seconds: float = 5.0  # lookup, TCP and TLS together
    body_seconds: float = 2.0  # reading a body, once the status is known
    body_bytes: int = 16 * 1024
    idle_seconds: float = 15.0
    age_seconds: float = 300.0
    max_idle: int = 1_024
    max_per_host: int = 256


class Connection(asyncio.Protocol):
    """One connection and the answer that is arriving on it. The parser calls the `on_` methods."""

    def __init__(self, key: Key, pool: ConnectionPool, sock: socket.socket) -> None:
        self.key = key
        self.closed = False
        self.reusable = False
        self._loop = asyncio.get_running_loop()
        self.expires = self._loop.time() + pool.bounds.age_seconds
        self.idle_since = 0.0
        self._said = select.poll()
        self._said.register(sock, select.POLLIN)  # an end or an error is told in any case
        self._bounds = pool.bounds
        self._pool = pool
        self._waiter: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._parser = httptools.HttpResponseParser(self)

    async def exchange(self, message: bytes, deadline: float) -> Answer:
        if self.closed:
            where = f"connecting to {self.key[1]}:{self.key[2]}"
            raise ExchangeError(Failure.CONNECT_ERROR, f"{where}: closed before the request was sent")
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._deadline = deadline
        self._timer = self._loop.call_at(deadline, self._expire)
        self._answered = self._final = self._body_timed = self._keep_alive = self.reusable = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_room = self._bounds.body_bytes
        self._room = MAX_HEADER_BYTES
        self._fault = ""
        self._transport.write(message)
        answer = None
        try:
            answer = await waiter
            return answer
        finally:
            self._timer.cancel()
            self._waiter = None
            # A cancellation can arrive after the answer: then nobody keeps the connection.
            if answer is None or not self.reusable:
                self.close()

    def usable(self, now: float) -> bool:
        """Whether a request may be written: alive, young enough, and the receiver has said nothing since.

        The socket itself is asked, because the loop may not have come round to an end that is already here.
        """
        if self.closed or now >= self.expires:
            return False
        return not self._said.poll(0)

    def close(self) -> None:
        """Close at once: `abort`, since a polite end would wait for the receiver."""
        self.closed = True
        self.reusable = False
        self._transport.abort()

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport, as asyncio types it
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._answered:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(Failure.PROTOCOL, self._fault or f"the answer is not HTTP/1.1 ({error})")
            self.close()
            return
        if self._final and not self._answered and not self._body_timed:  # most bodies come with their status
            self._body_timed = True
            self._timer.cancel()
            until = min(self._deadline, self._loop.time() + self._bounds.body_seconds)
            self._timer = self._loop.call_at(until, self._expire)
        # Counted here too, because the parser keeps an unfinished header or trailer to itself.
        self._room -= len(data)
        if self._room < 0:
            self._break(Failure.PROTOCOL, _TOO_LARGE)

    def eof_received(self) -> None:
        self.closed = True
        self._break(Failure.AMBIGUOUS, "the connection was closed before an answer was complete")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.reusable = False
        if isinstance(exc, ssl.SSLError):
            self._break(Failure.TLS, f"TLS broke off ({exc.reason})")
        else:
            self._break(Failure.AMBIGUOUS, "the connection was reset before an answer was complete")
        del self._parser  # it holds bound methods of ours
        self._pool.lost(self)

    # What the parser reports.

    def on_message_begin(self) -> None:
        if self._answered:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._final:
            return  # a trailer
        self._header_bytes += len(name) + len(value)
        self._headers.append((name, value))
        if self._header_bytes > MAX_HEADER_BYTES or len(self._headers) > MAX_HEADER_COUNT:
            self._refuse(_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if version not in {"1.1", "1.0"} or status < 100:
            self._refuse(f"the answer is not HTTP/1.1 (version {version}, status {status})")
        if status < 200:
            self._headers.clear()
            self._header_bytes = 0
            return
        self._final = True
        self._room = _FRAMING_FACTOR * (self._bounds.body_bytes + MAX_HEADER_BYTES)
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if self._answered:
            return
        self._body.append(data[: self._body_room])
        self._body_room -= len(data)
        if self._body_room < 0:
            self._finish(complete=False)

    def on_message_complete(self) -> None:
        if self._final and not self._answered:
            self._finish(complete=True)

    # How it ends.

    def _refuse(self, fault: str) -> None:
        self._fault = fault
        raise httptools.HttpParserError(fault)

    def _expire(self) -> None:
        self._break(Failure.TIMEOUT, "no complete status and headers before the deadline")

    def _finish(self, *, complete: bool) -> None:
        self._answered = True
        # What is left of the request after its answer would be read as the next request.
        self.reusable = (
            complete and self._keep_alive and not self.closed and not self._transport.get_write_buffer_size()
        )
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Answer(self._status, self._headers, b"".join(self._body), complete))
        if not self.reusable:
            self.close()

    def _break(self, failure: Failure, found: str) -> None:
        """End what is under way: by its status if that is known, else as this failure."""
        if self._waiter is None or self._answered:
            return
        if self._final:
            self._finish(complete=False)
            return
        self._answered = True
        if not self._waiter.done():
            where = f"{self.key[1]}:{self.key[2]}"
            self._waiter.set_exception(ExchangeError(failure, f"waiting for {where}: {found}"))
