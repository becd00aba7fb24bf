"""Every ordinary question of a DBA has an indexed plan, on a history of 45 weeks.

Reads and writes: a database of its own, filled once for the file.
Guarantee: no question scans a table of the history; an event id touches one partition of each table, a range
of time as many as it has weeks, an endpoint at most one probe a partition.
If it fails: the views answer ever more slowly as the history grows.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.plans import executed, long_history, partitions_touched, rows_read, scans

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history(cluster, template):
    with long_history(cluster, template) as connection:
        yield connection


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


OF_NOW = {
    "what waits at an endpoint": "select * from outbox.backlog where endpoint_id = '{endpoint}'",
    "what waits in a workspace": "select * from outbox.backlog where workspace_id = 'ws_3'",
    "who is slow": "select endpoint_id, p99_ms, success_rate, why from outbox.endpoint_health"
    " where workspace_id = 'ws_3'",
    "how one endpoint is": "select * from outbox.endpoint_health where endpoint_id = '{endpoint}'",
    "who is failing, since when": "select endpoint_id, url, failing_since, success_rate from outbox.endpoint_health"
    " where failing_since is not null order by failing_since",
    "what waits anywhere, and why": "select endpoint_id, waiting, due, held, why from outbox.backlog order by oldest_due_at",
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


def test_the_readmes_replay_of_what_a_query_finds_uses_the_index_of_the_payload(history):
    """Joined with a business table, each order's events are found by an index in every partition."""
    (found,) = re.findall(r"replay_many\((array\(.*?\))\);", (ROOT / "README.md").read_text(), re.DOTALL)
    history.execute(
        "create table orders as select 'A-' || n as id, case when n % 500 = 0 then 'eu' else 'us' end as region"
        " from generate_series(1, 5000) n"
    )
    history.execute("create index on orders (region)")
    history.execute("analyze orders")
    nodes = executed(history, f"select {found}")
    assert scans(nodes, "kept_attempts") == []
    assert rows_read(nodes, ("events", "kept_events", "bare_events")) < 100
    assert len(history.execute(f"select unnest({found})").fetchall()) == 10
