"""A lock that somebody holds for long stops the work, and nothing else comes of it."""

from __future__ import annotations

from outbox_worker.database import open_pool
from outbox_worker.store import Store
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.waiting import eventually

WAITING = (
    "select query_start from pg_stat_activity where wait_event_type = 'Lock' and query like '-- try_filters%'"
)


async def test_a_filter_is_not_blamed_for_a_lock_on_the_events(shop, connect, receiver, working):
    """A fan-out that waits for a lock sets no filter aside: the event is delivered when the lock is gone."""
    endpoint, _ = make_endpoint(shop, receiver.url, filter="$.n == 1")
    event_id = publish(shop, payload={"n": 1})
    blocker = connect()
    blocker.execute("begin; lock table outbox.events in access exclusive mode")
    tries = set()

    def tried_twice():
        tries.update(shop.execute(WAITING).fetchall())
        return len(tries) >= 2

    async with working(database_timeout_seconds=1.5):
        await eventually(tried_twice, timeout=20)
        blocker.execute("rollback")
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    found = shop.execute(
        "select filter_error from outbox.endpoints where endpoint_id = %s", [endpoint]
    ).fetchone()
    assert found == (None,)


async def test_a_filter_is_not_blamed_for_a_queue_that_is_slow_to_read(shop, connect, receiver, dsn_of):
    """Which events it is tried on is read before; the trial itself does not wait for the queue."""
    endpoint, _ = make_endpoint(shop, receiver.url, filter="$.n == 1")
    publish(shop, payload={"n": 1})
    async with open_pool(dsn_of("worker_login"), poll_only=False, deadline=4.0, name="it", size=2) as pool:
        store = Store(pool, lease_seconds=60, deadline=4.0)
        rows = await store.rows("filtered_endpoints", batch=10)
        assert [row[0] for row in rows] == [endpoint]
        blocker = connect()
        blocker.execute("begin; lock table outbox.fan_out_queue in access exclusive mode")
        assert await store.filters_end_in_time([endpoint], [(row[1], row[2]) for row in rows])
        blocker.execute("rollback")
