"""run: worker processes, one here or several as children of this one.

Reads: the settings, NOTIFY_SOCKET, the schema's version. Writes: what says that all of them are ready.
Guarantee: SIGTERM and SIGINT reach every child; when a child ends unasked, the others are stopped and the exit code is
not 0; a child whose parent has died drains and ends; ready are all or none.
If it crashes: the children see the end of their standard input, drain and stop.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from outbox_worker.cli.failures import BUG, INTERRUPTED
from outbox_worker.cli.session import connected, one
from outbox_worker.errors import RestoredCopy
from outbox_worker.migrate import require_schema
from outbox_worker.readiness import Readiness
from outbox_worker.settings import Settings, load

_KILL_AFTER_SECONDS = 15  # beyond the drain
_COLLECT_AFTER = 20_000
# A child that was told to stop may have left at the second signal, or before it had begun.
_ORDERLY = {0, *(128 + number for number in (signal.SIGINT, signal.SIGTERM)), -signal.SIGINT, -signal.SIGTERM}


def run(
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Worker processes. Default: OUTBOX_PROCESSES.")
    ] = None,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", hidden=True)] = False,
    parent: Annotated[int | None, typer.Option("--ready-to", hidden=True)] = None,
) -> None:
    """Run workers: fan out, claim, deliver, settle. SIGTERM or Ctrl-C drains, a second one stops at once."""
    settings = load()
    with connected(settings.database_url.get_secret_value(), poll_only=settings.poll_only) as connection:
        warning = require_schema(connection)
        if why := one(connection, "select outbox.why_held()"):
            raise RestoredCopy(why)
    if warning:
        typer.echo(f"outbox-worker: {warning}", err=True)
    count = processes or settings.processes
    readiness = Readiness(
        file=settings.ready_file, notify_socket=os.environ.get("NOTIFY_SOCKET"), parent=parent
    )
    if count > 1:
        raise typer.Exit(on_fast_loop(supervise(count, readiness, drain_seconds=settings.drain_seconds)))
    if until_stdin_ends:
        threading.Thread(target=stop_when_stdin_ends, daemon=True).start()
    work(settings, readiness)


def work(settings: Settings, readiness: Readiness) -> None:
    from outbox_worker import telemetry, worker  # noqa: PLC0415  (slow to import, and of no use to other commands)

    async def until_told() -> None:
        stopping = asyncio.Event()
        with worker.signals(stopping):  # from the start: what comes before the first claim drains too
            await worker.run(settings, name=name, stopping=stopping, readiness=readiness)

    name = f"{socket.gethostname()}:{os.getpid()}"
    telemetry.configure(settings.log_level)
    telemetry.bind(name)
    collect_seldom()
    on_fast_loop(until_told())


def collect_seldom() -> None:
    """Let the collector of cycles pass over what start-up made, and come once in so many objects: ours have no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


def on_fast_loop(work_of: Coroutine[Any, Any, Any]) -> Any:
    """Run on uvloop where there is one (not on Windows)."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.run(work_of)
    return uvloop.run(work_of)


def stop_when_stdin_ends() -> None:
    """Drain when the parent, which holds the other end, is gone."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class Family:
    """Child processes that live and die together."""

    def __init__(self, count: int, readiness: Readiness) -> None:
        self.count = count
        self.readiness = readiness
        self.ready = 0
        self.children: list[asyncio.subprocess.Process] = []
        self.signals = 0
        self.code = 0

    def hear(self, reading: int) -> None:
        """One byte of each child that is ready; the last one makes the family ready."""
        heard = os.read(reading, self.count)
        self.ready += len(heard)
        if self.ready == self.count and not self.signals:
            self.readiness.announce()
        if not heard:  # all have ended
            asyncio.get_running_loop().remove_reader(reading)

    def stop(self, number: int) -> None:
        self.readiness.withdraw()
        self.signals += 1
        for child in self.children:
            if child.returncode is None:
                child.send_signal(number)

    async def watch(self, child: asyncio.subprocess.Process, kill_after: float) -> None:
        code = await child.wait()
        if self.signals == 0:
            typer.echo(
                f"outbox-worker: worker process {child.pid} ended unasked ({code}); stopping the others",
                err=True,
            )
            self.code = code if code > 0 else BUG
            self.stop(signal.SIGTERM)
        elif code not in _ORDERLY and not self.code:
            self.code = code if code > 0 else BUG
        async with asyncio.timeout(kill_after):
            for other in self.children:
                await other.wait()


async def supervise(count: int, readiness: Readiness, *, drain_seconds: float) -> int:
    """Run worker processes until one dies or a signal says so; give the exit code."""
    family = Family(count, readiness)
    reading, writing = os.pipe()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, family.stop, number)
    loop.add_reader(reading, family.hear, reading)
    command = [sys.executable, "-m", "outbox_worker", "run", "--processes", "1", "--until-stdin-ends"]
    command += ["--ready-to", str(writing)]
    for_the_family = {"NOTIFY_SOCKET", "OUTBOX_READY_FILE"}
    environment = {name: value for name, value in os.environ.items() if name not in for_the_family}
    try:
        for _ in range(count):
            # a session of its own: Ctrl-C in a terminal reaches the children once, through us
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=(writing,),
                env=environment,
            )
            family.children.append(child)
            if family.signals:
                child.terminate()
        os.close(writing)
        async with asyncio.TaskGroup() as tasks:
            for child in family.children:
                tasks.create_task(family.watch(child, drain_seconds + _KILL_AFTER_SECONDS))
    except* TimeoutError:
        family.code = family.code or BUG
    finally:
        for child in family.children:
            if child.returncode is None:
                child.kill()
                await child.wait()
        loop.remove_reader(reading)
        os.close(reading)
    return INTERRUPTED if family.signals > 1 and not family.code else family.code
