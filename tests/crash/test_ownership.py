"""What comes back from the database too late starts nothing: the shard, the room or the worker's time is gone."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

from outbox_worker import telemetry
from outbox_worker.flights import Flights
from outbox_worker.limits import Lanes
from outbox_worker.model import Delivery, Endpoint, Leased, Outcome
from tests.support.factories import make_endpoint, publish
from tests.support.waiting import eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = Endpoint(
    uuid4(),
    "ws_1",
    1,
    "http://127.0.0.1:1/",
    ("whsec_" + "A" * 43 + "=",),
    (),
    1.0,
    (timedelta(seconds=1),),
    "S",
)


def lanes(**changes):
    return Lanes(**{"slots": 100, "endpoint_limit": 8, "host_limit": 100, "suspect_share": 0.2, **changes})


def leased(count):
    rows = [
        (
            uuid4(),
            ENDPOINT.endpoint_id,
            "ws_1",
            "message.received",
            1,
            0,
            1,
            uuid4(),
            b"{}",
            None,
            1,
            NOW,
            None,
        )
        for _ in range(count)
    ]
    return [Leased(Delivery(*row), NOW, NOW) for row in rows]


async def started(*, room=8, holds=lambda _shard: True, draining=False):
    """How many of three leases become requests, and how many are given back."""
    requests = []

    async def send(request):
        requests.append(request)
        return Outcome(200, None, "", (), b"", 1.0)

    async def known(*_):
        return ENDPOINT

    book = SimpleNamespace(known=lambda *_: ENDPOINT, endpoint=known)
    some = lanes()
    some.lane(ENDPOINT.endpoint_id).max_in_flight = room
    flights = Flights(
        lanes=some, book=book, send=send, lease_seconds=1e9, margin_seconds=0.1, presence_until=lambda: 1e12, holds=holds
    )  # fmt: skip
    stopped = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(flights.fly(stopped))
        await eventually(lambda: flights.tasks)
        flights.draining = draining
        flights.start(leased(3), claimed_before=1e9)
        stopped.set()
    return len(requests), len(flights.unstarted)


async def test_more_leases_than_an_endpoint_may_have_in_flight_are_given_back():
    """A claim and a fan-out under way at once never exceed the endpoint's limit together."""
    assert await started(room=2) == (2, 1)


async def test_leases_of_a_shard_that_was_given_up_meanwhile_start_nothing():
    """The next owner starts at once; what comes back after the release is given back."""
    assert await started(holds=lambda _shard: False) == (0, 3)


async def test_leases_that_come_back_after_the_stop_start_nothing():
    """A stop that overtakes a claim gives its leases back."""
    assert await started(draining=True) == (0, 3)


def test_a_retry_learned_after_the_shard_left_takes_no_turn():
    """Only the owner of an endpoint's shard claims for it; a late retry makes nobody else a claimer."""
    owned = {1}
    some = lanes(owned=owned)
    some.lane(ENDPOINT.endpoint_id).shard = 1
    owned.clear()
    some.work_is_due(ENDPOINT.endpoint_id, 0.0)
    assert some.plan(1.0, 10) == []
    owned.add(1)
    some.work_is_due(ENDPOINT.endpoint_id, 2.0)
    assert [lane.endpoint_id for lane, _ in some.plan(3.0, 10)] == [ENDPOINT.endpoint_id]


async def test_a_stop_that_overtakes_a_fan_out_ends_in_order(shop, connect, receiver, working):
    """The fan-out's answer arrives after the stop: nothing is sent, its leases are given back, the worker leaves."""
    make_endpoint(shop, receiver.url)
    blocker = connect()
    async with working():
        await eventually(
            lambda: shop.execute("select count(*) from outbox.shards where worker_no is not null").fetchone()[
                0
            ]
        )
        blocker.execute("begin; lock table outbox.open_deliveries in share mode")
        publish(shop)
        await eventually(
            lambda: shop.execute(
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '-- fan_out%'"
            ).fetchone()[0]
        )
        asyncio.get_running_loop().call_later(0.3, blocker.execute, "rollback")
    assert receiver.requests == []
    found = shop.execute("select lease_expires_at, attempt_count from outbox.open_deliveries").fetchall()
    assert found == [(None, 0)]


async def test_a_worker_that_says_it_started_hears_a_stop(shop, working, monkeypatch):
    """From the line worker.started on, SIGTERM is an orderly end."""
    heard = []
    monkeypatch.setattr(
        telemetry, "worker_started", lambda *_, **__: heard.append(signal.getsignal(signal.SIGTERM))
    )
    async with working():
        await eventually(lambda: heard)
    assert heard != [signal.SIG_DFL]
