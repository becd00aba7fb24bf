"""One worker of the campaign: outbox_worker.worker.run, with a place to die at and a wrong clock if asked for.

Reads: OUTBOX_* and CAMPAIGN_DIE_AT ("in settle", "sent", … and the number of the time), CAMPAIGN_CLOCK_SECONDS,
CAMPAIGN_NAME_SERVER.
Writes: log lines on standard output.
Guarantee: at its place it dies by SIGKILL, without a word; it never outlives its parent.
If it is wrong: a window of the pipeline is never hit.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
from functools import partial

from outbox_worker import connection, resolver, settings, telemetry, transport, worker
from outbox_worker.errors import DatabaseUnavailable
from outbox_worker.limits import Lanes
from outbox_worker.store import Store

PR_SET_PDEATHSIG = 1


class Fate:
    """Counts how often a place was passed; at the chosen one this process ends."""

    def __init__(self, words: str) -> None:
        self.place, _, count = words.partition("#")
        self.left = int(count or "1")

    def __call__(self, place: str) -> None:
        if place == self.place:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def place_on_every_statement(fate: Fate) -> None:
    """`before X`, `in X` (sent, no answer yet) and `after X` for each statement X of the store."""
    original = Store.rows

    async def rows(self: Store, name: str, /, **parameters: object):
        fate(f"before {name}")
        if fate.place == f"in {name}":
            asyncio.get_running_loop().call_later(0.002, fate, f"in {name}")
        found = await original(self, name, **parameters)
        if found:
            fate(f"after {name}")
        return found

    Store.rows = rows


def place_on_every_request(fate: Fate) -> None:
    """`connect` before the first packet, `last byte` when the whole request has left us."""
    dial, exchange = resolver.Dialer.dial, connection.Connection.exchange

    async def dial_or_die(self, *arguments, **named):
        fate("connect")
        return await dial(self, *arguments, **named)

    async def exchange_or_die(self, message: bytes, deadline: float):
        if fate.place == "last byte":
            asyncio.get_running_loop().call_soon(fate, "last byte")
        return await exchange(self, message, deadline)

    resolver.Dialer.dial = dial_or_die
    connection.Connection.exchange = exchange_or_die


def tell(*_: object) -> None:
    """What every task waits for, and what the lanes believe: asked for by SIGUSR1 when work is left over."""
    for task in asyncio.all_tasks(LOOP[0]):
        frames, waiting = [], task.get_coro()
        while waiting is not None and hasattr(waiting, "cr_frame"):
            if waiting.cr_frame is not None:
                frames.append(f"{waiting.cr_code.co_name}:{waiting.cr_frame.f_lineno}")
            waiting = waiting.cr_await
        sys.stdout.write(f"TASK {' > '.join(frames)} | {waiting!r:.80}\n")
    for one in gc.get_objects():
        if isinstance(one, Lanes):
            ready = {str(endpoint_id) for endpoint_id in one.ready}
            sys.stdout.write(
                f"LANES {one.in_flight} in flight, ready {ready}, now {time.monotonic()}, timers {one.timers[:9]}\n"
            )
            for lane in one.lanes.values():
                sys.stdout.write(f"LANE {lane!r:.700}\n")
    sys.stdout.flush()


LOOP: list[asyncio.AbstractEventLoop] = []


def ask(name_server: str) -> None:
    """Ask this name server, not the machine's."""
    worker.open_transport = partial(transport.open_transport, nameservers=[name_server])


async def work(fate: Fate) -> None:
    LOOP.append(asyncio.get_running_loop())
    LOOP[0].add_signal_handler(signal.SIGUSR1, tell)
    name = f"{os.environ['CAMPAIGN_NAME']}:{os.getpid()}"
    await worker.run(settings.load(), name=name, on_point=fate)


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    wrong_by = float(os.environ.get("CAMPAIGN_CLOCK_SECONDS", "0"))
    right_time = time.time
    time.time = lambda: right_time() + wrong_by
    fate = Fate(os.environ.get("CAMPAIGN_DIE_AT", ""))
    place_on_every_statement(fate)
    place_on_every_request(fate)
    if name_server := os.environ.get("CAMPAIGN_NAME_SERVER"):
        ask(name_server)
    telemetry.configure(os.environ["OUTBOX_LOG_LEVEL"])
    try:
        asyncio.run(work(fate))
    except DatabaseUnavailable as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
