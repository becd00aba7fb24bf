"""Behind a transaction pooler a session's settings belong to nobody: each transaction brings its own.

Reads: current_setting, as the worker's statements see it. Writes: nothing.
Guarantee: a claim is on disk, bounded in time and planned by indexes whatever the server's defaults are.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import psycopg
import pytest

from outbox_worker import sqlfiles
from outbox_worker.database import open_pool
from outbox_worker.sqlfiles import numbered
from outbox_worker.store import Store

SEEN = b"""select current_setting('synchronous_commit'), current_setting('statement_timeout'),
    current_setting('plan_cache_mode'), current_setting('enable_seqscan'), current_setting('jit')"""
OURS = ("on", "2s", "force_generic_plan", "off", "off")


@pytest.fixture
def statements(monkeypatch):
    """Statements of the test's own, beside those of the worker."""
    own, real = {}, sqlfiles.statement
    monkeypatch.setattr(sqlfiles, "statement", lambda name: own.get(name) or real(name))
    return own


@pytest.fixture(params=[True, False], ids=["poll-only", "direct"])
async def store(db, dsn_of, request, statements):
    """A store whose server has defaults that lose and stall."""
    db.execute(f"alter role worker_login in database {db.info.dbname} set synchronous_commit = off")
    async with open_pool(
        dsn_of("worker_login"), poll_only=request.param, deadline=4.0, name="it", size=2
    ) as pool:
        store = Store(pool, lease_seconds=60, deadline=4.0)
        statements["seen"] = numbered(SEEN)
        yield store


async def test_every_statement_runs_under_the_settings_it_was_made_for(store):
    """By connection where it is ours, by transaction where a pooler lends it."""
    assert await store.rows("seen") == [OURS]
    assert await store.call("history_floor") is not None
    assert await store.rows("seen") == [OURS]


async def test_an_error_leaves_a_connection_that_works_and_nothing_of_the_transaction(store, statements):
    """Rolled back, handed back, and the next statement is as good."""
    statements["broken"] = numbered(b"select 1 / 0")
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await store.rows("broken")
    assert await store.rows("seen") == [OURS]


async def test_a_statement_past_its_time_is_ended_by_the_server(db, store, statements):
    """Not by the client's deadline alone, behind which the server would go on."""
    statements["slow"] = numbered(b"select pg_sleep(30)")
    with pytest.raises(psycopg.errors.QueryCanceled):
        await store.rows("slow")


async def test_what_a_statement_did_is_committed_when_it_returns(db, store):
    """The transaction around it is invisible to who calls."""
    await store.register("it", "1", 10, 30.0)
    assert db.execute("select count(*) from outbox.worker_processes").fetchone() == (1,)
    await store.balance([])
    assert db.execute("select count(*) from outbox.shards where worker_no is not null").fetchone() == (64,)


async def test_nothing_of_it_stays_in_a_session_that_a_pooler_lends_to_others(store):
    """Poll-only: after the transaction the server's own defaults are back."""
    if store.pool.kwargs.get("options"):
        pytest.skip("these sessions are the worker's own")
    await store.rows("seen")
    async with store.pool.connection() as connection:
        cursor = await connection.execute("select current_setting('synchronous_commit')")
        assert await cursor.fetchone() == ("off",)
