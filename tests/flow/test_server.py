"""The PostgreSQL that the package starts itself: made once, shared, taken over after a crash.

Reads: PostgreSQL's programs (OUTBOX_TEST_PG_BIN, else the wheel's). Writes: folders below the temporary one.
Guarantee: every server and folder made here is gone afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from outbox_worker.errors import DatabaseUnavailable
from outbox_worker.server import LocalServer, cluster, local_server
from tests.support.waiting import eventually

CHECKOUT = Path(__file__).resolve().parents[2]


def ask(local: LocalServer, statement: str):
    with psycopg.connect(local.dsn(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def in_another_process(code: str, *words: str) -> subprocess.CompletedProcess:
    """Run Python that has the package, to its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_data_stay_in_the_folder_between_runs(make_server, server_folder):
    """A second run finds the first one's rows, at the same port."""
    local = make_server(server_folder)
    local.start()
    ask(local, "create table kept as select 1 as n")
    port = local.port
    local.stop()

    again = make_server()
    again.start()

    assert ask(again, "select n from kept") == 1
    assert again.port == port


def test_the_server_stops_when_the_block_ends(server_folder, pg_bin):
    """Nothing listens after `with local_server(...)`, even when its body fails."""
    with pytest.raises(ZeroDivisionError), local_server(server_folder, bin_dir=pg_bin) as local:
        _ = 1 / 0

    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(local.dsn())


def test_options_reach_the_server_and_fsync_is_on_unless_named(make_server):
    """Options are the server's settings; nobody loses fsync without asking for it."""
    local = make_server(options={"work_mem": "12345kB", "application_name": "it's here"})
    local.start()

    assert ask(local, "show work_mem") == "12345kB"
    assert ask(local, "select reset_val from pg_settings where name = 'application_name'") == "it's here"
    assert ask(local, "show fsync") == "on"


def test_only_loopback_and_only_with_the_password(make_server):
    """The server listens on 127.0.0.1 alone, has no socket file, and lets nobody in without the password."""
    local = make_server()
    local.start()

    assert ask(local, "show listen_addresses") == "127.0.0.1"
    assert ask(local, "show unix_socket_directories") == ""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(local.dsn(password="guessed"))


def test_only_the_owner_can_read_the_password_and_the_log(make_server):
    """Neither other users of the machine nor the server's own user can read what the folder keeps."""
    local = make_server()
    local.start()

    password = conninfo_to_dict(local.dsn())["password"]
    for name in ("pgpass", "server.log"):
        assert (local.folder / name).stat().st_mode & 0o077 == 0, name
        assert (local.folder / name).stat().st_uid == os.geteuid(), name
    assert not (local.folder / "initdb.password").exists()
    assert password not in (local.folder / "server.log").read_text()
    assert all(password not in word for word in cluster._command(local._running()))


def test_the_password_file_is_one_that_psql_takes(make_server):
    """`pgpass` serves libpq as a password file."""
    local = make_server()
    local.start()

    where = {**conninfo_to_dict(local.dsn()), "password": "", "passfile": str(local.folder / "pgpass")}
    with psycopg.connect(**where) as connection:
        assert connection.execute("select current_user").fetchone() == ("postgres",)


def test_a_server_left_by_a_killed_process_is_taken_over_and_stopped(make_server, server_folder, pg_bin):
    """After kill -9 of the process that started it, the next start uses the running server and ends it."""
    code = (
        "import os, sys; from pathlib import Path; from outbox_worker.server import LocalServer\n"
        "LocalServer(Path(sys.argv[1]), bin_dir=Path(sys.argv[2]) if sys.argv[2] else None).start()\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = in_another_process(code, str(server_folder), str(pg_bin or ""))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    said = []
    local = make_server(say=said.append)
    orphan = local._running()
    assert orphan

    local.start()

    assert local._running() == orphan
    assert any("already" in line for line in said)
    assert ask(local, "select 1") == 1
    local.stop()
    assert local._running() is None


async def test_a_killed_server_starts_again_with_its_committed_rows(make_server):
    """After kill -9 of PostgreSQL itself, neither its process id nor its last backends are in the way."""
    local = make_server()
    local.start()
    ask(local, "create table kept as select 1 as n")
    os.kill(local._running(), signal.SIGKILL)
    await eventually(lambda: local._running() is None)

    local.start()

    assert ask(local, "select n from kept") == 1


def test_a_stale_process_id_that_another_program_has_by_now_is_no_obstacle(make_server):
    """A restarted container counts from 1 again: the id in postmaster.pid may be that of any program."""
    local = make_server()
    local.start()
    local.stop()
    account = local._account.user
    with ExitStack() as stack:
        other = stack.enter_context(
            subprocess.Popen(
                ["/bin/sh", "-c", "read _"], stdin=subprocess.PIPE, user=account and account.pw_uid
            )
        )
        stack.callback(other.stdin.close)
        pid_file = local.folder / "data" / "postmaster.pid"
        pid_file.write_text(
            f"{other.pid}\n{local.folder / 'data'}\n1\n{local.port}\n\n127.0.0.1\n0 0\nready   \n"
        )

        local.start()

        assert other.poll() is None
        assert local._running() not in {None, other.pid}


def test_users_of_one_folder_share_the_server_and_the_last_stops_it(make_server):
    """Whoever leaves first takes nothing away from the others."""
    first, second = make_server(), make_server()
    first.start()
    second.start()
    assert first.dsn() == second.dsn()

    first.stop()
    assert ask(second, "select 1") == 1
    second.stop()
    assert second._running() is None


def test_a_server_that_somebody_else_started_is_used_and_left_alone(make_server):
    """Only a server that this module started is ever stopped by it."""
    local = make_server()
    local.start()
    local.stop()
    data, port = str(local.folder / "data"), local.port
    words = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories= -p {port}"
    with (local.folder / "by-hand.log").open("wb") as log:
        assert local._pg_ctl("start", "-o", words, output=log)[0] == 0
    try:
        theirs = local._running()
        local.start()
        assert local._running() == theirs
        assert ask(local, "select 1") == 1
        local.stop()
        local.discard()
        assert local._running() == theirs
    finally:
        assert local._find().run("pg_ctl", "-D", data, "-m", "immediate", "stop")[0] == 0


def test_another_port_is_taken_when_the_last_one_is_in_use(make_server):
    """A program that took the port meanwhile keeps it."""
    local = make_server()
    local.start()
    local.stop()
    with ExitStack() as stack:
        taken = stack.enter_context(cluster.socket.create_server(("127.0.0.1", local.port)))

        local.start()

        assert local.port != taken.getsockname()[1]
        assert ask(local, "select 1") == 1


def test_a_half_made_cluster_is_made_again(make_server, server_folder):
    """What a killed initdb left is not taken for a cluster."""
    local = make_server()
    (server_folder / "data.new").mkdir(parents=True)
    server_folder.chmod(0o711)
    (server_folder / "data.new" / "PG_VERSION").write_text("17\n")

    local.start()

    assert ask(local, "select 1") == 1


def test_data_of_another_version_are_refused_and_left_alone(make_server):
    """PostgreSQL 17's data under other programs: an error that names both versions and the way out."""
    local = make_server()
    local.start()
    local.stop()
    version = local.folder / "data" / "PG_VERSION"
    mine = version.read_text()
    version.write_text("9.6\n")

    with pytest.raises(
        DatabaseUnavailable, match=r"the data are 9\.6's\. Use that version's programs, or another"
    ):
        local.start()

    version.write_text(mine)


def test_a_lost_password_file_is_an_error_that_says_what_to_do(make_server):
    """Without `pgpass` nobody can log in: no new cluster is made in place of the data."""
    local = make_server()
    local.start()
    local.stop()
    (local.folder / "pgpass").unlink()

    with pytest.raises(DatabaseUnavailable, match=r"password file .* is gone\. Put it back, or remove"):
        make_server().start()

    assert (local.folder / "data" / "PG_VERSION").exists()


def test_a_setting_that_postgresql_refuses_ends_in_its_own_words_and_nothing_runs(make_server):
    """A start that fails says what PostgreSQL said, and leaves no process."""
    local = make_server(options={"shared_buffers": "no such size"})

    with pytest.raises(
        DatabaseUnavailable, match=r'Tried to start PostgreSQL .*"shared_buffers".*no such size'
    ):
        local.start()

    assert local._running() is None
    assert local._alone()


def test_discard_removes_the_folder_unless_somebody_uses_it(make_server):
    """Nobody's data are removed under a running server."""
    first, second = make_server(), make_server()
    first.start()
    second.start()

    first.discard()
    assert ask(second, "select 1") == 1
    second.discard()
    assert not second.folder.exists()
