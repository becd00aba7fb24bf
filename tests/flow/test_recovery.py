"""Circuits as receivers see them: probes only while it is broken, and a ramp when it answers again.

Reads: when requests arrive and how many are open. Writes: events for endpoints, of one host and of another.
Guarantee: an open circuit lets one probe through at a time; recovery grows by one an answer, of an endpoint as of a host.
If it is wrong: a receiver that comes back is flooded by all that has waited for it.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from outbox_worker.lane import START_LIMIT
from tests.support.factories import SHORT, allow_loopback, make_endpoint, publish
from tests.support.receiver import Receiver, reset, status
from tests.support.waiting import eventually, pause

PROBE = 0.3


@pytest.fixture(autouse=True)
def probes_soon(monkeypatch):
    monkeypatch.setattr("outbox_worker.limits.PROBE_SECONDS", PROBE)
    monkeypatch.setattr("outbox_worker.limits.PROBE_SECONDS_MOST", 2 * PROBE)
    monkeypatch.setattr("outbox_worker.gates.PROBE_SECONDS", PROBE)


class Outage:
    """A receiver that breaks every connection until it is over, then answers, and counts."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.at: list[float] = []  # requests while it lasted
        self.open = self.most_broken = 0
        self.answered: Counter[str] = Counter()
        self.opened: list[tuple[int, int]] = []  # after it: open at an arrival, answered before it

    async def behave(self, exchange):
        self.open += 1
        broken = not self.over.is_set()
        if broken:
            self.at.append(exchange.request.at)
        else:
            self.opened.append((self.open, self.answered.total()))
        await pause(0.01)
        self.open -= 1
        if broken:
            return await reset()(exchange)
        self.answered[exchange.request.path] += 1
        return await status()(exchange)


def delivered(shop) -> int:
    return shop.execute("select count(*) from outbox.deliveries where state = 'delivered'").fetchone()[0]


def in_flight(shop) -> int:
    return shop.execute(
        "select count(*) from outbox.open_deliveries where lease_token is not null"
    ).fetchone()[0]


async def test_recovery_ramps_up_instead_of_flooding(shop, receiver, working):
    """A hundred wait for an endpoint whose circuit is open: its first answers let through one more each."""
    outage = Outage()
    receiver.script("/", outage.behave)
    make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    async with working():
        for _ in range(100):
            publish(shop)
        await eventually(lambda: len(outage.at) >= START_LIMIT + 3, 20)
        probes = outage.at[int(START_LIMIT) :]
        assert all(later - earlier >= PROBE * 0.9 for earlier, later in pairwise(probes))
        outage.over.set()
        await eventually(lambda: outage.answered["/"] >= 100, 20)
    assert outage.opened[0] == (1, 0)
    assert all(at_once <= 1 + answered for at_once, answered in outage.opened)
    assert max(at_once for at_once, _ in outage.opened) > 2


async def test_many_endpoints_on_one_dead_host_get_one_probe_and_recover_by_a_ramp(shop, receiver, working):
    """Fifteen of one host are tried like one, those of another host are not touched; back again, the host ramps up."""
    outage = Outage()
    receiver.script(None, outage.behave)
    async with Receiver(host="127.0.0.2") as other:
        allow_loopback(shop, other.port)
        for number in range(15):
            make_endpoint(shop, f"{receiver.url}{number}", ["message.sent"], retry_schedule=SHORT)
        make_endpoint(shop, other.url, ["message.received"])
        async with working():
            with shop.transaction():  # both start at once, before the first one failed
                for _ in range(2):
                    publish(shop, "message.sent")
            await eventually(lambda: len(outage.at) >= 15 and in_flight(shop) == 0, 20)
            first = len(outage.at)
            await eventually(lambda: len(outage.at) >= first + 4, 20)
            probes = outage.at[first:]
            assert all(later - earlier >= PROBE * 0.9 for earlier, later in pairwise(probes))
            for _ in range(20):
                publish(shop)
            await eventually(lambda: delivered(shop) == 20)
            outage.over.set()
            await eventually(lambda: len(outage.answered) == 15, 30)
    assert outage.opened[0] == (1, 0)
    assert all(at_once <= 1 + answered for at_once, answered in outage.opened)


async def test_T25_a_host_with_many_slow_endpoints_holds_its_share_of_the_slots_and_no_more(
    shop, receiver, working
):
    """By the receiver's own count, however many endpoints it has; another host's events pass meanwhile."""
    now, most, each, most_each = 0, 0, Counter(), Counter()

    async def slow(exchange):
        nonlocal now, most
        path = exchange.request.path
        now += 1
        each[path] += 1
        most, most_each[path] = max(most, now), max(most_each[path], each[path])
        await pause(0.05)
        now -= 1
        each[path] -= 1
        return await status()(exchange)

    receiver.script(None, slow)
    async with Receiver(host="127.0.0.2") as other:
        allow_loopback(shop, other.port)
        for number in range(100):
            make_endpoint(shop, f"{receiver.url}{number}", ["message.sent"], max_in_flight=2)
        make_endpoint(shop, other.url, ["message.received"])
        async with working(host_max_in_flight=10):
            for _ in range(5):
                publish(shop, "message.sent")
            await eventually(lambda: most == 10)
            publish(shop)
            await eventually(lambda: other.requests, 2)
            assert len(receiver.requests) < 500
            await eventually(lambda: delivered(shop) == 501, 30)
    assert most == 10
    assert max(most_each.values()) <= 2
