"""What a sweep does to the low-water marks: late work is found, and nothing else sends a claim back to the start.

Reads and writes: open deliveries of one endpoint, by the worker's own statements.
Guarantee: while an old snapshot keeps what is dead, a claim that went back to the start would walk all of it.
If it is wrong: throughput under an old snapshot falls with every delivery.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from outbox_worker.claim import note_marks
from outbox_worker.database import open_pool
from outbox_worker.lane import ALREADY, NEVER
from outbox_worker.limits import Lanes
from outbox_worker.store import Store
from outbox_worker.sweep import COMMITTED_WITHIN, sweep_once
from tests.support.factories import make_endpoint

WAITING = """
insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)
select e.event_id, %s, e.workspace_id, %s, %s from e
"""
EVENT = "with e as (insert into outbox.events (workspace_id, event_type, payload) values ('ws_1', 'message.received', '{}') returning event_id, workspace_id)"


@pytest.fixture
async def sweeping(shop, receiver, dsn_of):
    """A sweep of one endpoint, whose lane has read up to now."""
    endpoint_id, _ = make_endpoint(shop, receiver.url)
    shard = shop.execute("select shard from outbox.endpoints").fetchone()[0]
    lanes = Lanes(slots=10, endpoint_limit=8, host_limit=100, suspect_share=0.2)
    lane = lanes.lane(endpoint_id)
    lane.shard = shard
    flights = SimpleNamespace(room_changed=asyncio.Event(), on_point=lambda _point: None)

    def wait(due: datetime, priority: int = 1) -> None:
        with shop.transaction():
            shop.execute("set local session_replication_role = replica")
            shop.execute(EVENT + WAITING, [endpoint_id, priority, due])

    async with open_pool(dsn_of("worker_login"), poll_only=False, deadline=4.0, name="it", size=2) as pool:
        store = Store(pool, lease_seconds=60, deadline=4.0)
        await store.register("it", "1", 10, 60.0)

        async def sweep(*, hinted: bool = False) -> None:
            await sweep_once(store, flights, lanes, [shard], hinted=hinted)

        yield SimpleNamespace(
            lane=lane, lanes=lanes, store=store, wait=wait, sweep=sweep, now=datetime.now(UTC)
        )


async def test_a_claim_while_the_sweep_looks_is_not_sent_back(sweeping, monkeypatch):
    """What the look saw waiting is claimed before it returns: the mark is past it, and it is not late."""
    s = sweeping
    s.lane.marks[1] = s.now - timedelta(seconds=60)
    s.wait(s.now - timedelta(seconds=30))
    s.wait(s.now - timedelta(seconds=10))
    look = s.store.find_due

    async def look_and_claim(*asked):
        rows = await look(*asked)
        note_marks(s.lanes, await s.store.claim([(s.lane, 8)]))
        return rows

    monkeypatch.setattr(s.store, "find_due", look_and_claim)
    await s.sweep()
    assert s.lane.marks[1] == s.now - timedelta(seconds=10)


async def test_work_that_was_committed_late_behind_the_mark_is_read_from_where_it_lies(sweeping):
    """Only its own priority goes back, and no further."""
    s = sweeping
    s.lane.marks = [s.now] * 3
    late = s.now - timedelta(minutes=5)
    s.wait(late)
    s.wait(s.now + timedelta(hours=1), priority=2)
    await s.sweep()
    assert s.lane.marks == [s.now, late, s.now]
    assert len(await s.store.claim([(s.lane, 8)])) == 1


@pytest.mark.parametrize("hinted", [True, False], ids=["hinted", "of all"])
async def test_a_hint_is_followed_to_what_was_committed_within_seconds(sweeping, hinted):
    """A hinted sweep passes over what is older; the sweep of all that comes each second does not."""
    s = sweeping
    s.lane.marks[1] = s.now
    s.wait(s.now - COMMITTED_WITHIN - timedelta(seconds=1))
    await s.sweep(hinted=hinted)
    assert s.lane.due_at == (NEVER if hinted else ALREADY)
    just_now = s.now - COMMITTED_WITHIN / 2
    s.wait(just_now)
    await s.sweep(hinted=hinted)
    assert s.lane.due_at == ALREADY
    assert s.lane.marks[1] <= just_now
