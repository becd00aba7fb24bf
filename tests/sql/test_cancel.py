"""Cancel: what must not go out does not, and what has no receiver any more ends.

Reads: outbox.deliveries, outbox.operations. Writes: a clone of the schema.
Guarantee: a canceled delivery is in the history with its reason, and an event canceled whole goes nowhere.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.support.history import add_endpoint, add_event, add_open, delivery, value


@pytest.fixture
def endpoint(db):
    return add_endpoint(db)


def test_cancel_stops_pending_deliveries_even_leased_ones_and_the_fan_out(db, endpoint):
    """What is open becomes canceled in the history; what is not fanned out yet goes nowhere."""
    event = add_event(db, queued=True)
    add_open(db, event, endpoint, attempt_count=3, lease_expires_at=datetime.now(UTC) + timedelta(minutes=1))
    db.execute("set outbox.reason = 'wrong price'")
    assert value(db, "select outbox.cancel(%s)", event) == 1
    row = delivery(db, event, endpoint)
    assert (row["state"], row["reason"], row["attempt_count"]) == ("canceled", "wrong price", 3)
    assert value(db, "select count(*) from outbox.canceled_events where event_id = %s", event) == 1
    recorded = db.execute(
        "select kind, event_id, endpoint_id, affected, reason from outbox.operations"
    ).fetchall()
    assert recorded == [("cancel", event, None, 1, "wrong price")]
    with pytest.raises(psycopg.Error) as refused:
        db.execute("select outbox.cancel(%s)", [uuid.uuid4()])
    assert refused.value.sqlstate == "OB009"


def test_cancel_slice_ends_what_waits_for_deleted_endpoints_and_what_slipped_through(db, endpoint):
    """Leased ones are left to their settlement, and what was replayed after its cancellation stays."""
    gone = add_endpoint(db)
    slipped, replayed = add_event(db), add_event(db)
    events = [add_event(db) for _ in range(3)]
    for event in events:
        add_open(db, event, gone)
    leased = add_event(db)
    add_open(db, leased, gone, lease_expires_at=datetime.now(UTC) + timedelta(minutes=1))
    db.execute("select outbox.delete_endpoint(%s)", [gone])
    for event in (slipped, replayed):
        db.execute("select outbox.cancel(%s)", [event])
    add_open(db, slipped, endpoint)
    add_open(db, replayed, endpoint, replay_count=1)

    done = [value(db, "select outbox.cancel_slice(2)") for _ in range(3)]

    assert done == [3, 1, 0]
    assert {delivery(db, event, gone)["reason"] for event in events} == {"endpoint deleted"}
    assert delivery(db, slipped, endpoint)["reason"] == "event canceled"
    assert delivery(db, leased, gone)["state"] == "pending"
    assert delivery(db, replayed, endpoint)["state"] == "pending"


def test_a_delivery_of_an_endpoint_deleted_long_ago_is_canceled_and_then_looked_for_no_more(db):
    """No age ends the search, only that a week after its deletion nothing is open."""
    gone, recent = add_endpoint(db), add_endpoint(db)
    event = add_event(db)
    add_open(db, event, gone)
    for endpoint in (gone, recent):
        db.execute("select outbox.delete_endpoint(%s)", [endpoint])
    db.execute(
        "update outbox.endpoints set state_changed_at = now() - interval '30 days' where endpoint_id = %s",
        [gone],
    )

    assert value(db, "select outbox.cancel_slice(500)") == 1
    assert delivery(db, event, gone)["reason"] == "endpoint deleted"
    drained = db.execute("select endpoint_id from outbox.endpoints where drained_at is not null").fetchall()
    assert drained == [(gone,)]


def test_what_cancel_slice_costs_does_not_grow_with_the_endpoints_deleted_long_ago(db, endpoint):
    """The index that it walks holds those that may still have something open."""
    db.execute(
        "insert into outbox.endpoints (workspace_id, url, event_types, state, state_changed_at)"
        " select 'ws', 'https://example.com/hook', '{message.*}', 'deleted', now() - interval '30 days'"
        " from generate_series(1, 2000)"
    )
    while value(db, "select count(*) from outbox.endpoints where state = 'deleted' and drained_at is null"):
        db.execute("select outbox.cancel_slice(1000)")
    db.execute("vacuum analyze outbox.endpoints")
    db.execute("set enable_seqscan = off")
    (plan,) = db.execute("explain (analyze, buffers, format json) select outbox.cancel_slice(500)").fetchone()
    (again,) = db.execute(
        "explain (analyze, buffers, format json) select outbox.cancel_slice(500)"
    ).fetchone()
    assert plan
    assert again[0]["Plan"]["Shared Hit Blocks"] < 100
