"""Make a PostgreSQL cluster in a folder, start it, share it, stop it.

Reads and writes: one folder, kept between runs: `data` (the cluster), `pgpass` (port and password, readable
by its owner only; psql takes it as PGPASSFILE), `server.log`, two lock files.
Guarantee: it listens on 127.0.0.1 only and asks for a password; the last to leave the folder stops the
server; one that somebody else started there is used and left alone.
If it crashes: the server stays up, and the next start in that folder takes it over. A cluster appears whole
or not at all.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, run
from time import monotonic
from typing import IO, TYPE_CHECKING, Literal

from outbox_worker.errors import DatabaseUnavailable
from outbox_worker.server.programs import Programs, find_programs, reachable, server_account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MARK = "cluster_name=outbox-worker-local"  # in the command line of every server that is started here
_NO_PROCESS = 2**31 - 1  # above every kernel's limit
_POSTGRES = {"postgres", "postmaster"}
_SECONDS = 60  # a start (with its crash recovery), and a stop


class LocalServer:
    """One cluster in one folder. Several processes may use the folder; they share its server."""

    def __init__(
        self,
        folder: Path,
        *,
        bin_dir: Path | None = None,
        options: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._account = server_account()
        self.folder = reachable(folder.resolve(), self._account, say)
        self._data = self.folder / "data"
        self._bin_dir = bin_dir
        self._options = dict(options or {})
        self._say = say
        self._programs: Programs | None = None
        self._place: int | None = None  # our shared lock on users.lock: while held, nobody stops the server
        self._password = ""
        self.port = 0
        self.version = ""

    def dsn(self, dbname: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Give a connection URL; without a password of its own, `user` gets the superuser's."""
        return f"postgresql://{user}:{password or self._password}@127.0.0.1:{self.port}/{dbname}"

    def start(self) -> None:
        """Make the cluster if there is none, and start it unless it runs.

        Raises ConfigError or DatabaseUnavailable; nothing that was started here runs then.
        """
        _make(self.folder)
        with self._one_at_a_time():
            self._read_pgpass()
            self.version = self._find().version
            if not self._data.exists():
                self._initdb()
            self._check_major()
            if self._running() and self._pid_file()[7:] == ["ready   "]:
                self._say(f"PostgreSQL runs in {self.folder} already: using it")
            else:
                self._launch()
            self.port = int(self._pid_file()[3])
            self._write_pgpass()
            if self._place is None:
                self._place = self._open_lock("users.lock")
                fcntl.flock(self._place, fcntl.LOCK_SH)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Leave; stop the server if nobody else uses the folder and it was started by this module."""
        if not self.folder.exists():
            return
        with self._one_at_a_time():
            if self._place is not None:
                os.close(self._place)
                self._place = None
            if self._alone():
                self._stop_ours(mode)

    def discard(self) -> None:
        """Stop as `stop` does; then remove the folder, unless somebody uses it. Several may do so at once."""
        doomed = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
        try:
            self.stop("immediate")
            with self._one_at_a_time():
                if not self._alone() or self._running():
                    return
                self.folder.rename(doomed)  # whoever comes second finds nothing
        except FileNotFoundError:
            if self.folder.exists():
                raise
            return
        shutil.rmtree(doomed)

    def _find(self) -> Programs:
        self._programs = self._programs or find_programs(self._bin_dir, self._account, self.folder, self._say)
        return self._programs

    def _initdb(self) -> None:
        """Make the cluster under another name and rename it: half a one is never taken for a whole one."""
        programs = self._find()
        self._say(f"Making a PostgreSQL {programs.version} cluster in {self.folder}")
        self._password = secrets.token_urlsafe(24)
        self._write_pgpass()
        new, password = self.folder / "data.new", self.folder / "initdb.password"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        _write_private(password, self._password)
        for path in (new, password):
            self._account.give(path)
        words = ["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale"]
        if self._options.get("fsync") == "off":
            words.append("--no-sync")
        code, said = programs.run("initdb", "-D", str(new), f"--pwfile={password}", *words)
        password.unlink()
        if code:
            raise DatabaseUnavailable(
                f"Tried to make a PostgreSQL cluster in {self.folder}: initdb said: {said[-400:]}. "
                "Correct that, or name an existing server in OUTBOX_DATABASE_URL."
            )
        new.rename(self._data)

    def _check_major(self) -> None:
        file = self._data / "PG_VERSION"
        found = file.read_text().strip() if file.exists() else "unknown"
        if found != self.version.partition(".")[0]:
            raise DatabaseUnavailable(
                f"Tried to start PostgreSQL {self.version} in {self.folder}: the data are {found}'s. "
                "Use that version's programs, or another folder."
            )

    def _launch(self) -> None:
        """Start the server and wait until it is ready, through the two obstacles that pass by themselves."""
        self._stop_ours("immediate")  # left half started by a process that died
        self._disown_stale_pid()
        log = self.folder / "server.log"
        with suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))
        deadline = monotonic() + _SECONDS
        while True:
            fixed = ["listen_addresses=127.0.0.1", "unix_socket_directories=", _MARK]
            settings = [f"{name}={value}" for name, value in self._options.items()] + fixed
            settings.append(f"port={_free_port(self.port)}")
            words = shlex.join(word for setting in settings for word in ("-c", setting))
            _write_private(log, "")
            try:
                with log.open("ab") as file:
                    code, _ = self._pg_ctl("start", "-o", words, output=file)
            except BaseException:  # Ctrl-C too: what was half started must not stay behind
                self._stop_ours("immediate")
                raise
            if code == 0:
                return
            said = log.read_text(errors="replace")[-800:].strip()
            # another program took the port; or a killed server's backends have yet to notice that it is gone
            if not ("could not bind" in said or "shared memory block" in said) or monotonic() > deadline:
                self._stop_ours("immediate")
                raise DatabaseUnavailable(
                    f"Tried to start PostgreSQL {self.version} in {self.folder}: it said: {said}. "
                    f"Correct that; the whole log is {log}."
                )

    def _stop_ours(self, mode: str) -> None:
        if (pid := self._running()) and _MARK in _command(pid):
            code, said = self._pg_ctl("stop", "-m", mode)
            if code and self._running():
                raise DatabaseUnavailable(
                    f"Tried to stop the PostgreSQL in {self.folder} (process {pid}): {said}. Stop it by hand."
                )

    def _disown_stale_pid(self) -> None:
        """Take a dead server's process id out of postmaster.pid, where another program has that id by now.

        PostgreSQL would refuse to start (a restarted container counts from 1 again). The other lines stay:
        with them it finds backends of the dead server that still write. A live PostgreSQL is never disowned.
        """
        if (lines := self._pid_file()) and Path(self._process()[1][0]).name not in _POSTGRES:
            (self._data / "postmaster.pid").write_text("\n".join([str(_NO_PROCESS), *lines[1:]]) + "\n")

    def _pg_ctl(self, action: str, *words: str, output: IO[bytes] | int = PIPE) -> tuple[int, str]:
        return self._find().run(
            "pg_ctl", action, "-s", "-w", "-t", str(_SECONDS), "-D", str(self._data), *words, output=output
        )

    def _pid_file(self) -> list[str]:
        """Give its lines: process, folder, start, port, socket, address, shared memory, status."""
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _process(self) -> tuple[int, list[str]]:
        """Give the process that postmaster.pid names, and its command line if it lives."""
        lines = self._pid_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else _NO_PROCESS
        return pid, _command(pid)

    def _running(self) -> int | None:
        """Give the process that serves the data, if there is one. Its id alone says nothing: ids return."""
        pid, command = self._process()
        return pid if Path(command[0]).name in _POSTGRES and str(self._data) in command else None

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        while True:
            lock = self._open_lock("start.lock")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # The folder may have been discarded meanwhile, and made anew by somebody else.
                if os.path.samestat(os.fstat(lock), (self.folder / "start.lock").stat()):
                    yield
                    return
            finally:
                os.close(lock)

    def _alone(self) -> bool:
        lock = self._open_lock("users.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def _open_lock(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)

    def _read_pgpass(self) -> None:
        file = self.folder / "pgpass"
        if file.exists():
            _, port, _, _, self._password = file.read_text().strip().split(":")
            self.port = int(port)
        elif self._data.exists():
            raise DatabaseUnavailable(
                f"Tried to use the cluster in {self.folder}: its password file {file} is gone. "
                "Put it back, or remove the folder to begin with an empty cluster."
            )

    def _write_pgpass(self) -> None:
        new = self.folder / "pgpass.new"
        _write_private(new, f"127.0.0.1:{self.port}:*:*:{self._password}\n")
        new.replace(self.folder / "pgpass")


@contextmanager
def local_server(
    folder: Path,
    *,
    bin_dir: Path | None = None,
    options: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[LocalServer]:
    server = LocalServer(folder, bin_dir=bin_dir, options=options, say=say)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _command(pid: int) -> list[str]:
    """Give a process's command line. Not its folder or program: root may not read those in a container."""
    if Path("/proc/self").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return [""]
    words = ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)]
    return run(words, capture_output=True, text=True, check=False).stdout.split() or [""]  # noqa: S603  (a constant and a number)


def _free_port(wanted: int) -> int:
    """Give the wanted port if it is free, else one that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does: TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make(folder: Path) -> None:
    """Make the folder so that the server's user can pass through it, whatever our umask."""
    for missing in [path for path in (folder, *folder.parents) if not path.exists()][::-1]:
        missing.mkdir()
        missing.chmod(0o711)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
