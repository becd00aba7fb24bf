"""Limits, circuits and order as receivers see them, with a real worker and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

from outbox_worker.lane import TRIP_AFTER
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.receiver import header, hold, reset, status
from tests.support.waiting import eventually


async def test_a_failing_key_holds_itself_back_and_not_the_endpoints_other_keys(shop, receiver, working):
    """Also not its deliveries without a key, and a stream of these does not keep the keys waiting."""
    endpoint, _ = make_endpoint(shop, receiver.url, ordered=True, max_in_flight=1)
    receiver.script("/", status(500), status(200))
    async with working():
        bad = publish(shop, payload={"n": 0}, ordering_key="a")
        await eventually(lambda: len(receiver.requests) == 1)
        behind = publish(shop, payload={"n": 1}, ordering_key="a")
        plain = [publish(shop) for _ in range(30)]
        other = [publish(shop, payload={"n": n}, ordering_key="b") for n in range(3)]
        await eventually(
            lambda: all(state_of(shop, event_id) == "delivered" for event_id in [*plain, *other]), 30
        )
        assert (state_of(shop, bad), state_of(shop, behind)) == ("pending", "pending")
        shop.execute(
            "update outbox.deliveries set next_attempt_at = now() where event_id = %s and endpoint_id = %s",
            [bad, endpoint],
        )
        await eventually(lambda: state_of(shop, behind) == "delivered")
    assert [
        json.loads(r.body)["data"]["n"]
        for r in receiver.requests
        if header(r, "webhook-id") in {str(bad), str(behind)}
    ] == [0, 0, 1]


async def test_a_rate_holds_from_the_first_request_on_and_waiting_costs_no_attempt(shop, receiver, working):
    """A hundred events for an endpoint that nobody has met: the rate's few go out, the others wait unharmed."""
    endpoint, _ = make_endpoint(shop, receiver.url, max_per_second=Decimal("0.01"))
    make_endpoint(shop, receiver.url + "free")
    async with working():
        for _ in range(100):
            publish(shop)
        await eventually(lambda: sum(r.path == "/free" for r in receiver.requests) == 100, 30)
        await eventually(lambda: any(r.path == "/" for r in receiver.requests))
        counts = shop.execute(
            "select count(*), sum(attempt_count) from outbox.open_deliveries where endpoint_id = %s",
            [endpoint],
        ).fetchone()
    assert sum(r.path == "/" for r in receiver.requests) <= 2
    assert counts[0] >= 98
    assert counts[1] == 0


async def test_an_open_circuit_costs_no_attempts_and_resuming_gives_a_clean_slate(
    shop, receiver, working, monkeypatch
):
    """Five broken connections open it; what else is due keeps its budget; a pause and a resumption close it."""
    monkeypatch.setattr("outbox_worker.limits.PROBE_SECONDS", 3600.0)
    endpoint, _ = make_endpoint(shop, receiver.url, max_in_flight=1)
    receiver.script("/", *[reset()] * TRIP_AFTER, status(200))
    async with working():
        ids = [publish(shop) for _ in range(20)]
        await eventually(lambda: len(receiver.requests) == TRIP_AFTER)
        await eventually(
            lambda: (
                shop.execute(
                    "select circuit from outbox.endpoint_health where endpoint_id = %s", [endpoint]
                ).fetchone()
                == ("open",)
            )
        )
        attempts = shop.execute(
            "select count(*), sum(attempt_count), sum((failing_since is not null)::int) from outbox.open_deliveries"
            " join outbox.endpoints using (endpoint_id)"
        ).fetchone()
        assert attempts == (20, TRIP_AFTER, 20)
        shop.execute("select outbox.pause_endpoint(%s)", [endpoint])
        shop.execute("select outbox.resume_endpoint(%s)", [endpoint])
        assert shop.execute("select failing_since, failing_noticed from outbox.endpoints").fetchone() == (
            None,
            False,
        )
        await eventually(
            lambda: sum(state_of(shop, event_id) == "delivered" for event_id in ids) >= 20 - TRIP_AFTER
        )


async def test_a_burst_of_one_workspace_does_not_hold_back_anothers_event(shop, receiver, working):
    """Two thousand of one campaign wait for a receiver that hangs; another workspace's event passes them all."""
    release = asyncio.Event()
    receiver.script("/", hold(release))
    make_endpoint(shop, receiver.url)
    make_endpoint(shop, receiver.url + "other", workspace_id="ws_2")
    shop.execute(
        "select outbox.publish_many('ws_1', 'message.sent', array(select '{}'::jsonb from generate_series(1, 2000)))"
    )
    async with working(max_in_flight=20, request_timeout_seconds=2.0):
        await eventually(lambda: receiver.requests)
        event_id = publish(shop, workspace_id="ws_2")
        await eventually(lambda: state_of(shop, event_id) == "delivered")
        assert (
            shop.execute(
                "select count(*) >= 1900 from outbox.deliveries where state <> 'delivered'"
            ).fetchone()[0]
            or (shop.execute("select count(*) > 0 from outbox.fan_out_queue").fetchone()[0])
        )
        release.set()
