"""How often the vault is opened: once for each version of an endpoint, however many requests it signs.

Reads and writes: a clone of the template database; a receiver on loopback.
Guarantee: a blob is opened when its version is first met, and never for a request.
If it is wrong: 5 ms of CPU go into each request, and the private key is at work all the time.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from outbox_worker import vault
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.receiver import status
from tests.support.waiting import eventually


@pytest.fixture
def openings(monkeypatch):
    """What was opened, one entry for each time the private key was at work."""
    whole, opened = vault.pysequoia.decrypt, []

    def counting(sealed, **how):
        opened.append(sealed)
        return whole(sealed, **how)

    monkeypatch.setattr(vault.pysequoia, "decrypt", counting)
    return opened


async def test_a_version_is_opened_once_however_many_requests_it_signs(shop, receiver, working, openings):
    """Many deliveries, retries and replays: one opening of each blob; a rotation costs one more, of the new version."""
    receiver.script("/again", *[status(500)] * 30, status(200))
    schedule = [timedelta(milliseconds=20)] * 40
    endpoints = [
        make_endpoint(shop, receiver.url + path, headers={"x-api-key": "k"}, retry_schedule=schedule)[0]
        for path in ("", "again")
    ]

    async def many():
        events = [publish(shop) for _ in range(20)]
        states = [(event, endpoint) for event in events for endpoint in endpoints]
        await eventually(lambda: all(state_of(shop, *one) == "delivered" for one in states), 30)
        return events

    async with working():
        events = await many()
        assert len(receiver.requests) == 70
        blobs = "select secret from outbox.endpoint_vault union all select headers from outbox.endpoint_vault"
        sealed = {bytes(blob) for (blob,) in shop.execute(blobs)}
        assert sorted(openings) == sorted(sealed)
        shop.execute("select outbox.replay_many(%s)", [events])
        await many()
        await eventually(lambda: len(receiver.requests) >= 150)
        assert len(openings) == 4

        shop.execute("select outbox.rotate_secret(%s, '0 s')", [endpoints[0]])
        await many()
        # The new version's secret, and its headers, which are read with it.
        fresh = "select secret, headers from outbox.endpoint_vault where endpoint_id = %s"
        assert sorted(openings[4:]) == sorted(map(bytes, shop.execute(fresh, [endpoints[0]]).fetchone()))


async def test_deliveries_that_meet_a_version_at_once_share_its_opening(shop, receiver, working, openings):
    """While the first waits for the vault, the others wait for the same answer."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    events = [publish(shop) for _ in range(50)]  # before the worker is there: all are due at its first claim
    async with working():
        await eventually(lambda: all(state_of(shop, event, endpoint) == "delivered" for event in events), 30)
    assert len(openings) == 1
