"""A worker whose requests are answered at once, without HTTP: `python -m tests.bench.instant`.

Reads: the OUTBOX_ settings. Writes: what a worker writes.
Guarantee: all loops, limits and statements are the product's own; only `send` is not.
If it is wrong: the benchmarks without HTTP measure another worker.
"""

from __future__ import annotations

import asyncio
import os
import socket

import uvloop

from outbox_worker import settings, telemetry, worker
from outbox_worker.model import Outcome, Request
from tests.bench.steps import HEADERS


async def send(_request: Request) -> Outcome:
    await asyncio.sleep(0)
    return Outcome(200, None, "", HEADERS, b"ok", 1.0)


if __name__ == "__main__":
    loaded = settings.load()
    telemetry.configure(loaded.log_level)
    uvloop.run(worker.run(loaded, name=f"{socket.gethostname()}:{os.getpid()}", send=send))
