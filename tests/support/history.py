"""Put endpoints, events and deliveries of any age and state into the database, past the pipeline.

Reads: nothing. Writes: endpoints, events, deliveries and attempts, as a superuser.
Guarantee: every row is one that the pipeline could have written.
If it is wrong: tests of the history prove nothing.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

# A random id of a given moment.
ID_AT = """encode(overlay(uuid_send(outbox.uuid7()) placing
    substring(uuid_send(outbox.event_id_floor({at})) from 1 for 6) from 1 for 6), 'hex')::uuid"""
HOUR_AGO = ID_AT.format(at="clock_timestamp() - interval '1 hour'")


def value(db: psycopg.Connection, query: str, *params: object) -> Any:
    """Give the only column of the only row."""
    (row,) = db.execute(query, params).fetchall()
    (only,) = row
    return only


def add_endpoint(
    db: psycopg.Connection, workspace: str = "ws", types: str = "{message.*}", **columns: Any
) -> UUID:
    names = ["workspace_id", "url", "event_types", *columns]
    query = (
        f"insert into outbox.endpoints ({', '.join(names)})"
        f" values ({', '.join(['%s'] * len(names))}) returning endpoint_id"
    )
    return value(db, query, workspace, "https://example.com/hook", types, *columns.values())


def add_event(
    db: psycopg.Connection,
    workspace: str = "ws",
    *,
    age: str = "1 hour",
    queued: bool = False,
    **columns: Any,
) -> UUID:
    """Insert an event of this age; fanned out already, unless `queued`."""
    columns = {"event_type": "message.received", "payload": {"n": 1}, **columns}
    columns["payload"] = Jsonb(columns["payload"])
    query = (
        f"insert into outbox.events (event_id, created_at, workspace_id, {', '.join(columns)})"
        f" values ({ID_AT.format(at='clock_timestamp() - %s::interval')}, clock_timestamp() -"
        " %s::interval, %s,"
        f" {', '.join(['%s'] * len(columns))}) returning event_id"
    )
    event = value(db, query, age, age, workspace, *columns.values())
    if not queued:
        db.execute("delete from outbox.fan_out_queue where event_id = %s", [event])
    return event


def add_open(
    db: psycopg.Connection, event: UUID, endpoint: UUID, workspace: str = "ws", **columns: Any
) -> None:
    columns = {"priority": 1, "next_attempt_at": "now", **columns}
    db.execute(
        f"insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, {', '.join(columns)})"
        f" values (%s, %s, %s, {', '.join(['%s'] * len(columns))})",
        [event, endpoint, workspace, *columns.values()],
    )


def add_finished(
    db: psycopg.Connection,
    event: UUID,
    endpoint: UUID,
    state: str = "dead",
    *,
    ago: str = "30 minutes",
    attempts: int = 8,
) -> None:
    """Insert a finished delivery that ended so long ago, with its attempts."""
    db.execute(
        "insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, reason,"
        " priority, attempt_count,"
        " failed_count, lost_count, replay_count, last_status, last_error, next_attempt_at, created_at,"
        " finished_at)"
        " select %s, %s, n.workspace_id, %s, case when %s = 'dead' then 'exhausted' end, 1, %s, %s, 2,"
        " 0, 500, 'HTTP 500',"
        " now() - %s::interval, now() - %s::interval, now() - %s::interval from outbox.endpoints n where"
        " n.endpoint_id = %s",
        [event, endpoint, state, state, attempts, attempts, ago, ago, ago, endpoint],
    )
    db.execute(
        "insert into outbox.recorded_attempts (event_id, endpoint_id, attempt_no, workspace_id,"
        " endpoint_version, started_at,"
        " duration_ms, worker_no, status, error, response_headers, response_body)"
        " select %s, %s, no, n.workspace_id, 1, now() - %s::interval, 12, 1, 500, '', '{}', 'no, Ada'"
        " from generate_series(1, %s) as no, outbox.endpoints n where n.endpoint_id = %s",
        [event, endpoint, ago, attempts, endpoint],
    )


def add_many_dead(db: psycopg.Connection, endpoint: UUID, count: int, *, state: str = "dead") -> None:
    """Insert many events an hour old, each with one finished delivery to this endpoint."""
    db.execute("alter table outbox.events disable trigger accept_event")
    db.execute(
        f"with made as (insert into outbox.events (event_id, workspace_id, event_type, payload)"
        f" select {HOUR_AGO},"
        " n.workspace_id,"
        " 'message.received', jsonb_build_object('n', i)"
        " from generate_series(1, %s) i, outbox.endpoints n where n.endpoint_id = %s returning event_id,"
        " workspace_id)"
        " insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, priority,"
        " attempt_count, failed_count,"
        " lost_count, replay_count, next_attempt_at, created_at, finished_at)"
        " select event_id, %s, workspace_id, %s, 1, 8, 8, 0, 0, now(), now(), now() - interval '30"
        " minutes' from made",
        [count, endpoint, endpoint, state],
    )
    db.execute("alter table outbox.events enable trigger accept_event")


def delivery(db: psycopg.Connection, event: UUID, endpoint: UUID) -> dict[str, Any] | None:
    """Give the one row of the delivery in outbox.deliveries; more than one fails."""
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        rows = cursor.execute(
            "select * from outbox.deliveries where event_id = %s and endpoint_id = %s", [event, endpoint]
        ).fetchall()
    assert len(rows) <= 1, f"the delivery is in {len(rows)} places"
    return rows[0] if rows else None


@contextmanager
def in_background(act: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Run `act` in a thread; the yielded call waits for its value or raises what it raised."""
    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found["value"] = act()
        except psycopg.Error as error:
            found["error"] = error

    thread = threading.Thread(target=run)
    thread.start()

    def outcome() -> Any:
        thread.join(30)
        if "error" in found:
            raise found["error"]
        return found["value"]

    try:
        yield outcome
    finally:
        thread.join(30)


async def wait_for_lock(
    db: psycopg.Connection, session: psycopg.Connection, eventually: Callable[..., Any]
) -> None:
    """Wait until `session` waits for a lock."""
    pid = session.info.backend_pid
    await eventually(
        lambda: value(db, "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", pid)
    )
