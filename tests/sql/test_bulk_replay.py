"""Bulk replay: by endpoint and time, by a list of events, in slices; and the plans that make it cheap.

Reads: outbox.deliveries, outbox.operations, statistics of indexes. Writes: a clone of the schema.
Guarantee: each delivery of a bulk replay is replayed once, whatever dies in between, and behind fresh events.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.support.history import (
    add_endpoint,
    add_event,
    add_finished,
    add_many_dead,
    add_open,
    delivery,
    value,
)


@pytest.fixture
def endpoint(db):
    return add_endpoint(db)


def operation(db) -> dict:
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute("select * from outbox.operations order by operation_id desc limit 1").fetchone()


def opened(db) -> int:
    return value(db, "select count(*) from outbox.open_deliveries")


def test_replay_endpoint_takes_the_asked_states_and_time_and_no_more(db, endpoint):
    """The dry run counts what the replay then does, by the time at which deliveries finished."""
    other = add_endpoint(db)
    inside, before, delivered, foreign = (add_event(db, age="3 days") for _ in range(4))
    add_finished(db, inside, endpoint, ago="1 hour")
    add_finished(db, before, endpoint, ago="2 days")
    add_finished(db, delivered, endpoint, "delivered", ago="1 hour")
    add_finished(db, foreign, other, ago="1 hour")
    window = "%s, now() - interval '1 day', now()"

    assert value(db, f"select outbox.count_replay({window})", endpoint) == 1
    assert value(db, f"select outbox.count_replay({window}, '{{dead,delivered,canceled}}')", endpoint) == 2
    assert opened(db) == 0
    assert value(db, f"select outbox.replay_endpoint({window}, '{{delivered,dead}}')", endpoint) == 2

    assert delivery(db, inside, endpoint)["state"] == delivery(db, delivered, endpoint)["state"] == "pending"
    assert delivery(db, before, endpoint)["state"] == "dead"
    assert delivery(db, foreign, other)["state"] == "dead"
    done = operation(db)
    assert (done["state"], done["affected"], done["endpoint_id"], done["event_id"]) == (
        "done",
        2,
        endpoint,
        None,
    )


def test_replay_endpoint_adds_what_is_missing_by_subscription_and_filter(db):
    """'missing' is events of that time that match today's subscription and filter, without a delivery."""
    newcomer = add_endpoint(db, filter='$.text == "hi"')
    wanted = add_event(db, payload={"text": "hi"})
    for unwanted in (
        add_event(db, payload={"text": "no"}),
        add_event(db, payload={"text": "hi"}, event_type="order.created"),
        add_event(db, payload={"text": "hi"}, age="3 days"),
        add_event(db, payload={"text": "hi"}, queued=True),
        add_event(db, "other", payload={"text": "hi"}),
    ):
        assert delivery(db, unwanted, newcomer) is None
    canceled = add_event(db, payload={"text": "hi"})
    db.execute("select outbox.cancel(%s)", [canceled])
    had_it = add_event(db, payload={"text": "hi"})
    add_finished(db, had_it, newcomer, "delivered")

    call = "(%s, now() - interval '1 day', now(), '{missing}')"
    assert value(db, f"select outbox.count_replay{call}", newcomer) == 1
    assert value(db, f"select outbox.replay_endpoint{call}", newcomer) == 1
    assert delivery(db, wanted, newcomer)["state"] == "pending"
    assert opened(db) == 1
    assert value(db, f"select outbox.replay_endpoint{call}", newcomer) == 0


def test_a_filter_that_raises_matches_nothing_and_stops_no_replay(db):
    """A date filter fails on one payload; the other events are still replayed."""
    newcomer = add_endpoint(db, filter='$.at.datetime() < "2024-01-01T00:00:00+00".datetime()')
    add_event(db, payload={"at": "2023-01-01"})
    fine = add_event(db, payload={"at": "2023-01-01T00:00:00+00"})
    assert value(db, "select outbox.replay_endpoint(%s, '-infinity', now(), '{missing}')", newcomer) == 1
    assert delivery(db, fine, newcomer)["state"] == "pending"


@pytest.mark.parametrize(
    "arguments", ["null", "now(), null", "now(), now(), '{pending}'", "now(), now(), '{}'"]
)
def test_a_replay_without_bounds_or_with_unknown_states_is_refused(db, endpoint, arguments):
    """Nothing is guessed: a missing time is an error, not everything."""
    with pytest.raises(psycopg.Error) as refused:
        db.execute(f"select outbox.replay_endpoint(%s, {arguments})", [endpoint])
    assert refused.value.sqlstate == "OB011"
    assert operation(db) is None


@pytest.mark.parametrize("state", ["dead", "canceled"])
def test_a_huge_replay_goes_in_slices_and_survives_a_crash(db, connect, endpoint, state):
    """The first 1,000 at once, then slices; a slice that is rolled back is done again, and nothing twice."""
    add_many_dead(db, endpoint, 2600, state=state)
    call = "select outbox.replay_endpoint(%s, '-infinity', now() + interval '1 day', %s)"
    assert value(db, call, endpoint, [state]) == 2600
    assert (opened(db), operation(db)["state"], operation(db)["affected"]) == (1000, "running", 1000)

    crashed = connect()
    crashed.autocommit = False
    assert value(crashed, "select outbox.replay_slice(600)") == 600
    crashed.rollback()
    assert opened(db) == 1000

    worker = connect("worker_login")
    moved = [value(worker, "select outbox.replay_slice(600)") for _ in range(5)]
    assert sum(moved[:3]) >= 1600
    assert moved[-1] == 0
    done = operation(db)
    assert (opened(db), done["state"], done["affected"]) == (2600, "done", 2600)
    assert value(
        db, "select array_agg(distinct (replay_count, priority)::text) from outbox.open_deliveries"
    ) == ["(1,2)"]


def test_what_dies_again_while_a_replay_goes_on_is_not_replayed_twice(db, endpoint):
    """The end of the time range is fixed when the replay begins."""
    add_many_dead(db, endpoint, 1200)
    db.execute("select outbox.replay_endpoint(%s, '-infinity', 'infinity')", [endpoint])
    event = value(db, "select min(event_id::text) from outbox.open_deliveries")
    db.execute("update outbox.deliveries set state = 'canceled' where event_id = %s", [event])
    db.execute("update outbox.finished_deliveries set state = 'dead' where event_id = %s", [event])
    while value(db, "select outbox.replay_slice(100)") > 0:
        pass
    assert delivery(db, event, endpoint)["state"] == "dead"
    assert opened(db) == 1199


def test_a_replay_waits_while_its_endpoint_has_enough_to_do(db, endpoint):
    """Slices pause at 10,000 open deliveries of the endpoint, and go on when there are fewer."""
    add_many_dead(db, endpoint, 1500)
    db.execute("select outbox.replay_endpoint(%s, '-infinity')", [endpoint])
    db.execute(
        "insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)"
        " select outbox.uuid7(), %s, 'ws', 1, now() from generate_series(1, 9001)",
        [endpoint],
    )
    assert value(db, "select outbox.replay_slice(1000)") == 0
    assert operation(db)["state"] == "running"
    db.execute("delete from outbox.open_deliveries where priority = 1")
    assert value(db, "select outbox.replay_slice(1000)") == 500
    assert operation(db)["state"] == "done"


def test_replay_many_takes_ids_from_any_query(db, endpoint):
    """A WHERE joined with business tables names the events; unknown ones count nothing."""
    add_many_dead(db, endpoint, 20)
    never = add_event(db, payload={"n": 7})
    db.execute("create table orders (n int, city text)")
    db.execute(
        "insert into orders select n, case when n % 2 = 0 then 'Ulm' else 'Bern' end from"
        " generate_series(1, 20) n"
    )
    ids = (
        "array(select e.event_id from outbox.events e join orders o on o.n = (e.payload ->> 'n')::int"
        " where o.city = %s) || array[gen_random_uuid(), null]"
    )
    assert value(db, f"select outbox.replay_many({ids})", "Ulm") == 10
    assert value(db, f"select outbox.replay_many({ids})", "Ulm") == 0
    assert value(db, f"select outbox.replay_many({ids}, %s)", "Bern", endpoint) == 11
    assert delivery(db, never, endpoint)["state"] == "pending"
    assert (
        value(
            db,
            "select count(*) from outbox.operation_events where event_id = %s and replayed_at is not null",
            never,
        )
        == 1
    )


@pytest.mark.parametrize("to_one", [True, False])
def test_a_huge_replay_many_goes_in_slices(db, endpoint, to_one):
    """The ids that were given are kept until their turn comes."""
    add_many_dead(db, endpoint, 1700)
    ids = "array(select event_id from outbox.finished_deliveries)"
    assert value(db, f"select outbox.replay_many({ids}, %s)", endpoint if to_one else None) == 1700
    assert opened(db) == 1000
    assert value(db, "select outbox.replay_slice(1000)") == 700
    assert value(db, "select outbox.replay_slice(1000)") == 0
    assert (opened(db), operation(db)["state"], operation(db)["parameters"]["total"]) == (1700, "done", 1700)


def test_a_running_replay_can_be_stopped(db, endpoint):
    """What is replayed stays replayed, the rest stays dead, and who stopped it is recorded."""
    add_many_dead(db, endpoint, 1100)
    db.execute("select outbox.replay_endpoint(%s, '-infinity')", [endpoint])
    running = operation(db)["operation_id"]
    db.execute("select outbox.stop_operation(%s)", [running])
    assert value(db, "select outbox.replay_slice(1000)") == 0
    assert (opened(db), operation(db)["state"]) == (1000, "canceled")
    with pytest.raises(psycopg.Error) as refused:
        db.execute("select outbox.stop_operation(%s)", [running])
    assert refused.value.sqlstate == "OB009"


def plan_of(db, statement: str) -> str:
    return "\n".join(row[0] for row in db.execute(f"explain (costs off) {statement}"))


@pytest.fixture
def crowded(db, endpoint):
    """100 dead letters of one endpoint among 20,000 delivered ones of it and of others."""
    add_many_dead(db, endpoint, 10000, state="delivered")
    add_many_dead(db, add_endpoint(db), 10000, state="delivered")
    add_many_dead(db, endpoint, 100)
    add_open(db, add_event(db), endpoint)
    db.execute(
        "analyze outbox.finished_deliveries, outbox.kept_deliveries, outbox.open_deliveries, outbox.events"
    )
    return endpoint


@pytest.mark.parametrize(
    "verb", ["select * from outbox.deliveries", "update outbox.deliveries set state = 'pending'"]
)
def test_dead_letters_of_an_endpoint_are_found_by_the_partial_index_without_the_open_table(db, crowded, verb):
    """The ordinary WHERE of an operator reads nothing but dead letters."""
    plan = plan_of(db, f"{verb} where state = 'dead' and endpoint_id = '{crowded}'")
    scans = [line for line in plan.splitlines() if " on finished_deliveries_" in line]
    assert scans
    current = value(
        db, "select name from outbox.partitions where parent = 'finished_deliveries' and state = 'current'"
    )
    indexes = value(
        db,
        "select array_agg(indexrelid::regclass::text) from pg_index where indrelid = %s::regclass and"
        " indpred is not null",
        f"outbox.{current}",
    )
    assert any(index.removeprefix("outbox.") in plan for index in indexes), plan
    assert "open_deliveries" not in plan
    assert not any("Seq Scan on finished_deliveries_" in line for line in scans if current in line), plan


def test_replay_by_endpoint_reads_the_partial_index_and_looks_at_each_row_once(db, connect, crowded):
    """100 dead letters among 20,000 deliveries cost about as many index entries, not a scan."""
    session = connect()
    session.execute("select outbox.replay_endpoint(%s, '-infinity')", [crowded])
    session.execute("select pg_stat_force_next_flush()")
    read = value(
        db,
        "select sum(s.idx_tup_read) from pg_stat_user_indexes s join pg_index i using (indexrelid)"
        " where s.relname like 'finished_deliveries_2%%' and i.indpred is not null",
    )
    assert 100 <= read <= 400
    scanned = value(
        db,
        "select coalesce(sum(seq_tup_read), 0) from pg_stat_user_tables"
        " where relname like 'finished_deliveries_2%%'",
    )
    assert scanned == 0


def test_replay_of_one_event_touches_one_partition_of_each_table(db, connect, crowded):
    """An event id says which partition it is in: no other is read."""
    event = value(db, "select event_id from outbox.finished_deliveries where state = 'dead' limit 1")
    session = connect()
    session.autocommit = False
    assert value(session, "select outbox.replay(%s)", event) == 1
    touched = session.execute(
        "select regexp_replace(relname, '_\\d+$', ''), count(*) from pg_stat_xact_user_tables"
        " where relname ~ '_2\\d+$' and seq_scan + idx_scan > 0 group by 1 order by 1"
    ).fetchall()
    session.rollback()
    assert touched == [("events", 1), ("finished_deliveries", 1)]
