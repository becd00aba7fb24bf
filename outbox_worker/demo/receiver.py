"""The customer's side: an HTTP receiver that verifies every request itself and answers by script.

Reads: requests on 127.0.0.1; its script on standard input, one JSON object a line. Writes: one JSON object
for each request to standard output.
Guarantee: nothing of outbox_worker is imported, so a fault of our signing cannot hide itself here; it ends
with its standard input.
If it dies: workers see a refused connection and retry.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

TOLERANCE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Path:
    """What the customer knows of one endpoint, and how it answers."""

    secret: str
    headers: dict[str, str]  # the custom headers that every request must carry
    signature_header: str
    answers: list[int]  # to the first, second, … request of one webhook-id; the last one repeats


def standard_verified(secret: str, headers: dict[str, str], body: bytes, now: float) -> bool:
    """Verify as Standard Webhooks 1.0 has it: keyed by the decoded secret."""
    event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{event_id}.{timestamp}.".encode() + body, "sha256")
    wanted = base64.b64encode(digest).decode()
    marks = [mark.partition(",") for mark in headers.get("webhook-signature", "").split()]
    return fresh(timestamp, now) and any(
        version == "v1" and hmac.compare_digest(offered, wanted) for version, _, offered in marks
    )


def own_verified(secret: str, header: str, body: bytes, now: float) -> bool:
    """Verify the product's own header, `t=…,v1=…`: keyed by the secret as it is written."""
    parts = [part.partition("=") for part in header.split(",")]
    timestamp = next((value for name, _, value in parts if name == "t"), "")
    wanted = hmac.digest(secret.encode(), f"{timestamp}.".encode() + body, "sha256").hex()
    return fresh(timestamp, now) and any(
        name == "v1" and hmac.compare_digest(offered, wanted) for name, _, offered in parts
    )


def fresh(timestamp: str, now: float) -> bool:
    return timestamp.isdecimal() and abs(now - int(timestamp)) <= TOLERANCE_SECONDS


class Receiver:
    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}
        self.seen: Counter[tuple[str, str]] = Counter()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                path, headers, body = await read_request(reader)
                status = self.answer(path, headers, body, time.monotonic())
                content = b'{"received": true}' if status < 300 else b'{"error": "as the script has it"}'
                head = f"HTTP/1.1 {status} Scripted\r\ncontent-length: {len(content)}\r\n\r\n"
                writer.write(head.encode() + content)
                await writer.drain()
        writer.close()

    def answer(self, path: str, headers: dict[str, str], body: bytes, at: float) -> int:
        """Verify and report one request; give the status to answer."""
        known = self.paths.get(path)
        if known is None:
            return 404
        now, own = time.time(), headers.get(known.signature_header.lower(), "")
        standard_ok = standard_verified(known.secret, headers, body, now)
        own_ok = own_verified(known.secret, own, body, now)
        changed = body + b" "
        changed_passes = standard_verified(known.secret, headers, changed, now) or own_verified(
            known.secret, own, changed, now
        )
        event_id = headers.get("webhook-id", "")
        status = 401
        if standard_ok and own_ok:
            status = known.answers[min(self.seen[path, event_id], len(known.answers) - 1)]
        self.seen[path, event_id] += 1
        said = json.loads(body) if standard_ok else {}
        say(
            {
                "at": at,
                "path": path,
                "event_id": event_id,
                "body_id": said.get("id"),
                "event_type": said.get("type"),
                "workspace_id": said.get("workspace_id"),
                "attempt_no": int(headers.get("webhook-attempt", "0")) if standard_ok else 0,
                "standard_ok": standard_ok,
                "own_ok": own_ok,
                "changed_refused": not changed_passes,
                "headers_expected": len(known.headers),
                "headers_seen": sum(headers.get(n.lower()) == v for n, v in known.headers.items()),
                "body_sha256": hashlib.sha256(body).hexdigest(),
                "status": status,
            }
        )
        return status


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return first.split(" ")[1], headers, body


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main() -> None:
    receiver = Receiver()
    script = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(script), sys.stdin
    )
    server = await asyncio.start_server(receiver.converse, "127.0.0.1", 0, backlog=1024)
    say({"port": server.sockets[0].getsockname()[1]})
    while line := await script.readline():
        told = json.loads(line)
        receiver.paths.update({path: Path(**known) for path, known in told.items()})
        say({"told": len(told)})
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
