"""outbox.endpoint_health, each column driven to a known value by a real worker.

Reads: outbox.endpoint_health. Writes: events for endpoints that answer, fail, hang, are limited, held or gone.
Guarantee: what an operator reads there is what the worker did and what the receiver saw.
If it is wrong: an operator repairs what is not broken.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from psycopg.rows import dict_row

from outbox_worker import upkeep
from outbox_worker.lane import START_LIMIT, TRIP_AFTER
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.receiver import hold, reset, status
from tests.support.waiting import eventually, pause

report_once = upkeep.report_once


@pytest.fixture(autouse=True)
def reported_each_second(monkeypatch):
    """What a worker tells each minute, each second."""
    monkeypatch.setattr(upkeep, "report_once", lambda store, lanes, **_: report_once(store, lanes, everything=True))  # fmt: skip


def health(shop, endpoint) -> dict:
    with shop.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "select * from outbox.endpoint_health where endpoint_id = %s", [endpoint]
        ).fetchone()


async def shows(shop, endpoint, **expected) -> dict:
    """Wait until the view shows these values, and give the whole row."""
    return await eventually(
        lambda: (row := health(shop, endpoint)) and expected.items() <= row.items() and row, 15
    )


async def test_endpoint_health_says_success_rate_latency_and_limit_of_what_was_answered(
    shop, receiver, working
):
    """Ten answers, one of them slow and one a failure: counted, timed, and learned from."""
    began = datetime.now(UTC)
    endpoint, _ = make_endpoint(shop, receiver.url, max_in_flight=20)

    async def slow(exchange):
        await pause(0.3)
        return await status()(exchange)

    receiver.script("/", *[status()] * 8, slow, status(500))
    async with working():
        for _ in range(9):
            event_id = publish(shop)
            await eventually(lambda event_id=event_id: state_of(shop, event_id) == "delivered")
        grown = await shows(shop, endpoint, attempts=9, successes=9)
        assert (grown["state"], grown["why"], grown["waiting"], grown["failing_since"]) == ("active", None, 0, None)  # fmt: skip
        assert (grown["in_flight_limit"], grown["max_in_flight"]) == (START_LIMIT + 9, 20)
        publish(shop)
        row = await shows(shop, endpoint, attempts=10, successes=9, timeouts=0, waiting=1)
    assert row["success_rate"] == Decimal("0.9")
    assert row["per_second"] == Decimal("0.03")
    assert row["p50_ms"] <= 256 < row["p95_ms"] == row["p99_ms"] <= 2048
    assert row["circuit"] == "closed"
    assert row["in_flight_limit"] == (START_LIMIT + 9) // 2
    assert row["why"] == "retry, schedule or lease"
    assert began < row["failing_since"] <= row["reported_at"]
    assert began < row["oldest_waiting_at"] < datetime.now(UTC)
    assert row["worker"] == "test"


async def test_endpoint_health_says_why_each_endpoint_waits(shop, receiver, working, monkeypatch):
    """Slots, rate, circuit, paused, gone; what is in flight meanwhile; and without a worker, that."""
    monkeypatch.setattr("outbox_worker.limits.PROBE_SECONDS", 3600.0)
    began = datetime.now(UTC)
    answers = asyncio.Event()
    receiver.script("/slots", hold(answers))
    receiver.script("/alone", hold(answers))
    receiver.script("/circuit", reset())
    receiver.script("/gone", status(410))
    slots, _ = make_endpoint(shop, receiver.url + "slots", max_in_flight=2)
    alone, _ = make_endpoint(shop, receiver.url + "alone", ["message.sent"])
    rate, _ = make_endpoint(shop, receiver.url + "rate", max_per_second=Decimal("0.01"))
    circuit, _ = make_endpoint(shop, receiver.url + "circuit", max_in_flight=1)
    paused, _ = make_endpoint(shop, receiver.url + "paused")
    gone, _ = make_endpoint(shop, receiver.url + "gone", max_in_flight=1)
    shop.execute("select outbox.pause_endpoint(%s)", [paused])
    async with working(request_timeout_seconds=30, lease_seconds=120, drain_seconds=31):
        for _ in range(8):
            publish(shop)
        publish(shop, "message.sent")
        row = await shows(shop, slots, why="slots", in_flight=2, waiting=9)
        assert (row["in_flight_limit"], row["max_in_flight"], row["success_rate"]) == (2, 2, None)
        await shows(shop, alone, why="retry, schedule or lease", in_flight=1, waiting=1, circuit="closed")
        row = await shows(shop, rate, why="rate", max_per_second=Decimal("0.01"), in_flight=0)
        assert row["waiting"] >= 8
        await shows(
            shop,
            circuit,
            why="circuit",
            circuit="open",
            timeouts=TRIP_AFTER,
            successes=0,
            success_rate=Decimal(0),
            in_flight=0,
            in_flight_limit=1,
            waiting=9,
        )
        await shows(
            shop, paused, why="endpoint paused", state="paused", state_reason="paused by postgres", waiting=9
        )
        row = await shows(shop, gone, why="endpoint disabled: gone", state="disabled", state_reason="gone")
        assert row["waiting"] > 0
        oldest = shop.execute(
            "select min(created_at) from outbox.open_deliveries where endpoint_id = %s", [slots]
        ).fetchone()[0]
        assert health(shop, slots)["oldest_waiting_at"] == oldest > began
        answers.set()
    assert health(shop, rate)["why"] == "no worker"
    assert health(shop, rate)["worker"] is None


async def test_endpoint_health_names_a_host_whose_slots_are_taken(shop, receiver, working):
    """One request at once to the whole host: the other endpoint waits for it."""
    answers = asyncio.Event()
    receiver.script(None, hold(answers))
    ids = [make_endpoint(shop, f"{receiver.url}{n}")[0] for n in range(2)]
    async with working(host_max_in_flight=1, request_timeout_seconds=30, lease_seconds=120, drain_seconds=31):
        publish(shop)
        await eventually(
            lambda: (
                sorted(health(shop, one)["why"] or "" for one in ids) == ["host", "retry, schedule or lease"]
            ),
            15,
        )
        answers.set()


async def test_endpoint_health_names_the_suspects_share(shop, receiver, working, monkeypatch):
    """Two endpoints that answer slowly share one slot: one of them waits for the other."""
    monkeypatch.setattr("outbox_worker.limits.SLOW_MS", 0.0)
    answers = asyncio.Event()
    ids = [make_endpoint(shop, f"{receiver.url}{n}")[0] for n in range(2)]
    for n in range(2):
        receiver.script(f"/{n}", status(), hold(answers))
    async with working(
        max_in_flight=10,
        suspect_share=0.1,
        request_timeout_seconds=30,
        lease_seconds=120,
        drain_seconds=31,
    ):
        first = publish(shop)
        await eventually(lambda: all(state_of(shop, first, one) == "delivered" for one in ids))
        publish(shop)
        await eventually(
            lambda: (
                sorted(health(shop, one)["why"] or "" for one in ids)
                == ["retry, schedule or lease", "suspects"]
            ),
            15,
        )
        answers.set()
