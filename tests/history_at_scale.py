"""`python -m tests.history_at_scale [--rows N] [--json]`: every documented question on a history of N attempts.

Reads: OUTBOX_TEST_PG_BIN (another PostgreSQL). Writes: a server of its own in the temporary folder, removed at the end;
figures on standard output, progress on standard error.
Guarantee: exit code 1 if a question scans a table of the history, or touches more partitions than it may.
If it crashes: the folder stays; the next run of the tests removes it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from outbox_worker.cli.condition import Condition
from outbox_worker.migrate import migrate
from tests.conftest import OPTIONS, own_server
from tests.support.commands import Commands

if TYPE_CHECKING:
    from collections.abc import Iterator

WEEKS = 45
ENDPOINTS = 200
HISTORY = ("events", "finished_deliveries", "recorded_attempts")

PLACE = """
select outbox.make_partition(parent, first - n * interval '7 days', first - (n - 1) * interval '7 days')
from unnest(%(parents)s::text[]) parent, generate_series(1, %(weeks)s) n,
     (select min(lower_bound) as first from outbox.partition_registry) r
"""
ENDPOINT_ROWS = """
insert into outbox.endpoints (endpoint_id, workspace_id, url, event_types)
select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'ws_' || n %% 20,
       'https://e' || n || '.example.com/in', '{*}' from generate_series(0, %(endpoints)s - 1) n
"""
# One slice: two deliveries an event, one attempt each, one in 50 dead.
SLICE = """
with made as (
    select overlay(outbox.event_id_floor(w.at)::text placing substr(gen_random_uuid()::text, 15) from 15)::uuid as event_id,
           w.at, w.n, 'ws_' || w.n %% 20 as workspace_id
    from (select now() - (n + 0.5) * %(weeks)s * interval '7 days' / %(events)s as at, n
          from generate_series(%(from)s::bigint, %(to)s::bigint - 1) n) w
), event as (
    insert into outbox.events (event_id, workspace_id, event_type, payload, created_at)
    select event_id, workspace_id, 'order.created',
           jsonb_build_object('order', jsonb_build_object('id', n), 'customer', jsonb_build_object('id', 'c_' || n / 50),
                              'text', repeat('of usual length ', 15)), at from made
), delivery as (
    insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority, attempt_count,
        failed_count, lost_count, replay_count, last_status, next_attempt_at, created_at, finished_at)
    select event_id, ('00000000-0000-7000-8000-' || lpad((n %% 20 + 20 * k)::text, 12, '0'))::uuid, workspace_id,
           case when n %% 50 = 0 then 'dead' else 'delivered' end, case when n %% 50 = 0 then 'exhausted' end,
           1, 1, 0, 0, 0, case when n %% 50 = 0 then 500 else 200 end, at, at, at + interval '20 ms'
    from made, generate_series(0, 1) k
    returning event_id, endpoint_id, workspace_id, created_at, state
)
insert into outbox.recorded_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at,
    duration_ms, worker_no, status, response_body)
select event_id, endpoint_id, 1, workspace_id, 1, created_at, 20, 1, case when state = 'dead' then 500 else 200 end, 'ok'
from delivery
"""
PRESENT = """
insert into outbox.endpoint_minutes (endpoint_id, workspace_id, at, worker_no, attempts, successes, timeouts, latency_counts,
    in_flight, in_flight_limit, circuit)
select ('00000000-0000-7000-8000-' || lpad((n % 200)::text, 12, '0'))::uuid, 'ws_' || n % 20, now() - n * interval '1 second',
       1, 10, 10, 0, '{0,0,10}', 0, 8, 'closed' from generate_series(0, 19999) n;
insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)
select f.event_id, e.endpoint_id, e.workspace_id, 1, now()
from (select event_id, workspace_id from outbox.events order by event_id desc limit 20000) f
cross join lateral (select n.endpoint_id, n.workspace_id from outbox.endpoints n
                    where n.workspace_id = f.workspace_id order by n.endpoint_id desc limit 1) e;
"""


SMALL = 10_000  # rows: a partition of fewer may be scanned


@dataclass(frozen=True)
class Question:
    """A statement, its parameters, and how many partitions of one table it may touch."""

    asks: str
    statement: str
    partitions: int
    values: dict[str, Any] | None = None


def questions(db: psycopg.Connection, event: str, endpoint: str) -> Iterator[Question]:
    days = "event_id >= outbox.event_id_floor(now() - interval '1 day')"
    yield Question(
        "what happened to this event", f"select * from outbox.delivery_log where event_id = '{event}'", 1
    )
    yield Question(
        "every request and response",
        f"select * from outbox.attempt_log where event_id = '{event}' order by endpoint_id, attempt_no", 1,
    )  # fmt: skip
    refused = (
        f"select * from outbox.attempt_log where endpoint_id = '{endpoint}' and started_at > now() - interval '1 day'"
        " and (status is null or status not between 200 and 299)"
    )
    yield Question("what did E refuse since yesterday", refused, WEEKS + 8)
    yield Question("the same, of events since yesterday", f"{refused} and {days}", 7)
    order = "jsonb_path_query_array(payload, '$.order.id[*]') @> '[4711]'"
    yield Question(
        "which events hold this order number", f"select * from outbox.event_log where {order}", WEEKS + 8
    )
    for name, more in (
        ("", {}),
        (", dead ones", {"states": ["dead"]}),
        (", of a workspace", {"workspace": "ws_11"}),
    ):
        condition = Condition({"limit": 50, "page": 100, "path": "$.customer.id[*]", "values": '["c_94"]'})
        for fragment, value in {"jsonpath": '$.customer.id == "c_94"', **more}.items():
            condition.add(fragment, value)
        yield Question(
            f"events of this customer{name}", condition.page_query(), WEEKS + 8, dict(condition.values)
        )
        ids = [event_id for (event_id,) in db.execute(condition.page_query(), condition.values)]
        weeks = len({(one_id.int >> 80) // (7 * 86_400_000) for one_id in ids}) + 2
        condition.values["ids"] = ids
        yield Question(f"search for this customer{name}", condition.query(), weeks, condition.values)
    yield Question(
        "who is slow, who is failing, since when",
        "select * from outbox.endpoint_health where workspace_id = 'ws_3'",
        0,
    )
    yield Question(
        "how long from commit to delivery, by hour",
        "select * from outbox.latency_by_hour where hour >= now() - interval '1 day'", 2,
    )  # fmt: skip
    yield Question("what is waiting and why", "select * from outbox.backlog where workspace_id = 'ws_3'", 0)
    yield Question("an endpoint's newest dead letters", f"select * from outbox.dead_letters where endpoint_id = '{endpoint}'"
                   " order by finished_at desc limit 20", WEEKS + 8)  # fmt: skip
    yield Question("a workspace's newest events", "select event_id, event_type, payload from outbox.event_log"
                   " where workspace_id = 'ws_3' order by event_id desc limit 20", WEEKS + 8)  # fmt: skip


def fill(db: psycopg.Connection, dsn: str, attempts: int) -> None:
    events = attempts // 2
    db.execute(
        "set session_replication_role = replica"
    )  # history is written as it stands, nothing is fanned out
    db.execute("set synchronous_commit = off")
    db.execute(PLACE, {"parents": list(HISTORY), "weeks": WEEKS + 1})
    db.execute(ENDPOINT_ROWS, {"endpoints": ENDPOINTS})
    begun = time.monotonic()
    for first in range(0, events, 100_000):
        last = min(first + 100_000, events)
        db.execute(SLICE, {"weeks": WEEKS, "events": events, "from": first, "to": last})
        say(f"{2 * last} attempts after {time.monotonic() - begun:.0f} s")
    db.execute(PRESENT)
    db.execute("set session_replication_role = origin")
    for path in ("$.order.id", "$.customer.id"):
        begun = time.monotonic()
        ran = Commands(dsn)("index", path, "--json")
        if ran.code:
            raise SystemExit(ran.err)
        say(f"outbox-worker index '{path}' in {time.monotonic() - begun:.0f} s")
    db.execute("vacuum analyze")
    say("vacuumed")


def answer(db: psycopg.Connection, question: Question, parent_of: dict[str, str]) -> dict[str, Any]:
    """Run it and say what it read; a scan of the history, or too many partitions, is wrong."""
    (explained,) = db.execute(
        f"explain (analyze, buffers, format json) {question.statement}", question.values
    ).fetchone()
    plan = explained[0]["Plan"]
    nodes, pending = [], [plan]
    while pending:
        node = pending.pop()
        pending += node.get("Plans", [])
        if node["Actual Loops"] and "Relation Name" in node:
            nodes.append(node)
    touched = {
        parent: len({n["Relation Name"] for n in nodes if parent_of.get(n["Relation Name"]) == parent}) for parent in HISTORY
    }  # fmt: skip
    scanned = sorted({n["Relation Name"] for n in nodes if n["Node Type"] == "Seq Scan" and n["Relation Name"] in parent_of
                      and n["Actual Rows"] + n.get("Rows Removed by Filter", 0) > SMALL})  # fmt: skip
    return {
        "question": question.asks,
        "rows": plan["Actual Rows"],
        "buffers": plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        "ms": round(explained[0]["Execution Time"], 1),
        "partitions": max(touched.values()),
        "scanned": scanned,
        "good": not scanned and max(touched.values()) <= question.partitions,
    }


def ask(db: psycopg.Connection, *, as_json: bool) -> bool:
    event, endpoint = db.execute(
        "select event_id::text, endpoint_id::text from outbox.finished_deliveries"
        " where event_id > outbox.event_id_floor(now() - interval '70 days') order by event_id limit 1"
    ).fetchone()
    parent_of = dict(
        db.execute(
            "select i.inhrelid::regclass::text, i.inhparent::regclass::text from pg_inherits i"
        ).fetchall()
    )
    parent_of = {name.removeprefix("outbox."): one.removeprefix("outbox.") for name, one in parent_of.items()}
    answers = [answer(db, question, parent_of) for question in questions(db, event, endpoint)]
    for row in answers:
        if as_json:
            sys.stdout.write(json.dumps(row) + "\n")
            continue
        wrong = (
            ""
            if row["good"]
            else f"  WRONG: scanned {', '.join(row['scanned'][:3]) or 'too many partitions'}"
        )
        sys.stdout.write(f"{row['question']:45} {row['rows']:>6} rows {row['buffers']:>8} buffers {row['ms']:>9} ms"
              f" {row['partitions']:>3} partitions{wrong}\n")  # fmt: skip
    return all(row["good"] for row in answers)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.history_at_scale",
        description="Ask every documented question of a large history.",
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="attempts (default: ten million)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    asked = parser.parse_args()
    OPTIONS.update({"shared_buffers": "512MB", "max_wal_size": "8GB", "maintenance_work_mem": "256MB", "wal_level": "minimal",
                    "max_wal_senders": "0"})  # fmt: skip
    named = os.environ.get("OUTBOX_TEST_PG_BIN")
    with own_server(Path(named) if named else None) as server:
        migrate(server.dsn())
        with closing(psycopg.connect(server.dsn(), autocommit=True)) as db:
            fill(db, server.dsn(), asked.rows)
            return 0 if ask(db, as_json=asked.json) else 1


if __name__ == "__main__":
    sys.exit(main())
