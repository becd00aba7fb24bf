"""An orderly end, and what a disorderly one leaves behind."""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

from outbox_worker.model import Failure, Outcome
from tests.support.factories import SHORT, make_endpoint, publish, state_of
from tests.support.receiver import hold, status
from tests.support.waiting import eventually


async def test_a_started_request_is_finished_and_recorded_before_the_worker_leaves(shop, receiver, working):
    """SIGTERM waits for what has started; it is never given back."""
    make_endpoint(shop, receiver.url)
    answer = asyncio.Event()
    receiver.script("/", hold(answer))
    async with working() as task:
        event_id = publish(shop)
        await eventually(lambda: receiver.requests)
        asyncio.get_running_loop().call_later(0.3, answer.set)
    assert task.done()
    assert state_of(shop, event_id) == "delivered"
    assert len(receiver.requests) == 1


async def test_a_worker_that_leaves_reports_the_attempts_of_its_last_minute(shop, receiver, working):
    """Rates and success of the last minutes are right also after a restart."""
    make_endpoint(shop, receiver.url)
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert shop.execute("select sum(attempts), sum(successes) from outbox.endpoint_minutes").fetchone() == (
        1,
        1,
    )


async def test_a_request_that_outlives_its_deadline_is_recorded_and_the_worker_leaves_clean(
    shop, receiver, working
):
    """The drain lasts as long as a request may; then presence and shards are free."""
    make_endpoint(shop, receiver.url)
    receiver.script("/", hold(asyncio.Event()))
    async with working(request_timeout_seconds=1.0):
        first = publish(shop)
        await eventually(lambda: receiver.requests)
    rows = shop.execute(
        "select state, attempt_count, last_error from outbox.deliveries where event_id = %s", [first]
    ).fetchone()
    assert rows[:2] == ("pending", 1)
    assert rows[2].startswith("timeout")
    assert (
        shop.execute("select count(*) from outbox.worker_processes where stopped_at is null").fetchone()[0]
        == 0
    )
    assert shop.execute("select count(*) from outbox.shards where worker_no is not null").fetchone()[0] == 0


async def test_an_open_transaction_of_an_operator_stops_no_other_settlement(shop, receiver, working, connect):
    """Rows that somebody holds are skipped and tried again: the others are recorded meanwhile."""
    held, _ = make_endpoint(shop, receiver.url + "held")
    make_endpoint(shop, receiver.url + "free")
    answer = asyncio.Event()
    receiver.script("/held", hold(answer))
    operator = connect("operator_login")
    async with working():
        event_id = publish(shop)
        await eventually(lambda: len(receiver.requests) == 2)
        with operator.transaction(force_rollback=True):
            operator.execute("select outbox.cancel(%s, %s)", [event_id, held])
            answer.set()
            others = [publish(shop) for _ in range(3)]
            free = "select count(*) from outbox.finished_deliveries f join outbox.endpoints e using (endpoint_id) where e.url like '%free'"
            await eventually(lambda: shop.execute(free).fetchone()[0] == 1 + len(others))
            assert state_of(shop, event_id, held) == "pending"
        await eventually(lambda: state_of(shop, event_id, held) == "delivered")
    assert shop.execute("select count(*) from outbox.late_results").fetchone() == (0,)


async def test_an_app_that_holds_an_endpoints_row_stops_no_settlement(shop, receiver, working, connect):
    """update_endpoint in a long transaction: attempts are recorded, the run of failures is noted later; a 410 waits."""
    failing, _ = make_endpoint(shop, receiver.url + "failing", retry_schedule=SHORT)
    gone, _ = make_endpoint(shop, receiver.url + "gone", retry_schedule=SHORT)
    receiver.script("/failing", status(500))
    receiver.script("/gone", status(410))
    app = connect("app_login")
    async with working():
        with app.transaction():
            app.execute(
                "select outbox.update_endpoint(%s, description => 'x'), outbox.update_endpoint(%s, description => 'y')",
                [failing, gone],
            )
            event_id = publish(shop)
            await eventually(lambda: state_of(shop, event_id, failing) == "dead")
            assert state_of(shop, event_id, gone) == "pending"
        await eventually(lambda: state_of(shop, event_id, gone) == "dead")
    assert shop.execute("select state from outbox.endpoints where endpoint_id = %s", [gone]).fetchone() == (
        "disabled",
    )


async def test_an_event_that_cannot_be_fanned_out_is_set_aside(shop, receiver, working):
    """The database refuses one event's content: it is named in set_aside_events, the others go out."""
    make_endpoint(shop, receiver.url)
    shop.execute("alter table outbox.open_deliveries add constraint poison check (workspace_id <> 'ws_bad')")
    make_endpoint(shop, receiver.url, workspace_id="ws_bad")
    bad = publish(shop, workspace_id="ws_bad")
    good = [publish(shop) for _ in range(20)]
    async with working():
        await eventually(lambda: all(state_of(shop, event_id) == "delivered" for event_id in good), 30)
        await eventually(
            lambda: shop.execute("select event_id from outbox.set_aside_events").fetchall() == [(bad,)], 30
        )


async def test_an_expired_lease_is_recorded_as_lost_and_the_delivery_goes_out_again(shop, receiver, working):
    """A worker that vanished costs no attempt; five lost leases of one delivery are a crash loop."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    event_id = publish(shop)
    hopeless = publish(shop)
    shop.execute("delete from outbox.fan_out_queue")
    for one, lost in ((event_id, 0), (hopeless, 4)):
        shop.execute(
            "insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at, lost_count,"
            " leased_by, lease_token, lease_expires_at) values (%s, %s, 'ws_1', 1, now(), %s, 1, gen_random_uuid(), now() - interval '1 s')",
            [one, endpoint, lost],
        )
    async with working():
        await eventually(lambda: state_of(shop, event_id) == "delivered")
        await eventually(lambda: state_of(shop, hopeless) == "dead")
    lost = shop.execute("select event_id, attempt_no from outbox.lost_leases order by event_id").fetchall()
    assert lost == [(event_id, 1), (hopeless, 1)]
    row = shop.execute(
        "select reason, attempt_count from outbox.deliveries where event_id = %s", [hopeless]
    ).fetchone()
    assert row == ("crash_loop", 0)
    assert shop.execute(
        "select attempt_count from outbox.deliveries where event_id = %s", [event_id]
    ).fetchone() == (1,)


async def test_a_settlement_with_an_old_token_changes_no_state_and_is_kept(shop, receiver, working):
    """While the request is under way the delivery is taken away: the result becomes a late result."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    answer = asyncio.Event()
    receiver.script("/", hold(answer), status(200))
    async with working():
        event_id = publish(shop)
        await eventually(lambda: receiver.requests)
        shop.execute("update outbox.open_deliveries set lease_token = gen_random_uuid()")
        answer.set()
        late = await eventually(
            lambda: shop.execute("select event_id, status, attempt_no from outbox.late_results").fetchone()
        )
        assert late == (event_id, 200, 1)
        assert state_of(shop, event_id, endpoint) == "pending"
        shop.execute("update outbox.open_deliveries set lease_expires_at = now() - interval '1 s'")
        await eventually(lambda: state_of(shop, event_id) == "delivered")


async def test_a_fault_of_our_own_costs_no_attempt(shop, receiver, working):
    """EMFILE and its kind: the delivery rests a second and nothing is charged."""
    endpoint, _ = make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    calls = []

    async def send(request):
        calls.append(request)
        if len(calls) == 1:
            return Outcome(None, Failure.LOCAL, "no descriptors", (), b"", 1.0)
        return Outcome(200, None, "", (), b"", 1.0)

    async with working(send=send):
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id, endpoint) == "delivered")
    assert shop.execute("select attempt_count from outbox.deliveries").fetchone() == (1,)


async def test_one_result_that_the_database_refuses_blocks_no_other(shop, receiver, working):
    """A status that fits no smallint poisons its own settlement only."""
    bad, _ = make_endpoint(shop, receiver.url + "bad")
    good, _ = make_endpoint(shop, receiver.url + "good")

    async def send(request):
        return Outcome(99_999 if request.url.endswith("bad") else 200, None, "", (), b"\0", 1.0)

    async with working(send=send):
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id, good) == "delivered")
    assert shop.execute("select count(*) from outbox.attempts where endpoint_id = %s", [bad]).fetchone() == (
        0,
    )


async def test_N26_an_unreadable_secret_holds_the_endpoint_and_costs_no_attempt(shop, receiver, working):
    """The blob of one endpoint copied into another's row is refused, others go on, nothing is charged."""
    moved, _ = make_endpoint(shop, receiver.url + "moved")
    intact, _ = make_endpoint(shop, receiver.url + "intact")
    shop.execute(
        "update outbox.endpoint_vault v set secret = (select secret from outbox.endpoint_vault where endpoint_id = %s) where endpoint_id = %s",
        [intact, moved],
    )
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id, intact) == "delivered")
        hold_reason = "select hold_reason from outbox.endpoints where endpoint_id = %s"
        await eventually(lambda: shop.execute(hold_reason, [moved]).fetchone() == ("secret_unreadable",))
        await eventually(
            lambda: shop.execute("select lease_expires_at from outbox.open_deliveries").fetchone() == (None,)
        )
        assert shop.execute("select attempt_count from outbox.open_deliveries").fetchone() == (0,)
        shop.execute("select outbox.rotate_secret(%s)", [moved])
        await eventually(lambda: state_of(shop, event_id, moved) == "delivered")


async def test_N25_a_url_moved_to_another_origin_holds_deliveries_until_the_secret_is_renewed(
    shop, receiver, working
):
    """An operator's UPDATE of the URL never sends the old secret or headers to the new host."""
    endpoint, _ = make_endpoint(
        shop, "https://hooks.example.com/in", headers={"authorization": "Bearer marker"}
    )
    shop.execute("update outbox.endpoints set url = %s where endpoint_id = %s", [receiver.url, endpoint])
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "pending")
        assert shop.execute("select hold_reason from outbox.endpoints").fetchone() == ("origin_changed",)
        shop.execute("select outbox.rotate_secret(%s)", [endpoint])
        assert shop.execute("select hold_reason from outbox.endpoints").fetchone() == (
            "origin_changed",
        )  # the headers
        shop.execute('select outbox.set_endpoint_headers(%s, \'{"x-new": "1"}\')', [endpoint])
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert "authorization" not in {name.lower() for name, _ in receiver.requests[0].headers}


async def test_a_filter_that_runs_too_long_is_set_aside_and_stops_nobody(shop, receiver, working):
    """A quadratic filter on a large payload ends at the deadline; the endpoint is named, the others get their events."""
    slow, _ = make_endpoint(
        shop, receiver.url + "slow", filter="exists($.a[*] ? (exists($.b[*] ? (@ == 99999))))"
    )
    make_endpoint(shop, receiver.url + "fast")
    async with working(database_timeout_seconds=2.0):
        event_id = publish(shop, payload={"a": list(range(15_000)), "b": [-n for n in range(1, 15_001)]})
        await eventually(lambda: any(r.path == "/fast" for r in receiver.requests), 30)
    assert json.loads(receiver.requests[0].body)["id"] == str(event_id)
    row = shop.execute("select filter_error from outbox.endpoints where endpoint_id = %s", [slow]).fetchone()
    assert "deadline" in row[0]


def test_a_filter_that_nothing_can_interrupt_is_refused(shop, receiver):
    """PostgreSQL compares two lists pair by pair without looking for a cancel: one side must be a literal."""
    for bad in (
        "$.a[*] == $.b[*]",
        "$.a < $.b",
        '$.a == "x" && $.b >= $.c',
        "exists($.a[*] ? (@ == $.b[*]))",
    ):
        with pytest.raises(psycopg.Error) as raised:
            make_endpoint(shop, receiver.url, filter=bad)
        assert raised.value.sqlstate == "OB007"
    for good in (
        '$.a == "$.b == $.c"',
        "5 < $.a",
        '$.message.type == "text" && $.n > 5',
        "exists($.items[*] ? (@.price > 100))",
    ):
        make_endpoint(shop, receiver.url, filter=good)


async def test_the_worker_goes_on_by_itself_when_its_connections_are_cut(shop, receiver, working):
    """Backends terminated: said once, waited for, work goes on."""
    make_endpoint(shop, receiver.url)
    async with working():
        for _ in range(3):
            shop.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'outbox-%' and datname = current_database()"
            )
            event_id = publish(shop)
            await eventually(lambda event_id=event_id: state_of(shop, event_id) == "delivered", 20)


def test_events_are_immutable(db):
    """An UPDATE of an event is refused with the way to go."""
    event_id = publish(db)
    with pytest.raises(psycopg.Error) as raised:
        db.execute("update outbox.events set payload = '{}' where event_id = %s", [event_id])
    assert raised.value.sqlstate == "OB008"
