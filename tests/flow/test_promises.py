"""Every promise of the product, each by its name, with a real worker, PostgreSQL and HTTP receiver."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.support.factories import SHORT, make_endpoint, publish, state_of
from tests.support.receiver import header, status
from tests.support.waiting import eventually, pause


async def test_an_event_of_a_committed_transaction_is_delivered(shop, receiver, working):
    """Commit: the event exists and reaches every matching endpoint, with the full payload."""
    make_endpoint(shop, receiver.url + "a")
    make_endpoint(shop, receiver.url + "b", ["message.received"])
    async with working():
        with shop.transaction():
            event_id = publish(shop, payload={"message": {"type": "text", "body": "hallo"}})
        await eventually(lambda: len(receiver.requests) == 2)
    for request in receiver.requests:
        body = json.loads(request.body)
        assert body["id"] == str(event_id) == header(request, "webhook-id")
        assert body["type"] == "message.received"
        assert body["workspace_id"] == "ws_1"
        assert body["data"] == {"message": {"type": "text", "body": "hallo"}}
        assert datetime.fromisoformat(body["timestamp"]).utcoffset() == timedelta(0)


async def test_an_event_of_a_rolled_back_transaction_is_never_delivered(shop, receiver, working):
    """Rollback, of the whole or of a savepoint: the event never was."""
    make_endpoint(shop, receiver.url)
    async with working():
        with shop.transaction(force_rollback=True):
            publish(shop, payload={"n": "rolled back"})
        with shop.transaction():
            with shop.transaction(force_rollback=True):
                publish(shop, payload={"n": "savepoint"})
            kept = publish(shop, payload={"n": "kept"})
        await eventually(lambda: receiver.requests)
    assert [json.loads(r.body)["id"] for r in receiver.requests] == [str(kept)]


async def test_plain_insert_and_copy_are_as_good_as_publish(shop, receiver, working, connect):
    """The app may INSERT and COPY into outbox.events with its own role."""
    make_endpoint(shop, receiver.url)
    app = connect("app_login")
    async with working():
        app.execute(
            "insert into outbox.events (workspace_id, event_type, payload) values ('ws_1', 'message.sent', '{\"n\": 1}')"
        )
        with app.cursor().copy("copy outbox.events (workspace_id, event_type, payload) from stdin") as copy:
            copy.write_row(("ws_1", "message.sent", '{"n": 2}'))
            copy.write_row(("ws_1", "message.sent", '{"n": 3}'))
        await eventually(lambda: len(receiver.requests) == 3)
    assert sorted(json.loads(r.body)["data"]["n"] for r in receiver.requests) == [1, 2, 3]


async def test_endpoints_get_exactly_the_events_they_picked(shop, receiver, working):
    """Exact names, prefix.*, * and a jsonpath filter decide; another workspace's events never arrive."""
    make_endpoint(shop, receiver.url + "exact", ["message.received"])
    make_endpoint(shop, receiver.url + "prefix", ["message.*"])
    make_endpoint(shop, receiver.url + "all", ["*"])
    make_endpoint(shop, receiver.url + "text", ["*"], filter='$.message.type == "text"')
    make_endpoint(shop, receiver.url + "other", ["*"], workspace_id="ws_2")
    async with working():
        publish(shop, "message.received", {"message": {"type": "text"}})
        publish(shop, "message.sent", {"message": {"type": "image"}})
        publish(shop, "order.paid", {"message": {"type": "none"}})
        await eventually(lambda: len(receiver.requests) == 7)
        await eventually(
            lambda: shop.execute("select count(*) from outbox.open_deliveries").fetchone()[0] == 0
        )
    got = sorted((r.path, json.loads(r.body)["type"]) for r in receiver.requests)
    assert got == [
        ("/all", "message.received"),
        ("/all", "message.sent"),
        ("/all", "order.paid"),
        ("/exact", "message.received"),
        ("/prefix", "message.received"),
        ("/prefix", "message.sent"),
        ("/text", "message.received"),
    ]


async def test_a_filter_that_errors_matches_nothing_is_recorded_and_harms_nobody(shop, receiver, working):
    """Comparing dates with and without a time zone raises even under @@."""
    bad, _ = make_endpoint(
        shop, receiver.url + "bad", filter='$.at.datetime() < "2020-01-01T00:00:00+00:00".datetime()'
    )
    make_endpoint(shop, receiver.url + "good")
    async with working():
        event_id = publish(shop, payload={"at": "2019-01-01"})
        await eventually(lambda: receiver.requests)
        failure = await eventually(
            lambda: shop.execute("select event_id, endpoint_id, error from outbox.filter_failures").fetchone()
        )
    assert [r.path for r in receiver.requests] == ["/good"]
    assert failure[:2] == (event_id, bad)
    assert "time zone" in failure[2]


async def test_custom_headers_arrive_and_lie_sealed_in_the_database(shop, receiver, working):
    """Whoever reads the database or a backup reads neither a header nor a secret."""
    _, secret = make_endpoint(
        shop, receiver.url, headers={"x-api-key": "marker-header-value", "authorization": "Bearer marker"}
    )
    async with working():
        publish(shop)
        await eventually(lambda: receiver.requests)
    request = receiver.requests[0]
    assert header(request, "x-api-key") == "marker-header-value"
    assert header(request, "authorization") == "Bearer marker"
    row = shop.execute(
        "select to_jsonb(v)::text || to_jsonb(e)::text from outbox.endpoint_vault v, outbox.endpoints e"
    ).fetchone()
    for marker in ("marker", secret, secret.removeprefix("whsec_")):
        assert marker not in row[0]
        assert marker.encode().hex() not in row[0]


async def test_a_scheduled_event_waits_for_its_time(shop, receiver, working):
    """deliver_at: fanned out now, visible, cancelable, sent later."""
    make_endpoint(shop, receiver.url)
    async with working():
        later = publish(shop, deliver_at=datetime.now(UTC) + timedelta(hours=1))
        soon = publish(shop, deliver_at=datetime.now(UTC) + timedelta(seconds=0.4))
        await eventually(lambda: state_of(shop, soon) == "delivered")
        assert state_of(shop, later) == "pending"
        assert shop.execute("select outbox.cancel(%s)", [later]).fetchone()[0] == 1
        assert state_of(shop, later) == "canceled"
    assert [header(r, "webhook-id") for r in receiver.requests] == [str(soon)]


async def test_pause_holds_and_resume_continues(shop, receiver, working):
    """Nothing goes out while paused; everything that waited goes out after."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    async with working():
        shop.execute("select outbox.pause_endpoint(%s)", [endpoint])
        ids = [publish(shop) for _ in range(3)]
        await eventually(lambda: all(state_of(shop, event_id) == "pending" for event_id in ids))
        assert receiver.requests == []
        shop.execute("select outbox.resume_endpoint(%s)", [endpoint])
        await eventually(lambda: all(state_of(shop, event_id) == "delivered" for event_id in ids))


async def test_polling_alone_delivers(shop, receiver, working):
    """Behind a transaction pooler there is no LISTEN: the poll is the truth."""
    make_endpoint(shop, receiver.url)
    async with working(poll_only=True):
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "delivered")


async def test_two_workers_share_the_work_and_deliver_each_once(shop, receiver, working):
    """Fan-out exactly once per event and endpoint, however many workers; each owns half of the endpoints."""
    for i in range(8):
        make_endpoint(shop, receiver.url + str(i))
    async with working(name="one"), working(name="two"):
        await eventually(
            lambda: (
                shop.execute(
                    "select count(distinct worker_no) from outbox.shards where worker_no is not null"
                ).fetchone()[0]
                == 2
            )
        )
        ids = [publish(shop) for _ in range(50)]
        await eventually(
            lambda: (
                all(state_of(shop, event_id) == "delivered" for event_id in ids)
                and len(receiver.requests) >= 400
            ),
            30,
        )
        await pause(0.2)
    assert len(receiver.requests) == 400
    assert len({(r.path, header(r, "webhook-id")) for r in receiver.requests}) == 400


async def test_an_ordered_endpoint_gets_the_events_of_one_key_one_at_a_time_in_order(shop, receiver, working):
    """A failing key holds itself back, not the other keys of the endpoint."""
    make_endpoint(shop, receiver.url, ordered=True, retry_schedule=SHORT)
    first_fails = [status(500), status(500), status(200)]
    receiver.script("/", *first_fails)
    async with working():
        ids = [publish(shop, payload={"n": n}, ordering_key="a") for n in range(5)]
        await eventually(lambda: all(state_of(shop, event_id) == "delivered" for event_id in ids))
    numbers = [json.loads(r.body)["data"]["n"] for r in receiver.requests]
    assert numbers == [0, 0, 0, 1, 2, 3, 4]


async def test_max_in_flight_is_never_exceeded(shop, receiver, working):
    """The limit holds for handed-over and claimed deliveries alike, by the receiver's own count."""
    make_endpoint(shop, receiver.url, max_in_flight=2)
    most, now = 0, 0

    async def counting(exchange):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await pause(0.01)
        now -= 1
        return await status()(exchange)

    receiver.script("/", counting)
    async with working():
        ids = [publish(shop) for _ in range(30)]
        await eventually(lambda: all(state_of(shop, event_id) == "delivered" for event_id in ids))
    assert most == 2


async def test_replay_reaches_an_endpoint_that_did_not_exist_when_the_event_happened(shop, receiver, working):
    """outbox.replay(event, endpoint) makes the delivery that never was."""
    make_endpoint(shop, receiver.url + "old")
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "delivered")
        new, _ = make_endpoint(shop, receiver.url + "new")
        assert shop.execute("select outbox.replay(%s, %s)", [event_id, new]).fetchone()[0] == 1
        await eventually(lambda: state_of(shop, event_id, new) == "delivered")


async def test_the_worker_runs_as_its_own_role_and_owns_nothing(shop, receiver, working):
    """Everything above ran as a member of outbox_worker, which is no superuser and owns no object."""
    make_endpoint(shop, receiver.url)
    async with working():
        publish(shop)
        await eventually(lambda: receiver.requests)
        roles = shop.execute(
            "select distinct usename from pg_stat_activity where application_name like 'outbox-%' and datname = current_database()"
        )
        assert roles.fetchall() == [("worker_login",)]
    row = shop.execute(
        "select rolsuper, rolcreaterole from pg_roles where rolname = 'worker_login'"
    ).fetchone()
    assert row == (False, False)
    assert (
        shop.execute("select count(*) from pg_class where relowner = 'outbox_worker'::regrole").fetchone()[0]
        == 0
    )


@pytest.mark.parametrize(
    ("event_type", "payload", "code"),
    [
        ("no.such_type", "{}", "OB001"),
        ("message.sent", "[1]", "OB002"),
        ("message.sent", json.dumps({"x": "y" * 300_000}), "OB003"),
    ],
)
def test_what_cannot_be_delivered_is_refused_in_the_callers_transaction(db, event_type, payload, code):
    """Unknown type, not an object, too large: SQLSTATE and HINT, nothing stored; for publish and INSERT alike."""
    for statement in (
        "select outbox.publish('ws_1', %s, %s::jsonb)",
        "insert into outbox.events (workspace_id, event_type, payload) values ('ws_1', %s, %s::jsonb)",
    ):
        with pytest.raises(psycopg.Error) as raised:
            db.execute(statement, [event_type, payload])
        assert raised.value.sqlstate == code
        assert raised.value.diag.message_hint
    assert db.execute("select count(*) from outbox.events").fetchone()[0] == 0


def test_an_idempotency_key_stands_for_one_event(db):
    """Same key and content: the first id, nothing stored. Another payload: an error. Another workspace: another event."""
    first = publish(db, payload={"a": 1}, idempotency_key="k")
    assert publish(db, payload={"a": 1}, idempotency_key="k") == first
    assert publish(db, payload={"a": 1}, idempotency_key="k", workspace_id="ws_2") != first
    with pytest.raises(psycopg.Error) as raised:
        publish(db, payload={"a": 2}, idempotency_key="k")
    assert raised.value.sqlstate == "OB004"
    assert db.execute("select count(*) from outbox.events").fetchone()[0] == 2
