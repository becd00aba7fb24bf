"""Every ordinary question of a DBA has an indexed plan, on a history of 45 weeks.

Reads and writes: a database of its own, filled once for the file.
Guarantee: no question scans a table of the history; an event id touches one partition of each table, a range
of time as many as it has weeks, an endpoint at most one probe a partition.
If it fails: the views answer ever more slowly as the history grows.
"""

from __future__ import annotations

import os
from contextlib import closing

import psycopg
import pytest

from outbox_worker.cli.search import Condition
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
       jsonb_build_object('order', jsonb_build_object('id', 'A-' || n), 'text', repeat('of usual length ', 30)), at from made;

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


@pytest.fixture(scope="module")
def history(cluster, template):
    name = f"outbox_plans_{os.getpid()}"
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as connection,
    ):
        connection.execute(FILL)
        indexed = Commands(cluster.dsn(name))("index", "$.order.id")
        assert indexed.code == 0, indexed.err
        connection.execute("vacuum analyze")
        yield connection


def executed(connection, question):
    """Run the question; give the nodes that read a table, as (kind, relation, its parent or itself)."""
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
            nodes.append((kind, relation, parent_of.get(relation, relation)))
    return nodes


def partitions_touched(nodes):
    return {
        parent: len({relation for _, relation, one in nodes if one == f"outbox.{parent}"})
        for parent in HISTORY
    }


def scans(nodes, *small):
    large = {f"outbox.{name}" for name in LARGE if name not in small}
    return [(kind, relation) for kind, relation, parent in nodes if kind == "Seq Scan" and parent in large]


OF_ONE_EVENT = {
    "the event": "select * from outbox.event_log where event_id = '{event}'",
    "its endpoints": "select * from outbox.delivery_log where event_id = '{event}' order by created_at",
    "the table that people update": "select * from outbox.deliveries where event_id = '{event}'",
    "its attempts": "select * from outbox.attempt_log where event_id = '{event}'"
    " order by endpoint_id, attempt_no",
    "one attempt": "select * from outbox.attempts where event_id = '{event}' and endpoint_id = '{endpoint}'",
    "a dead letter": "select * from outbox.dead_letters where event_id = '{event}'",
    "a tenant's event": "select * from outbox.tenant_events where event_id = '{event}'",
    "a tenant's deliveries": "select * from outbox.tenant_deliveries where event_id = '{event}'",
    "a tenant's attempts": "select * from outbox.tenant_attempts where event_id = '{event}'",
}


@pytest.mark.parametrize("question", OF_ONE_EVENT.values(), ids=OF_ONE_EVENT.keys())
def test_a_question_about_an_event_touches_one_partition_of_each_table(history, question):
    """What happened to an event is read from the one partition that its id names."""
    nodes = executed(history, question)
    assert scans(nodes) == []
    assert max(partitions_touched(nodes).values()) == 1


OF_THREE_DAYS = (
    "event_id >= outbox.event_id_floor(now() - interval '3 days') and event_id < outbox.event_id_floor(now())"
)
REFUSED = (
    "select * from outbox.attempt_log where endpoint_id = '{endpoint}'"
    " and (status is null or status < 200 or status > 299) and started_at > now() - interval '3 days'"
)
OF_A_RANGE = {
    "what an endpoint refused, and why": f"{REFUSED} and {OF_THREE_DAYS}",
    "an endpoint's deliveries": "select * from outbox.delivery_log where endpoint_id = '{endpoint}'"
    f" and {OF_THREE_DAYS}",
    "a workspace's events": f"select * from outbox.event_log where workspace_id = 'ws_3' and {OF_THREE_DAYS}",
    "commit to delivery": "select * from outbox.latency_by_hour where hour >= now() - interval '3 days'",
}


@pytest.mark.parametrize("question", OF_A_RANGE.values(), ids=OF_A_RANGE.keys())
def test_a_question_about_a_range_of_time_touches_the_partitions_of_that_time(history, question):
    """Three days lie in at most two weeks, however long the history is."""
    nodes = executed(history, question)
    assert scans(nodes) == []
    assert max(partitions_touched(nodes).values()) <= 2


AT_ANY_TIME = {
    "what an endpoint refused": REFUSED,
    "the event of an order": "select * from outbox.event_log"
    " where jsonb_path_query_array(payload, '$.order.id[*]') @> '[\"A-77\"]'",
    "the deliveries of an order": "select d.* from outbox.event_log e join outbox.delivery_log d using (event_id)"
    " where jsonb_path_query_array(e.payload, '$.order.id[*]') @> '[\"A-77\"]'",
    "the events of orders joined in": "select e.* from (values ('A-77'), ('A-7777')) o (id) join outbox.event_log e"
    " on jsonb_path_query_array(e.payload, '$.order.id[*]') @> jsonb_build_array(o.id)",
    "a workspace's newest events": "select event_id, event_type, payload, delivered from outbox.event_log "
    "where workspace_id = 'ws_3' order by event_id desc limit 20",
    "an endpoint's newest dead letters": "select * from outbox.dead_letters where endpoint_id = '{endpoint}' "
    "order by finished_at desc limit 20",
    "a tenant's newest events": "select * from outbox.tenant_events where workspace_id = 'ws_3' "
    "order by event_id desc limit 20",
}


@pytest.mark.parametrize("question", AT_ANY_TIME.values(), ids=AT_ANY_TIME.keys())
def test_a_question_about_any_time_costs_index_probes(history, question):
    """Without a time each partition is probed by an index, and none is scanned."""
    # kept_attempts holds the attempts of dead letters only and is indexed by event alone
    assert scans(executed(history, question), "kept_attempts") == []


@pytest.mark.parametrize("other", [{}, {"workspace": "ws_17"}], ids=str)
def test_the_search_for_an_indexed_value_scans_nothing(history, other):
    """What outbox-worker search sends for an order number is answered by the index in every partition.

    PostgreSQL 15 then probes each partition's key for each event found, later ones the event's own.
    """
    condition = Condition({"limit": 50, "path": "$.order.id[*]"})
    for name, one in {"jsonpath": '$.order.id == "A-77"', "values": '["A-77"]', **other}.items():
        condition.add(name, one)
    nodes = nodes_of(history, condition.query(), condition.values)
    assert scans(nodes) == []
    if history.info.server_version >= 160000:
        assert partitions_touched(nodes)["finished_deliveries"] <= 1


OF_NOW = {
    "what waits at an endpoint": "select * from outbox.backlog where endpoint_id = '{endpoint}'",
    "what waits in a workspace": "select * from outbox.backlog where workspace_id = 'ws_3'",
    "who is slow": "select endpoint_id, p99_ms, success_rate, why from outbox.endpoint_health"
    " where workspace_id = 'ws_3'",
    "how one endpoint is": "select * from outbox.endpoint_health where endpoint_id = '{endpoint}'",
    "who works": "select * from outbox.workers",
}


@pytest.mark.parametrize("question", OF_NOW.values(), ids=OF_NOW.keys())
def test_a_question_about_now_reads_no_history(history, question):
    """Health and backlog are read from open work and minute rollups, by index, never from the attempts."""
    nodes = executed(history, question)
    assert scans(nodes) == []
    assert max(partitions_touched(nodes).values()) == 0


def test_a_column_that_is_not_selected_costs_nothing(history):
    """Listing attempts and events reads neither bodies nor deliveries until somebody asks for them."""
    attempts = executed(history, "select status, error from outbox.attempts where event_id = '{event}'")
    events = executed(history, "select event_type, payload from outbox.event_log where event_id = '{event}'")
    assert partitions_touched(attempts)["events"] == 0
    assert partitions_touched(events)["finished_deliveries"] == 0
