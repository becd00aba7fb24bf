"""What a round of the worker reads does not grow with what waits.

Reads and writes: a database of its own, filled once for the file.
Guarantee: buffers touched, counted by EXPLAIN; nothing is timed.
If it fails: one tenant's backlog makes every round slow for all.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox_worker import sqlfiles
from outbox_worker.lane import WEIGHTS
from outbox_worker.store import KEYS, LOOK

KEYED, MANY_KEYS, BUSY, PLAIN = (UUID(int=n) for n in range(1, 5))
WAITING = 20_000
SHARDS = list(range(64))
FILL = f"""
set session_replication_role = replica;  -- written as it stands, nothing is fanned out
insert into outbox.endpoints (endpoint_id, workspace_id, url, event_types, ordered)
select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'ws_1', 'https://e' || n || '.example.com', '{{*}}', n <= 3
from generate_series(1, 4) n;
create temporary table made as select outbox.uuid7() as event_id, n from generate_series(1, {WAITING}) n;
insert into outbox.events (event_id, workspace_id, event_type, payload)
select event_id, 'ws_1', 'order.created', '{{}}' from made;
insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at, ordering_key, ordering_seq,
    lease_token, lease_expires_at)
select m.event_id, e.endpoint_id, 'ws_1', 1, now() - interval '1 hour' + m.n * interval '1 ms', e.ordering_key,
       case when e.ordering_key is not null then m.n end,
       case when e.leased then gen_random_uuid() end, case when e.leased then now() + interval '1 hour' end
from made m
cross join lateral (values ('{KEYED}'::uuid, 'key ' || m.n % 10, m.n <= 10),
                           ('{MANY_KEYS}'::uuid, 'key ' || lpad(m.n::text, 6, '0'), false),
                           ('{BUSY}'::uuid, 'key ' || lpad(m.n::text, 6, '0'), true),
                           ('{PLAIN}'::uuid, null, false)) e (endpoint_id, ordering_key, leased);
insert into outbox.fan_out_queue (bucket, priority, event_id, workspace_id)
select n % 20, 1, gen_random_uuid(), 'ws_' || n % 20 from generate_series(0, {WAITING} - 1) n;
set session_replication_role = origin;
"""


@pytest.fixture(scope="module", params=["analyzed", "unknown"])
def backlog(request, cluster, template):
    """Give a database whose statistics are new, or were never taken."""
    name = f"outbox_claim_plans_{request.param}_{os.getpid()}"
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as connection,
    ):
        connection.execute(FILL)
        if request.param == "analyzed":
            connection.execute("vacuum analyze")
        yield connection


def run(connection, name, *, explain=False, **parameters):
    """Run a file of sql/queries and undo it; its rows, or its plan."""
    text = sqlfiles.read(f"queries/{name}.sql")
    with connection.transaction(force_rollback=True):
        if explain:
            text = b"explain (analyze, buffers, timing off) " + text
        return connection.execute(text, {**parameters, "worker_no": 1, "lease_seconds": 60.0}).fetchall()


def buffers(connection, name, **parameters):
    """Blocks touched, without those of planning."""
    run(connection, name, **parameters)
    plan = "\n".join(row[0] for row in run(connection, name, explain=True, **parameters))
    top = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", plan)
    return sum(int(n or 0) for n in top.groups()), plan


def claim(endpoint_id):
    beginning = ["1970-01-01"]
    state = {f"marks{p}": beginning for p in range(3)} | {f"turns{p}": [0] for p in range(3)}
    return {
        "endpoint_ids": [endpoint_id],
        "rooms": [8],
        "busy": [0],
        **state,
        "weights": list(WEIGHTS),
        "lease_token": uuid4(),
    }


def ordered(endpoint_id, after_key=""):
    return {
        "endpoint_ids": [endpoint_id],
        "rooms": [8],
        "busy": [0],
        "after_keys": [after_key],
        "look": KEYS,
        "lease_token": uuid4(),
    }


def test_a_claim_does_not_walk_what_has_an_ordering_key(backlog):
    """Twenty thousand keyed deliveries that are due cost a claim of those without key a few blocks."""
    assert run(backlog, "claim", **claim(KEYED)) == []
    touched, plan = buffers(backlog, "claim", **claim(KEYED))
    assert touched < 100, plan


def test_other_endpoints_pay_nothing_for_ordering(backlog):
    """A claim touches as many blocks with sixty thousand keyed deliveries of others beside it as without them."""
    with_others, plan = buffers(backlog, "claim", **claim(PLAIN))
    with backlog.transaction(force_rollback=True):
        backlog.execute("delete from outbox.open_deliveries where ordering_key is not null")
        without, _ = buffers(backlog, "claim", **claim(PLAIN))
    assert "open_deliveries_ordered_idx" not in plan
    assert with_others <= without + 20, plan


def test_a_claim_of_keys_ends_at_the_room_asked_for(backlog):
    """Eight of twenty thousand keys are leased; the others are not looked at."""
    rows = run(backlog, "claim_ordered", **ordered(MANY_KEYS))
    assert [row[12] for row in rows] == [f"key {n:06}" for n in range(1, 9)]
    touched, plan = buffers(backlog, "claim_ordered", **ordered(MANY_KEYS))
    assert touched < 1500, plan


def test_a_claim_of_keys_goes_on_where_it_stopped(backlog):
    """The key after the one that is named comes next, and the end of the keys is told."""
    rows = run(backlog, "claim_ordered", **ordered(MANY_KEYS, "key 019995"))
    assert [(row[0] is None, row[12]) for row in rows] == [
        *((False, f"key {n:06}") for n in range(19_996, 20_001)),
        (True, None),
    ]


def test_keys_that_may_not_go_are_passed_over_some_at_a_time(backlog):
    """With every head in flight a claim looks at so many keys, tells the last of them, and goes round in the end."""
    (row,) = run(backlog, "claim_ordered", **ordered(BUSY))
    assert (row[0], row[1], row[12]) == (None, BUSY, f"key {KEYS:06}")
    touched, plan = buffers(backlog, "claim_ordered", **ordered(BUSY))
    assert touched < KEYS * 20, plan
    rounds, key = 0, ""
    while rounds == 0 or key is not None:
        key = run(backlog, "claim_ordered", **ordered(BUSY, key))[-1][12]
        rounds += 1
    assert rounds == WAITING // KEYS + 1


def test_a_look_at_what_is_due_reads_the_front_alone(backlog):
    """A waiting backlog costs a few rows an endpoint; only keyed ones, whose leases may lie anywhere, cost the look."""
    found = {row[0]: row for row in run(backlog, "find_due", shards=SHARDS, look=LOOK, marks="{}")}
    assert found.keys() == {KEYED, MANY_KEYS, BUSY, PLAIN}
    assert [found[e][4] for e in (KEYED, MANY_KEYS, BUSY, PLAIN)] == [True, True, True, False]
    with backlog.transaction(force_rollback=True):
        backlog.execute("delete from outbox.endpoints where endpoint_id <> %s", [PLAIN])
        touched, plan = buffers(backlog, "find_due", shards=SHARDS, look=LOOK, marks="{}")
    assert touched < 150, plan


@pytest.mark.parametrize("endpoint_id", [MANY_KEYS, PLAIN])
def test_an_expired_lease_near_the_front_is_seen(backlog, endpoint_id):
    """The first rows are looked at whether or not one before them waits."""
    with backlog.transaction(force_rollback=True):
        backlog.execute(
            "update outbox.open_deliveries set lease_expires_at = now() - interval '1 s', lease_token = gen_random_uuid(),"
            " leased_by = 1 where (event_id, endpoint_id) in (select event_id, endpoint_id from outbox.open_deliveries"
            " where endpoint_id = %s order by next_attempt_at offset 9 limit 1)",
            [endpoint_id],
        )
        found = {row[0]: row for row in run(backlog, "find_due", shards=SHARDS, look=LOOK, marks="{}")}
        assert [e for e in found if found[e][3]] == [endpoint_id]
        (lost,) = run(backlog, "reap", endpoint_ids=[endpoint_id], look=LOOK)
        assert lost[1] == endpoint_id


def test_a_fair_fan_out_reads_the_places_it_was_asked_for(backlog):
    """Of twenty full workspaces each gives its first rows: the queue in order of publishing is not walked."""
    parameters = {
        "fair": True,
        "mark": 0,
        "batch": 400,
        "priorities": [0] * 256 + [1] * 20 + [2] * 256,
        "buckets": [*range(256), *range(20), *range(256)],
        "marks": [0] * 532,
        "quotas": [4] * 532,
        "shards": [],
        "rooms": "{}",
        "default_room": 0,
        "room": 0,
        "careful": False,
        "lease_token": uuid4(),
    }
    rows = run(backlog, "fan_out", **parameters)
    assert sorted(row[1:4] for row in rows) == [(bucket, 1, 4) for bucket in range(20)]
    touched, plan = buffers(backlog, "fan_out", **parameters)
    assert touched < 5000, plan
    assert "fan_out_queue_fair_idx" in plan


def test_a_place_that_is_read_to_its_end_costs_a_probe_whatever_waits_behind_it(backlog):
    """Nothing is left in nineteen workspaces: their part of the round does not read what the others hold."""
    parameters = {
        "fair": True,
        "mark": 0,
        "batch": 19,
        "priorities": [1] * 19,
        "buckets": list(range(19)),
        "marks": [10**9] * 19,
        "quotas": [1] * 19,
        "shards": [],
        "rooms": "{}",
        "default_room": 0,
        "room": 0,
        "careful": False,
        "lease_token": uuid4(),
    }
    assert run(backlog, "fan_out", **parameters) == []
    touched, plan = buffers(backlog, "fan_out", **parameters)
    assert touched < 100, plan


def test_finding_who_waits_costs_a_probe_for_each_place(backlog):
    """Twenty workspaces share a long queue: each is found by one step of the index, whatever it holds."""
    parameters = {"priorities": [-1], "buckets": [0], "looks": 128}
    places = [(row[1], row[2]) for row in run(backlog, "find_places", **parameters)]
    assert places == [(1, bucket) for bucket in range(20)]
    touched, plan = buffers(backlog, "find_places", **parameters)
    assert touched < 200, plan
    assert "Index Only Scan" in plan or "Index Scan" in plan
