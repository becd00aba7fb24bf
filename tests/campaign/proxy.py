"""A TCP proxy that breaks connections as it is told: on the way to PostgreSQL and on the way to the receiver.

Reads: bytes from both sides. Writes: them, late, one way only, into the void, or a reset.
Guarantee: what it does is its `mode`; bytes are passed in order or the connection is over for good.
If it is wrong: the faults of the campaign are weaker than they say.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

CHUNK = 65_536
HALF_OPEN_SECONDS = 20.0


class Mode(StrEnum):
    PASS = "pass"
    SLOW = "slow"  # every piece is late
    HOLD = "hold"  # nothing moves; all of it moves when the fault ends
    VOID = "void"  # nothing moves, and what was sent meanwhile is gone: its connection is half-open for ever
    MUTE = "mute"  # requests arrive, answers are gone: its connection is half-open for ever
    RESET = "reset"  # every connection is reset, also new ones


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    lost: bool = False  # bytes of it went into the void

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                with suppress(OSError):
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()


class Proxy:
    def __init__(self, target_port: int, *, seed: int, late_seconds: float = 0.15) -> None:
        self.target_port = target_port
        self.port = 0
        self.mode = Mode.PASS
        self.late_seconds = late_seconds
        self.links: set[Link] = set()
        self.random = random.Random(seed)
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.set(Mode.RESET)
        await self._server.wait_closed()

    async def set(self, mode: Mode) -> None:
        async with self._changed:
            self.mode = mode
            self._changed.notify_all()
        if mode is Mode.RESET:
            for link in tuple(self.links):
                link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer)
        self.links.add(link)
        try:
            if self.mode is Mode.RESET:
                link.reset()
                return
            there, link.server = await asyncio.open_connection("127.0.0.1", self.target_port)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(link, reader, link.server, out=True))
                ways.create_task(self._pump(link, there, writer, out=False))
        except* OSError:
            link.reset()
        except* EOFError:
            pass  # one side has ended; closing passes on what is still buffered
        finally:
            self.links.discard(link)
            for one in (writer, link.server):
                if one is not None:
                    one.close()

    async def _pump(
        self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, out: bool
    ) -> None:
        while data := await source.read(CHUNK):
            if not await self._may_pass(link, out=out):
                continue
            sink.write(data)
            await sink.drain()
        if link.lost:  # the other side does not hear of the end, until its own keepalive would
            await asyncio.sleep(HALF_OPEN_SECONDS)
        raise EOFError

    async def _may_pass(self, link: Link, *, out: bool) -> bool:
        if self.mode is Mode.SLOW:
            await asyncio.sleep(self.late_seconds * (0.5 + self.random.random()))
        if self.mode is Mode.VOID or (self.mode is Mode.MUTE and not out):
            link.lost = True
        async with self._changed:
            await self._changed.wait_for(lambda: self.mode is not Mode.HOLD)
        return (out and self.mode is Mode.MUTE) or not link.lost
