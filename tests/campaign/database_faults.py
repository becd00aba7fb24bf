"""Faults of the database and of the way to it; see faults.

Reads: the stage. Writes: proxy modes, settings, locks and sessions of the campaign's own server.
Guarantee: as in faults.
If it is wrong: as in faults.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from tests.campaign.disk import SKIPPED
from tests.campaign.proxy import Mode
from tests.campaign.scene import DATABASE_SECONDS

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from tests.campaign.stage import Stage


async def database_killed(stage: Stage, rng: random.Random) -> None:
    await restart(stage, "immediate")


async def database_restarted(stage: Stage, rng: random.Random) -> None:
    await restart(stage, "fast")


async def restart(stage: Stage, mode: str) -> None:
    await stage.database.restart(mode)
    stage.to_database.target_port = stage.app_to_database.target_port = stage.database.server.port


async def backends_terminated(stage: Stage, rng: random.Random) -> None:
    for _ in range(15):
        await stage.database.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'worker_login'"
        )
        await asyncio.sleep(0.2)


async def proxy_mode(stage: Stage, rng: random.Random, *, mode: Mode, seconds: float) -> None:
    await stage.to_database.set(mode)
    if rng.random() < 0.5:
        await stage.app_to_database.set(mode)
    await asyncio.sleep(seconds)


def database_way(name: str, mode: Mode, seconds: float, bound: float | None = None):
    fault = partial(proxy_mode, mode=mode, seconds=seconds)
    fault.__name__ = name
    if bound is not None:
        fault.bound = bound
    return fault


async def database_slow_and_workers_leave(stage: Stage, rng: random.Random) -> None:
    """Every call takes long while shards change hands."""
    await stage.to_database.set(Mode.SLOW)
    for _ in range(3):
        await stage.fleet.term(rng.choice(stage.fleet.places))
        await asyncio.sleep(2)


async def database_read_only(stage: Stage, rng: random.Random) -> None:
    try:
        await stage.database.rows("alter system set default_transaction_read_only = on")
        await stage.database.rows("select pg_reload_conf()")
        await asyncio.sleep(4)
    finally:
        async with await psycopg.AsyncConnection.connect(
            stage.database.server.dsn(), autocommit=True
        ) as connection:
            await connection.execute("set default_transaction_read_only = off")
            await connection.execute("alter system reset default_transaction_read_only")
            await connection.execute("select pg_reload_conf()")


@asynccontextmanager
async def session(stage: Stage) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(
        stage.database.server.dsn(), application_name="stranger"
    ) as connection:
        yield connection


async def no_connection_left(stage: Stage, rng: random.Random) -> None:
    """A stranger takes every slot, and the workers' sessions are ended."""
    taken: list[psycopg.AsyncConnection] = []
    try:
        for round_of in range(2):
            try:
                while True:
                    dsn = stage.database.dsn("operator_login")
                    taken.append(
                        await psycopg.AsyncConnection.connect(
                            dsn, connect_timeout=2, application_name="stranger"
                        )
                    )
            except psycopg.OperationalError:
                pass
            if round_of == 0:
                await stage.database.rows(
                    "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'worker_login'"
                )
        await asyncio.sleep(6)
    finally:
        for connection in taken:
            await connection.close()


async def table_locked(stage: Stage, rng: random.Random) -> None:
    table = rng.choice(
        ("open_deliveries", "events", "endpoints", "shards", "recorded_attempts", "fan_out_queue")
    )
    async with session(stage) as connection:
        await connection.execute("set lock_timeout = '5s'")
        try:
            await connection.execute(f"lock table outbox.{table} in access exclusive mode".encode())
        except psycopg.errors.LockNotAvailable:
            return
        await asyncio.sleep(rng.choice((2.0, DATABASE_SECONDS + 1.5)))


async def disk_full(stage: Stage, rng: random.Random) -> str:
    """No table of the schema can grow; what is there can be read."""
    disk = stage.database.disk
    if disk is None:
        return SKIPPED
    disk.fill()
    refused = 0
    for _ in range(12):
        await asyncio.sleep(0.5)
        log = (stage.database.server.folder / "server.log").read_text(errors="replace")
        refused = log.count("No space left on device")
    return f"{refused} statements found no space"


async def old_snapshot_held(stage: Stage, rng: random.Random) -> None:
    async with session(stage) as connection:
        await connection.execute("set transaction isolation level repeatable read")
        await connection.execute("select count(*) from outbox.events")
        await asyncio.sleep(5)
