"""What the worker's statements touch does not grow with the history.

Reads and writes: two databases of its own, one with this week's partitions, one with 45 weeks of them.
Guarantee: buffers and partitions touched, counted by EXPLAIN, statement by statement, for a batch of the same rows;
nothing is timed.
If it fails: workers slow down with every week that the history is kept.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest

from outbox_worker import sqlfiles
from outbox_worker.lane import WEIGHTS

WEEKS = 45
BATCH = 50
ENDPOINTS = 10
SHARDS = list(range(64))
PARENTS = ("events", "finished_deliveries", "recorded_attempts")
OLD_WEEKS = f"""
do $$
declare
    parent text;
    week timestamptz;
begin
    foreach parent in array array{list(PARENTS)} loop
        for week in select r.lower_bound - n * interval '7 days'
                    from (select min(lower_bound) as lower_bound from outbox.partition_registry) r,
                         generate_series(1, {WEEKS}) n loop
            perform outbox.make_partition(parent, week, week + interval '7 days');
        end loop;
    end loop;
end
$$
"""
FILL = f"""
insert into outbox.endpoints (workspace_id, url, event_types)
select 'ws_1', 'https://e' || n || '.example.com', '{{*}}' from generate_series(1, {ENDPOINTS}) n;
select outbox.publish_many('ws_1', 'order.created', array(select '{{"order": 1}}'::jsonb from generate_series(1, {BATCH})));
"""


def filled(connection, *, weeks_of_history):
    # the sessions of database.py walk indexes, whatever the statistics say
    connection.execute("set plan_cache_mode = force_generic_plan")
    connection.execute("set enable_seqscan = off")
    if weeks_of_history:
        connection.execute(OLD_WEEKS)
    connection.execute(FILL)
    connection.execute("vacuum analyze")
    return connection


@pytest.fixture(scope="module")
def histories(cluster, template):
    """Give a database with little history and one with much, alike but for that."""
    with ExitStack() as stack:
        pair = []
        for weeks in (0, WEEKS):
            name = f"outbox_partition_plans_{weeks}_{os.getpid()}"
            stack.enter_context(cluster.database(name, template=template))
            connection = stack.enter_context(closing(psycopg.connect(cluster.dsn(name), autocommit=True)))
            pair.append(filled(connection, weeks_of_history=weeks))
        yield pair


def fan_out(connection):
    return "fan_out", {
        "fair": False,
        "mark": 0,
        "batch": BATCH,
        "priorities": [],
        "buckets": [],
        "marks": [],
        "quotas": [],
        "shards": [],
        "rooms": "{}",
        "default_room": 0,
        "room": 0,
        "careful": False,
        "lease_token": uuid4(),
    }


def claim(connection):
    connection.execute("update outbox.open_deliveries set next_attempt_at = now()")  # of this transaction
    ids = [row[0] for row in connection.execute("select endpoint_id from outbox.endpoints")]
    return "claim", {
        "endpoint_ids": ids,
        "rooms": [8] * len(ids),
        "busy": [0] * len(ids),
        **{f"marks{priority}": ["1970-01-01"] * len(ids) for priority in range(3)},
        **{f"turns{priority}": [0] * len(ids) for priority in range(3)},
        "weights": list(WEIGHTS),
        "lease_token": uuid4(),
    }


def settle(connection, verdict="delivered"):
    token = uuid4()
    rows = connection.execute(
        "update outbox.open_deliveries set lease_token = %s, leased_by = 1, lease_expires_at = now() + interval '1 hour'"
        " where (event_id, endpoint_id) in (select event_id, endpoint_id from outbox.open_deliveries limit %s)"
        " returning event_id, endpoint_id",
        [token, BATCH],
    ).fetchall()
    count = len(rows)
    assert count == BATCH
    return "settle", {
        "event_ids": [row[0] for row in rows],
        "endpoint_ids": [row[1] for row in rows],
        "workspace_ids": ["ws_1"] * count,
        "lease_tokens": [token] * count,
        "attempt_nos": [1] * count,
        "versions": [1] * count,
        "event_types": ["order.created"] * count,
        "verdicts": [verdict] * count,
        "retry_seconds": [None] * count,
        "started_ats": [datetime.now(UTC)] * count,
        "durations": [1] * count,
        "statuses": [200] * count,
        "errors": [None] * count,
        "response_headers": ["{}"] * count,
        "response_bodies": [b"ok"] * count,
    }


def due(_connection):
    return "find_due", {"shards": SHARDS, "look": 300, "marks": "{}"}


def step(connection, make, before=()):
    """Do a worker's statement and undo it; the blocks that it touched, and the partitions that its plan read."""
    with connection.transaction(force_rollback=True):
        for earlier in before:
            name, parameters = earlier(connection)
            run(connection, name, parameters)
        name, parameters = make(connection)
        (plan,) = run(connection, name, parameters, "explain (analyze, buffers, timing off, format json) ")
        (tree,) = plan
    return tree[0]["Plan"], json.dumps(tree)


def run(connection, name, parameters, prefix=""):
    text = prefix.encode() + sqlfiles.read(f"queries/{name}.sql")
    return connection.execute(text, {**parameters, "worker_no": 1, "lease_seconds": 60.0}).fetchall()


def partitions_read(plan):
    """Partitions of the history that were looked into, not only pruned."""
    found, waiting = set(), [plan]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        relation = node.get("Relation Name", "")
        if node["Actual Loops"] and relation not in PARENTS and relation.startswith(PARENTS):
            found.add(relation)
    return found


def touched(plan):
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


STEPS = {
    "fan_out": (fan_out, ()),
    "claim": (claim, (fan_out,)),
    "settle": (settle, (fan_out,)),
    "find_due": (due, (fan_out,)),
}


@pytest.mark.parametrize(("make", "before"), STEPS.values(), ids=STEPS)
def test_a_step_of_the_worker_costs_the_same_with_45_weeks_of_history(histories, make, before):
    """Fan-out, claim, settle and the look at what is due read this week's partition, however many there are."""
    costs = []
    for connection in histories:
        step(connection, make, before)  # warm: catalogue lookups are not the statement's
        plan, text = step(connection, make, before)
        assert plan["Actual Rows"] >= ENDPOINTS, text
        assert len(partitions_read(plan)) <= 3, text
        costs.append(touched(plan))
    little, much = costs
    assert much <= little * 1.1 + 50, f"{little} blocks with one week of history, {much} with {WEEKS + 1}"


def test_the_history_is_as_long_as_it_says(histories):
    """The comparison compares: the one database has 45 partitions of each table more than the other."""
    count = "select count(*) from pg_inherits where inhparent = 'outbox.events'::regclass"
    little, much = (connection.execute(count).fetchone()[0] for connection in histories)
    assert much - little == WEEKS
