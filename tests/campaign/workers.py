"""The fleet: worker processes that are started again when they end, and are never forgiven an end of their own.

Reads: /proc of each child. Writes: one log file for each process.
Guarantee: an exit that nobody asked for is in `unasked`, with the end of the log; every child ends with us.
If it is wrong: a worker that crashes by itself passes for one that was killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.campaign.scene import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

TERM_SECONDS = 15.0
"""A worker must have left this long after SIGTERM: drain, deadline of the last request, a late database call."""
NO_DATABASE = 3


@dataclass
class Place:
    """One worker's place: who works there now, and whether the next end is asked for."""

    name: str
    process: asyncio.subprocess.Process | None = None
    next_fate: tuple[str, float] = ("", 0.0)  # of the process that is started next
    dies_at: str = ""
    asked: str = ""
    keeper: asyncio.Task[None] | None = None
    log: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process and self.process.returncode is None else 0


@dataclass
class Fleet:
    folder: Path
    environment: dict[str, str]
    tasks: asyncio.TaskGroup
    size: int = 3
    places: list[Place] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    starts: int = 0
    kills: int = 0
    closing: bool = False

    def start(self) -> None:
        for number in range(self.size):
            place = Place(f"w{number}")
            place.keeper = self.tasks.create_task(self._keep(place))
            self.places.append(place)

    async def _keep(self, place: Place) -> None:
        while not self.closing:
            code, log = await self._run(place)
            asked, place.asked = place.asked, ""
            died = place.dies_at and code == -signal.SIGKILL
            self.kills += code == -signal.SIGKILL
            at_birth = code == -signal.SIGTERM and b"worker.started" not in log.read_bytes()
            if asked == "term" and code not in (0, -signal.SIGKILL) and not at_birth:
                self._note(place, code, log, "after SIGTERM")
            elif asked == "" and not died and code != NO_DATABASE:
                self._note(place, code, log, "by itself")
            if code == NO_DATABASE:
                await asyncio.sleep(0.3)

    def _note(self, place: Place, code: int, log: Path, when: str) -> None:
        tail = log.read_text(errors="replace")[-1500:]
        self.unasked.append(f"{place.name} left {when} with code {code}: {tail}")

    async def _run(self, place: Place) -> tuple[int, Path]:
        self.starts += 1
        (place.dies_at, clock_seconds), place.next_fate = place.next_fate, ("", 0.0)
        log = self.folder / f"{place.name}-{self.starts}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")}
        environment |= (
            ENVIRONMENT | self.environment | {"CAMPAIGN_NAME": place.name, "CAMPAIGN_DIE_AT": place.dies_at}
        )
        environment["CAMPAIGN_CLOCK_SECONDS"] = str(clock_seconds)
        with log.open("wb") as output:
            place.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.campaign.worker_main",
                env=environment,
                stdout=output,
                stderr=output,
            )
        place.log = log
        return await place.process.wait(), log

    def signal(self, place: Place, number: int, asked: str = "") -> None:
        if asked:
            place.asked = asked
        if place.pid:
            with suppress(ProcessLookupError):
                os.kill(place.pid, number)

    async def replace(self, place: Place, *, dies_at: str = "", clock_seconds: float = 0.0) -> None:
        """Another process in this place, by SIGTERM of the one that is there; it has a fate or a wrong clock."""
        place.next_fate = dies_at, clock_seconds
        await self.term(place)
        place.log = None
        await asyncio.sleep(0.2)
        await self.started(place)

    async def started(self, place: Place) -> None:
        """Wait until the process in this place works, or has ended."""
        for _ in range(150):
            await asyncio.sleep(0.1)
            if place.log is not None and (not place.pid or b"worker.started" in place.log.read_bytes()):
                return

    async def term(self, place: Place) -> float:
        """SIGTERM, and how long it took to leave; beyond the bound it is killed, which counts as a fault of its own."""
        process, began = place.process, time.monotonic()
        if process is None or process.returncode is not None:
            return 0.0
        self.signal(place, signal.SIGTERM, "term")
        try:
            async with asyncio.timeout(TERM_SECONDS):
                await process.wait()
        except TimeoutError:
            self.signal(place, signal.SIGUSR1)
            self.unasked.append(f"{place.name} was still there {TERM_SECONDS} s after SIGTERM")
            await asyncio.sleep(0.5)
            self.signal(place, signal.SIGKILL)
            await process.wait()
        return time.monotonic() - began

    async def close(self) -> None:
        self.closing = True
        async with asyncio.TaskGroup() as terms:
            for place in self.places:
                terms.create_task(self.term(place))
