"""Stripping: payloads and responses go before the facts, and nothing goes that is still needed.

Reads: outbox.partitions, the history. Writes: a clone of the schema.
Guarantee: what is past payload_retention or response_retention is gone, its facts stay; a slice that dies is done again.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.support.history import add_endpoint, add_event, add_finished, add_open, delivery, value

PARENTS = ("events", "finished_deliveries", "recorded_attempts")
ONE_EVENT = "select * from outbox.event_log where event_id = %s"
ATTEMPTS = "select * from outbox.attempt_log where event_id = %s order by attempt_no"


@pytest.fixture
def endpoint(db):
    """An endpoint, in a history of ten weeks of which payloads and responses are kept for ten days."""
    db.execute(
        "select outbox.make_partition(parent, lower_bound, lower_bound + interval '7 days')"
        " from unnest(%s::text[]) as parent,"
        " (select min(lower_bound) as first from outbox.partition_registry) r,"
        " lateral generate_series(r.first - interval '70 days', r.first - interval '7 days', interval '7 days') as lower_bound",
        [list(PARENTS)],
    )
    db.execute("update outbox.settings set payload_retention = '10 days', response_retention = '10 days'")
    return add_endpoint(db)


@pytest.fixture
def worker(connect):
    return connect("worker_login")


def strip_all(worker, size: int = 10000) -> int:
    """Strip until nothing is left to do, as a worker does; give the number of calls that did something."""
    calls = 0
    while value(worker, "select outbox.strip_partitions(%s)", size) > 0:
        calls += 1
    return calls


def rows(db, query, *params):
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(query, params).fetchall()


def old_event(db, endpoint, state="delivered", *, age="40 days", attempts=2, **columns):
    event = add_event(db, age=age, **columns)
    add_finished(db, event, endpoint, state, ago=age, attempts=attempts)
    return event


def test_without_a_setting_payloads_and_responses_stay_with_their_partition(db, worker, endpoint):
    """Nobody loses what they did not ask to lose."""
    db.execute("update outbox.settings set payload_retention = null, response_retention = null")
    event = old_event(db, endpoint)
    assert strip_all(worker) == 0
    assert rows(db, ONE_EVENT, event)[0]["payload"] == {"n": 1}
    assert rows(db, ATTEMPTS, event)[0]["response_body"] == "no, Ada"


def test_payloads_and_responses_go_and_the_facts_stay(db, worker, endpoint):
    """Every view still tells what happened, and says since when the rest is gone; young ones are whole."""
    event, young = old_event(db, endpoint), old_event(db, endpoint, age="3 days")
    before = {
        view: rows(db, f"select * from outbox.{view} where event_id = %s", event)
        for view in ("event_log", "delivery_log", "attempt_log")
    }
    strip_all(worker)

    lost = {"payload", "request_body", "response_headers", "response_body"}
    told = {"payload_gone_at", "response_gone_at"}
    for view, was in before.items():
        now = rows(db, f"select * from outbox.{view} where event_id = %s", event)
        assert len(now) == len(was) > 0
        for one, other in zip(was, now, strict=True):
            assert {name for name in one if one[name] != other[name]} <= lost | told
            assert all(other[name] is None for name in lost & set(one))
            assert all(other[name] is not None for name in told & set(one))
    assert rows(db, ONE_EVENT, young)[0]["payload"] == {"n": 1}
    assert rows(db, ATTEMPTS, young)[0]["response_body"] == "no, Ada"
    assert (
        value(db, "select count(*) from outbox.latency_by_hour where hour < now() - interval '39 days'") == 1
    )


def test_stripped_partitions_are_empty_files_and_the_view_says_since_when(db, worker, endpoint):
    """Space goes back to the disk at once, not when the partition is dropped."""
    for _ in range(30):
        old_event(db, endpoint, payload={"text": "x" * 5000})
    names = [
        row["name"]
        for row in rows(
            db,
            "select p.name from outbox.partitions p"
            " where p.parent in ('events', 'recorded_attempts') and p.upper_bound < now() - interval '10 days'",
        )
    ]
    strip_all(worker)
    state = rows(
        db,
        "select name, parent, pg_relation_size('outbox.' || name) as heap, stripped_at, state, last_error"
        " from outbox.partitions where strip_due_at < now()",
    )
    assert {row["name"] for row in state} == set(names)
    assert {(row["heap"], row["state"], row["last_error"]) for row in state} == {(0, "past", None)}
    assert all(row["stripped_at"] for row in state)
    assert value(db, "select count(*) from outbox.bare_events") == 30
    assert strip_all(worker) == 0


def test_a_replay_without_a_payload_is_refused_and_says_why(db, worker, endpoint):
    """By event, by row, in bulk: nothing becomes pending that could never be sent."""
    event, canceled = old_event(db, endpoint), old_event(db, endpoint, "canceled")
    other = add_endpoint(db)
    strip_all(worker)
    for statement, given in {
        "select outbox.replay(%s)": [event],
        "select outbox.replay(%s, %s)": [event, other],
        "update outbox.deliveries set state = 'pending' where event_id = %s": [canceled],
    }.items():
        with pytest.raises(psycopg.Error) as refused:
            db.execute(statement, given)
        assert refused.value.sqlstate == "OB009"
        assert "payload" in refused.value.diag.message_primary
        assert "payload_retention" in refused.value.diag.message_hint
    states = "{delivered,canceled,missing}"
    assert value(db, "select outbox.count_replay(%s, '-infinity', now(), %s)", endpoint, states) == 0
    assert value(db, "select outbox.replay_endpoint(%s, '-infinity', now(), %s)", endpoint, states) == 0
    assert value(db, "select outbox.replay_many(%s)", [event, canceled]) == 0
    assert value(db, "select outbox.replay_many(%s, %s)", [event, canceled], other) == 0
    assert (
        value(db, "select outbox.reopen(%s, %s, '{delivered}', 1::smallint, now())", [event], [endpoint]) == 0
    )
    assert value(db, "select count(*) from outbox.open_deliveries") == 0
    db.execute("update outbox.endpoints set created_at = 'epoch' where endpoint_id = %s", [other])
    db.execute(
        "update outbox.endpoint_versions set created_at = 'epoch', filter = '$.n == 1' where endpoint_id = %s",
        [other],
    )
    says = value(db, "select outbox.explain_delivery(%s, %s)", event, other)
    assert "not known any more" in says
    assert "its payload is gone since" in says


def test_dead_letters_and_pending_deliveries_keep_their_payload_and_responses(db, worker, endpoint):
    """They are replayed and sent like any other."""
    dead = old_event(db, endpoint, "dead", attempts=8)
    waiting = add_event(db, age="40 days")
    add_open(db, waiting, endpoint)
    strip_all(worker)
    assert rows(db, ONE_EVENT, dead)[0]["payload"] == rows(db, ONE_EVENT, waiting)[0]["payload"] == {"n": 1}
    assert [row["response_body"] for row in rows(db, ATTEMPTS, dead)] == ["no, Ada"] * 8
    assert value(db, "select outbox.replay(%s)", dead) == 1

    db.execute("update outbox.deliveries set state = 'canceled' where event_id = %s", [waiting])
    strip_all(worker)
    assert rows(db, ONE_EVENT, waiting)[0]["payload"] is None


def test_an_event_that_is_not_fanned_out_keeps_its_payload(db, worker, endpoint):
    """It has no delivery yet that would say so."""
    event = add_event(db, age="40 days", queued=True)
    strip_all(worker)
    assert rows(db, ONE_EVENT, event)[0]["payload"] == {"n": 1}


def test_a_slice_that_dies_is_done_again_and_no_fact_is_lost_or_doubled(db, connect, worker, endpoint):
    """After each slice, done or killed, every event and attempt is in one place."""
    for day in range(12, 44, 2):
        old_event(db, endpoint, age=f"{day} days")
    facts = "select (select count(*) from outbox.known_events), (select count(*) from outbox.known_attempts)"
    whole = db.execute(facts).fetchone()
    calls = 0
    while value(worker, "select outbox.strip_partitions(3)") > 0:
        calls += 1
        assert db.execute(facts).fetchone() == whole
        doomed = connect("worker_login")
        doomed.autocommit = False
        doomed.execute("select outbox.strip_partitions(3)")
        db.execute("select pg_terminate_backend(%s, 10000)", [doomed.info.backend_pid])
        assert db.execute(facts).fetchone() == whole
    assert calls > 20
    assert value(db, "select count(*) from outbox.known_events where payload is not null") == 0
    assert value(db, "select count(*) from outbox.known_attempts where response_body is not null") == 0


def test_stripping_waits_behind_no_long_transaction(db, connect, worker, endpoint):
    """A reader keeps the partition's file; that is recorded, the others go on, publishing is not held up."""
    old_event(db, endpoint)
    reader = connect()
    reader.autocommit = False
    reader.execute("select count(*) from outbox.events")
    strip_all(worker)
    late = "select name, last_error from outbox.partitions where strip_due_at < now() and stripped_at is null"
    assert {row["last_error"][:5] for row in rows(db, late)} == {"55P03"}
    assert {row["name"].rsplit("_", 1)[0] for row in rows(db, late)} == {"events"}
    assert "should be stripped" in value(db, "select outbox.partition_alarm()")
    db.execute("set lock_timeout = '1s'")
    add_event(db)
    reader.rollback()
    strip_all(worker)
    assert rows(db, late) == []
    assert value(db, "select outbox.partition_alarm()") is None


def test_a_replay_under_way_keeps_the_payload(db, connect, worker, endpoint):
    """Whoever commits first wins: stripping does not look past a replay that it cannot see yet."""
    event = old_event(db, endpoint)
    operator = connect()
    operator.autocommit = False
    assert value(operator, "select outbox.replay(%s)", event) == 1
    strip_all(worker)
    operator.commit()
    strip_all(worker)
    assert rows(db, ONE_EVENT, event)[0]["payload"] == {"n": 1}
    assert delivery(db, event, endpoint)["state"] == "pending"


def test_a_response_that_comes_late_stays_until_it_is_old_itself(db, worker, endpoint):
    """A replay after the stripping records its attempt in the old partition, with the response."""
    db.execute("update outbox.settings set payload_retention = null")
    event = old_event(db, endpoint)
    strip_all(worker)
    db.execute(
        "insert into outbox.recorded_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version,"
        " started_at, duration_ms, worker_no, status, response_body) values (%s, %s, 3, 'ws', 1, now(), 5, 1, 200, 'ok')",
        [event, endpoint],
    )
    strip_all(worker)
    assert [row["response_body"] for row in rows(db, ATTEMPTS, event)] == [None, None, "ok"]
    db.execute("update outbox.recorded_attempts set started_at = now() - interval '11 days'")
    strip_all(worker)
    assert [row["response_body"] for row in rows(db, ATTEMPTS, event)] == [None, None, None]
    assert strip_all(worker) == 0


def test_bare_facts_are_dropped_in_their_time_and_dead_letters_take_theirs_along(db, worker, endpoint):
    """A delivery that died after a replay keeps its earlier attempts, without what they had lost."""
    db.execute("update outbox.settings set payload_retention = null")
    event, dies = old_event(db, endpoint, age="60 days"), old_event(db, endpoint, age="60 days")
    strip_all(worker)
    db.execute(
        "update outbox.finished_deliveries set state = 'dead', finished_at = now() where event_id = %s",
        [dies],
    )
    db.execute(
        "update outbox.settings set event_retention = '30 days', delivery_retention = '30 days',"
        " attempt_retention = '30 days'"
    )
    while value(worker, "select outbox.drop_partitions()") > 0:
        continue
    assert value(db, "select count(*) from outbox.bare_attempts") == 0
    assert value(db, "select count(*) from outbox.known_attempts where event_id = %s", event) == 0
    assert [row["attempt_no"] for row in rows(db, ATTEMPTS, dies)] == [1, 2]
    assert (
        rows(
            db,
            "select * from outbox.partitions where parent like 'bare%%' and upper_bound < now() - interval '30 days'",
        )
        == []
    )


def test_late_results_lose_their_responses_too(db, worker, endpoint):
    """They are evidence of when and what status, and hold what a receiver answered."""
    event = old_event(db, endpoint)
    db.execute(
        "insert into outbox.late_results (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at,"
        " duration_ms, worker_no, status, response_body, lease_token, recorded_at)"
        " select %s, %s, n, 'ws', 1, now(), 5, 1, 200, 'ok', gen_random_uuid(), now() - n * interval '8 days'"
        " from generate_series(1, 2) n",
        [event, endpoint],
    )
    strip_all(worker)
    assert db.execute(
        "select response_body, status from outbox.late_results order by attempt_no"
    ).fetchall() == [
        (b"ok", 200),
        (None, 200),
    ]
