"""The views of the history say what happened: events, deliveries, attempts, dead letters, operations.

Reads and writes: a clone of the template database for each test.
Guarantee: what people read in psql is what the tables hold, and the request that was sent.
If it fails: a DBA draws the wrong conclusion from a view.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from outbox_worker import deliver
from outbox_worker.model import Delivery, Endpoint
from tests.support.rows import LONG_AGO, attempt, finish, insert, new_endpoint, one, owe, publish

KEPT_ID = UUID("00000000-0000-7000-8000-000000000001")  # older than every partition


@pytest.fixture
def endpoint_id(db):
    return new_endpoint(db)


def keep_dead_letter(db, endpoint_id):
    """One dead letter whose partition is gone."""
    insert(
        db,
        "kept_events",
        event_id=KEPT_ID,
        workspace_id="ws_1",
        event_type="message.received",
        payload='{"old": 1}',
    )
    finish(db, KEPT_ID, endpoint_id, "dead", table="kept_deliveries", reason="exhausted", last_status=500)
    attempt(db, KEPT_ID, endpoint_id, table="kept_attempts", status=500)


def test_an_attempt_shows_the_request_that_was_made(db):
    """The request shown is the one that deliver.prepare makes, but for signatures and custom values."""
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    endpoint_id = new_endpoint(db, header_names=["x-api-key"])
    event_id = publish(db, payload='{"b": "é", "a": 1}', traceparent=traceparent)
    started_at = datetime(2026, 1, 2, 3, 4, 5, 999000, tzinfo=UTC)
    attempt(db, event_id, endpoint_id, attempt_no=3, status=503, started_at=started_at)

    body, created_at = one(
        db,
        "select outbox.event_body(event_id, event_type, created_at, workspace_id, payload), created_at"
        " from outbox.events",
    )
    request = deliver.prepare(
        Delivery(
            event_id,
            endpoint_id,
            "ws_1",
            "message.received",
            3,
            2,
            1,
            uuid4(),
            body,
            traceparent,
            1,
            created_at,
            None,
        ),
        Endpoint(
            endpoint_id,
            "ws_1",
            1,
            "https://hooks.example.com/in",
            ("whsec_" + "A" * 43 + "=",),
            (("x-api-key", "SECRET"),),
            5.0,
            (),
            "Edesy-Signature",
        ),
        started_at,
    )
    sent = {name.lower(): value for name, value in request.headers}
    sent["webhook-signature"] = "v1,***"
    sent["edesy-signature"] = sent["edesy-signature"].split(",")[0] + ",v1=***"
    sent["x-api-key"] = "***"

    headers, shown_body = one(db, "select request_headers, request_body from outbox.attempts")
    assert {name.lower(): value for name, value in headers.items()} == sent
    assert shown_body.encode() == body == request.body


def test_an_attempt_keeps_the_request_of_its_version(db, endpoint_id):
    """A URL that changed later does not change what the history says was asked."""
    event_id = publish(db)
    attempt(db, event_id, endpoint_id, status=200)
    db.execute("update outbox.endpoints set url = 'https://other.example.com/'")
    attempt(db, event_id, endpoint_id, attempt_no=2, status=200, endpoint_version=2)
    assert db.execute(
        "select attempt_no, url_host, event_type, worker from outbox.attempt_log order by attempt_no"
    ).fetchall() == [
        (1, "hooks.example.com", "message.received", "worker 7"),
        (2, "other.example.com", "message.received", "worker 7"),
    ]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (b"", ""),
        ("naïve ✓".encode(), "naïve ✓"),
        (b"nul\x00byte", "\\x6e756c0062797465"),
        (b"\xff\xfe", "\\xfffe"),
        (b"cut \xe2\x9c", "\\x63757420e29c"),
        (None, None),
    ],
)
def test_a_response_is_text_where_it_is_text_and_hexadecimal_elsewhere(db, endpoint_id, stored, shown):
    """No byte that a receiver sends makes a view raise."""
    attempt(db, publish(db), endpoint_id, response_body=stored)
    assert one(db, "select response_body from outbox.attempt_log") == (shown,)


def test_the_history_includes_what_outlived_its_partition(db, endpoint_id):
    """A kept dead letter is in every view, with its event and attempts."""
    keep_dead_letter(db, endpoint_id)
    assert one(db, "select payload, deliveries, dead from outbox.event_log") == ({"old": 1}, 1, 1)
    assert one(db, "select state, why, event_type, last_status from outbox.delivery_log") == (
        "dead",
        "exhausted",
        "message.received",
        500,
    )
    assert one(db, "select status, event_type from outbox.attempt_log") == (500, "message.received")
    row = one(db, "select reason, payload, endpoint_state, url from outbox.dead_letters")
    assert row == ("exhausted", {"old": 1}, "active", "https://hooks.example.com/in")


def test_an_event_is_shown_with_how_its_deliveries_stand(db):
    """One row an event, whatever became of it."""
    endpoints = [new_endpoint(db) for _ in range(5)]
    event_id, unmatched = publish(db), publish(db)
    owe(db, event_id, endpoints[0])
    for endpoint_id, state in zip(endpoints[1:], ("delivered", "delivered", "dead", "canceled"), strict=True):
        finish(db, event_id, endpoint_id, state)
    insert(db, "canceled_events", event_id=unmatched, workspace_id="ws_1")
    counts = "deliveries, delivered, dead, canceled, pending, canceled_at is not null"
    query = f"select {counts} from outbox.event_log where event_id = %s"
    assert one(db, query, event_id) == (5, 2, 1, 1, 1, False)
    assert one(db, query, unmatched) == (0, 0, 0, 0, 0, True)


def test_a_lost_lease_is_shown_with_its_late_result(db, endpoint_id):
    """The request may have been made: what its worker said too late stands beside it."""
    event_id, token = publish(db), uuid4()
    insert(
        db,
        "lost_leases",
        event_id=event_id,
        endpoint_id=endpoint_id,
        workspace_id="ws_1",
        attempt_no=1,
        lease_token=token,
        worker_no=7,
        expired_at=LONG_AGO,
    )
    attempt(db, event_id, endpoint_id, table="late_results", status=200, lease_token=token)
    assert one(db, "select worker, late_status from outbox.lost_lease_log") == ("worker 7", 200)


def test_an_operation_is_shown_with_who_and_why(db, endpoint_id):
    """Replays and cancellations are part of the history."""
    event_id = publish(db)
    finish(db, event_id, endpoint_id, "dead")
    db.execute("set outbox.reason = 'outage 42'")
    db.execute("select outbox.replay(%s, %s)", [event_id, endpoint_id])
    row = one(
        db, "select kind, event_id, reason, affected, requested_by = session_user from outbox.operation_log"
    )
    assert row == ("replay", event_id, "outage 42", 1, True)
