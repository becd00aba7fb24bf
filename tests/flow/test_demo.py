"""The demo as a person gets it: a process that exits 0 only if every promise held, and leaves nothing running.

Reads and writes: folders below the temporary one, a database of its own on the tests' server.
Guarantee: every process that is started here has ended afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from outbox_worker import demo, signing
from outbox_worker.demo import receiver
from outbox_worker.errors import ConfigError
from outbox_worker.server import LocalServer
from tests.support.waiting import eventually

CHECKOUT = Path(__file__).resolve().parents[2]
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT_ID = "0199a000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def folder():
    """One folder for all runs, in whatever order: a demo takes over what an earlier one left."""
    with tempfile.TemporaryDirectory(prefix="outbox-demo-") as made:
        Path(made).chmod(0o711)  # PostgreSQL may run as another user
        folder = Path(made) / "demo"
        yield folder
        LocalServer(folder).discard()


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PG"))}
    return own | {"PYTHONPATH": str(CHECKOUT)}


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "outbox_worker", "demo", "--folder", str(folder), *words]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(folder, *words), env=environment(), capture_output=True, text=True, check=False, timeout=120
    )


def still_running(folder: Path) -> list[str]:
    """Every process that has the folder in its command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(folder).encode() in told and process.name != str(os.getpid()):
                found.append(told[:200].decode(errors="replace"))
    return found


def test_the_demo_keeps_every_promise_and_again_in_the_same_folder(folder):
    """Exit 0 with every promise held, twice; as JSON nothing else is printed, as text no escape code."""
    done = run(folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert [p["promise"] for p in summary["promises"] if not p["held"]] == []
    assert len(summary["promises"]) >= 14
    assert summary["ok"] is True
    assert summary["event_types"] >= 30
    assert summary["deliveries"] == summary["delivered"] > 100
    assert summary["dead"] == summary["replayed"] == 3
    assert summary["signatures_verified"] == summary["signatures_total"] == summary["attempts"]
    assert summary["headers_seen"] == summary["headers_expected"] > 0
    assert still_running(folder) == []

    again = run(folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "\x1b" not in again.stdout
    assert "FOR THIS DEMO ONLY" in again.stdout
    assert "SHORTENED" in again.stdout
    assert "psql -h 127.0.0.1" in again.stdout
    assert "✘" not in again.stdout
    assert still_running(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_whatever_ends_the_demo_ends_what_it_started(folder, number):
    """Ctrl-C and SIGTERM end workers, receiver and server; after SIGKILL the workers and the receiver still end."""
    process = await asyncio.create_subprocess_exec(
        *command(folder), env=environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    while b"select outbox.publish" not in (line := await process.stdout.readline()):
        assert line, "the demo ended before it published"
    process.send_signal(number)
    await process.communicate()
    code = process.returncode
    if number is signal.SIGKILL:
        await eventually(lambda: not [told for told in still_running(folder) if "postgres" not in told], 20)
        LocalServer(folder).stop()
    else:
        assert code == 130
    assert still_running(folder) == []


@pytest.fixture
def demo_logins_dropped(maintenance):
    yield
    for name in ("app", "worker", "operator"):
        maintenance.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(f"outbox_demo_{name}")))


def test_a_broken_promise_is_exit_code_1_in_a_named_database_too(
    cluster, demo_logins_dropped, empty_database, tmp_path, capsys
):
    """A receiver that never succeeds breaks just the promises of delivery; loopback is forbidden again."""
    url = cluster.dsn(empty_database)

    code = demo.run(folder=tmp_path, as_json=True, database_url=url, answer=500, patience_seconds=2)

    summary = json.loads(capsys.readouterr().out)
    assert (code, summary["ok"]) == (1, False)
    held = {p["promise"].split(":")[0]: p["held"] for p in summary["promises"]}
    assert not held["every event type of the catalogue is delivered"]
    assert not held["what fails is retried until it is delivered"]
    assert not held["an UPDATE replays dead letters, their history kept"]
    assert held["a rolled-back transaction delivers nothing"]
    assert held["every request is signed, twice"]
    with psycopg.connect(url) as connection:
        rules = "select allow_plain_http or allow_ip_literals, allowed_ports from outbox.settings"
        assert connection.execute(rules).fetchone() == (False, [80, 443, 8080, 8443])
        superuser = "select bool_or(rolsuper) from pg_roles where rolname like 'outbox\\_demo\\_%%'"
        assert connection.execute(superuser.replace("%%", "%")).fetchone() == (False,)
    assert (tmp_path / "vault.key").stat().st_mode & 0o777 == 0o600


def test_a_database_that_somebody_uses_is_refused_unchanged(cluster, clone, db, tmp_path):
    """Live workers or endpoints of anybody else: the demo says so, and neither settings nor keys change."""
    db.execute(
        "insert into outbox.worker_processes (name, version, capacity, expires_at)"
        " values ('theirs', '1', 1, now() + interval '1 minute')"
    )
    with pytest.raises(ConfigError, match="1 live workers"):
        demo.run(folder=tmp_path, as_json=True, database_url=cluster.dsn(clone))
    assert db.execute("select allow_plain_http from outbox.settings").fetchone() == (False,)
    assert db.execute("select count(*) from outbox.vault_keys").fetchone() == (0,)


def test_the_receiver_verifies_both_signatures_and_nothing_else():
    """What we sign passes; another secret, another body, an old or missing timestamp does not."""
    now = int(time.time())
    signed = dict(signing.signature_headers(EVENT_ID, now, b"{}", [SECRET], "Edesy-Signature"))
    own = signed["Edesy-Signature"]
    other = "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

    assert receiver.standard_verified(SECRET, signed, b"{}", now)
    assert receiver.own_verified(SECRET, own, b"{}", now)
    for secret, body, at in [(other, b"{}", now), (SECRET, b"{} ", now), (SECRET, b"{}", now + 301)]:
        assert not receiver.standard_verified(secret, signed, body, at)
        assert not receiver.own_verified(secret, own, body, at)
    assert not receiver.standard_verified(SECRET, {}, b"{}", now)
    assert not receiver.own_verified(SECRET, "", b"{}", now)
