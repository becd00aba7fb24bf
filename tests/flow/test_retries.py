"""What a failed delivery becomes: retried by its schedule, dead at its end, disabled at 410; with a real worker."""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import json
from datetime import timedelta

from outbox_worker.backoff import DEFAULT_SCHEDULE
from tests.support.factories import SHORT, make_endpoint, publish, state_of
from tests.support.receiver import header, redirect, status
from tests.support.waiting import eventually


async def test_a_failed_delivery_is_retried_with_the_same_id_and_body_until_it_succeeds(
    shop, receiver, working
):
    """2xx is success, anything else retries; every attempt is a row; the attempt's number goes with it."""
    endpoint, _ = make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    receiver.script(
        "/", status(500), redirect(302, "http://127.0.0.1:1/"), status(404, body=b"no"), status(201)
    )
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert len({(header(r, "webhook-id"), r.body) for r in receiver.requests}) == 1
    assert [header(r, "webhook-attempt") for r in receiver.requests] == ["1", "2", "3", "4"]
    rows = shop.execute(
        "select attempt_no, status, response_body, error from outbox.attempts where event_id = %s and endpoint_id = %s order by 1",
        [event_id, endpoint],
    ).fetchall()
    assert [row[:2] for row in rows] == [(1, 500), (2, 302), (3, 404), (4, 201)]
    assert rows[2][2:] == ("no", "status 404")


async def test_after_the_eighth_failed_attempt_it_is_a_dead_letter_and_replay_gives_a_fresh_budget(
    shop, receiver, working
):
    """Seven retries; then dead (exhausted); `update … set state = 'pending'` just works and keeps the old attempts."""
    endpoint, _ = make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    receiver.script("/", *[status(500)] * 8, status(200))
    async with working():
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "dead")
        assert len(receiver.requests) == 8
        row = shop.execute(
            "select attempt_count, reason, last_status from outbox.deliveries where event_id = %s", [event_id]
        ).fetchone()
        assert row == (8, "exhausted", 500)
        shop.execute(
            "update outbox.deliveries set state = 'pending' where state = 'dead' and endpoint_id = %s",
            [endpoint],
        )
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert header(receiver.requests[8], "webhook-id") == str(event_id)
    assert header(receiver.requests[8], "webhook-attempt") == "9"
    numbers = shop.execute(
        "select array_agg(attempt_no order by attempt_no) from outbox.attempts where event_id = %s",
        [event_id],
    )
    assert numbers.fetchone()[0] == list(range(1, 10))


async def test_the_retry_schedule_is_30s_2min_10min_1h_4h_12h_24h_with_up_to_a_tenth_added(
    shop, receiver, working
):
    """Each failure moves next_attempt_at by its step, never earlier, at most 10 % later."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    receiver.script("/", status(500))
    async with working():
        event_id = publish(shop)
        for number, step in enumerate(DEFAULT_SCHEDULE, 1):
            row = await eventually(
                lambda number=number: shop.execute(
                    "select a.started_at, d.next_attempt_at, a.duration_ms from outbox.attempts a join outbox.deliveries d using (event_id, endpoint_id)"
                    " where a.event_id = %s and a.attempt_no = %s and d.attempt_count = %s",
                    [event_id, number, number],
                ).fetchone()
            )
            waited = row[1] - row[0]
            assert step <= waited <= step * 1.1 + timedelta(seconds=3)
            shop.execute(
                "update outbox.deliveries set next_attempt_at = now() where event_id = %s", [event_id]
            )  # retry now
        await eventually(lambda: state_of(shop, event_id, endpoint) == "dead")
    assert [step.total_seconds() for step in DEFAULT_SCHEDULE] == [30, 120, 600, 3600, 14400, 43200, 86400]


async def test_T21_410_disables_the_endpoint_its_delivery_is_dead_and_its_siblings_are_held(
    shop, receiver, working
):
    """Gone: disabled at once with an operational event; nothing is lost; resuming delivers what waited."""
    gone, _ = make_endpoint(shop, receiver.url + "gone", retry_schedule=SHORT)
    make_endpoint(shop, receiver.url + "ops", ["endpoint.disabled", "delivery.dead"])
    receiver.script("/gone", status(410), status(200))
    async with working():
        first = publish(shop)
        await eventually(lambda: state_of(shop, first, gone) == "dead")
        held = publish(shop)
        await eventually(lambda: state_of(shop, held, gone) == "pending")
        await eventually(
            lambda: (
                {json.loads(r.body)["type"] for r in receiver.requests if r.path == "/ops"}
                == {"endpoint.disabled", "delivery.dead"}
            )
        )
        state = shop.execute(
            "select state, state_reason from outbox.endpoints where endpoint_id = %s", [gone]
        ).fetchone()
        assert state == ("disabled", "gone")
        assert shop.execute(
            "select reason from outbox.deliveries where event_id = %s and endpoint_id = %s", [first, gone]
        ).fetchone() == ("gone",)
        assert shop.execute(
            "select state from outbox.delivery_log where event_id = %s and endpoint_id = %s", [held, gone]
        ).fetchone() == ("held",)
        shop.execute("select outbox.resume_endpoint(%s)", [gone])
        await eventually(lambda: state_of(shop, held, gone) == "delivered")


async def test_T22_retry_after_is_heard(shop, receiver, working):
    """429 with Retry-After: the later of schedule and hint, at most 24 h."""
    endpoint, _ = make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    receiver.script("/", status(429, [("Retry-After", "3600")]))
    async with working():
        event_id = publish(shop)
        waits = await eventually(
            lambda: shop.execute(
                "select next_attempt_at - now() from outbox.deliveries where event_id = %s and endpoint_id = %s and attempt_count = 1",
                [event_id, endpoint],
            ).fetchone()
        )
    assert timedelta(minutes=59) < waits[0] < timedelta(minutes=67)
