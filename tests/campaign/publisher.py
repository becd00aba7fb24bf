"""The publisher: business transactions of every ending, and a ledger of its own about which events exist.

Reads: answers of the database. Writes: events, ledger.jsonl.
Guarantee: an entry is `committed` or `gone`; a commit whose answer was lost is resolved by reading back, after its
backend has ended.
If it is wrong: an event that was lost is believed to have been rolled back.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import psycopg

from tests.campaign.scene import EVENT_TYPES, WORKSPACES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaign.cluster import Database
    from tests.campaign.scene import Consumer

CALL_SECONDS = 6.0
FAULTS = (psycopg.Error, TimeoutError, OSError)


@dataclass
class Publisher:
    database: Database
    port: int
    folder: Path
    seed: int
    rate: float
    held_seconds: float
    tasks: asyncio.TaskGroup
    ledger: list[dict[str, Any]] = field(default_factory=list)
    unknown: int = 0
    stopping: bool = False
    number: int = 0

    async def publish_until_stopped(self) -> None:
        rng = random.Random(self.seed)
        with (self.folder / "ledger.jsonl").open("w") as file:
            async with asyncio.TaskGroup() as held:
                connection = None
                while not self.stopping:
                    if connection is None or connection.closed:
                        connection = await self._connected()
                        continue
                    ending = rng.choices(("commit", "rollback", "savepoint", "held"), (83, 10, 5, 2))[0]
                    if ending == "held":
                        other = await self._connected()
                        if other is not None:
                            held.create_task(self._held(other, file, random.Random(rng.random())))
                        continue
                    if not await self._transaction(connection, ending, file, rng):
                        await close(connection)
                        connection = None
                    await asyncio.sleep(rng.expovariate(self.rate))
                if connection is not None:
                    await close(connection)

    async def _connected(self) -> psycopg.AsyncConnection | None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await psycopg.AsyncConnection.connect(
                    self.database.dsn("app_login", self.port), connect_timeout=3, application_name="publisher"
                )
        except FAULTS:
            await asyncio.sleep(0.2)
            return None

    async def _held(self, connection: psycopg.AsyncConnection, file: IO[str], rng: random.Random) -> None:
        await self._transaction(connection, "held", file, rng)
        await close(connection)

    async def _transaction(
        self, connection: psycopg.AsyncConnection, ending: str, file: IO[str], rng: random.Random
    ) -> bool:
        """Whether the connection is still good."""
        pid = connection.info.backend_pid
        kept, undone = [self._event(rng)], []
        if ending == "savepoint":
            undone.append(self._event(rng))
        elif ending == "rollback":
            undone, kept = kept, []
        good = False
        try:
            async with asyncio.timeout(CALL_SECONDS + (self.held_seconds if ending == "held" else 0)):
                for event in kept:
                    await self._publish(connection, event, rng)
                if ending == "savepoint":
                    await connection.execute("savepoint s")
                for event in undone:
                    await self._publish(connection, event, rng)
                if ending == "savepoint":
                    await connection.execute("rollback to s")
                elif ending == "held":
                    await asyncio.sleep(self.held_seconds)
                await (connection.rollback() if ending == "rollback" else connection.commit())
                good = True
        except FAULTS:
            await close(connection)
            self.unknown += 1
        if good:
            self._note(kept, "committed", file)
            self._note(undone, "gone", file)
        else:
            await self._read_back(kept + undone, pid, file)
        return good

    def committed_for(self, consumer: Consumer, since: float) -> bool:
        """Whether something that it must hear was committed since a moment (wall clock)."""
        return any(
            entry["state"] == "committed"
            and entry["at"] >= since
            and consumer.matches(entry["workspace"], entry["type"], entry["payload"])
            for entry in self.ledger
        )

    def _event(self, rng: random.Random) -> dict[str, Any]:
        self.number += 1
        payload = {
            "n": self.number,
            "even": rng.random() < 0.5,
            "text": "é \u2028 ~" * rng.randrange(1, 20),
            "big": 1e100,
        }
        return {
            "n": self.number,
            "workspace": rng.choice(WORKSPACES),
            "type": rng.choice(EVENT_TYPES),
            "payload": payload,
        }

    async def _publish(
        self, connection: psycopg.AsyncConnection, event: dict[str, Any], rng: random.Random
    ) -> None:
        values = (event["workspace"], event["type"], json.dumps(event["payload"]))
        if rng.random() < 0.5:
            text = "select outbox.publish(%s, %s, %s::jsonb, priority => %s::smallint)::text"
            cursor = await connection.execute(text, (*values, str(rng.choice((0, 1, 1, 2)))))
            event["id"] = (await cursor.fetchone())[0]
        else:  # without RETURNING: the app may write events, not read them
            text = "insert into outbox.events (workspace_id, event_type, payload) values (%s, %s, %s::jsonb)"
            await connection.execute(text, values)

    async def _read_back(self, events: list[dict[str, Any]], pid: int, file: IO[str]) -> None:
        """End that backend, see it gone, then look: whatever it did is decided."""
        while True:
            try:
                left = await self.database.rows(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid = %s", pid
                )
                if not left:
                    text = "select (payload ->> 'n')::int from outbox.events where (payload ->> 'n')::int = any (%s)"
                    found = {n for (n,) in await self.database.rows(text, [event["n"] for event in events])}
                    # What was read is on the standby too, if commits wait for one: this one comes after it.
                    await self.database.rows("select pg_logical_emit_message(true, 'campaign', 'read')")
                    break
            except FAULTS:
                pass
            await asyncio.sleep(0.2)
        for event in events:
            self._note([event], "committed" if event["n"] in found else "gone", file)

    def _note(self, events: list[dict[str, Any]], state: str, file: IO[str]) -> None:
        for event in events:
            entry = event | {"state": state, "at": time.time()}
            self.ledger.append(entry)
            file.write(json.dumps(entry) + "\n")
            file.flush()


async def close(connection: psycopg.AsyncConnection) -> None:
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except FAULTS:
        pass  # half-open: the server ends it
