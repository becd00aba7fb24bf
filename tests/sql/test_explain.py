"""explain_delivery says why an endpoint did, or did not, get an event.

Reads and writes: a clone of the template database for each test.
Guarantee: the first reason that holds is the one that is told, with what to do about it.
If it fails: support tells a customer the wrong thing.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.support.rows import (
    LATER,
    attempt,
    finish,
    insert,
    live_worker,
    new_endpoint,
    one,
    owe,
    publish,
    report,
)


def told(db, event_id, endpoint_id):
    (text,) = one(db, "select outbox.explain_delivery(%s, %s)", event_id, endpoint_id)
    return text


@pytest.fixture
def endpoint_id(db):
    return new_endpoint(db)


def test_an_unknown_event_or_endpoint_is_named(db, endpoint_id):
    """What does not exist is said to, null included, and where to look."""
    unknown = uuid4()
    assert f"no event {unknown}" in told(db, unknown, endpoint_id)
    assert "no event null" in told(db, None, endpoint_id)
    assert f"no endpoint {unknown}" in told(db, publish(db), unknown)


def test_another_workspace_is_told(db):
    """Events never cross workspaces."""
    assert "belongs to workspace other" in told(db, publish(db), new_endpoint(db, "other"))


def test_an_event_in_line_is_told_with_whether_anybody_works(db, endpoint_id):
    """Before the fan-out nothing is decided; without a worker it never will be."""
    (event_id,) = one(db, "select outbox.publish('ws_1', 'message.received', '{}')")
    assert "not fanned out yet" in told(db, event_id, endpoint_id)
    assert "No worker is live" in told(db, event_id, endpoint_id)
    live_worker(db)
    assert "Workers are live" in told(db, event_id, endpoint_id)


def test_an_event_canceled_before_the_fan_out_is_told_with_who(db, endpoint_id):
    """outbox.cancel on an event in line leaves no deliveries to look at."""
    event_id = publish(db)
    insert(db, "canceled_events", event_id=event_id, workspace_id="ws_1", canceled_by="ann")
    assert "stopped the event as a whole" in told(db, event_id, endpoint_id)
    assert "by ann" in told(db, event_id, endpoint_id)


def test_an_endpoint_created_or_deleted_at_the_wrong_time_is_told(db, endpoint_id):
    """It was not there when the event happened; a replay can send it all the same."""
    db.execute("update outbox.endpoints set state = 'deleted'")
    event_id = publish(db)
    assert "was deleted at" in told(db, event_id, endpoint_id)
    text = told(db, event_id, new_endpoint(db))
    assert "after the event" in text
    assert "outbox.replay(" in text


def test_a_subscription_is_judged_as_it_was_at_the_time(db):
    """The version of then decides; that today's would match is told too."""
    endpoint_id = new_endpoint(db, event_types=["order.created", "bot.*"])
    event_id = publish(db)
    db.execute("update outbox.endpoints set event_types = '{message.*}'")
    text = told(db, event_id, endpoint_id)
    assert "(version 1) was order.created, bot.* and does not match message.received" in text
    assert "today does match" in text


def test_an_operational_type_needs_its_exact_name(db, endpoint_id):
    """A star leaves operational types out, and the explanation says so."""
    assert "needs its exact name" in told(db, publish(db, "endpoint.failing"), endpoint_id)


def test_a_test_event_is_for_its_endpoint_only(db, endpoint_id):
    """send_test_event reaches one endpoint whatever the others subscribe to."""
    other = new_endpoint(db, event_types=["endpoint.test"])
    (event_id,) = one(db, "select outbox.send_test_event(%s)", endpoint_id)
    assert f"made it for endpoint {endpoint_id} and no other" in told(db, event_id, other)


@pytest.mark.parametrize(
    ("filter_text", "expected"),
    [
        ("$.a == 2", 'is not true for the payload: ($."a" == 2)'),
        ('$.day.datetime() < "2020-01-01T00:00:00+00".datetime()', "fails on the payload: cannot convert"),
        ("$.a == 1", "nothing stands in the way"),
    ],
)
def test_a_filter_is_evaluated_on_the_payload(db, filter_text, expected):
    """False is told with the filter, an error in PostgreSQL's words; what matches is not blamed on it."""
    endpoint_id = new_endpoint(db, filter=filter_text)
    assert expected in told(db, publish(db, payload='{"a": 1, "day": "2020-01-01"}'), endpoint_id)


def test_a_filter_that_failed_or_was_given_up_is_told(db):
    """What the fan-out recorded comes before a new evaluation."""
    endpoint_id = new_endpoint(db, filter="$.a == 1")
    event_id, later = publish(db), publish(db)
    insert(
        db,
        "filter_failures",
        event_id=event_id,
        endpoint_id=endpoint_id,
        workspace_id="ws_1",
        error="no date",
    )
    assert "failed on this event: no date" in told(db, event_id, endpoint_id)
    db.execute("select outbox.quarantine_filter(%s, 'ran 1 s')", [endpoint_id])
    assert "ran past its deadline (ran 1 s)" in told(db, later, endpoint_id)


OPEN = {
    "paused": ({"state": "paused"}, {}, {}, "Held: endpoint paused"),
    "disabled": ({"state": "disabled", "state_reason": "gone"}, {}, {}, "Held: endpoint disabled: gone"),
    "unreadable": ({"hold_reason": "secret_unreadable"}, {}, {}, "Held: secret unreadable"),
    "limited": ({}, {}, {"waits_for": "circuit"}, "the endpoint's circuit is open"),
    "scheduled": ({}, {"next_attempt_at": LATER}, {}, "Scheduled for 2100-01-01"),
    "retried": ({}, {"next_attempt_at": LATER, "failed_count": 3}, {}, "after 3 failed"),
    "leased": ({}, {"lease_expires_at": LATER, "leased_by": 1}, {}, "Under way: leased to host:1"),
    "due": ({}, {}, {}, "Due since"),
}


@pytest.mark.parametrize(("endpoint", "delivery", "minute", "expected"), OPEN.values(), ids=OPEN.keys())
def test_an_open_delivery_is_explained(db, endpoint, delivery, minute, expected):
    """What it waits for is said in words."""
    db.execute("set timezone = 'UTC'")
    live_worker(db)
    db.execute("update outbox.shards set worker_no = (select min(worker_no) from outbox.worker_processes)")
    endpoint_id = new_endpoint(db, **endpoint)
    event_id = publish(db)
    owe(db, event_id, endpoint_id, **delivery)
    if minute:
        report(db, endpoint_id, **minute)
    assert expected in told(db, event_id, endpoint_id)


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("delivered", None, "Delivered at"),
        ("dead", "exhausted", "every attempt of its retry schedule failed"),
        ("dead", "gone", "answered 410 Gone"),
        ("dead", "crash_loop", "too many leases were lost"),
        ("canceled", "canceled by ann", ": canceled by ann."),
    ],
)
def test_a_finished_delivery_is_explained_with_its_attempts(db, endpoint_id, state, reason, expected):
    """How it ended, each attempt in order, and for a dead letter how to send it again."""
    event_id = publish(db)
    finish(db, event_id, endpoint_id, state, reason=reason)
    attempt(db, event_id, endpoint_id, attempt_no=2, status=503)
    attempt(db, event_id, endpoint_id, attempt_no=1, error="timeout: no answer")
    text = told(db, event_id, endpoint_id)
    assert expected in text
    assert ("select outbox.replay(" in text) == (state == "dead")
    first, second = text.splitlines()[-2:]
    assert first.startswith("attempt 1 at")
    assert "no answer in 12 ms, timeout: no answer" in first
    assert "HTTP 503" in second


def test_a_replay_is_part_of_the_story(db, endpoint_id):
    """Who replayed it, and why, is told."""
    event_id = publish(db)
    finish(db, event_id, endpoint_id, "dead", reason="exhausted")
    db.execute("set outbox.reason = 'outage 42'")
    db.execute("update outbox.deliveries set state = 'pending'")
    text = told(db, event_id, endpoint_id)
    assert "replay at" in text
    assert ": outage 42" in text


def test_the_path_of_a_url_is_not_told(db):
    """An explanation can be copied into a ticket."""
    text = told(db, publish(db), new_endpoint(db, url="https://hooks.example.com/SECRETPATH?x=1"))
    assert "https://hooks.example.com/…" in text
    assert "SECRETPATH" not in text
