"""The receiver: every request is in its journal, on disk, before it is answered.

Reads: POST /e/N over plain TCP, what `moods` says of endpoint N. Writes: journal.jsonl, answers of every kind.
Guarantee: a request that arrived whole has a line with its id, attempt, body's hash and the answer chosen; a
second line says when it ended.
If it is wrong: the invariants compare the database with a fiction.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What is sent, how late, and whether it is dripped; status 0 is no status: silence until the sender hangs up.

    `raw` is sent as it stands instead; then `again`, again and again until the sender hangs up.
    """

    status: int
    seconds: float = 0.0
    headers: tuple[str, ...] = ()
    body: bytes = b"ok"
    says_length: int | None = None
    drip: bool = False
    raw: bytes = b""
    again: bytes = b""


@dataclass
class Receiver:
    folder: Path
    seed: int
    answer_of: Callable[[int, random.Random], Answer]
    moods: dict[int, Callable[[random.Random], Answer]] = field(default_factory=dict)  # while a fault lasts
    requests: int = 0
    last_at: dict[int, float] = field(default_factory=dict)  # monotonic, per endpoint
    port: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self.random = random.Random(self.seed)
        self.numbers = itertools.count(1)
        self.journal = os.open(self.folder / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in tuple(self.writers):
            writer.transport.abort()
        await self.server.wait_closed()
        os.close(self.journal)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with suppress(OSError, EOFError, asyncio.LimitOverrunError):
            while await self._one(reader, writer):
                pass
        writer.close()
        self.writers.discard(writer)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        endpoint = int(head[0].split(" ")[1].rsplit("/", 1)[-1])
        answer = self.moods.get(endpoint, lambda rng: self.answer_of(endpoint, rng))(self.random)
        number = next(self.numbers)
        self._write(
            {
                "r": number, "at": time.time(), "endpoint": endpoint, "id": headers.get("webhook-id"),
                "attempt": int(headers.get("webhook-attempt", "0")), "stamp": headers.get("webhook-timestamp"),
                "signature": headers.get("webhook-signature", ""), "own_signature": headers.get("edesy-signature", ""), "status": answer.status,
                "sha": hashlib.sha256(body).hexdigest(), "body": body.decode(),
            }
        )  # fmt: skip
        self.requests += 1
        self.last_at[endpoint] = time.monotonic()
        try:
            return await self._answer(answer, reader, writer)
        finally:
            self._write({"r": number, "end": time.time()})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self.journal, json.dumps(line).encode() + b"\n")

    async def _answer(
        self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if answer.raw or answer.again:
            return await self._lie(answer, writer)
        if answer.status == 0 or answer.seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(answer.seconds or 30):
                    if await reader.read(1) == b"":
                        return False  # the sender has hung up
            if answer.status == 0:
                return False
        length = len(answer.body) if answer.says_length is None else answer.says_length
        lines = [f"HTTP/1.1 {answer.status} X", *answer.headers, f"Content-Length: {length}", "", ""]
        message = "\r\n".join(lines).encode() + answer.body
        if answer.drip:
            for i in range(min(len(message), 40)):
                writer.write(message[i : i + 1])
                await writer.drain()
                await asyncio.sleep(0.2)
            return False
        writer.write(message)
        await writer.drain()
        return answer.says_length is None or answer.says_length < len(answer.body)

    async def _lie(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        writer.write(answer.raw)
        await writer.drain()
        while answer.again and not writer.is_closing():
            await asyncio.sleep(0.01)
            writer.write(answer.again)
            await writer.drain()
        return False


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Requests in the order of their arrival, each with its end if it had one."""
    requests: dict[int, dict[str, Any]] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "end" in entry:
            requests[entry["r"]]["end"] = entry["end"]
        else:
            requests[entry["r"]] = entry
    return list(requests.values())
