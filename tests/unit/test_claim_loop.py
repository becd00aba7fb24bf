"""The claim's loop: what it is told while a claim is under way.

Reads: lanes. Writes: nothing; the store is a stand-in for the moment at which a claim is at the database.
Guarantee: a bell that rings during a claim is answered by the next one, at once.
If it is wrong: due work waits for a poll, with room for it and nobody else's work in its way.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from uuid import uuid4

from outbox_worker.claim import claim_loop
from outbox_worker.lane import ALREADY
from tests.support.lanes import lanes

POLL = 60.0


async def test_a_bell_during_a_claim_that_finds_nothing_is_not_forgotten():
    """A fan-out commits behind the claim's snapshot: the claim brings nothing, and the next does not wait for a poll."""
    ours, endpoint_id, stopping, claims = lanes(), uuid4(), asyncio.Event(), []
    flights = SimpleNamespace(
        free=10, handing_over=0, claiming=0, room_changed=asyncio.Event(), start=lambda _leases, _sent: None
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
