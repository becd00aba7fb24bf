"""The fan-out's loop: what happens while the look for places runs beside the statement.

Reads: lanes. Writes: nothing; the store is a stand-in for the moments at which statements are at the database.
Guarantee: a slow look keeps no room from claims, and a round for places that are empty by now is no reason to sleep.
If it is wrong: due work waits for a poll, with room for it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import psycopg
import pytest

from outbox_worker import reader
from outbox_worker.fan_out import HANDED_OVER_MOST, fan_out_loop, fan_out_once
from outbox_worker.model import FannedOut
from outbox_worker.reader import Reader
from outbox_worker.wakeup import Listener, WakeUps
from tests.support.lanes import lanes

POLL = 60.0


def took(*events: tuple[int, int, int, int]) -> FannedOut:
    return FannedOut(list(events), [], [], {}, datetime.now(UTC))


@pytest.fixture
def flights():
    return SimpleNamespace(
        free=1000, claiming=0, handing_over=0, draining=False, lanes=lanes(slots=1000),
        room_changed=asyncio.Event(), room_wanted=asyncio.Event(), start=lambda _leases, _sent: None,
    )  # fmt: skip


async def test_the_room_of_a_fan_out_is_the_claims_again_while_the_look_beside_it_is_under_way(flights):
    """The look may take long, past what an old snapshot keeps."""
    ours, looking, end = Reader(), asyncio.Event(), asyncio.Event()
    ours.fair = True
    ours.fresh[1, 5] = None

    async def find_places(_starts, _looks):
        looking.set()
        await end.wait()
        return [[], []]

    async def fan_out(_ask, _room):
        assert flights.handing_over
        await looking.wait()
        return took((1, 5, 1, 1))

    store = SimpleNamespace(find_places=find_places, fan_out=fan_out)
    round_ = asyncio.create_task(fan_out_once(store, flights, flights.lanes, set(), ours))
    await looking.wait()
    async with asyncio.timeout(POLL / 4):
        while flights.handing_over:  # noqa: ASYNC110  (ready callbacks, no clock)
            await asyncio.sleep(0)
    assert not round_.done()
    end.set()
    assert await round_ == 1


async def test_an_empty_fair_round_is_followed_by_a_look_at_all_that_waits(flights):
    """A look told of places that the round beside it emptied: without LISTEN the loop would sleep until the next poll."""
    stopping, asks = asyncio.Event(), []

    async def find_places(_starts, _looks):
        return [[(1, 5)], []]

    async def fan_out(ask, _room):
        asks.append(ask.fair)
        if len(asks) == 1:
            return took(*[(seq, 5, 1, 1) for seq in range(ask.batch)])
        if len(asks) > 2:
            stopping.set()
        return took()

    store = SimpleNamespace(find_places=find_places, fan_out=fan_out)
    async with asyncio.timeout(POLL / 4):
        await fan_out_loop(
            store, flights, flights.lanes, set(), StopsAfter(stopping, asks), asyncio.Queue(), POLL, stopping
        )
    assert asks == [False, True, False]


class StopsAfter(WakeUps):
    """Polls, and says so if it is asked to wait before the third look."""

    def __init__(self, stopping, asks):
        self.stopping, self.asks = stopping, asks

    async def wait(self, seconds):
        self.stopping.set()
        return await super().wait(0 * seconds)


async def test_no_more_is_handed_over_at_once_than_stays_in_the_processors_caches(flights):
    """However many slots are free."""
    asked = []

    async def fan_out(_ask, room):
        asked.append(room.total)
        return took()

    store = SimpleNamespace(fan_out=fan_out)
    await fan_out_once(store, flights, flights.lanes, set(), Reader())
    assert asked == [HANDED_OVER_MOST]


async def test_the_look_between_asking_for_bells_and_a_sleep_is_from_the_start(flights, monkeypatch):
    """What committed late lies behind the mark, and its publisher rang nobody."""
    monkeypatch.setattr(reader, "LATE_SECONDS", 0.0)
    stopping, seen = asyncio.Event(), []

    class Armed(StopsAfter):
        async def arm(self):
            seen.append("armed")
            return True

    async def fan_out(ask, _room):
        seen.append(ask.mark)
        return took((10 * len(seen), 0, 0, 1)) if len(seen) < 5 else took()

    store = SimpleNamespace(fan_out=fan_out)
    async with asyncio.timeout(POLL / 4):
        await fan_out_loop(
            store, flights, flights.lanes, set(), Armed(stopping, seen), asyncio.Queue(), POLL, stopping
        )
    assert seen[-2:] == ["armed", 0]
    assert seen[-3] > 0


@pytest.mark.parametrize(
    "error", [TimeoutError(), psycopg.errors.QueryCanceled(), psycopg.errors.IndexCorrupted()]
)
async def test_a_look_for_places_that_ends_with_an_error_stops_no_fan_out_and_is_not_repeated_at_once(
    flights, error
):
    """Past what an old snapshot keeps it may take too long: the rounds are plain meanwhile, what waits is fanned out."""
    ours, looks, asks = Reader(), 0, []

    async def find_places(_starts, _looks):
        nonlocal looks
        looks += 1
        raise error

    async def fan_out(ask, _room):
        asks.append(ask)
        return took(
            *[(ask.mark + seq, 5, 1, 1) for seq in range(1, ask.batch + 1)]
        )  # as many as it asked for

    store = SimpleNamespace(find_places=find_places, fan_out=fan_out)
    async with asyncio.timeout(POLL / 4):
        for _ in range(5):
            assert await fan_out_once(store, flights, flights.lanes, set(), ours)
    assert (looks, [ask.fair for ask in asks]) == (1, [False] * 5)


async def test_places_that_are_known_are_served_though_the_look_beside_them_fails(flights):
    ours, asks = Reader(), []
    ours.fair = True
    ours.fresh[1, 5] = None

    async def find_places(_starts, _looks):
        raise psycopg.errors.QueryCanceled

    async def fan_out(ask, _room):
        asks.append(ask.fair)
        return took((1, 5, 1, 1))

    store = SimpleNamespace(find_places=find_places, fan_out=fan_out)
    async with asyncio.timeout(POLL / 4):
        counts = [await fan_out_once(store, flights, flights.lanes, set(), ours) for _ in range(3)]
    assert (counts, asks) == ([1, 1, 1], [True, True, False])


async def test_while_nobody_can_listen_the_fan_out_polls(flights):
    """The role's connections are all taken, say: the pool has its own, only hints are gone."""
    stopping, looks = asyncio.Event(), 0

    async def fan_out(_ask, _room):
        nonlocal looks
        looks += 1
        if looks >= 6:
            stopping.set()
        return took((looks, 0, 0, 1)) if looks % 2 else took()

    deaf = Listener("host=127.0.0.1 port=1 user=nobody", "test", deadline=5.0)
    store = SimpleNamespace(fan_out=fan_out)
    async with asyncio.timeout(POLL / 4):
        await fan_out_loop(store, flights, flights.lanes, set(), deaf, asyncio.Queue(), 0.05, stopping)
    assert looks == 6
    assert not deaf.listening


@pytest.mark.parametrize(
    ("error", "events_fault"),
    [
        (psycopg.errors.CheckViolation(), True),
        (psycopg.errors.InvalidTextRepresentation(), True),
        (psycopg.errors.InsufficientPrivilege(), False),
        (psycopg.errors.UndefinedColumn(), False),
        (psycopg.errors.FeatureNotSupported(), False),  # "cached plan must not change result type"
    ],
)
async def test_an_event_is_set_aside_only_for_an_error_that_its_content_can_cause(
    flights, error, events_fault
):
    """A statement that fails whatever it reads would set aside all that waits, one after the other."""
    ours, aside = Reader(), []

    async def fan_out(_ask, _room):
        raise error

    async def call(function, _text):
        aside.append(function)

    store = SimpleNamespace(fan_out=fan_out, call=call)
    counts = [await fan_out_once(store, flights, flights.lanes, set(), ours) for _ in range(12)]
    assert bool(aside) is events_fault
    assert any(counts) is events_fault  # with nothing taken, the loop rests until the next poll
