"""Readiness: what a platform hears of a worker, without a port; tests/flow/test_cli_run.py has the processes."""

from __future__ import annotations

import pytest

from outbox_worker import worker
from outbox_worker.errors import ConfigError
from outbox_worker.readiness import Readiness
from tests.support.waiting import eventually


async def test_a_worker_that_was_told_to_stop_is_not_ready_before_it_stops_claiming(
    shop, working, tmp_path, monkeypatch
):
    """Readiness ends while the claim still runs; only then are the loops told, and the drain begins."""
    file, told, seen = tmp_path / "ready", [], []
    claim_loop, withdraw = worker.claim_loop, Readiness.withdraw

    async def claim_loop_seen(store, flights, lanes, poll, closing):
        told.append(closing)
        await claim_loop(store, flights, lanes, poll, closing)

    def withdraw_seen(readiness):
        seen.append(("told to stop claiming", told[0].is_set()))
        withdraw(readiness)

    monkeypatch.setattr(worker, "claim_loop", claim_loop_seen)
    monkeypatch.setattr(Readiness, "withdraw", withdraw_seen)
    async with working(
        ready_file=file,
        on_point=lambda point: seen.append((f"ready when {point}", file.exists())),
    ):
        await eventually(file.exists)
    assert seen == [("told to stop claiming", False), ("ready when draining", False)]


def test_a_ready_file_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    """The worker does not run without the readiness that it was asked to tell."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="OUTBOX_READY_FILE"):
        Readiness(file=tmp_path / "file" / "ready")
    with pytest.raises(ConfigError, match="OUTBOX_READY_FILE"):
        Readiness(file=tmp_path / "nowhere" / "ready")


def test_a_socket_that_nobody_reads_stops_no_worker(tmp_path):
    """It is logged; the file says it all the same."""
    file = tmp_path / "ready"
    readiness = Readiness(file=file, notify_socket=str(tmp_path / "nobody"))
    readiness.announce()
    assert file.exists()
    readiness.withdraw()
    assert not file.exists()
