"""Migrations: fresh, twice, two at once, by a role that is no superuser, with drift refused."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from outbox_worker import migrate as migrations
from outbox_worker import sqlfiles
from outbox_worker.errors import DatabaseUnavailable, MigrationDrift, MigrationFailed, SchemaTooOld


@pytest.fixture
def dsn(cluster, empty_database):
    return cluster.dsn(empty_database)


def test_migrate_applies_everything_once(dsn):
    """The second run finds nothing to do."""
    applied = migrations.migrate(dsn)
    assert applied[:2] == ["migrations/0001_foundation.sql", "migrations/0002_event_types.sql"]
    assert migrations.migrate(dsn) == []


def test_two_migrates_at_once_apply_everything_once(dsn):
    """The advisory lock lets one wait for the other."""
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: migrations.migrate(dsn), range(2)))
    assert sorted(map(bool, results)) == [False, True]


def test_a_changed_applied_migration_is_refused(dsn):
    """Drift names the file and says what to do."""
    migrations.migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("update outbox.schema_migrations set sha256 = 'other' where version = 3")
    with pytest.raises(MigrationDrift, match=r"0003_endpoints\.sql.*new migration"):
        migrations.migrate(dsn)


def test_a_changed_definition_re_runs_all_of_them(dsn):
    """Definitions have the meaning of `create or replace`: whatever changed, the set is applied as one."""
    migrations.migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "update outbox.schema_definitions set sha256 = 'old' where name like '%50_publish.sql'"
        )
        assert migrations.migrate(dsn) == ["definitions/50_publish.sql"]
        left = connection.execute(
            "select count(*) from outbox.schema_definitions where sha256 = 'old'"
        ).fetchone()
    assert left == (0,)


def test_running_the_definitions_again_changes_nothing(dsn):
    """Views, functions, triggers and grants come out the same."""
    migrations.migrate(dsn)
    shape = """select md5(string_agg(x, '' order by x)) from (
        select pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') as x from pg_proc p where p.pronamespace = 'outbox'::regnamespace
        union all select c.relname || coalesce(pg_get_viewdef(c.oid), '') || coalesce(c.relacl::text, '')
        from pg_class c where c.relnamespace = 'outbox'::regnamespace) s"""
    with psycopg.connect(dsn, autocommit=True) as connection:
        before = connection.execute(shape).fetchone()
        connection.execute("update outbox.schema_definitions set sha256 = 'old'")
        migrations.migrate(dsn)
        assert connection.execute(shape).fetchone() == before


def test_the_schema_gate_refuses_an_older_schema_and_warns_of_a_newer(dsn):
    """Older: say what to run. Newer: each migration is compatible with the release before, so go on."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(SchemaTooOld, match="outbox-worker migrate"):
            migrations.require_schema(connection)
        migrations.migrate(dsn)
        assert migrations.require_schema(connection) is None
        connection.execute(
            "insert into outbox.schema_migrations (version, name, sha256) values (9999, 'later', '')"
        )
        assert "9999" in migrations.require_schema(connection)


def test_dry_run_prints_the_sql_and_changes_nothing(dsn):
    """Every file appears; the database stays empty."""
    text = "\n".join(migrations.plan(dsn))
    for name in sqlfiles.migrations() + sqlfiles.definitions():
        assert name in text
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("select to_regnamespace('outbox')").fetchone() == (None,)


def test_what_a_dry_run_prints_can_be_run_instead_of_migrate(dsn):
    """A DBA may take the SQL to psql: migrate then finds nothing to do, and another dry run prints no file again."""
    printed = "\n".join(migrations.plan(dsn))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(printed.encode())
    again = "\n".join(migrations.plan(dsn))
    assert not [name for name in sqlfiles.migrations() + sqlfiles.definitions() if name in again]
    assert migrations.migrate(dsn) == []


def test_a_dry_run_refuses_drift_too(dsn):
    """What migrate would refuse is said before it is tried."""
    migrations.migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("update outbox.schema_migrations set sha256 = 'other' where version = 3")
    with pytest.raises(MigrationDrift, match=r"0003_endpoints\.sql"):
        list(migrations.plan(dsn))


def test_migrate_needs_no_superuser(cluster, maintenance, empty_database):
    """A login that may create roles and owns its database is enough."""
    maintenance.execute("drop role if exists plain_owner")
    maintenance.execute(f"create role plain_owner login createrole password '{cluster.login_password}'")
    existing = maintenance.execute("select rolname from pg_roles where rolname = 'outbox_owner'").fetchone()
    if existing:
        maintenance.execute("grant outbox_owner to plain_owner")
    maintenance.execute(f'alter database "{empty_database}" owner to plain_owner')
    try:
        assert migrations.migrate(cluster.dsn(empty_database, "plain_owner"))
        assert migrations.migrate(cluster.dsn(empty_database, "plain_owner")) == []
        with psycopg.connect(cluster.dsn(empty_database), autocommit=True) as connection:
            owners = connection.execute(
                "select distinct relowner::regrole::text from pg_class where relnamespace = 'outbox'::regnamespace"
            ).fetchall()
        assert owners == [("outbox_owner",)]
    finally:
        with psycopg.connect(cluster.dsn(empty_database), autocommit=True) as connection:
            connection.execute("drop owned by plain_owner cascade")
            connection.execute("reassign owned by plain_owner to current_user")
        maintenance.execute(f'alter database "{empty_database}" owner to current_user')
        maintenance.execute("drop role plain_owner")


def test_a_server_that_cannot_be_reached_is_said_so():
    """Exit code 3 and the variable to look at."""
    with pytest.raises(DatabaseUnavailable, match="OUTBOX_DATABASE_URL"):
        migrations.migrate("host=127.0.0.1 port=1 user=nobody dbname=none connect_timeout=2")


def test_every_migration_is_named_and_numbered_without_gaps():
    """NNNN_words.sql, from 0001."""
    numbers = [int(re.search(r"/(\d{4})_[a-z_]+\.sql$", name)[1]) for name in sqlfiles.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def outdate(connection):
    connection.execute("update outbox.schema_definitions set sha256 = 'old'")


def test_a_release_is_migrated_while_transactions_that_published_are_open(db, dsn_of, connect):
    """Its definitions are replaced beside them: no publisher waits for it, and it waits for none."""
    business, other = connect("app_login"), connect("app_login")
    business.execute("begin")
    business.execute("select outbox.publish('ws', 'message.received', '{}')")
    db.execute(
        "insert into outbox.endpoints (workspace_id, url, event_types) values ('ws', 'https://a.example.com', '{*}')"
    )
    keeper = connect()
    keeper.execute("begin; update outbox.endpoints set description = 'mine'")
    outdate(db)
    assert migrations.migrate(dsn_of(), lock_timeout=0.1)
    other.execute("set lock_timeout = '1ms'")
    other.execute("select outbox.publish('ws', 'message.received', '{}')")
    business.execute("commit")
    keeper.execute("commit")
    assert db.execute("select count(*) from outbox.events").fetchone() == (2,)


def test_a_trigger_that_differs_is_made_again(db, dsn_of):
    """What is missing or altered comes back; what is right is left alone."""
    shape = (
        "select pg_get_triggerdef(t.oid), t.oid from pg_trigger t join pg_class c on c.oid = t.tgrelid"
        " where c.relkind in ('r', 'p') and t.tgparentid = 0 and not t.tgisinternal order by 1"
    )
    before = db.execute(shape).fetchall()
    db.execute("drop trigger keep_event on outbox.events")
    db.execute(
        "create or replace trigger check_endpoint before insert on outbox.endpoints"
        " for each row execute function outbox.check_endpoint()"
    )
    outdate(db)
    migrations.migrate(dsn_of())
    after = db.execute(shape).fetchall()
    assert [made for made, _ in after] == [made for made, _ in before]
    changed = {made.split()[2] for made, oid in set(after) - set(before)}
    assert changed == {"keep_event"}  # replacing keeps the oid; what was right was not even replaced


def test_a_lock_that_does_not_come_ends_the_migration_and_says_what_to_do(db, dsn_of, connect):
    """Bounded waits with room between them, then a clear word; nothing of it is applied, and a later run succeeds."""
    holder = connect()
    holder.execute("begin; lock table outbox.deliveries in access exclusive mode")
    outdate(db)
    with pytest.raises(MigrationFailed, match=r"definitions/.*lock.*pg_stat_activity.*outbox-worker migrate"):
        migrations.migrate(dsn_of(), lock_timeout=0.02)
    left = "select count(*) from outbox.schema_definitions where sha256 <> 'old'"
    assert db.execute(left).fetchone() == (0,)
    holder.execute("rollback")
    assert migrations.migrate(dsn_of())
