"""The README's bound on waiting, with a real worker: N endpoints, S slots, requests of T seconds.

Reads: when each request arrived and was answered. Writes: events for every endpoint.
Guarantee: an endpoint with due work and no reason to wait starts within (ceil(N / S) + 1) * T.
If it is wrong: some customer waits while others are served again and again.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import pytest

from tests.support.factories import make_endpoint, publish
from tests.support.receiver import status
from tests.support.waiting import eventually, pause

LASTS = 0.25
OURS = 0.15
"""What claim and record may add to each request on two busy cores: a slot is held from one to the other."""


@pytest.mark.parametrize(("endpoints", "slots"), [(12, 4), (4, 1)])
async def test_no_endpoint_with_due_work_waits_longer_than_the_stated_bound(
    shop, receiver, working, endpoints, slots
):
    """From the commit to its first request, and from each answer to the next request."""
    free_since: dict[str, float] = {}
    waits: dict[str, list[float]] = defaultdict(list)
    now, most = 0, 0

    async def one(exchange):
        nonlocal now, most
        path = exchange.request.path
        waits[path].append(time.monotonic() - free_since[path])
        now += 1
        most = max(most, now)
        await pause(LASTS)
        now -= 1
        free_since[path] = time.monotonic()
        return await status()(exchange)

    receiver.script(None, one)
    for number in range(endpoints):
        make_endpoint(shop, f"{receiver.url}{number}", max_in_flight=1)
    lasts = -(-endpoints // slots) + 1
    async with working(max_in_flight=slots, host_max_in_flight=slots * 2), asyncio.timeout(60):
        for _ in range(
            lasts + 2
        ):  # whoever is served again and again would starve others for longer than the bound
            publish(shop)
        free_since |= {f"/{number}": time.monotonic() for number in range(endpoints)}
        await eventually(lambda: sum(map(len, waits.values())) == endpoints * (lasts + 2), 60)
    assert most == slots
    assert max(max(each) for each in waits.values()) <= lasts * (LASTS + OURS)
