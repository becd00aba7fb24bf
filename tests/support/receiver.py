"""A scripted HTTP receiver on loopback: answers, stalls, drips, floods, lies and resets, as it is told.

Reads: requests over plain TCP or TLS. Writes: what the script of the request's path says.
Guarantee: every request that arrived whole is in `requests`; the last behaviour of a script repeats;
leaving the context ends every connection.
As a process: `python -m tests.support.receiver` prints its port, answers 200, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tests.support.waiting import pause

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator

_BLOCK = b"x" * 65536


@dataclass(frozen=True)
class ReceivedRequest:
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    at: float
    connection: int  # numbered from 1 in order of arrival


def header(request: ReceivedRequest, name: str) -> str | None:
    return next((value for key, value in request.headers if key.lower() == name.lower()), None)


@dataclass
class Exchange:
    """What a behaviour sees. It returns True if the connection is kept for another request."""

    request: ReceivedRequest
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def write(self, *parts: bytes) -> None:
        self.writer.writelines(parts)
        await self.writer.drain()


def _head(code: int, headers: Iterable[tuple[str, str]], length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {code} Scripted", *(f"{name}: {value}" for name, value in headers)]
    if length is not None and code not in {204, 304}:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def status(code: int = 200, headers: Iterable[tuple[str, str]] = (), body: bytes = b""):
    async def behave(exchange: Exchange) -> bool:
        await exchange.write(_head(code, headers, len(body)), body)
        return True

    return behave


def redirect(code: int, location: str):
    return status(code, [("Location", location)])


def raw(data: bytes, *, keep: bool = False):
    """These bytes, then the end of the connection or the next request."""

    async def behave(exchange: Exchange) -> bool:
        await exchange.write(data)
        return keep

    return behave


def close(after: bytes = b""):
    return raw(after)


def reset(after: bytes = b""):
    """These bytes, then RST."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(after)
        linger = struct.pack("ii", 1, 0)
        exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        exchange.writer.transport.abort()

    return behave


def stall(after: bytes = b""):
    """These bytes, then nothing until the other side hangs up."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(after)
        await exchange.reader.read()

    return behave


def hold(until: asyncio.Event, then=None):
    async def behave(exchange: Exchange) -> bool | None:
        await until.wait()
        return await (then or status())(exchange)

    return behave


def drip(pieces: Callable[[], Iterator[bytes]], seconds: float, before: bytes = b""):
    """One piece at a time, for as long as the other side listens."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(before)
        for piece in pieces():
            await exchange.write(piece)
            await pause(seconds)

    return behave


def _forever(piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter(lambda: piece, None)


def drip_headers(seconds: float = 0.02):
    return drip(_forever(b"X-Drip: 1\r\n"), seconds, b"HTTP/1.1 200 OK\r\n")


def drip_body(seconds: float = 0.02, code: int = 200):
    return drip(_forever(b"x"), seconds, _head(code, (), 10**10))


def informational(seconds: float = 0.02, code: int = 103):
    return drip(_forever(_head(code, [("Link", "</a>")])), seconds)


def endless_body(before: bytes = b"HTTP/1.1 200 OK\r\n\r\n", block: bytes = _BLOCK):
    return drip(_forever(block), 0, before)


def huge_body(length: int = 10 * 1024**3):
    return endless_body(_head(200, (), length))


def gzip_bomb(megabytes: int = 200):
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as out:
        for _ in range(megabytes):
            out.write(bytes(1024**2))
    return status(200, [("Content-Encoding", "gzip")], packed.getvalue())


@dataclass
class Receiver:
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    port: int = 0
    greets: bool = True  # False: accepts connections and never reads a byte, TLS included
    requests: list[ReceivedRequest] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    _scripts: dict[str | None, list] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}/"

    def script(self, path: str | None, *behaviours) -> None:
        """What to do with the requests for this path (None: any other), in turn; the last one repeats."""
        self._scripts[path] = list(behaviours)

    def hang_up(self) -> None:
        """End every open connection, as an idle server does; the end is on its way when this returns."""
        for writer in self._writers:
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
                own.shutdown(socket.SHUT_WR)

    async def __aenter__(self) -> Self:
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: list[asyncio.Task] = []
        self._group = await asyncio.TaskGroup().__aenter__()
        self._server = await asyncio.start_server(
            self._accept, self.host, self.port, ssl=self.tls if self.greets else None, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = self._group.create_task(self._converse(reader, writer, self.connections))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self._writers.add(writer)
        self.open_connections += 1
        try:
            if not self.greets:
                await asyncio.get_running_loop().create_future()
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(await _read(reader, number), reader, writer):
                    pass
        finally:
            self.open_connections -= 1
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _answer(
        self, request: ReceivedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool | None:
        self.requests.append(request)
        script = self._scripts.get(request.path) or self._scripts.get(None) or [status()]
        behaviour = script.pop(0) if len(script) > 1 else script[0]
        return await behaviour(Exchange(request, reader, writer))


async def _read(reader: asyncio.StreamReader, number: int) -> ReceivedRequest:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    body = await reader.readexactly(length)
    return ReceivedRequest(method, path, headers, body, time.monotonic(), number)


async def _until_stdin_ends() -> None:
    async with Receiver() as receiver:
        sys.stdout.write(f"{receiver.port}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_until_stdin_ends())
