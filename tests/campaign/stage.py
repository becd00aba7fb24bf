"""The stage: everything that takes part, opened in order, closed in order; and how a fault is played on it.

Reads: a seed and a list of faults. Writes: the journal, the ledger, a record of each fault.
Guarantee: after the last fault everything is healed, nobody publishes, and work is given time to end.
If it crashes: the workers die with this process, the server is stopped.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from tests.campaign import scene
from tests.campaign.cluster import Database
from tests.campaign.disk import Disk
from tests.campaign.meter import Peaks
from tests.campaign.operators import Operators
from tests.campaign.proxy import Mode, Proxy
from tests.campaign.publisher import Publisher
from tests.campaign.receiver import Receiver
from tests.campaign.workers import Fleet
from tests.support import NameServer, Reply

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.campaign.scene import Consumer

DRAIN_SECONDS = 90.0


@dataclass
class Played:
    """One fault, when it was played, and how long each endpoint that was not its target took to hear again."""

    name: str
    began: float  # wall clock, as the database's
    ended: float
    recovery: float | None = None
    note: str = ""


@dataclass
class Stage:
    folder: Path
    seed: int
    database: Database
    consumers: list[Consumer]
    receiver: Receiver
    to_database: Proxy
    app_to_database: Proxy
    north: Proxy
    south: Proxy
    fleet: Fleet
    publisher: Publisher
    operators: Operators
    names: NameServer
    played: list[Played] = field(default_factory=list)
    peaks: Peaks = field(default_factory=Peaks)
    publishing_ended: bool = False
    publishing_until: float = 0.0  # wall clock: from then on nothing new was begun

    def endpoints(self, way: str) -> list[int]:
        return [one.number for one in self.consumers if one.way == way]

    async def heal(self) -> None:
        self.receiver.moods.clear()
        self.names.names = {one.host: [Reply(("127.0.0.1",))] for one in self.consumers if one.named}
        if self.database.disk is not None:
            self.database.disk.free()
        for proxy in (self.to_database, self.app_to_database, self.north, self.south):
            await proxy.set(Mode.PASS)

    async def play(
        self, fault: Callable[[Stage, random.Random], Awaitable[str | None]], rng: random.Random
    ) -> None:
        began = time.time()
        note = await fault(self, rng) or ""
        await self.heal()
        record = Played(fault.__name__, began, time.time(), note=note)
        self.played.append(record)
        record.recovery = await self.recovery(
            getattr(fault, "bound", scene.LEASE_SECONDS + scene.POLL_SECONDS + 2)
        )

    async def recovery(self, bound: float) -> float:
        """Longest time until a healthy endpoint of the north heard something again, from the first commit for it on.

        The draw may leave an endpoint without an event for as long: it cannot hear what nobody has said.
        """
        began, began_at = time.monotonic(), time.time()
        since = {one: began for one in self.consumers if one.way == "north"}
        slowest, now = 0.0, began
        while since and now < began + bound + 2:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            paused = {n for n, _, until in self.operators.paused if until >= began}
            for one in list(since):
                if one.number in paused or self.receiver.last_at.get(one.number, 0) > began:
                    slowest = max(slowest, now - since.pop(one))
                elif not self.publisher.committed_for(one, began_at):
                    since[one] = now
        return round(max([slowest, *(now - at for at in since.values())]), 2)

    async def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Nobody publishes, everything is healed: whether all work came to its end."""
        self.operators.stopping = self.publisher.stopping = True
        self.publishing_until = time.time()
        await self.heal()
        await self.operators.resume_all()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                rows = await self.database.rows(
                    "select (select count(*) from outbox.fan_out_queue) + (select count(*) from outbox.open_deliveries)"
                )
            except psycopg.Error:
                continue
            if rows[0][0] == 0 and self.publishing_ended:
                return True
            await asyncio.sleep(0.2)
        for place in self.fleet.places:  # their logs then hold what they wait for
            self.fleet.signal(place, signal.SIGUSR1)
        await asyncio.sleep(1)
        return False


@asynccontextmanager
async def open_stage(
    folder: Path,
    seed: int,
    *,
    rate: float = 12.0,
    held_seconds: float = 3.0,
    operators: bool = True,
    workers: int = 3,
    mounts: bool = False,
) -> AsyncIterator[Stage]:
    consumers = scene.consumers()
    kinds = {one.number: one.kind for one in consumers}
    disk = Disk(folder / "disk")
    database = Database(folder, disk if mounts and disk.mount() else None)
    async with AsyncExitStack() as stack:
        stack.callback(database.discard)
        await asyncio.to_thread(database.start)
        await asyncio.to_thread(database.prepare)
        receiver = await stack.enter_async_context(
            Receiver(folder, seed, lambda number, rng: scene.answer_of(kinds[number], rng))
        )
        server = database.server.port
        opened = [
            await stack.enter_async_context(Proxy(port, seed=seed + i))
            for i, port in enumerate((server, server, receiver.port, receiver.port))
        ]
        ports = {"north": opened[2].port, "south": opened[3].port}
        await asyncio.to_thread(partial(database.create_endpoints, consumers, ports))
        asking, names = await asyncio.get_running_loop().create_datagram_endpoint(
            NameServer, local_addr=("127.0.0.1", 0)
        )
        stack.callback(asking.close)
        environment = {
            "CAMPAIGN_NAME_SERVER": names.at,
            "OUTBOX_DATABASE_URL": database.dsn("worker_login", opened[0].port),
            "OUTBOX_VAULT_KEY_FILE": str(database.key_file),
        }
        async with asyncio.TaskGroup() as tasks:
            fleet = Fleet(folder, environment, tasks, size=workers)
            publisher = Publisher(database, opened[1].port, folder, seed, rate, held_seconds, tasks)
            people = Operators(database, consumers, seed)
            stage = Stage(
                folder, seed, database, consumers, receiver, *opened, fleet, publisher, people, names
            )
            await stage.heal()
            fleet.start()
            publishing = tasks.create_task(publisher.publish_until_stopped())
            publishing.add_done_callback(lambda _: setattr(stage, "publishing_ended", True))
            if operators:
                tasks.create_task(people.work_until_stopped())
            watching = tasks.create_task(stage.peaks.watch(stage))
            try:
                yield stage
            finally:
                watching.cancel()
                people.stopping = publisher.stopping = True
                await fleet.close()
