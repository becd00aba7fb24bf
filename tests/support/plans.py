"""A history of 45 weeks for the plan tests, and what a plan of it read.

Reads: pg_inherits, plans. Writes: a database of its own.
Guarantee: only nodes that were executed count; the look at an empty table is no scan.
If it is wrong: views that scan the history pass.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager

import psycopg

from tests.support.commands import Commands

HISTORY = ("events", "finished_deliveries", "recorded_attempts", "bare_events", "bare_attempts")
LARGE = (*HISTORY, "kept_events", "kept_deliveries", "kept_attempts", "open_deliveries", "endpoint_minutes")

FILL = """
set session_replication_role = replica;  -- history is written as it stands, nothing is fanned out

do $$
declare
    one regclass;
    parent text;
    week timestamptz;
begin
    for one in select i.inhrelid from pg_inherits i join pg_class c on c.oid = i.inhrelid
               where c.relkind = 'r' and c.relnamespace = 'outbox'::regnamespace loop
        execute format('drop table %s', one);
    end loop;
    for week in select date_trunc('day', now(), 'UTC') + interval '1 day' - n * interval '7 days'
                from generate_series(1, 45) n loop
        foreach parent in array array['events', 'finished_deliveries', 'recorded_attempts', 'bare_events', 'bare_attempts'] loop
            execute format('create table outbox.%I partition of outbox.%I for values from (%L) to (%L)',
                parent || '_past_' || to_char(week, 'YYYYMMDD'), parent,
                outbox.event_id_floor(week), outbox.event_id_floor(week + interval '7 days'));
            execute format('alter table outbox.%I owner to outbox_owner', parent || '_past_' || to_char(week, 'YYYYMMDD'));
        end loop;
    end loop;
end
$$;

create function pg_temp.endpoint(n bigint) returns uuid language sql
return ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid;

insert into outbox.endpoints (endpoint_id, workspace_id, url, event_types)
select pg_temp.endpoint(n), 'ws_' || n % 20, 'https://e' || n || '.example.com/in', '{*}'
from generate_series(0, 199) n;
insert into outbox.tenant_logins values (session_user, 'ws_3');

create temporary table made as
select (left(outbox.event_id_floor(w.at)::text, 14) || '7' || substr(gen_random_uuid()::text, 16))::uuid
       as event_id, w.at, w.n, 'ws_' || w.n % 20 as workspace_id
from (select date_trunc('day', now(), 'UTC') - n * interval '45 weeks' / 36000 as at, n
      from generate_series(1, 35800) n) w;

insert into outbox.events (event_id, workspace_id, event_type, payload, created_at)
select event_id, workspace_id, 'order.created',
       jsonb_build_object('order', jsonb_build_object('id', 'A-' || n), 'text', repeat('of usual length ', 30),
           'tags', jsonb_build_array('all', 'of ' || n % 50)), at from made;

insert into outbox.finished_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority,
    attempt_count, failed_count, lost_count, replay_count, last_status, next_attempt_at, created_at,
    finished_at)
select event_id, pg_temp.endpoint(n % 20 + 20 * k), workspace_id,
       case when n % 50 = 0 then 'dead' else 'delivered' end, case when n % 50 = 0 then 'exhausted' end,
       1, 1, 0, 0, 0, 200, at, at, at + interval '20 ms'
from made, generate_series(0, 1) k;

insert into outbox.recorded_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version,
    started_at, duration_ms, worker_no, status)
select d.event_id, d.endpoint_id, 1, d.workspace_id, 1, d.created_at, 20, 1,
       case when d.state = 'dead' then 500 else 200 end
from outbox.finished_deliveries d;

-- payloads and responses are kept for 30 whole weeks
with gone as (
    delete from outbox.events where event_id < outbox.event_id_floor(date_trunc('day', now(), 'UTC') + interval '1 day' - interval '30 weeks')
    returning event_id, workspace_id, event_type, priority, created_at)
insert into outbox.bare_events (event_id, workspace_id, event_type, priority, created_at)
select event_id, workspace_id, event_type, priority, created_at from gone;
with gone as (
    delete from outbox.recorded_attempts where event_id < outbox.event_id_floor(date_trunc('day', now(), 'UTC') + interval '1 day' - interval '30 weeks')
    returning event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status)
insert into outbox.bare_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at,
    duration_ms, worker_no, status)
select event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at, duration_ms, worker_no, status from gone;

insert into outbox.kept_events (event_id, workspace_id, event_type, payload, created_at)
select (left(outbox.event_id_floor(at - interval '400 days')::text, 14) || substr(event_id::text, 15))::uuid,
       workspace_id, 'order.created', jsonb_build_object('text', repeat('of usual length ', 30)), at - interval '400 days'
from made where n % 10 = 0;
insert into outbox.kept_deliveries (event_id, endpoint_id, workspace_id, state, reason, priority,
    attempt_count, failed_count, lost_count, replay_count, last_status, next_attempt_at, created_at,
    finished_at)
select e.event_id, pg_temp.endpoint(hashtext(e.event_id::text) & 127), e.workspace_id,
       'dead', 'exhausted', 1, 8, 8, 0, 0, 500, e.created_at, e.created_at, e.created_at
from outbox.kept_events e;
insert into outbox.kept_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version,
    started_at, duration_ms, worker_no, status)
select d.event_id, d.endpoint_id, 8, d.workspace_id, 1, d.created_at, 20, 1, 500
from outbox.kept_deliveries d;

insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)
select event_id, pg_temp.endpoint(n % 200), workspace_id, 1, now() from made where n < 20000;
insert into outbox.endpoint_minutes (endpoint_id, workspace_id, at, worker_no, attempts, successes, timeouts,
    latency_counts, in_flight, in_flight_limit, circuit)
select pg_temp.endpoint(n % 200), 'ws_' || n % 20, now() - n * interval '1 second', 1, 10, 10, 0,
       '{0,0,10}', 0, 8, 'closed'
from generate_series(0, 19999) n;

set session_replication_role = origin;
"""


@contextmanager
def long_history(cluster, template):
    name = f"outbox_plans_{os.getpid()}"
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as connection,
    ):
        connection.execute(FILL)
        for path in ("$.order.id", "$.tags"):
            indexed = Commands(cluster.dsn(name))("index", path)
            assert indexed.code == 0, indexed.err
        connection.execute("vacuum analyze")
        yield connection


def executed(connection, question):
    """Run the question; give the nodes that read a table, as (kind, relation, its parent or itself, rows read)."""
    event_id, endpoint_id = connection.execute(
        "select event_id, endpoint_id from outbox.finished_deliveries order by event_id offset 20000 limit 1"
    ).fetchone()
    return nodes_of(connection, question.format(event=event_id, endpoint=endpoint_id))


def nodes_of(connection, statement, values=None):
    parent_of = dict(
        connection.execute(
            "select inhrelid::regclass::text, inhparent::regclass::text from pg_inherits"
        ).fetchall()
    )
    (plan,) = connection.execute(f"explain (analyze, timing off, format json) {statement}", values).fetchone()
    nodes = []
    pending = [plan[0]["Plan"]]
    while pending:
        node = pending.pop()
        pending += node.get("Plans", [])
        if node["Actual Loops"] and "Relation Name" in node:
            relation = f"outbox.{node['Relation Name']}"
            read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            kind = node["Node Type"] if read else "look at"  # a stripped partition is an empty file
            nodes.append((kind, relation, parent_of.get(relation, relation), read * node["Actual Loops"]))
    return nodes


def partitions_touched(nodes):
    return {
        parent: len({relation for _, relation, one, _ in nodes if one == f"outbox.{parent}"})
        for parent in HISTORY
    }


def scans(nodes, *small):
    large = {f"outbox.{name}" for name in LARGE if name not in small}
    return [(kind, relation) for kind, relation, parent, _ in nodes if kind == "Seq Scan" and parent in large]


def rows_read(nodes, parents):
    return sum(read for _, _, parent, read in nodes if parent.removeprefix("outbox.") in parents)
