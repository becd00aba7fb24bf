"""A pgbouncer of the test's own on loopback, in transaction mode: a session belongs to nobody for longer than a transaction.

Reads: the program pgbouncer (Debian package of the same name). Writes: a folder of its own.
Guarantee: it runs without privileges, lends at most `sessions` of the server to each login, and ends with the block.
If it crashes: nothing but the folder is left; a pgbouncer that somebody else runs is never touched.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from outbox_worker.server.programs import server_account

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
MISSING = "pgbouncer is not here (on Debian: apt-get install pgbouncer)"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@contextmanager
def pooler(conninfos: Iterable[str], *, sessions: int) -> Iterator[int]:
    """Pool the database of these logins; gives the port on 127.0.0.1."""
    logins = [conninfo_to_dict(one) for one in conninfos]
    where = logins[0]
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="outbox-pooler-"))
    users, settings, log = folder / "users", folder / "pgbouncer.ini", folder / "log"
    users.write_text("".join(f"{_quoted(w['user'])} {_quoted(w['password'])}\n" for w in logins))
    settings.write_text(
        f"[databases]\n{where['dbname']} = host={where['host']} port={where['port']}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\n"
        f"pool_mode = transaction\ndefault_pool_size = {sessions}\nmax_client_conn = 50\nlogfile = {log}\n"
    )
    account = server_account()  # it refuses root, as PostgreSQL does
    for path in (folder, users, settings):
        path.chmod(0o700 if path is folder else 0o600)
        account.give(path)
    process = subprocess.Popen(
        [PROGRAM, settings],
        cwd="/",
        user=account.user.pw_uid if account.user else None,
        group=account.user.pw_gid if account.user else None,
        extra_groups=[] if account.user else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # it says the same in its log
    )
    try:
        _wait_until_it_answers(process, {**where, "port": port}, log)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _wait_until_it_answers(process: subprocess.Popen[bytes], where: dict[str, object], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(make_conninfo(**where, connect_timeout=2)).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text() if log.exists() else "nothing"
                raise AssertionError(f"starting pgbouncer: {error}; its log says: {said}") from error
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        else:
            return
