"""Order where it is asked for, with real transactions, workers and a receiver.

Reads: what the receiver got, in turn. Writes: events from transactions that are open at the same time.
Guarantee: an event arrives after every event of its key that was committed before its own transaction began.
If it is wrong: a customer's order is paid before it was placed.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import psycopg

from tests.support.factories import SHORT, make_endpoint, publish, state_of
from tests.support.receiver import hold, status
from tests.support.waiting import eventually, pause

PUBLISH = "select outbox.publish('ws_1', 'message.received', %s::jsonb, ordering_key => %s, priority => %s::smallint)"


@dataclass
class Shop:
    """Transactions on a clock that counts: when each began, and when its commit had been answered."""

    dsn: str
    clock: int = 0
    began: dict[int, int] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def buy(self, chance: random.Random, count: int, key: str) -> None:
        """One session's transactions, one after the other; each is open for a while before and after it publishes."""
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            for _ in range(count):
                number = self.tick()
                self.began[number], self.keys[number] = number, key
                await connection.execute("select 1")  # open from here on
                await pause(chance.random() * 0.02)
                await connection.execute(
                    PUBLISH, [json.dumps({"n": number}), key, chance.choice([0, 1, 1, 2])]
                )
                await pause(chance.random() * 0.04)
                await connection.commit()
                self.committed[number] = self.tick()


def numbers(receiver) -> list[int]:
    return [json.loads(request.body)["data"]["n"] for request in receiver.requests]


async def test_no_event_overtakes_one_that_was_committed_before_its_own_transaction_began(
    shop, receiver, working, dsn_of
):
    """Open transactions of one key commit in any order, of any priority; two workers; every seventh request fails."""
    make_endpoint(shop, receiver.url, ordered=True, retry_schedule=SHORT)
    seen = 0

    async def one_in_seven_fails(exchange):
        nonlocal seen
        seen += 1
        return await status(500 if seen % 7 == 0 else 200)(exchange)

    receiver.script("/", one_in_seven_fails)
    publishers = Shop(dsn_of("app_login"))
    async with working(name="one"), working(name="two"), asyncio.TaskGroup() as sessions:
        for session in range(8):
            sessions.create_task(publishers.buy(random.Random(session), 20, "ab"[session % 2]))
        await eventually(lambda: len(publishers.committed) == 160, 30)
        await eventually(
            lambda: (
                shop.execute("select count(*) from outbox.deliveries where state = 'delivered'").fetchone()[0]
                == 160
            ),
            30,
        )
    arrived = {number: place for place, number in enumerate(numbers(receiver))}  # the last time: it was taken
    assert arrived.keys() == publishers.committed.keys()
    pairs = inverted = 0
    for first, ended in publishers.committed.items():
        for second, began in publishers.began.items():
            if publishers.keys[first] != publishers.keys[second]:
                continue
            inverted += first < second and ended > publishers.committed[second]
            if ended < began:
                pairs += 1
                assert arrived[first] < arrived[second]
    assert pairs > 500
    assert inverted > 20  # and some did commit in another order than they began


async def test_an_event_waits_for_one_of_its_key_that_was_committed_before_and_is_not_fanned_out(
    shop, connect, receiver, working
):
    """The earlier one's place in the queue is held by a session; later ones of other keys pass, of its own key none."""
    make_endpoint(shop, receiver.url, ordered=True)
    first = publish(shop, payload={"n": 1}, ordering_key="a")
    holder = connect()
    holder.execute("begin")
    holder.execute("select from outbox.fan_out_queue where event_id = %s for update", [first])
    async with working():
        second = publish(shop, payload={"n": 2}, ordering_key="a", priority=0)
        await eventually(lambda: state_of(shop, second) == "pending")
        for number in (
            3,
            4,
        ):  # a round of the keys that began after the second was there looked at its key too
            other = publish(shop, payload={"n": number}, ordering_key="b")
            await eventually(lambda other=other: state_of(shop, other) == "delivered")
        assert numbers(receiver) == [3, 4]
        holder.execute("rollback")
        await eventually(lambda: state_of(shop, second) == "delivered")
    assert numbers(receiver) == [3, 4, 1, 2]


async def test_a_transaction_that_commits_late_holds_nobody_back_and_waits_for_what_is_on_its_way(
    shop, receiver, working, connect
):
    """It published first and committed last: the second did not wait for it, it waits for the second's answer."""
    make_endpoint(shop, receiver.url, ordered=True)
    answered = asyncio.Event()
    receiver.script("/", hold(answered), status(200))
    app = connect("app_login")
    async with working():
        app.execute("begin")
        app.execute(PUBLISH, [json.dumps({"n": 1}), "a", 1])
        publish(shop, payload={"n": 2}, ordering_key="a")
        await eventually(lambda: numbers(receiver) == [2])
        app.execute("commit")
        await eventually(
            lambda: shop.execute("select count(*) from outbox.open_deliveries").fetchone()[0] == 2
        )
        other = publish(shop, payload={"n": 3}, ordering_key="b")
        await eventually(lambda: state_of(shop, other) == "delivered")
        assert numbers(receiver) == [2, 3]
        answered.set()
        await eventually(lambda: numbers(receiver) == [2, 3, 1])
        last = publish(shop, payload={"n": 4}, ordering_key="a")
        await eventually(lambda: state_of(shop, last) == "delivered")
    assert numbers(receiver) == [2, 3, 1, 4]


async def test_events_of_one_key_go_one_at_a_time_and_other_keys_beside_it(shop, receiver, working):
    """By the receiver's own count: never two of a key, and several keys at once."""
    make_endpoint(shop, receiver.url, ordered=True)
    now: dict[str, int] = {}
    most, most_keys = 0, 0

    async def counting(exchange):
        nonlocal most, most_keys
        key = json.loads(exchange.request.body)["data"]["key"]
        now[key] = now.get(key, 0) + 1
        most, most_keys = max(most, now[key]), max(most_keys, sum(map(bool, now.values())))
        await pause(0.02)
        now[key] -= 1
        return await status()(exchange)

    receiver.script("/", counting)
    async with AsyncExitStack() as workers:
        for name in ("one", "two"):
            await workers.enter_async_context(working(name=name))
        ids = [publish(shop, payload={"key": key}, ordering_key=key) for _ in range(10) for key in "abcd"]
        await eventually(lambda: all(state_of(shop, event_id) == "delivered" for event_id in ids), 30)
    assert (most, most_keys) == (1, 4)


async def test_a_failing_event_that_is_older_than_ordered_skip_after_no_longer_holds_its_key_back(
    shop, receiver, working
):
    """Before that its key waits for it; then the later ones go, in order, and it is retried beside them."""
    endpoint, _ = make_endpoint(shop, receiver.url, ordered=True)
    receiver.script("/", status(500), status(200))
    async with working():
        bad = publish(shop, payload={"n": 1}, ordering_key="a")
        await eventually(lambda: len(receiver.requests) == 1)
        later = [publish(shop, payload={"n": number}, ordering_key="a") for number in (2, 3, 4)]
        await eventually(lambda: all(state_of(shop, event_id) == "pending" for event_id in later))
        for hours, expected in (("23 hours", [1]), ("25 hours", [1, 2, 3, 4])):
            shop.execute(
                "update outbox.open_deliveries set created_at = now() - %s::interval where event_id = %s",
                [hours, bad],
            )
            other = publish(shop, payload={"n": 9}, ordering_key="b")  # a round that begins now
            await eventually(lambda other=other: state_of(shop, other) == "delivered")
            if hours == "25 hours":
                await eventually(lambda: state_of(shop, later[-1]) == "delivered")
            assert [number for number in numbers(receiver) if number != 9] == expected
        assert shop.execute(
            "select state, attempt_count from outbox.deliveries where event_id = %s and endpoint_id = %s",
            [bad, endpoint],
        ).fetchone() == ("pending", 1)
        shop.execute("update outbox.deliveries set next_attempt_at = now() where event_id = %s", [bad])
        await eventually(lambda: state_of(shop, bad) == "delivered")
    assert [number for number in numbers(receiver) if number != 9] == [1, 2, 3, 4, 1]
