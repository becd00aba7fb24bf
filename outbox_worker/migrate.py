"""Migrate: bring the schema `outbox` to what this release needs.

Reads: bootstrap.sql, bookkeeping.sql, migrations, definitions and catalogue of sql/. Writes: the schema,
schema_migrations, schema_definitions, event_types, partitions.
Guarantee: safe to run twice and by two at once (advisory lock); an applied migration that has changed is refused
(MigrationDrift); each migration is one transaction that records itself first; the definitions are one transaction.
If it dies: the migration under way rolls back; run it again.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from outbox_worker import sqlfiles
from outbox_worker.errors import DatabaseUnavailable, MigrationDrift, MigrationFailed, SchemaTooOld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MINIMUM_SERVER = 150000
LOCK_TRIES = 5
LOCK_KEY = (0x6F757462, 1)  # "outb"; key 1 is migrate, key 2 the doorbell, key 3 upkeep, key 5 stripping

NO_TRANSACTION = "-- outbox: no-transaction"
RECORD_MIGRATION = "insert into outbox.schema_migrations (version, name, sha256) values (%s, %s, %s)"
RECORD_DEFINITION = (
    "insert into outbox.schema_definitions (name, sha256) values (%s, %s) on conflict (name) do update "
    "set sha256 = excluded.sha256, applied_at = now() where schema_definitions.sha256 <> excluded.sha256"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One file to apply: a migration (version > 0), the definitions, or the catalogue (version 0)."""

    version: int
    name: str
    sha256: str
    text: str


def migrate(
    conninfo: str,
    *,
    report: Callable[[str], None] = lambda _line: None,
    lock_seconds: float = 60,
    lock_timeout: float = 2.0,
) -> list[str]:
    """Apply what is missing and return the names of the files applied.

    `lock_timeout` bounds each wait for a table: the app's transactions queue behind it for as long.
    """
    with connected(conninfo) as connection:
        check_server(connection)
        with migration_lock(connection, lock_seconds):
            connection.execute(
                "select set_config('lock_timeout', %s, false)", [f"{lock_timeout * 1000:.0f}ms"]
            )
            bootstrap = sqlfiles.read("bootstrap.sql").decode()
            patiently(lambda: run(connection, "bootstrap.sql", bootstrap), lock_timeout)
            connection.execute("set role outbox_owner")
            connection.execute(sqlfiles.read("bookkeeping.sql"))
            applied = []
            for step in pending_migrations(connection):
                patiently(partial(apply_migration, connection, step), lock_timeout)
                report(f"applied {step.name}")
                applied.append(step.name)
            definitions = pending_definitions(connection)
            if definitions or applied:
                patiently(partial(apply_definitions, connection), lock_timeout)
                report(f"applied {len(all_definitions(connection))} definitions and the catalogue")
                applied += [step.name for step in definitions]
            partitions = "select outbox.create_partitions()"
            patiently(lambda: run(connection, "the partitions", partitions), lock_timeout)
    return applied


def plan(conninfo: str) -> Iterator[str]:
    """The SQL that migrate would run, for `migrate --dry-run`: psql may run it instead, and migrate finds nothing left."""
    with connected(conninfo) as connection:
        check_server(connection)
        known = has_bookkeeping(connection)
        migrations = pending_migrations(connection) if known else all_migrations()
        changed = pending_definitions(connection) if known else all_definitions(connection)
        yield f"-- bootstrap.sql\n{sqlfiles.read('bootstrap.sql').decode()}"
        yield "set role outbox_owner;"
        yield sqlfiles.read("bookkeeping.sql").decode()
        for step in migrations:
            alone = step.text.startswith(NO_TRANSACTION)
            record = recorded(RECORD_MIGRATION, step.version, step.name, step.sha256)
            yield f"-- {step.name}"
            yield f"{step.text}\n{record}" if alone else f"begin;\n{record}\n{step.text}\ncommit;"
        if migrations or changed:
            yield "begin;"
            for step in all_definitions(connection):
                yield f"-- {step.name}\n{step.text}\n{recorded(RECORD_DEFINITION, step.name, step.sha256)}"
            yield "commit;"
        yield "select outbox.create_partitions();"


def has_bookkeeping(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = connection.execute("select to_regclass('outbox.schema_migrations') is not null").fetchone()
    return bool(row and row[0])


def recorded(statement: str, *values: int | str) -> str:
    """The statement with its values written out, for people to run."""
    return statement % tuple(sql.Literal(value).as_string(None) for value in values) + ";"


def require_schema(connection: psycopg.Connection[tuple[object, ...]]) -> str | None:
    """Raise SchemaTooOld unless every migration of this release is applied; return a warning if it is newer."""
    needed = all_migrations()[-1].version
    found = 0
    if has_bookkeeping(connection):
        row = connection.execute("select coalesce(max(version), 0) from outbox.schema_migrations").fetchone()
        found = int(str(row[0])) if row else 0
    if found < needed:
        raise SchemaTooOld(
            f"checked the schema outbox: found version {found}, this release needs {needed}. "
            "Run: outbox-worker migrate (as a role that is or may become outbox_owner)."
        )
    if found > needed:
        return f"the schema outbox has version {found}, newer than the {needed} this release was made for; going on"
    return None


@contextmanager
def connected(conninfo: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    try:
        connection = psycopg.connect(
            conninfo, autocommit=True, connect_timeout=10, application_name="outbox-migrate"
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"connecting to the database: {error}. Check OUTBOX_OWNER_DATABASE_URL or OUTBOX_DATABASE_URL, "
            "and that the server accepts connections."
        ) from error
    with connection:
        yield connection


def check_server(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    if connection.info.server_version < MINIMUM_SERVER:
        raise MigrationFailed(
            f"checked the server: found PostgreSQL {connection.info.server_version // 10000}, need 15 or newer."
        )


@contextmanager
def migration_lock(connection: psycopg.Connection[tuple[object, ...]], seconds: float) -> Iterator[None]:
    """Only one migrate at a time; polled, since a waiting lock and a concurrent index build deadlock."""
    deadline = time.monotonic() + seconds
    while True:
        row = connection.execute("select pg_try_advisory_lock(%s, %s)", LOCK_KEY).fetchone()
        if row and row[0]:
            break
        if time.monotonic() > deadline:
            raise MigrationFailed(
                f"waited {seconds:.0f} s for another migrate to end; it still runs. "
                "Look at pg_stat_activity for application_name outbox-migrate."
            )
        time.sleep(0.1)  # polling a lock is the one wait that has no signal
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(%s, %s)", LOCK_KEY)


def patiently(step: Callable[[], None], pause: float) -> None:
    """Do it, and again if a lock did not come in time; between two tries whoever queued behind has its turn."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            step()
        except MigrationFailed as failed:
            if not left or not isinstance(failed.__cause__, psycopg.errors.LockNotAvailable):
                raise
            time.sleep(pause)  # nothing signals that another session's transaction has ended
        else:
            return


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def all_migrations() -> list[Step]:
    steps = []
    for name in sqlfiles.migrations():
        text = sqlfiles.read(name).decode()
        number = re.search(r"(\d{4})_[a-z_]+\.sql$", name)
        if number is None:
            raise MigrationFailed(f"read the migrations: {name} is not named NNNN_words.sql.")
        steps.append(Step(int(number[1]), name, checksum(text), text))
    return steps


def pending_migrations(connection: psycopg.Connection[tuple[object, ...]]) -> list[Step]:
    applied = {
        int(str(version)): str(sha256)
        for version, sha256 in connection.execute("select version, sha256 from outbox.schema_migrations")
    }
    pending = []
    for step in all_migrations():
        if step.version not in applied:
            pending.append(step)
        elif applied[step.version] != step.sha256:
            raise MigrationDrift(
                f"compared {step.name} with what was applied: the file has changed since. "
                "Restore the released file; a change of the schema is a new migration."
            )
    return pending


def all_definitions(connection: psycopg.Connection[tuple[object, ...]]) -> list[Step]:
    """Definitions with the schema of pgcrypto filled in, then the catalogue."""
    row = connection.execute(
        "select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace "
        "where e.extname = 'pgcrypto'"
    ).fetchone()
    pgcrypto = sql.Identifier(str(row[0]) if row else "public").as_string(connection)
    steps = []
    for name in sqlfiles.definitions():
        text = sqlfiles.read(name).decode().replace("@pgcrypto@", pgcrypto)
        steps.append(Step(0, name, checksum(text), text))
    for name in sqlfiles.catalogue():
        text = sqlfiles.read(name).decode()
        steps.append(Step(0, name, checksum(text), catalogue_statement(json.loads(text))))
    return steps


def catalogue_statement(types: list[dict[str, object]]) -> str:
    payload = json.dumps(types, ensure_ascii=False)
    return f"select outbox.install_event_types({sql.Literal(payload).as_string(None)}::jsonb);"


def pending_definitions(connection: psycopg.Connection[tuple[object, ...]]) -> list[Step]:
    applied = {
        str(name): str(sha256)
        for name, sha256 in connection.execute("select name, sha256 from outbox.schema_definitions")
    }
    return [step for step in all_definitions(connection) if applied.get(step.name) != step.sha256]


def apply_migration(connection: psycopg.Connection[tuple[object, ...]], step: Step) -> None:
    values = (step.version, step.name, step.sha256)
    if step.text.startswith(NO_TRANSACTION):
        before = connection.execute("select current_setting('lock_timeout')").fetchone()
        # a concurrent index build blocks nobody, and half of one is useless
        connection.execute("set lock_timeout = 0")
        run(connection, step.name, step.text)
        connection.execute(RECORD_MIGRATION, values)
        connection.execute("select set_config('lock_timeout', %s, false)", before)
        return
    with connection.transaction():
        connection.execute(RECORD_MIGRATION, values)
        run(connection, step.name, step.text)


def apply_definitions(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """All of them in one transaction: a session sees either the old set or the new one."""
    with connection.transaction():
        for step in all_definitions(connection):
            run(connection, step.name, step.text)
            connection.execute(RECORD_DEFINITION, (step.name, step.sha256))


def run(connection: psycopg.Connection[tuple[object, ...]], name: str, text: str) -> None:
    try:
        connection.execute(text.encode())
    except psycopg.errors.LockNotAvailable as error:
        raise MigrationFailed(
            f"applying {name}: another session's transaction held a lock that it needs, {LOCK_TRIES} times over. "
            "What it did is rolled back. End that transaction (pg_stat_activity has them, the oldest by xact_start) "
            "and run again: outbox-worker migrate."
        ) from error
    except psycopg.Error as error:
        hint = f" Hint: {error.diag.message_hint}" if error.diag.message_hint else ""
        raise MigrationFailed(f"applying {name}: {error.diag.message_primary or error}.{hint}") from error
