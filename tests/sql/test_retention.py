"""Retention: what expired is dropped, never with what is still needed.

Reads: outbox.partitions, the history. Writes: a clone of the schema.
Guarantee: open work keeps its partition, dead letters outlive theirs, and nobody is held up by a drop.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.support.history import add_endpoint, add_event, add_finished, add_open, delivery, value

PARENTS = ("events", "finished_deliveries", "recorded_attempts")
# Weekly partitions back in time, from the oldest that exists down.
MAKE_WEEKS = """
    select outbox.make_partition(parent, lower_bound, lower_bound + interval '7 days')
    from unnest(%s::text[]) as parent,
         (select min(lower_bound) as first from outbox.partition_registry) r,
         lateral generate_series(r.first - %s * interval '7 days', r.first - interval '7 days',
                                 interval '7 days') as lower_bound
"""


@pytest.fixture
def endpoint(db):
    return add_endpoint(db)


def make_weeks(db, weeks: int) -> None:
    db.execute(MAKE_WEEKS, [list(PARENTS), weeks])


def drop_all(db) -> int:
    """Drop until nothing is left to do, as a worker does; give the number of calls that did something."""
    calls = 0
    while value(db, "select outbox.drop_partitions()") > 0:
        calls += 1
    return calls


def states(db) -> dict[str, list[str]]:
    return dict(
        db.execute(
            "select parent, array_agg(state order by lower_bound) from outbox.partitions group by 1"
        ).fetchall()
    )


def test_two_years_of_weekly_partitions_shrink_to_the_retention_within_a_minute(db, endpoint):
    """What expired goes; its dead letters stay, searchable and replayable; open work keeps its own."""
    make_weeks(db, 104)
    dead, gone = [], []
    for week in range(2, 100):
        event = add_event(db, age=f"{week * 7} days")
        state = "dead" if week % 3 == 0 else "delivered"
        add_finished(db, event, endpoint, state, ago=f"{week * 7 - 2} days", attempts=2)
        if week > 14 and week not in {28, 29}:
            (dead if state == "dead" else gone).append(event)
    waiting = add_event(db, age="200 days")
    add_open(db, waiting, endpoint)

    calls = drop_all(db)

    assert calls >= 270
    (kept,) = {tuple(of_parent) for of_parent in states(db).values()}
    assert (kept[0], kept.count("past") in {12, 13}, kept[-5:]) == (
        "held",
        True,
        ("current", *["future"] * 4),
    )
    assert set(kept[1:-5]) == {"past"}
    for event in dead:
        assert value(db, "select payload from outbox.event_log where event_id = %s", event) == {"n": 1}
        assert value(db, "select count(*) from outbox.attempts where event_id = %s", event) == 2
        assert delivery(db, event, endpoint)["state"] == "dead"
    assert value(db, "select count(*) from outbox.known_events where event_id = any (%s)", gone) == 0
    assert value(db, "select count(*) from outbox.deliveries where event_id = any (%s)", gone) == 0
    assert value(db, "select held_because from outbox.partitions where state = 'held' limit 1") == (
        "deliveries of its events are pending"
    )
    assert (
        value(db, "select outbox.replay_endpoint(%s, now() - interval '2 years')", endpoint) == len(dead) + 4
    )
    db.execute(
        "update outbox.deliveries set state = 'canceled' where event_id = any (%s)", [[waiting, *dead]]
    )
    assert value(db, "select count(*) from outbox.kept_deliveries") == len(dead) + 1
    drop_all(db)
    assert "held" not in states(db)["events"]


def test_an_event_not_fanned_out_holds_its_partition(db):
    """Work that no delivery shows yet counts too."""
    make_weeks(db, 20)
    event = add_event(db, age="110 days", queued=True)
    drop_all(db)
    assert value(db, "select count(*) from outbox.events where event_id = %s", event) == 1
    assert "held" in states(db)["events"]


def test_shorter_retention_of_one_table_leaves_the_others(db, endpoint):
    """Bodies may go before the facts: attempts for a week, events for two, deliveries for ninety days."""
    make_weeks(db, 8)
    db.execute("update outbox.settings set attempt_retention = '7 days', event_retention = '14 days'")
    event, dead = add_event(db, age="40 days"), add_event(db, age="40 days")
    add_finished(db, event, endpoint, "delivered", ago="40 days")
    add_finished(db, dead, endpoint, ago="38 days")
    drop_all(db)
    assert (
        len(states(db)["finished_deliveries"])
        > len(states(db)["events"])
        > len(states(db)["recorded_attempts"])
    )
    assert delivery(db, event, endpoint)["state"] == "delivered"
    assert value(db, "select count(*) from outbox.known_attempts where event_id = %s", event) == 0
    assert value(db, "select count(*) from outbox.known_attempts where event_id = %s", dead) == 8
    with pytest.raises(psycopg.Error) as refused:
        db.execute("select outbox.replay(%s)", [event])
    assert refused.value.sqlstate == "OB009"
    assert value(db, "select outbox.replay_endpoint(%s, '-infinity', now(), '{delivered}')", endpoint) == 0
    assert value(db, "select outbox.replay(%s)", dead) == 1


def test_a_partition_is_never_dropped_behind_a_long_transaction(db, connect, endpoint):
    """A reader keeps its partition; that is recorded, the others go on, publishing is not held up."""
    make_weeks(db, 16)
    reader = connect()
    reader.autocommit = False
    reader.execute("select count(*) from outbox.events")
    drop_all(db)
    assert states(db)["events"].count("expired") > 0
    assert "expired" not in states(db)["finished_deliveries"]
    error = value(
        db, "select last_error from outbox.partitions where state = 'expired' and last_error is not null"
    )
    assert error.startswith("55P03")
    db.execute("update outbox.settings set event_retention = '80 days'")
    assert "55P03" in value(db, "select outbox.partition_alarm()")
    db.execute("set lock_timeout = '1s'")
    add_event(db)

    reader.rollback()
    drop_all(db)
    assert "expired" not in states(db)["events"]
    assert value(db, "select outbox.partition_alarm()") is None


def test_an_object_that_depends_on_a_partition_keeps_it_loudly(db):
    """A DBA's view on one partition is not dropped by cascade; the alarm says what is in the way."""
    make_weeks(db, 16)
    oldest = value(
        db, "select name from outbox.partitions where parent = 'events' order by lower_bound limit 1"
    )
    db.execute(f"create view public.mine as select event_id from outbox.{oldest}")
    drop_all(db)
    assert oldest in value(db, "select outbox.partition_alarm()")
    assert value(db, "select state from outbox.partitions where name = %s", oldest) == "expired"


async def test_a_replay_that_comes_while_a_partition_is_dropped_keeps_it(db, connect, endpoint):
    """Whoever commits first wins: with the replay's delivery open, the partition is held."""
    make_weeks(db, 16)
    event = add_event(db, age="105 days")
    add_finished(db, event, endpoint, "delivered", ago="104 days")
    operator = connect()
    operator.autocommit = False
    assert value(operator, "select outbox.replay(%s)", event) == 1
    drop_all(db)
    operator.commit()
    drop_all(db)
    assert value(db, "select count(*) from outbox.known_events where event_id = %s", event) == 1
    assert delivery(db, event, endpoint)["state"] == "pending"


def test_purge_deletes_what_is_past_its_time_in_slices(db, endpoint):
    """Each small table has its own age; kept events and attempts go with their last delivery."""
    make_weeks(db, 20)
    old, young = add_event(db, age="130 days"), add_event(db, age="120 days")
    for event in (old, young):
        add_finished(db, event, endpoint, ago="129 days" if event == old else "119 days", attempts=1)
    drop_all(db)
    db.execute("update outbox.settings set dead_letter_retention = '125 days'")
    db.execute(
        "insert into outbox.idempotency_keys (workspace_id, idempotency_key, event_id, fingerprint,"
        " created_at)"
        " select 'ws', n::text, outbox.uuid7(), '', now() - n * interval '1 day' from generate_series(1,"
        " 10) n"
    )
    db.execute(
        "insert into outbox.lost_leases (event_id, endpoint_id, workspace_id, attempt_no, lease_token,"
        " expired_at, recorded_at)"
        " select outbox.uuid7(), outbox.uuid7(), 'ws', 1, outbox.uuid7(), now(), now() - n * interval"
        " '30 days'"
        " from generate_series(1, 5) n"
    )
    worker = connect_worker_calls(db)
    assert worker[-1] == 0
    assert max(worker) <= 2 * 10
    assert value(db, "select count(*) from outbox.idempotency_keys") == 6
    assert value(db, "select count(*) from outbox.lost_leases") == 2
    for table in ("kept_deliveries", "kept_events", "kept_attempts"):
        assert value(db, f"select array_agg(event_id) from outbox.{table}") == [young], table


def connect_worker_calls(db) -> list[int]:
    done = [value(db, "select outbox.purge(2)")]
    while done[-1]:
        done.append(value(db, "select outbox.purge(2)"))
    return done
