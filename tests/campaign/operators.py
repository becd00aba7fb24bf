"""Operators: people who replay, hasten, pause and rotate while everything breaks.

Reads: deliveries. Writes: through the functions and UPDATEs that operators are given.
Guarantee: `touched` names every delivery that a person moved, also when the answer was lost; all endpoints are
active at the end.
If it is wrong: a retry before its time is excused.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from tests.campaign.cluster import Database
    from tests.campaign.scene import Consumer

FAULTS = (psycopg.Error, TimeoutError, OSError)


@dataclass
class Operators:
    database: Database
    consumers: list[Consumer]
    seed: int
    pause_seconds: float = 1.5
    touched: set[tuple[str, str]] = field(default_factory=set)
    replays: dict[tuple[str, str], int] = field(default_factory=dict)
    paused: list[tuple[int, float, float]] = field(default_factory=list)  # number, from, until (monotonic)
    acts: dict[str, int] = field(default_factory=dict)
    stopping: bool = False

    async def work_until_stopped(self) -> None:
        rng = random.Random(self.seed)
        while not self.stopping:
            act = rng.choice((self.replay, self.replay, self.revive, self.hasten, self.pause, self.rotate))
            try:
                async with asyncio.timeout(5 + self.pause_seconds):
                    await act(rng)
                self.acts[act.__name__] = self.acts.get(act.__name__, 0) + 1
            except FAULTS:
                pass  # the database is away; people try again later
            await asyncio.sleep(rng.uniform(0.5, 2.0))

    async def run(self, text: str, *values: object) -> list[tuple]:
        async with await psycopg.AsyncConnection.connect(
            self.database.dsn("operator_login"),
            autocommit=True,
            connect_timeout=3,
            application_name="operator",
        ) as connection:
            cursor = await connection.execute(text.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    async def some(self, state: str, rng: random.Random, most: int) -> list[tuple[str, str]]:
        rows = await self.database.rows(
            "select event_id::text, endpoint_id::text from outbox.deliveries where state = %s order by event_id desc limit 60",
            state,
        )
        return rng.sample(rows, min(most, len(rows)))

    def note(self, pairs: list[tuple[str, str]], *, replayed: bool) -> None:
        self.touched.update(pairs)
        for pair in pairs if replayed else []:
            self.replays[pair] = self.replays.get(pair, 0) + 1

    async def replay(self, rng: random.Random) -> None:
        pairs = await self.some("delivered", rng, 2)
        self.note(pairs, replayed=True)
        for event_id, endpoint_id in pairs:
            await self.run("select outbox.replay(%s::uuid, %s::uuid)", event_id, endpoint_id)

    async def revive(self, rng: random.Random) -> None:
        pairs = await self.some("dead", rng, 2)
        self.note(pairs, replayed=True)
        for event_id, endpoint_id in pairs:
            await self.run(
                "update outbox.deliveries set state = 'pending' where state = 'dead' and event_id = %s::uuid and endpoint_id = %s::uuid",
                event_id, endpoint_id,
            )  # fmt: skip

    async def hasten(self, rng: random.Random) -> None:
        pairs = await self.some("pending", rng, 5)
        self.note(pairs, replayed=False)
        for event_id, endpoint_id in pairs:
            await self.run(
                "update outbox.deliveries set next_attempt_at = now() where event_id = %s::uuid and endpoint_id = %s::uuid",
                event_id, endpoint_id,
            )  # fmt: skip

    async def pause(self, rng: random.Random) -> None:
        one = rng.choice(self.consumers)
        began = time.monotonic()
        self.paused.append((one.number, began, began + 1e9))
        await self.run("select outbox.pause_endpoint(%s::uuid)", one.endpoint_id)
        await asyncio.sleep(self.pause_seconds)
        await self.resume(one)

    async def resume(self, one: Consumer) -> None:
        await self.run("select outbox.resume_endpoint(%s::uuid)", one.endpoint_id)
        self.paused = [(n, a, min(b, time.monotonic()) if n == one.number else b) for n, a, b in self.paused]

    async def rotate(self, rng: random.Random) -> None:
        one = rng.choice(self.consumers)
        rows = await self.database.rows("select outbox.rotate_secret(%s::uuid)", one.endpoint_id)
        one.secrets = (*one.secrets, rows[0][0])

    async def resume_all(self) -> None:
        for one in self.consumers:
            while True:
                try:
                    async with asyncio.timeout(5):
                        await self.resume(one)
                    break
                except FAULTS:
                    await asyncio.sleep(0.3)
