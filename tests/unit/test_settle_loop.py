"""The loop that settles goes on with everything but what another session holds, and comes back to that in time."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest

from outbox_worker import settle
from outbox_worker.model import Verdict
from tests.support.lanes import lanes


class Flights(SimpleNamespace):
    @property
    def idle(self):
        return not (self.unsettled or self.unstarted or self.recording)


class ScriptedStore:
    """Whatever is in `held` is locked by somebody else; what was done is in `done`."""

    def __init__(self, *held):
        self.held, self.done = set(held), []

    async def settle(self, batch):
        tried = [self._try(s.delivery) for s in batch]
        return [(place, applied, locked, False) for place, (_, _, applied, locked) in enumerate(tried, 1)]

    async def release(self, batch):
        return [self._try(d) for d in batch]

    def _try(self, delivery):
        locked = delivery in self.held
        if not locked:
            self.done.append(delivery)
        return delivery.event_id, delivery.endpoint_id, not locked, locked


class Delivery(SimpleNamespace):
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def delivery():
    return Delivery(event_id=uuid4(), endpoint_id=uuid4(), attempt_no=1, ordering_key=None)


def settlement(of):
    return SimpleNamespace(delivery=of, verdict=Verdict.DELIVERED, retry_in=None)


@pytest.mark.parametrize("kind", ["settled", "given back"])
async def test_what_another_session_held_is_tried_again_although_the_worker_is_never_quiet(kind, monkeypatch):
    """One locked row stops no other, and traffic without a pause does not keep it waiting for ever."""
    monkeypatch.setattr(settle, "LOCKED_SECONDS", 0.05)
    one, store, stopped = delivery(), None, asyncio.Event()
    store = ScriptedStore(one)
    flights = Flights(
        unsettled=deque([settlement(one)] if kind == "settled" else []),
        unstarted=deque([one] if kind == "given back" else []),
        recording=0,
        settle_wanted=asyncio.Event(),
        room_changed=asyncio.Event(),
        room_wanted=asyncio.Event(),
        on_point=lambda _point: None,
    )
    lane = SimpleNamespace(read_again=lambda _since: None)
    lanes = SimpleNamespace(lane=lambda _id: lane, work_is_due=lambda *_: None)

    async def traffic():
        """The worker is busy: something to settle at every turn of the loop."""
        while one not in store.done:
            flights.unsettled.append(settlement(delivery()))
            flights.settle_wanted.set()
            if len(store.done) > 20:
                store.held.clear()
            await asyncio.sleep(0)  # a turn of the event loop, not a wait

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(settle.settle_loop(store, flights, lanes, stopped))
        await traffic()
        stopped.set()
        flights.settle_wanted.set()
    assert store.done.count(one) == 1
    assert flights.recording == 0


async def test_what_cannot_be_given_back_is_left_to_its_lease():
    """The database refuses it for a reason of its own: the worker goes on, the lease expires and is recorded as lost."""

    async def release(_batch):
        raise psycopg.errors.IndexCorrupted

    one, two = delivery(), delivery()
    flights = Flights(
        unsettled=deque(), unstarted=deque([one, two]), recording=0, room_changed=asyncio.Event(),
        room_wanted=asyncio.Event(),
    )  # fmt: skip
    assert await settle.release_once(SimpleNamespace(release=release), flights, lanes()) == []
    assert flights.idle
    assert flights.room_changed.is_set()
