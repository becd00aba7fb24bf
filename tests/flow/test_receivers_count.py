"""What receivers count themselves: never more at once than the limit, whatever the endpoint does and whoever owns it.

Reads: the requests that are open at the receiver, by path. Writes: events; shards change owners meanwhile.
Guarantee: concurrency and rate stay within the stated limits over claims, hand-overs, changes of owner and recoveries.
If it is wrong: a customer's server is flooded by us.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import AsyncExitStack, contextmanager
from decimal import Decimal

import pytest

from outbox_worker.lane import START_LIMIT
from tests.support.factories import SHORT, make_endpoint, publish
from tests.support.receiver import reset, status
from tests.support.waiting import eventually, pause

LIMIT = 3
RATE = 10
OWNERS = 3


class Counting:
    """Behaviours that count, by path, what is open, what was open at most, and what was answered."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.starts: dict[str, list[float]] = defaultdict(list)
        self.above: list[
            tuple[str, int, int]
        ] = []  # more at once than a new endpoint's limit and one an answer

    @contextmanager
    def counted(self, exchange):
        path = exchange.request.path
        self.open[path] += 1
        self.most[path] = max(self.most[path], self.open[path])
        self.starts[path].append(exchange.request.at)
        if self.open[path] > START_LIMIT + self.answered[path]:
            self.above.append((path, self.open[path], self.answered[path]))
        try:
            yield
        finally:
            self.open[path] -= 1

    def lasting(self, seconds: float, then):
        async def behave(exchange):
            with self.counted(exchange):
                await pause(seconds)
            self.answered[exchange.request.path] += 1
            return await then(exchange)

        return behave

    async def hanging(self, exchange):
        with self.counted(exchange):
            await exchange.reader.read()


def owners(shop) -> set[str]:
    return {row[0] for row in shop.execute("select name from outbox.workers where shards > 0").fetchall()}


@pytest.mark.parametrize("slow_ms", [5000.0, 20.0])
async def test_no_receiver_sees_more_at_once_than_its_limit_while_shards_change_owners(
    shop, receiver, working, monkeypatch, slow_ms
):
    """Quick, slow, failing, hanging, broken and rated endpoints; a second worker comes, the first leaves."""
    monkeypatch.setattr("outbox_worker.limits.SLOW_MS", slow_ms)
    counting = Counting()
    kinds = {
        "quick": counting.lasting(0.002, status()),
        "slow": counting.lasting(0.06, status()),
        "failing": counting.lasting(0.005, status(500)),
        "hanging": counting.hanging,
        "broken": counting.lasting(0.005, reset()),
        "rated": counting.lasting(0.005, status()),
        "free": counting.lasting(0.03, status()),
    }
    for kind, behaviour in kinds.items():
        for number in range(4):
            receiver.script(f"/{kind}{number}", behaviour)
            options = {} if kind == "free" else {"max_in_flight": LIMIT}
            if kind == "rated":
                options["max_per_second"] = Decimal(RATE)
            make_endpoint(shop, f"{receiver.url}{kind}{number}", retry_schedule=SHORT, **options)

    async def publish_some(count: int) -> None:
        for _ in range(count):
            publish(shop)
            await pause(0.02)

    async with AsyncExitStack() as second:
        async with working(name="one", request_timeout_seconds=0.5):
            await publish_some(40)
            await second.enter_async_context(working(name="two", request_timeout_seconds=0.5))
            await eventually(lambda: owners(shop) == {"one", "two"})
            await publish_some(40)
        await eventually(lambda: owners(shop) == {"two"})
        await publish_some(20)
        await eventually(lambda: all(counting.answered[f"/{kind}0"] >= 100 for kind in ("quick", "slow")), 30)
    assert shop.execute("select count(*) from outbox.lost_leases").fetchone() == (0,)
    limited = {path: most for path, most in counting.most.items() if not path.startswith("/free")}
    assert max(limited.values()) == limited["/slow0"] == limited["/hanging0"] == LIMIT
    assert counting.above == []
    for number in range(4):
        starts = counting.starts[f"/rated{number}"]
        seconds = starts[-1] - starts[0]
        assert len(starts) > RATE * seconds / 2  # or it was not the rate that held it
        assert len(starts) <= RATE * (seconds + 0.1) + RATE / 10 + 1 + OWNERS
