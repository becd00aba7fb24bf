"""The rules about crashes that no other test has by its name: what is on disk before a byte is sent, and after."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

import outbox_worker.claim
from outbox_worker import database, telemetry, worker
from outbox_worker.errors import ConfigError
from outbox_worker.flights import Flights
from outbox_worker.limits import Lanes
from outbox_worker.model import Failure, Outcome
from outbox_worker.store import Store
from outbox_worker.wakeup import open_wakeups
from tests.support.factories import SHORT, make_endpoint, publish, state_of, worker_settings
from tests.support.receiver import hold, status
from tests.support.waiting import eventually

OK = Outcome(200, None, "", (), b"", 1.0)


def flights(**changes):
    lanes = Lanes(slots=10, endpoint_limit=8, host_limit=100, suspect_share=0.2)
    known = {"lease_seconds": 60.0, "margin_seconds": 5.0, "presence_until": lambda: 1e12, **changes}
    return Flights(lanes=lanes, book=None, send=None, **known)


async def test_a_claim_is_committed_before_a_byte_is_sent(shop, receiver, working):
    """Another session sees the lease when the request begins: handed over by the fan-out, and claimed as a retry."""
    make_endpoint(shop, receiver.url, retry_schedule=SHORT)
    seen = []

    async def send(_request):
        seen.append(
            shop.execute(
                "select lease_expires_at > now(), attempt_count from outbox.open_deliveries"
            ).fetchone()
        )
        return OK if len(seen) == 3 else Outcome(None, Failure.TIMEOUT, "timeout", (), b"", 1.0)

    async with working(send=send):
        event_id = publish(shop)
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert seen == [(True, 0), (True, 1), (True, 2)]


def test_a_lease_is_at_least_four_times_the_longest_deadline(vault_key):
    """Nothing extends a lease: settings that would need it are refused."""
    with pytest.raises(ValidationError, match="less than 4 times"):
        worker_settings("postgresql://x/y", vault_key, lease_seconds=10.0, request_timeout_seconds=2.6)
    worker_settings("postgresql://x/y", vault_key, lease_seconds=10.4, request_timeout_seconds=2.6)


def test_a_request_starts_only_with_its_deadline_and_the_time_to_record_it_left():
    """Of the lease and of the worker's presence: 10 s of deadline and 5 s of margin end a lease of 60 s at 45 s."""
    endpoint = SimpleNamespace(timeout_seconds=10.0)
    assert flights().may_start(endpoint, now=145.0, claimed_before=100.0)
    assert not flights().may_start(endpoint, now=145.1, claimed_before=100.0)
    assert flights(presence_until=lambda: 130.0).may_start(endpoint, now=115.0, claimed_before=100.0)
    assert not flights(presence_until=lambda: 130.0).may_start(endpoint, now=115.1, claimed_before=100.0)


async def test_a_lease_is_measured_from_before_its_claim_was_sent(monkeypatch):
    """By the monotonic clock: a claim whose answer took 30 s has used up 30 s of its lease."""
    clock, begun = [100.0], []
    monkeypatch.setattr(outbox_worker.claim, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def claim(_asks):
        clock[0] += 30
        return []

    some = SimpleNamespace(
        free=5, handing_over=0, claiming=0, start=lambda _leases, claimed_before: begun.append(claimed_before)
    )
    lanes = SimpleNamespace(
        plan=lambda *_: [(SimpleNamespace(keyed=False, endpoint_id=1, claim_failures=0), 5)],
        claimed=lambda *_: None,
    )
    await outbox_worker.claim.claim_once(SimpleNamespace(claim=claim), some, lanes)
    assert begun == [100.0]


async def test_a_settlement_is_one_commit(shop, receiver, working):
    """Attempt, new state, next attempt, the endpoint's end and the event about it carry one transaction's mark."""
    make_endpoint(shop, receiver.url + "again", retry_schedule=[timedelta(hours=1)] * 7)
    gone, _ = make_endpoint(shop, receiver.url + "gone")
    make_endpoint(shop, receiver.url + "told", ["endpoint.disabled"])
    receiver.script("/again", status(500))
    receiver.script("/gone", status(410))
    marks = {
        "retry": "select a.xmin::text, d.xmin::text from outbox.recorded_attempts a join outbox.open_deliveries d using (event_id, endpoint_id)"
        " where d.attempt_count = 1 and d.next_attempt_at > now() + interval '59 minutes'",
        "gone": "select a.xmin::text, d.xmin::text, n.xmin::text, e.xmin::text from outbox.recorded_attempts a"
        " join outbox.finished_deliveries d using (event_id, endpoint_id) join outbox.endpoints n using (endpoint_id)"
        " join outbox.events e on e.event_type = 'endpoint.disabled' where a.status = 410 and n.state = 'disabled'",
    }
    async with working():
        publish(shop)
        for text in marks.values():
            row = await eventually(lambda text=text: shop.execute(text).fetchone())
            assert len(set(row)) == 1
    assert shop.execute("select state from outbox.endpoints where endpoint_id = %s", [gone]).fetchone() == (
        "disabled",
    )


async def test_after_the_reaper_the_last_token_may_still_settle(shop, receiver, working, dsn_of):
    """An expired lease is recorded as lost and keeps its token: nobody has claimed since, so the result counts."""
    endpoint, _ = make_endpoint(shop, receiver.url)
    answer = asyncio.Event()
    receiver.script("/", hold(answer))
    async with working():
        event_id = publish(shop)
        await eventually(lambda: receiver.requests)
        shop.execute("select outbox.pause_endpoint(%s)", [endpoint])  # nobody claims again
        shop.execute("update outbox.open_deliveries set lease_expires_at = now() - interval '1 s'")
        async with database.open_pool(
            dsn_of("worker_login"), poll_only=False, deadline=4.0, name="other"
        ) as pool:
            await Store(pool, lease_seconds=10, deadline=4.0).reap([endpoint])
        assert shop.execute("select count(*) from outbox.lost_leases").fetchone() == (1,)
        answer.set()
        await eventually(lambda: state_of(shop, event_id) == "delivered")
    assert len(receiver.requests) == 1
    assert shop.execute("select count(*) from outbox.late_results").fetchone() == (0,)


async def test_a_second_signal_exits_at_once(shop, receiver, dsn_of, vault_key):
    """The first SIGTERM waits for a request under way, the second does not."""
    make_endpoint(shop, receiver.url)
    receiver.script("/", hold(asyncio.Event()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    environment |= {
        "OUTBOX_DATABASE_URL": dsn_of("worker_login"),
        "OUTBOX_VAULT_KEY": vault_key[0],
        "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        "OUTBOX_DRAIN_SECONDS": "600",
        "OUTBOX_LEASE_SECONDS": "240",
        "OUTBOX_REQUEST_TIMEOUT_SECONDS": "60",
    }
    words = [sys.executable, "-m", "outbox_worker", "run"]
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=asyncio.subprocess.PIPE)
    try:
        publish(shop)
        await eventually(lambda: receiver.requests, timeout=30)
        process.terminate()
        async with asyncio.timeout(30):
            while b"worker.draining" not in (line := await process.stdout.readline()):
                assert line, "the worker ended before the second signal"
            process.terminate()
            assert await process.wait() == 128 + signal.SIGTERM
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_nothing_polls_by_id_greater_than_the_last_one(shop, connect, receiver, working):
    """Events that commit out of order, and numbers that come again after a failover, are delivered all the same."""
    make_endpoint(shop, receiver.url)
    slow = connect()
    async with working():
        slow.execute("begin")
        early = publish(slow)
        late = publish(shop)
        await eventually(lambda: state_of(shop, late) == "delivered")
        slow.execute("commit")
        await eventually(lambda: state_of(shop, early) == "delivered")
        shop.execute("alter sequence outbox.fan_out_queue_seq_seq restart")
        again = publish(shop)
        await eventually(lambda: state_of(shop, again) == "delivered")


async def test_a_lost_database_is_said_once_and_waited_for_with_growing_jittered_pauses(monkeypatch):
    """Twenty failures are one line, the end of them another; no pause is longer than 3 s."""
    said, pauses, left = [], [], [20]
    monkeypatch.setattr(telemetry, "database_lost", lambda _error: said.append("lost"))
    monkeypatch.setattr(telemetry, "database_recovered", lambda _seconds: said.append("recovered"))

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(database, "asyncio", SimpleNamespace(sleep=sleep))

    async def call():
        left[0] -= 1
        if left[0] >= 0:
            raise database.psycopg.OperationalError("the server is gone")
        return "back"

    assert await database.while_database_returns(call) == "back"
    assert said == ["lost", "recovered"]
    assert pauses[0] <= 0.075 < max(pauses) <= 3
    assert len(set(pauses)) == len(pauses)


async def test_every_connection_has_keepalives_and_a_bound_for_what_is_not_acknowledged(shop, dsn_of):
    """The pool's and the one that listens: a half-open one is noticed by the kernel."""
    dsn = dsn_of("worker_login")
    async with (
        database.open_pool(dsn, poll_only=False, deadline=4.0, name="it") as pool,
        open_wakeups(dsn, poll_only=False, name="it", deadline=4.0) as wakeups,
        pool.connection() as pooled,
    ):
        for connection in (pooled, await wakeups.connected()):
            found = connection.info.get_parameters()
            assert {name: found.get(name) for name in database.KEEPALIVE} == database.KEEPALIVE


def test_results_that_are_not_recorded_take_the_place_of_new_work():
    """A slot is held from the claim until its result is on disk: above the bound nothing is claimed."""
    some = flights()
    assert some.free == 10
    some.unsettled.extend([None] * 4)
    some.recording = 6
    assert some.free == 0


def test_more_slots_than_open_files_are_refused_at_the_start(monkeypatch):
    """The soft limit is raised as far as it goes; what the hard one forbids is an error that says what to do."""
    limit = [1024, 4096]
    monkeypatch.setattr(worker.resource, "getrlimit", lambda _: tuple(limit))
    monkeypatch.setattr(worker.resource, "setrlimit", lambda _, wanted: limit.__setitem__(0, wanted[0]))
    worker.check_open_files(2000)
    assert limit[0] >= 2000
    with pytest.raises(ConfigError, match="ulimit"):
        worker.check_open_files(5000)
