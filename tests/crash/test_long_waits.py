"""An outage of the database ends with the outage: no pause grows out of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import outbox_worker.upkeep
from outbox_worker.model import FannedOut, FanOutAsk
from outbox_worker.presence import Presence
from outbox_worker.reader import SWEEP_PAUSE_MOST, Reader
from tests.support.waiting import eventually


async def test_a_sweep_that_took_an_hour_is_followed_by_the_next_within_half_a_lease(monkeypatch):
    """A sweep that waited for the database must not make the next one wait twenty times as long."""
    clock, swept, stopping = [0.0], [], asyncio.Event()

    async def sweep(*_):
        clock[0] += 3600
        swept.append(clock[0])
        return 0

    monkeypatch.setattr(outbox_worker.upkeep, "sweep", sweep)
    monkeypatch.setattr(outbox_worker.upkeep, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    presence = Presence(name="test", version="0", seconds=0.05)
    presence.shards.add(1)
    wanted = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outbox_worker.upkeep.sweep_loop(None, None, None, presence, wanted, stopping))
        await eventually(lambda: len(swept) >= 2, timeout=5)
        stopping.set()


def test_the_queue_is_read_from_its_start_again_soon_after_an_outage():
    """Events that committed out of order are found within seconds, however long one look at the queue took."""
    reader = Reader()
    from_the_start = FanOutAsk(fair=False, mark=0, batch=400)
    reader.learn(from_the_start, FannedOut([], [], [], {}, None), seconds=3600.0)
    assert reader.sweep_pause <= SWEEP_PAUSE_MOST
