"""Rows written straight into the tables: what views, explanations and privileges are tested on.

Reads: nothing. Writes: endpoints, events (by outbox.publish), deliveries in any state, attempts, reports.
Guarantee: every row belongs to workspace ws_1 unless it is told otherwise.
If it is wrong: the tests describe a history that no worker writes.
"""

from __future__ import annotations

from datetime import UTC, datetime

FINISHED = {"priority": 1, "attempt_count": 1, "failed_count": 0, "lost_count": 0, "replay_count": 0}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def insert(db, table, **columns):
    db.execute(
        f"insert into outbox.{table} ({', '.join(columns)}) values ({', '.join(['%s'] * len(columns))})",
        list(columns.values()),
    )


def one(db, query, *values):
    rows = db.execute(query, values).fetchall()
    assert len(rows) == 1
    return rows[0]


def new_endpoint(db, workspace_id="ws_1", url="https://hooks.example.com/in", **columns):
    columns = {"workspace_id": workspace_id, "url": url, "event_types": ["*"], **columns}
    (endpoint_id,) = one(
        db,
        f"insert into outbox.endpoints ({', '.join(columns)}) values ({', '.join(['%s'] * len(columns))})"
        " returning endpoint_id",
        *columns.values(),
    )
    return endpoint_id


def publish(db, event_type="message.received", payload='{"a": 1}', workspace_id="ws_1", **named):
    """Publish an event and leave it as if it had been fanned out; what it matched is for the test to say."""
    names = {"workspace_id": workspace_id, "event_type": event_type, "payload": payload, **named}
    casts = {"payload": "::jsonb", "priority": "::smallint"}
    arguments = ", ".join(f"{name} => %s{casts.get(name, '')}" for name in names)
    (event_id,) = one(db, f"select outbox.publish({arguments})", *names.values())
    db.execute("delete from outbox.fan_out_queue where event_id = %s", [event_id])
    return event_id


def owe(db, event_id, endpoint_id, workspace_id="ws_1", **columns):
    columns = {"priority": 1, "next_attempt_at": datetime.now(UTC), **columns}
    insert(
        db,
        "open_deliveries",
        event_id=event_id,
        endpoint_id=endpoint_id,
        workspace_id=workspace_id,
        **columns,
    )


def finish(db, event_id, endpoint_id, state, *, table="finished_deliveries", workspace_id="ws_1", **columns):
    now = datetime.now(UTC)
    columns = {**FINISHED, "next_attempt_at": now, "created_at": now, "state": state, **columns}
    insert(db, table, event_id=event_id, endpoint_id=endpoint_id, workspace_id=workspace_id, **columns)


def attempt(db, event_id, endpoint_id, table="recorded_attempts", workspace_id="ws_1", **columns):
    columns = {
        "attempt_no": 1,
        "endpoint_version": 1,
        "started_at": datetime.now(UTC),
        "duration_ms": 12,
        "worker_no": 7,
        **columns,
    }
    insert(db, table, event_id=event_id, endpoint_id=endpoint_id, workspace_id=workspace_id, **columns)


def live_worker(db):
    """Register a worker that owns every shard."""
    (worker_no,) = one(
        db,
        "insert into outbox.worker_processes (name, version, capacity, expires_at)"
        " values ('host:1', '0', 100, now() + interval '1 minute') returning worker_no",
    )
    db.execute("update outbox.shards set worker_no = %s", [worker_no])
    return worker_no


def report(db, endpoint_id, **columns):
    columns = {
        "worker_no": 1,
        "attempts": 0,
        "successes": 0,
        "timeouts": 0,
        "latency_counts": [0] * 17,
        "in_flight": 0,
        "in_flight_limit": 8,
        "circuit": "closed",
        **columns,
    }
    insert(db, "endpoint_minutes", endpoint_id=endpoint_id, workspace_id="ws_1", **columns)
