"""A synchronous standby takes over: made from the primary, waited for by every commit, promoted when that is killed.

Reads: the primary. Writes: a second cluster beside the first, then the campaign's only one.
Guarantee: the primary is killed only after a commit was seen to wait for the standby, so what was acknowledged
since is on both.
If it is wrong: an acknowledged event is lost by the campaign, not by the worker.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from outbox_worker.server import LocalServer
from tests.campaign.cluster import OPTIONS

if TYPE_CHECKING:
    import random

    from tests.campaign.cluster import Database
    from tests.campaign.stage import Stage

SECONDS = 60.0


async def standby_promoted(stage: Stage, rng: random.Random) -> str:
    database = stage.database
    primary = database.server
    standby = await asyncio.to_thread(make_standby, database)
    try:
        await database.rows("alter system set synchronous_standby_names = '*'")
        await database.rows("select pg_reload_conf()")
        await commits_wait_for(database, standby)
        await asyncio.sleep(rng.uniform(1, 2))  # work goes on, every commit on both
        await asyncio.to_thread(primary.stop, "immediate")
    except BaseException:
        await asyncio.to_thread(standby.discard)
        raise
    database.server = standby
    await database.rows("select pg_promote(true, 60)")
    stage.to_database.target_port = stage.app_to_database.target_port = standby.port
    await asyncio.to_thread(primary.discard)
    return f"from port {primary.port} to {standby.port}"


def make_standby(database: Database) -> LocalServer:
    """A copy of the running primary in a folder of its own, started and following it."""
    primary = database.server
    database.copies += 1
    standby = LocalServer(database.folder / f"pg-{database.copies}", options=OPTIONS)
    standby.folder.mkdir(mode=0o711)
    standby.folder.chmod(0o711)
    shutil.copy(primary.folder / "pgpass", standby.folder / "pgpass")  # the same superuser
    programs = standby._find()
    data = standby.folder / "data.new"
    data.mkdir(mode=0o700)
    programs.account.give(data)
    words = ["-D", str(data), "-d", make_conninfo(primary.dsn(), application_name="standby", dbname="")]
    words += ["-R", "-X", "stream", "-c", "fast", "--no-sync"]
    if database.disk is not None:
        here, there = database.tables_folder, database.disk.folder / f"tables-{database.copies}"
        there.mkdir(mode=0o700)
        programs.account.give(there)
        words.append(f"--tablespace-mapping={here}={there}")
        database.tables_folder = there
    code, said = programs.run("pg_basebackup", *words)
    if code:
        raise RuntimeError(f"making a standby in {standby.folder}: pg_basebackup said: {said[-800:]}")
    data.rename(standby.folder / "data")
    standby.start()
    return standby


async def commits_wait_for(database: Database, standby: LocalServer) -> None:
    """Until a commit of our own was seen to wait: it asks to be applied there, where applying is paused."""
    async with (
        asyncio.timeout(SECONDS),
        await psycopg.AsyncConnection.connect(standby.dsn(), autocommit=True) as there,
        await psycopg.AsyncConnection.connect(database.server.dsn(), autocommit=True) as here,
    ):
        await there.execute("select pg_wal_replay_pause()")
        await here.execute("set synchronous_commit = remote_apply")
        seen = "select wait_event = 'SyncRep' from pg_stat_activity where pid = %s"
        try:
            while True:
                commit = asyncio.create_task(
                    here.execute("select pg_logical_emit_message(true, 'campaign', '')")
                )
                while not commit.done():
                    if (await database.rows(seen, here.info.backend_pid))[0][0]:
                        return
                    await asyncio.sleep(0.01)
                await commit
        finally:
            await there.execute("select pg_wal_replay_resume()")
            await commit
