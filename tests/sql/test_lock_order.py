"""Lock order: what a person's transaction holds stops no worker, and no worker deadlocks with it.

Reads: pg_stat_activity. Writes: a clone of the schema.
Guarantee: what sql/README.md says under Locks, sentence by sentence.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg
import pytest

from outbox_worker import sqlfiles
from tests.sql.test_operational import add_leased, reap, settle
from tests.support import factories
from tests.support.history import add_endpoint, add_event, add_finished, add_open, delivery, value
from tests.support.waiting import wait_for_lock_wait


@asynccontextmanager
async def person(dsn_of, name, login="operator_login"):
    """A session that may be left waiting in a task."""
    dsn = dsn_of(login)
    async with await psycopg.AsyncConnection.connect(
        dsn, application_name=name, autocommit=True
    ) as connection:
        yield connection


@asynccontextmanager
async def waiting(dsn_of, connection, name, query, *values):
    """The statement waits for a lock when the block begins; awaiting what is yielded gives its end."""
    task = asyncio.create_task(connection.execute(query, values))  # awaited by every test
    async with await psycopg.AsyncConnection.connect(dsn_of(), autocommit=True) as watcher:
        await wait_for_lock_wait(watcher, name)
    yield task


@pytest.mark.parametrize("verdict", ["retry", "give_up", "delivered"])
async def test_pausing_and_moving_deliveries_never_deadlocks_with_a_settlement(dsn_of, db, connect, verdict):
    """The person holds the endpoint and waits for the delivery; the settlement holds that and asks for the endpoint."""
    endpoint = add_endpoint(db)
    failing = "null" if verdict != "delivered" else "now()"
    db.execute(f"update outbox.endpoints set failing_since = {failing}")
    event, token = add_leased(db, endpoint)
    worker = connect("worker_login")
    worker.execute("begin")
    worker.execute("update outbox.open_deliveries set last_error = null where event_id = %s", [event])
    async with (
        await psycopg.AsyncConnection.connect(
            dsn_of("operator_login"), application_name="operator", autocommit=True
        ) as person,
        await psycopg.AsyncConnection.connect(dsn_of(), autocommit=True) as watcher,
    ):
        await person.execute("begin")
        await person.execute("select outbox.pause_endpoint(%s)", [endpoint])
        # No lease is current for it, so that it waits for the row and not for the worker.
        moved = (
            asyncio.create_task(  # it blocks on purpose; awaited below, and a task left behind fails the test
                person.execute(
                    "update outbox.deliveries set state = 'canceled' where endpoint_id = %s", [endpoint]
                )
            )
        )
        await wait_for_lock_wait(watcher, "operator")
        settle(worker, event, endpoint, token, verdict)
        worker.execute("commit")
        await moved
        await person.execute("commit")
    assert value(db, "select state from outbox.endpoints") == "paused"
    expected = {"retry": "canceled", "give_up": "dead", "delivered": "delivered"}
    assert delivery(db, event, endpoint)["state"] == expected[verdict]


def test_an_open_transaction_of_an_operator_blocks_neither_cancel_slice_nor_reap(db, connect):
    """What it holds is passed over; the rest is done, and that one when it is free."""
    endpoint = add_endpoint(db)
    events = [add_event(db) for _ in range(3)]
    for event in events:
        add_open(db, event, endpoint)
    canceled = add_event(db)
    other = add_endpoint(db)
    db.execute("select outbox.cancel(%s)", [canceled])
    add_open(db, canceled, other)
    operator = connect("operator_login")
    operator.execute("begin")
    for held in (events[0], canceled):
        operator.execute("update outbox.deliveries set next_attempt_at = now() where event_id = %s", [held])
    db.execute("select outbox.delete_endpoint(%s)", [endpoint])

    worker = connect("worker_login")
    worker.execute("set lock_timeout = '1ms'")  # whoever waits at all fails here
    done = [value(worker, "select outbox.cancel_slice(2)") for _ in range(2)]
    assert reap(worker, endpoint) == []
    operator.execute("rollback")

    assert done == [2, 0]
    assert value(worker, "select outbox.cancel_slice(2)") == 2
    assert {delivery(db, event, endpoint)["state"] for event in events} == {"canceled"}
    assert delivery(db, canceled, other)["state"] == "canceled"


def test_what_a_person_holds_is_passed_over_by_every_claim_and_release(db, connect):
    """The ordered claim too; tests/sql/test_any_order.py has the other statements in any order."""
    endpoint = add_endpoint(db, ordered=True)
    events = [add_event(db) for _ in range(2)]
    for number, event in enumerate(events):
        add_open(db, event, endpoint, ordering_key=f"key {number}", ordering_seq=number)
    leased, token = add_leased(db, endpoint)
    person = connect("operator_login")
    person.execute("begin")
    person.execute("select outbox.cancel(%s)", [events[0]])
    person.execute("select outbox.cancel(%s)", [leased])

    worker = connect("worker_login")
    worker.execute("set lock_timeout = '1ms'")  # whoever waits at all fails here
    asked = {"endpoint_ids": [endpoint], "rooms": [9], "busy": [0], "after_keys": [""], "look": 9}
    lease = {"lease_token": uuid4(), "worker_no": 1, "lease_seconds": 60.0}
    claimed = worker.execute(sqlfiles.read("queries/claim_ordered.sql"), {**asked, **lease}).fetchall()
    given = {
        "event_ids": [leased],
        "endpoint_ids": [endpoint],
        "workspace_ids": ["ws"],
        "lease_tokens": [token],
    }
    release = sqlfiles.read("queries/release.sql")
    assert [row[0] for row in claimed if row[0]] == [events[1]]
    assert worker.execute(release, given).fetchall() == [(leased, endpoint, False, True)]
    person.execute("rollback")
    assert worker.execute(release, given).fetchall() == [(leased, endpoint, True, False)]


def test_a_slice_of_a_replay_gives_up_on_what_a_person_holds_and_goes_on_later(db, connect):
    """It waits a second at most, and moves nothing then; the rest of the work is another transaction's."""
    endpoint = add_endpoint(db)
    event = add_event(db)
    add_finished(db, event, endpoint)
    db.execute(
        "insert into outbox.operations (kind, workspace_id, endpoint_id, state, parameters) values ('replay', 'ws', %s,"
        " 'running', jsonb_build_object('since', now() - interval '1 day', 'until', now(), 'phases', '[\"dead\"]'::jsonb))",
        [endpoint],
    )
    person = connect("operator_login")
    person.execute("begin")
    person.execute("update outbox.deliveries set state = 'pending' where event_id = %s", [event])
    worker = connect("worker_login")
    assert value(worker, "select outbox.replay_slice(10)") == 0
    assert value(db, "select state from outbox.operations where kind = 'replay'") == "running"
    person.execute("rollback")
    assert value(worker, "select outbox.replay_slice(10)") == 1
    assert delivery(db, event, endpoint)["state"] == "pending"


async def test_a_410_and_a_person_who_holds_the_endpoint_wait_for_nobody_and_both_go_on(dsn_of, db, connect):
    """The person waits for the delivery; the settlement finds the endpoint held, says so, and succeeds later."""
    endpoint = add_endpoint(db)
    event, token = add_leased(db, endpoint)
    worker = connect("worker_login")
    worker.execute("set lock_timeout = '1ms'")  # whoever waits at all fails here
    worker.execute("begin")
    worker.execute("update outbox.open_deliveries set last_error = null where event_id = %s", [event])
    async with person(dsn_of, "operator") as operator:
        await operator.execute("begin")
        await operator.execute("select outbox.pause_endpoint(%s)", [endpoint])
        move = "update outbox.deliveries set state = 'canceled' where endpoint_id = %s"
        async with waiting(dsn_of, operator, "operator", move, endpoint) as moved:
            assert settle(worker, event, endpoint, token, "disable_endpoint")[0][1:3] == (False, True)
            worker.execute("rollback")
            await moved
        await operator.execute("rollback")
    assert settle(worker, event, endpoint, token, "disable_endpoint")[0][1:3] == (True, False)
    assert value(db, "select state from outbox.endpoints") == "disabled"


async def test_a_person_who_holds_deliveries_and_waits_for_the_endpoint_of_a_410_goes_on(dsn_of, db, connect):
    """The other way round: the worker passes over what the person holds, so the endpoint becomes free."""
    endpoint = add_endpoint(db)
    event, token = add_leased(db, endpoint)
    held, held_token = add_leased(db, endpoint)
    worker = connect("worker_login")
    worker.execute("begin")
    async with person(dsn_of, "operator") as operator:
        await operator.execute("begin")
        await operator.execute("select outbox.cancel(%s)", [held])
        assert settle(worker, event, endpoint, token, "disable_endpoint")[0][1:3] == (True, False)
        pause = "select outbox.pause_endpoint(%s)"
        async with waiting(dsn_of, operator, "operator", pause, endpoint) as paused:
            assert settle(worker, held, endpoint, held_token, "retry")[0][1:3] == (False, True)
            worker.execute("commit")
            await paused
        await operator.execute("commit")
    assert value(db, "select state from outbox.endpoints") == "paused"
    assert delivery(db, event, endpoint)["reason"] == "gone"
    assert delivery(db, held, endpoint)["state"] == "canceled"


@pytest.mark.parametrize(
    "renewal",
    [
        "select outbox.rotate_secret(%s)",
        'select outbox.set_endpoint_headers(%s, \'{"x-a": "1"}\')',
        'select outbox.update_endpoint(%s, headers => \'{"x-a": "1"}\')',
    ],
)
async def test_whoever_renews_a_secret_takes_the_endpoint_first_and_sees_its_deletion(dsn_of, db, renewal):
    """Two people, one call each: no deadlock, and nothing is sealed for an endpoint whose vault was emptied."""
    factories.install_key(db, factories.new_key())
    endpoint, _ = factories.make_endpoint(db, "https://a.example.com/")
    async with person(dsn_of, "one", "app_login") as one, person(dsn_of, "other", "app_login") as other:
        await one.execute("begin")
        await one.execute("select outbox.pause_endpoint(%s)", [endpoint])
        async with waiting(dsn_of, other, "other", renewal, endpoint) as renewed:
            await one.execute("select outbox.delete_endpoint(%s)", [endpoint])
            await one.execute("commit")
            with pytest.raises(psycopg.Error) as refused:
                await renewed
    assert refused.value.sqlstate == "OB009"
    assert value(db, "select count(*) from outbox.endpoint_vault") == 0


async def test_two_people_who_replay_the_same_events_wait_for_each_other_in_one_order(dsn_of, db):
    """The list may name them in any order: whoever waits for the first holds none of the others."""
    endpoint = add_endpoint(db)
    first, second = sorted(add_event(db) for _ in range(2))
    for event in (second, first):
        add_finished(db, event, endpoint)
    async with person(dsn_of, "one") as one, person(dsn_of, "other") as other:
        await one.execute("begin")
        await one.execute("select outbox.replay(%s)", [first])
        many = "select outbox.replay_many(%s::uuid[])"
        async with waiting(dsn_of, other, "other", many, [second, first]) as replayed:
            cursor = await one.execute("select outbox.replay(%s)", [second])
            assert (await cursor.fetchone()) == (1,)
            await one.execute("commit")
            assert (await (await replayed).fetchone()) == (0,)
    assert {delivery(db, event, endpoint)["replay_count"] for event in (first, second)} == {1}


@pytest.mark.parametrize("same_order", [True, False])
async def test_of_two_people_who_lock_in_different_orders_one_is_ended_and_the_other_goes_on(
    dsn_of, db, same_order
):
    """In the same order the second waits; in different ones PostgreSQL ends one of the two, and nothing of it stays."""
    endpoint = add_endpoint(db)
    event = add_event(db)
    add_open(db, event, endpoint)
    pause = "select outbox.pause_endpoint(%s)"
    cancel = "update outbox.deliveries set state = 'canceled' where endpoint_id = %s"
    ended = []
    async with person(dsn_of, "one") as one, person(dsn_of, "other") as other:
        await one.execute("begin")
        await other.execute("begin")
        await one.execute(pause, [endpoint])
        if not same_order:
            await other.execute(cancel, [endpoint])
        async with waiting(dsn_of, other, "other", pause, endpoint) as waits:
            for statement in (one.execute(cancel, [endpoint]), one.execute("commit"), waits):
                try:
                    await statement
                except psycopg.errors.DeadlockDetected as error:
                    ended.append(error)
        await other.execute("commit")
    assert len(ended) == (0 if same_order else 1)
