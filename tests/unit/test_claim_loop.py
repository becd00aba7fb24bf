"""The claim's loop: what it is told while a claim is under way.

Reads: lanes. Writes: nothing; the store is a stand-in for the moment at which a claim is at the database.
Guarantee: a bell that rings during a claim is answered by the next one, at once.
If it is wrong: due work waits for a poll, with room for it and nobody else's work in its way.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from uuid import UUID, uuid4

import psycopg
import pytest

from outbox_worker.claim import claim_loop, claim_once
from outbox_worker.lane import ALREADY
from tests.support.lanes import lanes

POLL = 60.0


async def test_a_bell_during_a_claim_that_finds_nothing_is_not_forgotten():
    """A fan-out commits behind the claim's snapshot: the claim brings nothing, and the next does not wait for a poll."""
    ours, endpoint_id, stopping, claims = lanes(), uuid4(), asyncio.Event(), []
    flights = SimpleNamespace(
        free=10,
        handing_over=0,
        claiming=0,
        draining=False,
        room_changed=asyncio.Event(),
        start=lambda _leases, _sent: None,
    )

    async def claim(asks):
        claims.append(asks)
        if len(claims) > 1:
            stopping.set()
        else:
            ours.work_is_due(endpoint_id, ALREADY)
        flights.room_changed.set()
        return []

    ours.work_is_due(endpoint_id, ALREADY)
    async with asyncio.timeout(POLL / 4):
        await claim_loop(SimpleNamespace(claim=claim), flights, ours, POLL, stopping)
    assert [[lane.endpoint_id for lane, _ in asks] for asks in claims] == [[endpoint_id]] * 2


@pytest.mark.parametrize("error", [psycopg.errors.QueryCanceled(), psycopg.errors.IndexCorrupted()])
async def test_one_endpoint_whose_deliveries_cannot_be_read_stops_no_other(error):
    """Past what an old snapshot keeps of it, say: it is found by halves, rests, and says so."""
    ours, stopping, claims = lanes(slots=1000), asyncio.Event(), Counter()
    flights = SimpleNamespace(
        free=1000,
        handing_over=0,
        claiming=0,
        draining=False,
        room_changed=asyncio.Event(),
        start=lambda _leases, _sent: None,
    )
    bad, *good = (UUID(int=n) for n in range(40))

    async def claim(asks):
        asked = [lane.endpoint_id for lane, _ in asks]
        if bad in asked:
            claims[bad] += 1
            raise error
        claims.update(asked)
        if all(claims[one] >= 3 for one in good):
            stopping.set()
        for one in asked:
            ours.work_is_due(one, ALREADY)
        flights.room_changed.set()
        return []

    for one in (bad, *good):
        ours.work_is_due(one, ALREADY)
    async with asyncio.timeout(POLL / 4):
        await claim_loop(SimpleNamespace(claim=claim), flights, ours, 0.01, stopping)
    assert claims[bad] <= 8
    assert ours.waits_for(ours.lane(bad), asyncio.get_running_loop().time()) == "claim"


async def test_a_claim_that_gets_no_answer_is_no_endpoints_fault():
    """The connection is half-open: the next claim asks for the same endpoint at once."""
    ours, stopping, claims = lanes(), asyncio.Event(), 0
    flights = SimpleNamespace(
        free=10,
        handing_over=0,
        claiming=0,
        draining=False,
        room_changed=asyncio.Event(),
        start=lambda _leases, _sent: None,
    )

    async def claim(_asks):
        nonlocal claims
        claims += 1
        if claims < 3:
            raise TimeoutError
        stopping.set()
        return []

    ours.work_is_due(uuid4(), ALREADY)
    async with asyncio.timeout(POLL / 4):
        await claim_loop(SimpleNamespace(claim=claim), flights, ours, 0.01, stopping)
    assert claims == 3


async def test_an_endpoint_that_failed_before_is_asked_alone_and_last():
    """The search for it costs a deadline for each half; it is not made again as long as it fails."""
    ours, asked = lanes(slots=1000), []
    flights = SimpleNamespace(
        free=1000, handing_over=0, claiming=0, draining=False, start=lambda _leases, _sent: None
    )
    bad, *good = (UUID(int=n) for n in range(40))

    async def claim(asks):
        asked.append([lane.endpoint_id for lane, _ in asks])
        if bad in asked[-1]:
            raise psycopg.errors.QueryCanceled
        return []

    for _ in range(2):
        for one in (bad, *good):
            ours.work_is_due(one, ALREADY)
            ours.lane(one).rests_until = 0.0  # its rest is over
            ours.ready[one] = None
        await claim_once(SimpleNamespace(claim=claim), flights, ours)
    assert [len(group) for group in asked[-2:]] == [len(good), 1]
    assert asked[-1] == [bad]


async def test_the_search_for_it_ends_with_the_worker():
    """What a claim brings after the drain has begun has to be given back, and nobody waits for that long."""
    ours, asked = lanes(slots=1000), []
    flights = SimpleNamespace(
        free=1000, handing_over=0, claiming=0, draining=False, start=lambda _leases, _sent: None
    )

    async def claim(asks):
        asked.append(len(asks))
        flights.draining = True
        raise psycopg.errors.QueryCanceled

    for n in range(40):
        ours.work_is_due(UUID(int=n), ALREADY)
    await claim_once(SimpleNamespace(claim=claim), flights, ours)
    assert asked == [40]
