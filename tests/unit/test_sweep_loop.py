"""The sweep's loop: hints do not put the full sweep off, and a look that fails holds up no other.

Reads: nothing. Writes: nothing; the database is a stand-in for the moments at which its answers come.
Guarantee: everything owned is swept once a second or, if that is long, a twentieth of the time, whatever is hinted.
If it is wrong: expired leases and what was committed late wait without bound while others' hints come.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psycopg
import pytest

from outbox_worker.upkeep import SHARDS_AT_ONCE, sweep_loop
from outbox_worker.wakeup import WakeUp
from tests.support.lanes import lanes

MOST = 20.0


@pytest.fixture
def presence():
    return SimpleNamespace(shards=set(range(2 * SHARDS_AT_ONCE)), seconds=30.0, wanted=asyncio.Event())


@pytest.fixture
def flights():
    return SimpleNamespace(room_changed=asyncio.Event(), on_point=lambda _name: None)


class Looks:
    """A database that answers what is asked of it, and remembers it; the first shards' looks may fail."""

    def __init__(self, stopping, rounds, error=None):
        self.stopping, self.rounds, self.error = stopping, rounds, error
        self.asked: list[tuple[int, ...]] = []

    async def find_due(self, shards, _marks):
        self.asked.append(tuple(shards))
        if shards[-1] == 2 * SHARDS_AT_ONCE - 1:
            self.rounds -= 1
            if not self.rounds:
                self.stopping.set()
        if self.error and 0 in shards:
            raise self.error
        return []


async def test_hints_do_not_put_the_full_sweep_off(presence, flights):
    """One for another worker's shards comes before each second is over."""
    stopping, wanted = asyncio.Event(), asyncio.Queue()
    store = Looks(stopping, 2)

    async def hint():
        while not stopping.is_set():
            wanted.put_nowait(WakeUp(frozenset({63})))
            await asyncio.sleep(0.2)  # hints that come more often than the sweep is due

    async with asyncio.timeout(MOST), asyncio.TaskGroup() as tasks:
        tasks.create_task(hint())
        await sweep_loop(store, flights, lanes(), presence, wanted, stopping)
    assert len(store.asked) == 4


@pytest.mark.parametrize(
    "error",
    [psycopg.errors.QueryCanceled(), TimeoutError(), psycopg.errors.IndexCorrupted(), psycopg.DataError()],
)
async def test_a_look_that_fails_holds_up_neither_other_shards_nor_the_next_sweep(presence, flights, error):
    stopping = asyncio.Event()
    store = Looks(stopping, 2, error)
    async with asyncio.timeout(MOST):
        await sweep_loop(store, flights, lanes(), presence, asyncio.Queue(), stopping)
    first, second = tuple(range(SHARDS_AT_ONCE)), tuple(range(SHARDS_AT_ONCE, 2 * SHARDS_AT_ONCE))
    assert store.asked == [first, second] * 2
