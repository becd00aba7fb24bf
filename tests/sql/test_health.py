"""The views of the present say what waits and why, who works, who is slow and who is failing.

Reads and writes: a clone of the template database for each test.
Guarantee: the reason that a view gives is the one that holds the delivery up.
If it fails: an operator repairs the wrong thing.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.support.rows import (
    LATER,
    LONG_AGO,
    finish,
    insert,
    live_worker,
    new_endpoint,
    one,
    owe,
    publish,
    report,
)


@pytest.fixture
def endpoint_id(db):
    return new_endpoint(db)


WAITING = {
    "due": ({}, {}, {}, ("pending", "due")),
    "scheduled": ({}, {"next_attempt_at": LATER}, {}, ("pending", "scheduled")),
    "waiting for its retry": ({}, {"next_attempt_at": LATER, "failed_count": 2}, {}, ("pending", "retry")),
    "leased": ({}, {"lease_expires_at": LATER, "lease_token": uuid4()}, {}, ("leased", None)),
    "of a lost lease": (
        {},
        {"lease_expires_at": LONG_AGO, "lease_token": uuid4()},
        {},
        ("pending", "lease lost"),
    ),
    "paused": ({"state": "paused"}, {"next_attempt_at": LATER}, {}, ("held", "endpoint paused")),
    "disabled": (
        {"state": "disabled", "state_reason": "failing"},
        {},
        {},
        ("held", "endpoint disabled: failing"),
    ),
    "unreadable": ({"hold_reason": "secret_unreadable"}, {}, {}, ("held", "secret unreadable")),
    "over a limit": ({}, {}, {"waits_for": "rate"}, ("held", "rate")),
    "not due under a limit": (
        {},
        {"next_attempt_at": LATER},
        {"waits_for": "rate"},
        ("pending", "scheduled"),
    ),
    "of an old report": ({}, {}, {"waits_for": "rate", "at": LONG_AGO}, ("pending", "due")),
}


@pytest.mark.parametrize(("endpoint", "delivery", "minute", "expected"), WAITING.values(), ids=WAITING.keys())
def test_an_open_delivery_says_what_it_waits_for(db, endpoint, delivery, minute, expected):
    """Leased and held are what the views say of a pending one, and why names the reason."""
    live_worker(db)
    endpoint_id = new_endpoint(db, **endpoint)
    owe(db, publish(db), endpoint_id, **delivery)
    if minute:
        report(db, endpoint_id, **minute)
    assert one(db, "select state, why from outbox.delivery_log") == expected


def test_a_delivery_without_a_live_worker_says_so(db, endpoint_id):
    """When nobody owns the shard, that is the answer to why nothing moves."""
    owe(db, publish(db), endpoint_id)
    assert one(db, "select state, why from outbox.delivery_log") == ("held", "no worker")
    assert one(db, "select why, due, held from outbox.backlog") == ("no worker", 1, 1)


def test_a_later_event_of_an_ordering_key_says_that_it_waits_for_the_earlier(db):
    """Order explains itself: the head is due, the next names what it waits for, another key is free."""
    live_worker(db)
    endpoint_id = new_endpoint(db, ordered=True)
    for key, seq in (("k", 10), ("k", 11), ("other", 12)):
        owe(db, publish(db), endpoint_id, ordering_key=key, ordering_seq=seq)
    assert db.execute(
        "select ordering_key, why from outbox.delivery_log order by ordering_key, why"
    ).fetchall() == [
        ("k", "due"),
        ("k", "earlier event of its ordering key"),
        ("other", "due"),
    ]


def test_the_backlog_counts_what_waits_at_each_endpoint(db):
    """Waiting, due, leased and held, for those endpoints that have any."""
    live_worker(db)
    busy, paused, _idle = new_endpoint(db), new_endpoint(db, state="paused"), new_endpoint(db)
    owe(db, publish(db), busy)
    owe(db, publish(db), busy, next_attempt_at=LATER)
    owe(db, publish(db), busy, lease_expires_at=LATER)
    owe(db, publish(db), paused, next_attempt_at=LATER)
    rows = db.execute("select endpoint_id, waiting, due, leased, held, why from outbox.backlog").fetchall()
    assert set(rows) == {(busy, 3, 1, 1, 0, "due"), (paused, 1, 0, 0, 1, "endpoint paused")}


def test_endpoint_health_is_what_the_owner_reported(db, endpoint_id):
    """Success rate and percentiles of the last hour, limits and circuit of the newest report."""
    live_worker(db)
    report(db, endpoint_id, attempts=50, successes=0, latency_counts=[50] + [0] * 16, at=LONG_AGO)
    counts = [0] * 17
    counts[3], counts[10], counts[16] = 90, 9, 1
    report(db, endpoint_id, attempts=100, successes=99, timeouts=1, latency_counts=counts)
    report(db, endpoint_id, in_flight=3, in_flight_limit=16, circuit="half_open", waits_for="slots")
    owe(db, publish(db), endpoint_id)
    health = one(
        db,
        "select attempts, successes, timeouts, success_rate::float8, p50_ms, p95_ms, p99_ms, in_flight,"
        " in_flight_limit, circuit, waiting, why, worker from outbox.endpoint_health",
    )
    assert health == (100, 99, 1, 0.99, 8, 1024, 1024, 3, 16, "half_open", 1, "slots", "host:1")


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([1], 0.5, 1),
        ([0, 1], 0.99, 2),
        ([50, 50], 0.5, 1),
        ([50, 51], 0.5, 2),
        ([0] * 16 + [1], 0.5, 65536),
        ([0], 0.5, None),
    ],
)
def test_a_percentile_is_the_upper_bound_of_its_bucket(db, counts, fraction, expected):
    """Half of 1, 2, 4 … 32768 ms, then longer: never less than the truth."""
    assert one(db, "select outbox.latency_percentile(%s::bigint[], %s)", counts, fraction) == (expected,)


def test_latency_is_from_commit_or_deliver_at_to_the_delivery(db, endpoint_id):
    """An event that was asked for later is not late; a replayed one counts in no hour."""
    event_id, scheduled, replayed = publish(db), publish(db), publish(db)
    db.execute("alter table outbox.events disable trigger keep_event")
    db.execute(
        "update outbox.events set deliver_at = created_at + interval '10 minutes' where event_id = %s",
        [scheduled],
    )
    for one_id, replays in ((event_id, 0), (scheduled, 0), (replayed, 3)):
        finish(db, one_id, endpoint_id, "delivered", replay_count=replays)
    db.execute(
        "update outbox.finished_deliveries f"
        " set finished_at = coalesce(e.deliver_at, e.created_at) + interval '250 ms'"
        " from outbox.events e where e.event_id = f.event_id"
    )
    assert set(db.execute("select total_ms from outbox.delivery_log").fetchall()) == {(250,)}
    hours = db.execute(
        "select sum(deliveries), max(p50_ms), max(max_ms) from outbox.latency_by_hour"
    ).fetchone()
    assert hours == (2, 250, 250)


def test_workers_are_live_expired_or_stopped(db):
    """Whoever no longer renews its presence is shown as expired, and who owns which shards."""
    live = live_worker(db)
    insert(db, "worker_processes", name="b", version="0", capacity=1, expires_at=LONG_AGO)
    insert(
        db, "worker_processes", name="c", version="0", capacity=1, expires_at=LONG_AGO, stopped_at=LONG_AGO
    )
    rows = db.execute("select worker_no, state, shards from outbox.workers order by worker_no").fetchall()
    assert rows == [(live, "live", 64), (live + 1, "expired", 0), (live + 2, "stopped", 0)]


def test_events_that_are_not_fanned_out_are_counted(db):
    """What waits before the fan-out is seen too, by workspace and priority, with the oldest of it."""
    db.execute("select outbox.publish_many('ws_1', 'message.received', array['{}', '{}']::jsonb[])")
    row = one(
        db,
        "select workspace_id, priority, waiting, oldest_created_at > now() - interval '1 minute'"
        " from outbox.fan_out_backlog",
    )
    assert row == ("ws_1", 2, 2, True)
