"""Urgent before bulk at the claim, without starving the rest.

Reads and writes: a clone of the template database for each test.
Guarantee: what claim.sql returns, given the turns that a lane remembers.
If it fails: a campaign delays an alert, or alerts stop a campaign for ever.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from outbox_worker import sqlfiles
from outbox_worker.lane import WEIGHTS, Lane
from tests.support.rows import LONG_AGO, new_endpoint, owe, publish


@pytest.fixture
def lane(db):
    return Lane(new_endpoint(db))


def claimed(db, lane, room):
    """Priorities of what a claim brings; the lane learns of it."""
    marks = {f"marks{p}": [LONG_AGO] for p in range(3)}
    turns = {f"turns{p}": [lane.turns[p]] for p in range(3)}
    rows = db.execute(
        sqlfiles.read("queries/claim.sql"),
        {
            "endpoint_ids": [lane.endpoint_id],
            "rooms": [room],
            "busy": [0],
            **marks,
            **turns,
            "weights": list(WEIGHTS),
            "lease_token": uuid4(),
            "worker_no": 1,
            "lease_seconds": 60.0,
        },
    ).fetchall()
    priorities = [row[3] for row in rows]
    lane.took([priorities.count(p) for p in range(3)])
    return priorities


def test_an_alert_passes_a_campaign(db, lane):
    """With room for one, after a hundred turns of bulk and with more of it waiting, the alert is next."""
    for _ in range(30):
        owe(db, publish(db), lane.endpoint_id, priority=2)
    lane.took([0, 0, 100])
    owe(db, publish(db), lane.endpoint_id, priority=0)
    assert claimed(db, lane, 1) == [0]
    assert claimed(db, lane, 2) == [2, 2]


def test_bulk_is_not_starved_by_urgent_deliveries_that_never_end(db, lane):
    """With room for one: each ninth turn is bulk's, though urgent ones wait."""
    for _ in range(20):
        owe(db, publish(db), lane.endpoint_id, priority=0)
        owe(db, publish(db), lane.endpoint_id, priority=2)
    assert [claimed(db, lane, 1) for _ in range(18)].count([2]) == 2
