"""Erasure beside a worker: what was under way when it began is waited for, and leaves nothing behind.

Reads: deliveries, attempts. Writes: a clone of the schema.
Guarantee: a fan-out, a settlement or a replay that commits while an erasure waits is erased with the rest.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from outbox_worker import sqlfiles
from tests.sql.test_operational import add_leased, settle
from tests.support.history import (
    add_endpoint,
    add_event,
    add_finished,
    delivery,
    in_background,
    value,
    wait_for_lock,
)
from tests.support.waiting import eventually

ANSWER = b"thanks, Ada-4711"
KEPT_ANSWERS = "select count(*) from outbox.known_attempts where event_id = %s and response_body is not null"


@pytest.fixture
def endpoint(db):
    return add_endpoint(db)


@pytest.fixture
def worker(connect):
    return connect("worker_login")


def fan_out(worker, db):
    """Hand over leased whatever is queued; give the lease's token."""
    token = uuid4()
    plain = {
        "fair": False,
        "mark": 0,
        "batch": 10,
        "priorities": [],
        "buckets": [],
        "marks": [],
        "quotas": [],
    }
    room = {"shards": list(range(64)), "rooms": "{}", "default_room": 8, "room": 8, "careful": False}
    lease = {"lease_token": token, "worker_no": 1, "lease_seconds": 60.0}
    worker.execute(sqlfiles.read("queries/fan_out.sql"), {**plain, **room, **lease})
    return token


async def erase_while(db, connect, event, commit):
    """Begin the erasure, see it wait for the other session, and let that commit."""
    owner = connect()
    query = "select outbox.erase(array[%s::uuid], 'request 21')"
    with in_background(lambda: value(owner, query, event)) as erased:
        await wait_for_lock(db, owner, eventually)
        commit()
        assert erased() == 1


async def test_what_a_fan_out_under_way_hands_over_is_erased_too(db, connect, worker, endpoint):
    """Its delivery is canceled, and the answer to what may have been sent is late and not kept."""
    event = add_event(db, queued=True)
    worker.execute("begin")
    token = fan_out(worker, db)
    await erase_while(db, connect, event, lambda: worker.execute("commit"))
    row = delivery(db, event, endpoint)
    assert (row["state"], row["reason"]) == ("canceled", "erased")
    applied = settle(worker, event, endpoint, token, "delivered", status=200, error=None, body=ANSWER)
    assert applied[0][1:3] == (False, False)
    late = db.execute("select status, response_body from outbox.late_results where event_id = %s", [event])
    assert late.fetchall() == [(200, None)]
    assert value(db, "select count(*) from outbox.known_attempts where event_id = %s", event) == 0


@pytest.mark.parametrize("verdict", ["delivered", "retry", "give_up"])
async def test_the_answer_of_a_settlement_under_way_is_erased_too(db, connect, worker, endpoint, verdict):
    """The erasure waits for the delivery's row and then sees the attempt."""
    event, token = add_leased(db, endpoint, attempt_count=0)
    worker.execute("begin")
    settle(worker, event, endpoint, token, verdict, status=200, error="", body=ANSWER)
    await erase_while(db, connect, event, lambda: worker.execute("commit"))
    assert value(db, "select count(*) from outbox.known_attempts where event_id = %s", event) == 1
    assert value(db, KEPT_ANSWERS, event) == 0
    assert delivery(db, event, endpoint)["reason"] == "erased"


async def test_what_a_replay_under_way_opens_is_erased_too(db, connect, endpoint):
    """The erasure waits for the replay, and cancels what it made pending."""
    event = add_event(db)
    add_finished(db, event, endpoint)
    operator = connect("operator_login")
    operator.execute("begin")
    operator.execute("update outbox.deliveries set state = 'pending' where event_id = %s", [event])
    await erase_while(db, connect, event, lambda: operator.execute("commit"))
    row = delivery(db, event, endpoint)
    assert (row["state"], row["reason"]) == ("canceled", "erased")
