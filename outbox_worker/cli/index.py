"""index: find events by a value in their payload, with an index on every partition, also on those to come.

Reads: pg_index. Writes: indexes on outbox.events, its partitions and outbox.kept_events, as outbox_owner.
Guarantee: publishing goes on while an index is built (CONCURRENTLY); what needs a lock on outbox.events waits for it
LOCK_SECONDS at a time; a partition that is made meanwhile or later has the index from the start.
If it dies: run it again: what is built stays, what was half built is dropped and built anew.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import psycopg
import typer
from psycopg import sql
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from outbox_worker.cli import payload_paths
from outbox_worker.cli.endpoint_options import Yes, agreed
from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import Connection, one, owner_session, rows, session
from outbox_worker.errors import ConfigError, DatabaseUnavailable
from outbox_worker.settings import load

LOCK_KEY = (1869968482, 4)  # as in migrate: key 1 is migrate's, 3 upkeep's, 5 stripping's
LOCK_TRIES = 5
LOCK_SECONDS = 1.0
# An index of ours is known by its expression, whatever it is called: partitions name theirs themselves.
INDEXES = r"""
select t.relname as table_name, t.relkind = 'p' as is_parent, c.relname as name, x.indisvalid as valid,
       exists (select from pg_catalog.pg_inherits h where h.inhrelid = c.oid) as attached,
       pg_catalog.pg_relation_size(c.oid) as bytes,
       replace(substring(pg_catalog.pg_get_indexdef(c.oid, 1, true) from
                         '^jsonb_path_query_array\(payload, ''(.*)''::jsonpath\)$'), '''''', '''') as path
from pg_catalog.pg_index x
join pg_catalog.pg_class c on c.oid = x.indexrelid
join pg_catalog.pg_am m on m.oid = c.relam and m.amname = 'gin'
join pg_catalog.pg_class t on t.oid = x.indrelid
where t.oid in ('outbox.events'::regclass, 'outbox.kept_events'::regclass)
   or t.oid in (select p.inhrelid from pg_catalog.pg_inherits p where p.inhparent = 'outbox.events'::regclass)
"""
TABLES = """
select t.relname as name from pg_catalog.pg_class t
where t.oid = 'outbox.kept_events'::regclass
   or t.oid in (select p.inhrelid from pg_catalog.pg_inherits p where p.inhparent = 'outbox.events'::regclass)
order by t.relname
"""


def index(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            parser=payload_paths.payload_path,
            help="Where the value stands in the payload: '$.order.id'. Without it: list the indexes.",
        ),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Drop the index on that path.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Index a value in the payload of all events, past and to come, so that search --jsonpath finds it at once.

    Needs the owner's login (OUTBOX_OWNER_DATABASE_URL). May be stopped and run again; publishing goes on meanwhile.
    """
    output = Output(as_json=as_json)
    if path is None:
        if drop:
            raise typer.BadParameter("say which index to drop: outbox-worker index '$.order.id' --drop")
        with session() as connection:
            output.rows(
                listed(connection),
                ["path", "state", "tables", "bytes", "condition"],
                title="Indexes on the payload",
                nothing="no index on the payload yet; make one: outbox-worker index '$.order.id'",
            )
        return
    if drop:
        agreed(f"Drop the index on {path.removesuffix('[*]')}?", yes=yes)
    with owner() as connection:
        normal: str = one(connection, "select %s::text::jsonpath::text", [path])
        if drop:
            drop_index(connection, normal, output)
        else:
            build_index(connection, normal, output)


@contextmanager
def owner() -> Iterator[Connection]:
    """Become outbox_owner, alone: two sessions that build the same index would wait for each other."""
    with owner_session(load()) as connection:
        try:
            connection.execute("set role outbox_owner")
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigError(
                f"becoming outbox_owner: the login {connection.info.user} may not. Set OUTBOX_OWNER_DATABASE_URL to a login "
                "that may, such as the one that runs outbox-worker migrate."
            ) from error
        if not one(connection, "select pg_try_advisory_lock(%s, %s)", LOCK_KEY):
            raise ConfigError(
                "changing the indexes: another outbox-worker index is at it. Wait for it, or look for application_name "
                "outbox-cli in pg_stat_activity."
            )
        connection.execute("set statement_timeout = 0")
        yield connection


def indexes_of(connection: Connection, path: str) -> list[dict[str, Any]]:
    return [row for row in rows(connection, INDEXES) if row["path"] == path]


def listed(connection: Connection) -> list[dict[str, Any]]:
    every = [row for row in rows(connection, INDEXES) if row["path"]]
    total = len(rows(connection, TABLES))
    found = []
    for path in sorted({row["path"] for row in every}):
        own = [row for row in every if row["path"] == path]
        ready = sum(is_ready(row) for row in own)
        complete = ready == total and any(row["is_parent"] for row in own)
        found.append(
            {
                "path": payload_paths.shown(path),
                "state": "ready" if complete else "unfinished: run it again",
                "tables": f"{ready} of {total}",
                "bytes": sum(row["bytes"] for row in own),
                "condition": payload_paths.condition(payload_paths.shown(path)),
            }
        )
    return found


def is_indexed(connection: Connection, path: str) -> bool:
    """Whether every event can be found by a value at that path."""
    normal = one(connection, "select %s::text::jsonpath::text", [path])
    own = indexes_of(connection, normal)
    return bool(own) and sum(is_ready(row) for row in own) == len(rows(connection, TABLES))


def is_ready(row: dict[str, Any]) -> bool:
    return bool(
        row["valid"] and not row["is_parent"] and (row["attached"] or row["table_name"] == "kept_events")
    )


def build_index(connection: Connection, path: str, output: Output) -> None:
    """Make the parent's index first: every partition from then on is made with its own."""
    if not any(row["is_parent"] for row in indexes_of(connection, path)):
        name = name_of("events", path)
        with_lock(
            connection,
            creation(path, name, "only outbox.events", concurrently=False),
            f"making the index {name} on outbox.events",
        )
    drop_leftovers(connection, path)
    done = {row["table_name"] for row in indexes_of(connection, path) if is_ready(row)}
    wanted = [row["name"] for row in rows(connection, TABLES) if row["name"] not in done]
    columns = (
        TextColumn("indexing {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    built = 0
    with Progress(*columns, console=output.screen, disable=not output.terminal) as progress:
        bar = progress.add_task("", total=len(wanted))
        for number, table in enumerate(wanted, 1):
            progress.update(bar, description=table)
            begun = time.monotonic()
            if build_one(connection, path, table):
                built += 1
                if not output.terminal:
                    tell_built(output, path, table, f"{number} of {len(wanted)}", time.monotonic() - begun)
            progress.update(bar, completed=number)
    told = payload_paths.shown(path)
    if output.as_json:
        output.json(next(row for row in listed(connection) if row["path"] == told) | {"built": built})
        return
    output.say(
        f"the index on {told} is ready: built on {built} tables, {len(done)} had it, each partition to come will"
    )
    output.say(f"  outbox-worker search --jsonpath '{told} == …'")
    output.say(f"  in SQL: where {payload_paths.condition(told)}")


def build_one(connection: Connection, path: str, table: str) -> bool:
    """Build or attach what one table lacks; False if retention has dropped the table meanwhile."""
    own = [row for row in indexes_of(connection, path) if row["table_name"] == table and row["valid"]]
    if any(is_ready(row) for row in own):
        return False
    name = own[0]["name"] if own else name_of(table, path)
    try:
        if not own:
            connection.execute(
                creation(path, name, sql.Identifier("outbox", table).as_string(connection), concurrently=True)
            )
        if table != "kept_events":
            parent = next(row["name"] for row in indexes_of(connection, path) if row["is_parent"])
            with_lock(
                connection,
                sql.SQL("alter index {} attach partition {}").format(
                    sql.Identifier("outbox", parent), sql.Identifier("outbox", name)
                ),
                f"attaching the index of {table}",
            )
    except psycopg.errors.UndefinedTable:
        if table in {row["name"] for row in rows(connection, TABLES)}:
            raise
        return False
    return True


def drop_index(connection: Connection, path: str, output: Output) -> None:
    own = indexes_of(connection, path)
    told = payload_paths.shown(path)
    if not own:
        raise ConfigError(f"dropping the index on {told}: there is none. List them with: outbox-worker index")
    for row in own:
        if row["is_parent"]:  # those of the partitions go with it
            with_lock(
                connection,
                sql.SQL("drop index {}").format(sql.Identifier("outbox", row["name"])),
                f"dropping {row['name']}",
            )
    for row in indexes_of(connection, path):
        drop_concurrently(connection, row["name"])
    if output.as_json:
        output.json({"path": told, "dropped": True, "bytes": sum(row["bytes"] for row in own)})
    else:
        output.say(f"dropped the index on {told}: partitions to come are made without it")


def drop_leftovers(connection: Connection, path: str) -> None:
    """An index that was being built when something stopped it is invalid: it costs, and serves nobody."""
    for row in indexes_of(connection, path):
        if not row["valid"] and not row["is_parent"]:
            drop_concurrently(connection, row["name"])


def drop_concurrently(connection: Connection, name: str) -> None:
    connection.execute(sql.SQL("drop index concurrently if exists {}").format(sql.Identifier("outbox", name)))


def creation(path: str, name: str, table: str, *, concurrently: bool) -> sql.Composed:
    # fastupdate off: a publisher writes its own entry, and never the pending ones of all the others
    return sql.SQL(
        "create index {how} {name} on {table} using gin (jsonb_path_query_array(payload, {path}::jsonpath) jsonb_path_ops) "
        "with (fastupdate = off)"
    ).format(
        how=sql.SQL("concurrently" if concurrently else ""),
        name=sql.Identifier(name),
        table=sql.SQL(table),
        path=sql.Literal(path),
    )


def name_of(table: str, path: str) -> str:
    """Readable, unique by the path, and short enough for PostgreSQL."""
    words = re.sub(r"[^a-z0-9]+", "_", payload_paths.shown(path).lower()).strip("_")
    return f"{table}_{words[:20]}_{hashlib.sha256(path.encode()).hexdigest()[:6]}_idx"


def with_lock(connection: Connection, statement: sql.Composed, doing: str) -> None:
    """Run it under a short lock_timeout: whoever publishes queues behind this wait."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            with connection.transaction():
                connection.execute(
                    "select set_config('lock_timeout', %s, true)", [f"{LOCK_SECONDS * 1000:.0f}ms"]
                )
                connection.execute(statement)
        except psycopg.errors.LockNotAvailable as error:
            if not left:
                raise DatabaseUnavailable(
                    f"{doing}: another session's transaction held a lock that it needs, {LOCK_TRIES} times over. What is built "
                    "stays. End that transaction (pg_stat_activity, the oldest by xact_start) and run this again."
                ) from error
            time.sleep(LOCK_SECONDS)  # who queued behind has its turn; nothing signals a free lock
        else:
            return


def tell_built(output: Output, path: str, table: str, place: str, seconds: float) -> None:
    if output.as_json:
        output.json({"path": payload_paths.shown(path), "table": table, "seconds": round(seconds, 3)})
    else:
        output.say(f"{place}: {table} in {seconds:.1f} s")
