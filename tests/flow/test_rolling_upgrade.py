"""A rolling upgrade: the schema is migrated under the last release's workers, which go on beside those of this one.

Reads: tests/releases (the wheels of the releases), CHANGELOG.md. Writes: databases of its own.
Guarantee: what the last release runs is valid on this schema; each event is delivered once, whoever delivers it.
If it crashes: the workers end with the test, the databases are dropped.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from outbox_worker.migrate import migrate
from tests.support import factories
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
WHEELS = {
    tuple(map(int, re.findall(r"\d+", file.name)[:3])): file
    for file in (ROOT / "tests/releases").glob("outbox_worker-*-py3-none-any.whl")
}
LAST = WHEELS[max(WHEELS)]
QUERIES = {
    Path(name).stem: text.decode()
    for archive in [zipfile.ZipFile(LAST)]
    for name in archive.namelist()
    if "/sql/queries/" in name and name.endswith(".sql")
    for text in [archive.read(name)]
}
ENDPOINTS = 16


def test_every_release_of_the_changelog_has_its_wheel():
    """Or nobody knows what an upgrade starts from; the one that is being made may have it already."""
    headings = re.findall(
        r"^## \[(\d+)\.(\d+)\.(\d+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    known = {tuple(map(int, numbers)): day for *numbers, day in headings}
    missing = {version for version, day in known.items() if day != "Unreleased"} - set(WHEELS)
    assert not missing, "tests/releases/README.md has the command that makes them"
    assert set(WHEELS) <= set(known)


def test_every_statement_of_the_last_release_is_valid_on_this_schema(connect):
    """Prepared as its worker prepares it: every table, column, function and type that it names is there."""
    worker, refused = connect("worker_login"), {}
    for statement, named in QUERIES.items():
        places: dict[str, int] = {}
        text = re.sub(r"%\((\w+)\)s", lambda f, p=places: f"${p.setdefault(f[1], len(p) + 1)}", named)
        prepared = worker.pgconn.prepare(b"", text.replace("%%", "%").encode())
        if prepared.status != pq.ExecStatus.COMMAND_OK:
            refused[statement] = prepared.error_message.decode()
    assert len(QUERIES) > 10
    assert refused == {}


@pytest.fixture
def old_database(cluster, template, empty_database, tmp_path):
    """A database with the schema of the last release, made by its own migrate; the template brings the logins."""
    owner = cluster.dsn(empty_database)
    subprocess.run(
        [sys.executable, "-m", "outbox_worker", "migrate"],
        env={**os.environ, "PYTHONPATH": str(LAST), "OUTBOX_DATABASE_URL": owner},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return empty_database


@contextmanager
def worker_process(code: Path, folder: Path, dsn: str, key: str):
    """`outbox-worker run` of this code: a wheel, which Python imports as it is, or the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    environment |= {
        "PYTHONPATH": str(code),
        "OUTBOX_DATABASE_URL": dsn,
        "OUTBOX_VAULT_KEY": key,
        "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        "OUTBOX_POLL_MS": "100",
        "OUTBOX_REQUEST_TIMEOUT_SECONDS": "5",
    }
    come_from = "import outbox_worker; print(outbox_worker.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", come_from],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(code))
    log = folder / f"{code.name}.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "outbox_worker", "run"],
            env=environment,
            cwd=folder,
            stdout=said,
            stderr=said,
        )
        try:
            yield process, log
        finally:
            process.kill()
            process.wait()


async def test_workers_of_two_releases_share_a_database_while_it_is_migrated(
    cluster, old_database, receiver, vault_key, tmp_path
):
    """Schema and worker of the last release; then this schema; then this worker beside it; then this one alone."""
    owner, login = cluster.dsn(old_database), cluster.dsn(old_database, "worker_login")
    with closing(psycopg.connect(owner, autocommit=True)) as shop:
        factories.allow_loopback(shop, receiver.port)
        factories.install_key(shop, vault_key)
        for number in range(ENDPOINTS):
            factories.make_endpoint(shop, f"{receiver.url}{number}")
        events = []

        def settled_by():
            """Publish one more, and say how many workers have settled something since this was first asked."""
            events.append(factories.publish(shop))
            found = shop.execute(
                "select count(distinct worker_no) from outbox.recorded_attempts where event_id >= %s", [since]
            )
            return found.fetchone()[0]

        with worker_process(LAST, tmp_path, login, vault_key[0]) as (old, old_log):
            since = factories.publish(shop)
            events.append(since)
            await eventually(lambda: settled_by() == 1, timeout=30)
            migrate(owner)
            since = factories.publish(shop)
            events.append(since)
            await eventually(lambda: settled_by() == 1, timeout=30)
            with worker_process(ROOT, tmp_path, login, vault_key[0]) as (new, new_log):
                await eventually(lambda: settled_by() == 2, timeout=60)
                old.send_signal(signal.SIGTERM)
                assert await eventually(lambda: old.poll() is not None, timeout=30)
                assert old.returncode == 0, old_log.read_text()[-2000:]
                events += [factories.publish(shop) for _ in range(20)]
                everything = len(events) * ENDPOINTS
                done = "select count(*) from outbox.deliveries where state = 'delivered'"
                await eventually(lambda: shop.execute(done).fetchone()[0] == everything, timeout=60)
                new.send_signal(signal.SIGTERM)
                assert await eventually(lambda: new.poll() is not None, timeout=30)
                assert new.returncode == 0, new_log.read_text()[-2000:]
        attempts = shop.execute("select count(*) from outbox.recorded_attempts").fetchone()[0]
        lost = shop.execute("select count(*) from outbox.lost_leases").fetchone()[0]
    assert (attempts, lost) == (everything, 0)
    assert len(receiver.requests) == everything
    sent = {(r.path, dict(r.headers)["webhook-id"]) for r in receiver.requests}
    assert sent == {(f"/{number}", str(event)) for number in range(ENDPOINTS) for event in events}
