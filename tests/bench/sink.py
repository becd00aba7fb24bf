"""A receiver in a process of its own: raw protocol, no parser; it answers, hangs, or notes when requests arrive.

Reads: HTTP/1.1 requests with a content-length. Writes: the same small answer; `GET /count`, `GET /arrivals`, `GET /most`
(the most requests at once that any path had: a request ends with its answer, or when the other side hangs up).
Guarantee: an arrival is the system clock when a request's first byte was read; `hang` keeps every request unanswered.
If it is wrong: latencies and rates are the receiver's own. `python -m tests.bench.sink PORT answer|hang|note`
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


class Shared:
    """What all connections count together."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.requests = 0
        self.arrivals: list[bytes] = []
        self.now: Counter[bytes] = Counter()  # requests in flight by path
        self.most = 0

    def began(self, path: bytes) -> None:
        self.now[path] += 1
        self.most = max(self.most, self.now[path])

    def ended(self, path: bytes) -> None:
        self.now[path] -= 1
        if not self.now[path]:
            del self.now[path]


class Connection(asyncio.Protocol):
    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.buffer = b""
        self.began = 0
        self.hanging: list[bytes] = []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def connection_lost(self, exc) -> None:
        for path in self.hanging:
            self.shared.ended(path)

    def data_received(self, data) -> None:
        if not self.buffer:
            self.began = time.time_ns()
        self.buffer += data
        while (head := self.buffer.find(b"\r\n\r\n")) >= 0:
            if self.buffer.startswith(b"GET "):
                end = head + 4
                self.ask(self.buffer[4:end].split(b" ", 1)[0])
            else:
                lower = self.buffer[:head].lower()
                at = lower.find(b"content-length:")
                end = head + 4 + int(lower[at + 15 :].split(b"\r\n", 1)[0])
                if len(self.buffer) < end:
                    return
                self.take(lower, self.buffer[:head].split(b" ", 2)[1])
            self.buffer = self.buffer[end:]
            self.began = time.time_ns()

    def take(self, head: bytes, path: bytes) -> None:
        self.shared.requests += 1
        self.shared.began(path)
        if self.shared.mode == "note":
            at = head.find(b"webhook-id: ") + 12
            self.shared.arrivals.append(b"%d %s" % (self.began, head[at : at + 36]))
        if self.shared.mode == "hang":
            self.hanging.append(path)
        else:
            self.transport.write(ANSWER)
            asyncio.get_running_loop().call_soon(self.shared.ended, path)

    def ask(self, path: bytes) -> None:
        text = b"%d\n" % self.shared.requests
        if path == b"/most":
            text = b"%d\n" % self.shared.most
        elif path == b"/arrivals":
            text = b"\n".join(self.shared.arrivals)
            self.shared.arrivals.clear()
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))


async def serve(port: int, mode: str) -> None:
    shared = Shared(mode)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(shared), "127.0.0.1", port, backlog=8192
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
