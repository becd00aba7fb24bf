"""Behind a connection pooler in transaction mode everything works that works without one.

Reads: the program pgbouncer. Writes: the test's database, through it alone.
Guarantee: publish, fan-out, delivery, retry, death and replay need nothing of a session but its transactions.
If it crashes: the pooler ends with the test.
"""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.factories import make_endpoint, publish, state_of
from tests.support.pooler import MISSING, PROGRAM, pooler
from tests.support.receiver import status
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)
SESSIONS = 2
"""Fewer than the worker has connections: it never knows whose session it gets."""


@pytest.fixture
def through(dsn_of):
    """Give the connection string of a role through the pooler."""
    roles = ("app_login", "worker_login", "operator_login")
    with pooler([dsn_of(role) for role in roles], sessions=SESSIONS) as port:
        yield lambda role: make_conninfo(dsn_of(role), host="127.0.0.1", port=port)


@pytest.fixture
def borrowed(through):
    """Open a connection of a role that, as its documentation says, prepares nothing."""
    opened = []

    def connect(role):
        opened.append(psycopg.connect(through(role), autocommit=True, prepare_threshold=None))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


async def test_the_whole_flow_works_through_a_pooler_in_transaction_mode(
    shop, receiver, working, through, borrowed
):
    """Committed is delivered, rolled back is not, what fails is retried, what died is replayed: by poll alone."""
    schedule = ["100 milliseconds"]
    good, _ = make_endpoint(shop, receiver.url + "good")
    flaky, _ = make_endpoint(shop, receiver.url + "flaky", retry_schedule=schedule)
    dying, _ = make_endpoint(shop, receiver.url + "dying", retry_schedule=schedule)
    receiver.script("/flaky", status(500), status())
    receiver.script("/dying", status(500))

    def sent(path, event):
        return [r for r in receiver.requests if r.path == path and json.loads(r.body)["id"] == str(event)]

    app, operator = borrowed("app_login"), borrowed("operator_login")
    async with working(database_url=through("worker_login"), poll_only=True):
        with app.transaction(force_rollback=True):
            publish(app, payload={"n": "rolled back"})
        with app.transaction():
            events = [publish(app, payload={"n": n}) for n in range(20)]
        for event in events:
            await eventually(lambda event=event: state_of(shop, event, good) == "delivered")
            await eventually(lambda event=event: state_of(shop, event, flaky) == "delivered")
        await eventually(lambda: all(state_of(shop, event, dying) == "dead" for event in events))
        receiver.script("/dying", status())
        operator.execute("update outbox.deliveries set state = 'pending' where state = 'dead'")
        for event in events:
            await eventually(lambda event=event: state_of(shop, event, dying) == "delivered")
        operator.execute("select outbox.replay(%s, %s)", [events[0], good])
        await eventually(lambda: len(sent("/good", events[0])) == 2)
        await eventually(lambda: state_of(shop, events[0], good) == "delivered")
    assert {json.loads(r.body)["data"]["n"] for r in receiver.requests} == set(range(20))
    assert [len(sent("/good", event)) for event in events] == [2] + [1] * 19
    assert [len(sent("/dying", event)) for event in events] == [3] * 20
