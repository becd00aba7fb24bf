"""Replay and cancel, by function and by UPDATE of the view outbox.deliveries.

Reads: outbox.deliveries, outbox.operations. Writes: a clone of the schema.
Guarantee: what an operator does happens once, is recorded, and is refused where it makes no sense.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.support.history import (
    add_endpoint,
    add_event,
    add_finished,
    add_many_dead,
    add_open,
    delivery,
    in_background,
    value,
    wait_for_lock,
)
from tests.support.waiting import eventually

TO_PENDING = "update outbox.deliveries set state = 'pending' where event_id = %s and endpoint_id = %s"


@pytest.fixture
def endpoint(db):
    return add_endpoint(db)


@pytest.fixture
def dead(db, endpoint):
    event = add_event(db)
    add_finished(db, event, endpoint)
    return event


def replay(db, *args) -> int:
    return value(db, f"select outbox.replay({', '.join(['%s'] * len(args))})", *args)


def operations(db, kind: str) -> list[tuple]:
    return db.execute(
        "select event_id, endpoint_id, affected, reason, requested_by, state from outbox.operations"
        " where kind = %s order by operation_id",
        [kind],
    ).fetchall()


def test_update_to_pending_gives_a_dead_letter_a_fresh_budget_and_keeps_its_attempts(db, endpoint, dead):
    """The schedule starts anew, the count of attempts goes on, and who and why is recorded."""
    db.execute("set outbox.reason = 'receiver was down'")
    db.execute(TO_PENDING, [dead, endpoint])

    row = delivery(db, dead, endpoint)
    assert (row["state"], row["attempt_count"], row["failed_count"], row["lost_count"]) == (
        "pending",
        8,
        0,
        0,
    )
    assert (row["replay_count"], row["priority"], row["finished_at"], row["last_status"]) == (1, 2, None, 500)
    assert value(db, "select %s <= clock_timestamp()", row["next_attempt_at"])
    assert value(db, "select count(*) from outbox.recorded_attempts where event_id = %s", dead) == 8
    user = value(db, "select session_user")
    assert operations(db, "replay") == [(dead, endpoint, 1, "receiver was down", user, "done")]


def test_operator_may_update_the_view_and_nothing_below_it(db, connect, endpoint, dead):
    """The ordinary UPDATE of an operator works with the operator's own rights."""
    operator = connect("operator_login")
    assert operator.execute(TO_PENDING, [dead, endpoint]).rowcount == 1
    assert operations(db, "replay")[0][4] == "operator_login"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        operator.execute("update outbox.deliveries set attempt_count = 0")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        operator.execute("delete from outbox.open_deliveries")


def test_every_change_wakes_the_owner_of_the_endpoint(db, connect, endpoint, dead):
    """Replay, move and cancel each send the endpoint's shard to the workers."""
    listener = connect()
    listener.execute("listen outbox_wake")
    shard = value(db, "select shard from outbox.endpoints where endpoint_id = %s", endpoint)
    for change in ("state = 'pending'", "next_attempt_at = now() + interval '1 h'", "state = 'canceled'"):
        db.execute(f"update outbox.deliveries set {change} where event_id = %s", [dead])
        (wake,) = listener.notifies(timeout=10, stop_after=1)
        assert wake.payload == f"shards:{shard}", change


def test_moving_a_delivery_changes_its_time_unless_it_is_in_flight(db, endpoint):
    """`set next_attempt_at = now()` retries a waiting one now and leaves one under a live lease alone."""
    waiting, leased = add_event(db), add_event(db)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    add_open(db, waiting, endpoint, next_attempt_at=tomorrow)
    add_open(
        db, leased, endpoint, next_attempt_at=tomorrow, lease_expires_at=tomorrow, lease_token=uuid.uuid4()
    )

    changed = db.execute(
        "update outbox.deliveries set next_attempt_at = now() where endpoint_id = %s", [endpoint]
    )

    assert changed.rowcount == 1
    assert delivery(db, waiting, endpoint)["next_attempt_at"] < tomorrow
    assert delivery(db, leased, endpoint)["next_attempt_at"] == tomorrow


@pytest.mark.parametrize("long_ago", ["-infinity", "0044-03-15 BC", "epoch"])
@pytest.mark.parametrize("state", ["pending", "dead"])
def test_a_time_that_is_past_means_now(db, endpoint, state, long_ago):
    """No worker could read a time before the year 1, and none looks for work before 1970."""
    event = add_event(db)
    if state == "pending":
        add_open(db, event, endpoint)
    else:
        add_finished(db, event, endpoint, state)
    began = db.execute("select clock_timestamp()").fetchone()[0]
    db.execute(
        "update outbox.deliveries set state = 'pending', next_attempt_at = %s where event_id = %s",
        [long_ago, event],
    )
    assert began <= delivery(db, event, endpoint)["next_attempt_at"] <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("state", "change", "hint"),
    [
        ("delivered", "state = 'pending'", "outbox.replay("),
        ("dead", "state = 'canceled'", "may be set to pending"),
        ("dead", "state = 'delivered'", "a worker's attempt"),
        ("dead", "state = null", "may be set to pending"),
        ("dead", "next_attempt_at = now()", "may be set to pending"),
        ("pending", "state = 'dead'", "a worker's attempt"),
        ("pending", "attempt_count = 1", "Set state = 'pending'"),
        ("pending", "next_attempt_at = null", "Give a time"),
        ("pending", "next_attempt_at = 'infinity'", "max_delay"),
    ],
)
def test_changes_that_make_no_sense_are_refused_with_a_hint(db, endpoint, state, change, hint):
    """A refusal names the way that works, and changes nothing."""
    event = add_event(db)
    if state == "pending":
        add_open(db, event, endpoint)
    else:
        add_finished(db, event, endpoint, state)
    before = delivery(db, event, endpoint)
    with pytest.raises(psycopg.Error) as refused:
        db.execute(f"update outbox.deliveries set {change} where event_id = %s", [event])
    assert refused.value.sqlstate in {"OB008", "OB011"}
    assert hint in refused.value.diag.message_hint
    assert delivery(db, event, endpoint) == before


def test_insert_and_delete_of_deliveries_are_refused_with_a_hint(db, endpoint, dead):
    """Deliveries come from the fan-out and stay in the history."""
    with pytest.raises(psycopg.Error, match="cannot insert") as refused:
        db.execute("insert into outbox.deliveries (event_id, endpoint_id) values (%s, %s)", [dead, endpoint])
    assert "outbox.publish" in refused.value.diag.message_hint
    with pytest.raises(psycopg.Error, match="cannot delete") as refused:
        db.execute("delete from outbox.deliveries")
    assert "outbox.cancel" in refused.value.diag.message_hint


def test_a_deleted_endpoints_dead_letter_is_refused_by_update_and_passed_over_by_replay(db, endpoint, dead):
    """Nothing is sent into the void, and an event's replay does not fail for one endpoint that is gone."""
    db.execute("select outbox.delete_endpoint(%s)", [endpoint])
    with pytest.raises(psycopg.Error, match="deleted"):
        db.execute(TO_PENDING, [dead, endpoint])
    assert replay(db, dead) == 0
    with pytest.raises(psycopg.Error) as refused:
        replay(db, dead, endpoint)
    assert refused.value.sqlstate == "OB009"


@pytest.mark.parametrize("how", ["update", "replay", "replay_many", "replay_endpoint"])
async def test_two_sessions_replaying_the_same_rows_cause_one_replay(db, connect, endpoint, dead, how):
    """The second operator waits for the first, finds nothing left to do, and gets no error."""
    statements = {
        "update": (TO_PENDING, [dead, endpoint]),
        "replay": ("select outbox.replay(%s)", [dead]),
        "replay_many": ("select outbox.replay_many(array[%s::uuid])", [dead]),
        "replay_endpoint": ("select outbox.replay_endpoint(%s, '-infinity')", [endpoint]),
    }

    def act(session) -> int:
        cursor = session.execute(*statements[how])
        return cursor.rowcount if how == "update" else cursor.fetchone()[0]

    first, second = connect(), connect()
    first.autocommit = False
    assert act(first) == 1
    with in_background(lambda: act(second)) as outcome:
        await wait_for_lock(db, second, eventually)
        first.commit()
        assert outcome() == 0
    assert delivery(db, dead, endpoint)["replay_count"] == 1


async def test_two_sessions_sending_to_an_endpoint_that_never_had_the_event_cause_one_delivery(
    db, connect, endpoint
):
    """The second waits, and finds the first one's delivery even when that was delivered meanwhile."""
    event = add_event(db)
    first, second = connect(), connect()
    first.autocommit = False
    assert replay(first, event, endpoint) == 1
    first.execute("select outbox.cancel(%s, %s)", [event, endpoint])  # it has moved on to the history
    with in_background(lambda: replay(second, event, endpoint)) as outcome:
        await wait_for_lock(db, second, eventually)
        first.commit()
        assert outcome() == 0
    assert delivery(db, event, endpoint)["state"] == "canceled"


def test_replay_of_an_event_sends_it_to_all_that_were_finished(db):
    """Every final state counts; a pending one is made due now, not counted; a leased one left alone."""
    event = add_event(db, priority=0)
    states = {state: add_endpoint(db) for state in ("delivered", "dead", "canceled", "waiting", "leased")}
    for state in ("delivered", "dead", "canceled"):
        add_finished(db, event, states[state], state)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    add_open(db, event, states["waiting"], next_attempt_at=tomorrow)
    add_open(db, event, states["leased"], next_attempt_at=tomorrow, lease_expires_at=tomorrow)

    assert replay(db, event) == 3

    rows = {state: delivery(db, event, endpoint) for state, endpoint in states.items()}
    assert {row["state"] for row in rows.values()} == {"pending"}
    assert [rows[state]["priority"] for state in ("delivered", "dead", "canceled")] == [0, 0, 0]
    assert rows["waiting"]["next_attempt_at"] < tomorrow
    assert rows["waiting"]["replay_count"] == 0
    assert rows["leased"]["next_attempt_at"] == tomorrow
    assert [row[:3] for row in operations(db, "replay")] == [(event, None, 3)]


def test_replay_reaches_an_endpoint_that_did_not_exist_when_the_event_happened(db):
    """A new delivery is made, in line with the ordering key; the second call adds none."""
    event = add_event(db, age="2 days", ordering_key="k")
    newcomer = add_endpoint(db, types="{order.*}", ordered=True)
    assert replay(db, event, newcomer) == 1
    row = delivery(db, event, newcomer)
    assert (row["state"], row["attempt_count"], row["replay_count"], row["ordering_key"]) == (
        "pending",
        0,
        1,
        "k",
    )
    assert replay(db, event, newcomer) == 0


def test_replay_refuses_unknown_foreign_and_queued_events(db, endpoint):
    """The error says what was found; nothing is recorded."""
    with pytest.raises(psycopg.Error) as refused:
        replay(db, uuid.uuid4())
    assert refused.value.sqlstate == "OB009"
    with pytest.raises(psycopg.Error, match="workspace") as refused:
        replay(db, add_event(db, "other"), endpoint)
    assert refused.value.sqlstate == "OB008"
    with pytest.raises(psycopg.Error, match="not fanned out yet"):
        replay(db, add_event(db, queued=True), endpoint)
    assert operations(db, "replay") == []


def test_settled_below_the_history_floor_goes_to_the_kept_table_and_can_be_replayed_from_there(db, endpoint):
    """A delivery without a partition ends in kept_deliveries; view and replay know no difference."""
    event = add_event(db)
    add_open(db, event, endpoint)
    db.execute(
        "update outbox.partition_registry set dropped_at = now() where parent = 'finished_deliveries'"
        " and lower_bound < now()"
    )
    db.execute("update outbox.deliveries set state = 'canceled' where event_id = %s", [event])
    assert value(db, "select count(*) from outbox.kept_deliveries") == 1
    assert replay(db, event, endpoint) == 1
    assert value(db, "select count(*) from outbox.kept_deliveries") == 0
    assert delivery(db, event, endpoint)["state"] == "pending"


def test_many_dead_letters_fit_in_one_update(db, endpoint):
    """An operator's UPDATE replays all that is dead, in bulk priority, without walking it once a row."""
    add_many_dead(db, endpoint, 500)
    changed = db.execute(
        "update outbox.deliveries set state = 'pending' where state = 'dead' and endpoint_id = %s", [endpoint]
    )
    assert changed.rowcount == 500
    assert value(db, "select array_agg(distinct priority) from outbox.open_deliveries") == [2]
    db.execute("select pg_stat_force_next_flush()")
    read = value(
        db,
        "select sum(s.idx_tup_read) from pg_stat_user_indexes s where s.relname like 'finished_deliveries_2%%'",
    )
    assert read < 3000
