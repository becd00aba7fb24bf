"""Operational events: what the statements publish about deliveries is what the catalogue says.

Reads: sql/catalogue/operational.json, outbox.events. Writes: a clone of the schema.
Guarantee: after an answer, after none, and after a crash loop the payload has every field that its schema requires.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from outbox_worker import sqlfiles
from tests.support.history import add_endpoint, add_event, add_open, delivery

SCHEMAS = {each["name"]: each["schema"] for each in json.loads(sqlfiles.read("catalogue/operational.json"))}
TELLS = "{message.*,delivery.dead,endpoint.failing,endpoint.disabled}"


@pytest.fixture
def worker(connect):
    return connect("worker_login")


def add_leased(db, endpoint, **columns):
    """Insert an event with one delivery under a lease; give the event and the lease's token."""
    event, token = add_event(db), uuid4()
    ends = {
        "lease_expires_at": datetime.now(UTC) + timedelta(minutes=1),
        "lease_token": token,
        "leased_by": 1,
    }
    add_open(db, event, endpoint, **(ends | columns))
    return event, token


def settle(
    worker, event, endpoint, token, verdict, *, status=None, error="timeout: no answer within 15 s", body=None
):
    values = {
        "event_ids": [event],
        "endpoint_ids": [endpoint],
        "workspace_ids": ["ws"],
        "lease_tokens": [token],
        "attempt_nos": [1],
        "versions": [1],
        "event_types": ["message.received"],
        "verdicts": [verdict],
        "retry_seconds": [30.0],
        "started_ats": [datetime.now(UTC)],
        "durations": [15000],
        "statuses": [status],
        "errors": [error],
        "response_headers": [None],
        "response_bodies": [body],
        "worker_no": 1,
    }
    return worker.execute(sqlfiles.read("queries/settle.sql"), values).fetchall()


def reap(worker, endpoint):
    return worker.execute(
        sqlfiles.read("queries/reap.sql"), {"endpoint_ids": [endpoint], "look": 300}
    ).fetchall()


def told(db):
    """Give the operational events, each validated against the catalogue."""
    found = db.execute(
        "select e.event_type, e.payload from outbox.events e join outbox.event_types t on t.name = e.event_type"
        " where t.operational order by e.event_id"
    ).fetchall()
    for event_type, payload in found:
        Draft202012Validator(SCHEMAS[event_type], format_checker=FormatChecker()).validate(payload)
    return found


@pytest.mark.parametrize(("status", "error"), [(None, "timeout"), (503, None), (503, "refused")])
def test_a_dead_delivery_is_told_as_the_catalogue_has_it(db, worker, status, error):
    """Also when there was no answer: the field is there and null."""
    endpoint = add_endpoint(db, types=TELLS)
    event, token = add_leased(db, endpoint)
    settle(worker, event, endpoint, token, "give_up", status=status, error=error)
    ((event_type, payload),) = told(db)
    assert event_type == "delivery.dead"
    assert (payload["last_status"], payload["last_error"], payload["reason"]) == (status, error, "exhausted")


@pytest.mark.parametrize(
    ("since", "verdict", "expected"),
    [
        ("2 days", "retry", "endpoint.failing"),
        ("6 days", "retry", "endpoint.disabled"),
        (None, "disable_endpoint", "endpoint.disabled"),
    ],
)
def test_a_failing_endpoint_is_told_as_the_catalogue_has_it(db, worker, since, verdict, expected):
    """After timeouts, which have no status."""
    endpoint = add_endpoint(db, types=TELLS)
    db.execute("update outbox.endpoints set failing_since = now() - %s::interval", [since])
    event, token = add_leased(db, endpoint)
    settle(worker, event, endpoint, token, verdict)
    assert expected in [event_type for event_type, _ in told(db)]


def test_a_crash_loop_is_told_to_who_subscribes_to_it(db, worker):
    """A delivery that dies because its leases were lost is a dead letter like any other."""
    endpoint = add_endpoint(db, types=TELLS)
    event, _ = add_leased(
        db, endpoint, lost_count=4, lease_expires_at=datetime.now(UTC) - timedelta(minutes=1)
    )
    assert reap(worker, endpoint)
    assert delivery(db, event, endpoint)["reason"] == "crash_loop"
    ((event_type, payload),) = told(db)
    assert event_type == "delivery.dead"
    assert (payload["event_id"], payload["endpoint_id"]) == (str(event), str(endpoint))
    assert (payload["event_type"], payload["reason"]) == ("message.received", "crash_loop")
    assert (payload["attempts"], payload["last_status"], payload["last_error"]) == (0, None, None)


def test_a_crash_loop_is_told_to_nobody_who_did_not_ask_and_never_about_itself(db, worker):
    """`*` is no subscription to operational events, and a dead delivery.dead makes no other."""
    lost = {"lost_count": 4, "lease_expires_at": datetime.now(UTC) - timedelta(minutes=1)}
    deaf = add_endpoint(db, types="{*}")
    add_leased(db, deaf, **lost)
    assert reap(worker, deaf)
    assert told(db) == []

    endpoint = add_endpoint(db, types=TELLS)
    operational = add_event(db, event_type="delivery.dead", payload=told_example())
    add_open(db, operational, endpoint, lease_token=uuid4(), leased_by=1, **lost)
    assert reap(worker, endpoint)
    assert [payload["event_id"] for _, payload in told(db)] == [told_example()["event_id"]]


def test_a_lost_lease_that_is_not_the_last_is_told_to_nobody(db, worker):
    """It is due again."""
    endpoint = add_endpoint(db, types=TELLS)
    add_leased(db, endpoint, lease_expires_at=datetime.now(UTC) - timedelta(minutes=1))
    assert reap(worker, endpoint)
    assert told(db) == []


def told_example():
    catalogue = json.loads(sqlfiles.read("catalogue/operational.json"))
    return next(each["example"] for each in catalogue if each["name"] == "delivery.dead")
