"""`run` as a process: it drains on SIGTERM, and a family of processes lives and dies together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support import factories
from tests.support.receiver import hold
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(dsn_of, db, vault_key):
    """Start `run` with arguments; whatever still runs at the end is killed, children too."""
    factories.install_key(db, vault_key)

    @contextmanager
    def starting(*arguments, **environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "outbox_worker", "run", *arguments],
            cwd=ROOT,
            env={
                **kept,
                "OUTBOX_DATABASE_URL": dsn_of("worker_login"),
                "OUTBOX_VAULT_KEY": vault_key[0],
                **environment,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            for pid in [*children(process.pid), process.pid]:
                end(pid)
            process.communicate()

    return starting


@pytest.fixture
def notified(tmp_path):
    """The socket that systemd would listen on."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.setblocking(False)
        yield inbox


async def said(inbox: socket.socket) -> str:
    return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(inbox, 4096), 30)).decode()


def end(pid: int) -> None:
    """Kill, if it still runs."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def live(db) -> int:
    return db.execute("select count(*) from outbox.workers where state = 'live'").fetchone()[0]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_one_process_drains_on_sigterm_and_exits_0(start, db):
    """Presence is given back in order."""
    with start() as process:
        await eventually(lambda: live(db) == 1, timeout=30)
        process.terminate()
        assert process.wait(30) == 0
    assert live(db) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_family_gets_the_signal_and_exits_0_together(start, db, number):
    """The parent forwards SIGTERM and SIGINT, and waits for every child."""
    with start("--processes", "2") as process:
        await eventually(lambda: live(db) == 2, timeout=30)
        family = children(process.pid)
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not [pid for pid in family if alive(pid)]
    assert live(db) == 0


async def test_when_one_child_dies_the_others_are_stopped_and_the_exit_code_is_not_0(start, db):
    """A supervisor above sees the failure and starts all of them afresh."""
    with start("--processes", "2") as process:
        await eventually(lambda: live(db) == 2, timeout=30)
        family = children(process.pid)
        os.kill(family[0], signal.SIGKILL)
        assert process.wait(30) == 1
        assert "ended unasked" in process.stderr.read()
        assert not [pid for pid in family if alive(pid)]


async def test_children_whose_parent_was_killed_drain_and_end(start, db):
    """Nobody is left to stop them, so they stop by themselves."""
    with start("--processes", "2") as process:
        await eventually(lambda: live(db) == 2, timeout=30)
        family = children(process.pid)
        process.kill()
        process.wait(30)
        try:
            await eventually(lambda: not [pid for pid in family if alive(pid)], timeout=30)
        finally:
            for pid in family:
                end(pid)
    assert live(db) == 0


async def test_a_family_that_cannot_start_exits_with_the_childs_code(start, db):
    """A wrong vault key is a configuration fault of each child."""
    with start("--processes", "2", OUTBOX_VAULT_KEY="not a key") as process:
        assert process.wait(30) == 2
        assert "holds no OpenPGP private key" in process.stderr.read()


@pytest.mark.parametrize("processes", [1, 2])
async def test_ready_is_said_once_all_are_present_and_withdrawn_while_they_still_drain(
    start, shop, receiver, notified, tmp_path, processes
):
    """sd_notify and the file, whose remains of a killed process make nobody ready."""
    factories.make_endpoint(shop, receiver.url)
    answer = asyncio.Event()
    receiver.script("/", hold(answer))
    file = tmp_path / "ready"
    file.touch()
    telling = {"NOTIFY_SOCKET": notified.getsockname(), "OUTBOX_READY_FILE": str(file)}
    waiting = "select count(*) from pg_locks where not granted"
    with start("--processes", str(processes), OUTBOX_ALLOW_NETWORKS="127.0.0.0/8", **telling) as process:
        with shop.transaction():
            shop.execute("lock table outbox.shards in share row exclusive mode")  # nobody gets shards
            await eventually(lambda: shop.execute(waiting).fetchone() == (processes,), timeout=30)
            assert not file.exists()
            with pytest.raises(BlockingIOError):
                notified.recv(4096)
        assert await said(notified) == "READY=1"
        assert file.exists()
        factories.publish(shop)
        await eventually(lambda: receiver.requests)
        process.terminate()
        assert await said(notified) == "STOPPING=1"
        assert not file.exists()
        assert process.poll() is None  # it waits for the answer
        answer.set()
        assert await asyncio.to_thread(process.wait, 30) == 0
    with pytest.raises(BlockingIOError):
        notified.recv(4096)
