"""A worker dies by SIGKILL at each place of the pipeline: the next one ends the work, and every request is on record."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.support.factories import make_endpoint, publish, state_of
from tests.support.waiting import eventually

TIMES = {"request_timeout_seconds": 0.5, "lease_seconds": 2.0, "settle_margin_seconds": 0.2, "poll_ms": 50}


async def die(place: str, dsn: str, key_file) -> int:
    """Run a worker that dies at this place; give its exit code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    environment |= {f"OUTBOX_{name.upper()}": str(value) for name, value in TIMES.items()}
    environment |= {
        "OUTBOX_DATABASE_URL": dsn,
        "OUTBOX_VAULT_KEY_FILE": str(key_file),
        "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        "OUTBOX_LOG_LEVEL": "info",
        "CAMPAIGN_NAME": "doomed",
        "CAMPAIGN_DIE_AT": place,
    }
    words = [sys.executable, "-m", "tests.campaign.worker_main"]
    process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("place", "requests"),
    [
        ("before fan_out", {1}),
        ("in fan_out", {1}),
        ("after fan_out", {1}),
        ("claimed", {1}),
        ("connect", {1}),
        ("last byte", {1, 2}),
        ("sent", {2}),
        ("settling", {2}),
        ("in settle", {1, 2}),
        ("after settle", {1}),
    ],
)
async def test_no_event_is_lost_and_no_request_unrecorded_when_a_worker_dies(
    shop, dsn_of, receiver, working, vault_key, tmp_path, place, requests
):
    """Delivered once, or twice with one webhook-id and one body; each request is an attempt or a lost lease."""
    key_file = tmp_path / "vault.key"
    key_file.write_text(vault_key[0])
    key_file.chmod(0o600)
    make_endpoint(shop, receiver.url)
    event_id = publish(shop)
    assert await die(place, dsn_of("worker_login"), key_file) == -signal.SIGKILL
    async with working(**TIMES):
        await eventually(lambda: state_of(shop, event_id) == "delivered", timeout=20)
    assert len(receiver.requests) in requests
    assert len({(request.body, dict(request.headers)["webhook-id"]) for request in receiver.requests}) == 1
    attempts = shop.execute("select count(*) from outbox.recorded_attempts").fetchone()[0]
    lost = shop.execute("select count(*) from outbox.lost_leases").fetchone()[0]
    assert attempts == 1
    assert len(receiver.requests) <= attempts + lost


@pytest.mark.parametrize("place", ["reaping", "in reap", "after reap"])
async def test_a_lost_lease_is_recorded_once_when_the_worker_that_reaps_it_dies(
    shop, dsn_of, receiver, working, vault_key, tmp_path, place
):
    """The record and the delivery's return are one commit: not there, or there with both."""
    key_file = tmp_path / "vault.key"
    key_file.write_text(vault_key[0])
    key_file.chmod(0o600)
    make_endpoint(shop, receiver.url)
    event_id = publish(shop)
    shop.execute("delete from outbox.fan_out_queue")
    shop.execute(
        "insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at, leased_by,"
        " lease_token, lease_expires_at) select %s, endpoint_id, 'ws_1', 1, now(), 1, gen_random_uuid(), now() - interval '1 s'"
        " from outbox.endpoints",
        [event_id],
    )
    assert await die(place, dsn_of("worker_login"), key_file) == -signal.SIGKILL
    async with working(**TIMES):
        await eventually(lambda: state_of(shop, event_id) == "delivered", timeout=20)
    lost = shop.execute(
        "select count(*), count(distinct lease_token), max(attempt_no) from outbox.lost_leases"
    ).fetchone()
    delivered = shop.execute("select lost_count, attempt_count from outbox.deliveries").fetchone()
    assert lost[0] == lost[1] == delivered[0] >= 1
    assert (lost[2], delivered[1]) == (1, 1)
    assert len(receiver.requests) == 1
