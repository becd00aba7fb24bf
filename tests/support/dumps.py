"""Dump a database and restore it elsewhere, with PostgreSQL's own programs, as the README says.

Reads: the original. Writes: a folder with the dump; the other server.
Guarantee: a program that fails, fails the test with what it said.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from outbox_worker.server.programs import find_programs, server_account

if TYPE_CHECKING:
    from collections.abc import Iterable

PG15 = Path("/usr/lib/postgresql/15/bin")


def programs(bin_dir: Path | None, folder: Path) -> Path:
    """Give the folder with pg_dump and its kind."""
    return find_programs(bin_dir, server_account(), folder, lambda _said: None).bin


def run(program: Path, *words: str, check: bool = True) -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, f"{program.name}: {done.stderr}"
    return done.stdout


def dump(bin_dir: Path, dsn: str, folder: Path) -> Path:
    file = folder / "outbox.dump"
    run(bin_dir / "pg_dump", "--format=custom", f"--file={file}", f"--dbname={dsn}")
    return file


def copy_roles(bin_dir: Path, source: str, target: str, folder: Path, but: Iterable[str] = ()) -> None:
    """Roles that exist already are an error of that line, and of no other."""
    file = folder / "roles.sql"
    text = run(bin_dir / "pg_dumpall", "--roles-only", f"--dbname={source}")
    file.write_text("".join(f"{line}\n" for line in text.splitlines() if not any(name in line for name in but)))
    run(bin_dir / "psql", "--no-psqlrc", "--quiet", f"--file={file}", target, check=False)


def restore(bin_dir: Path, file: Path, target: str) -> None:
    run(bin_dir / "pg_restore", "--exit-on-error", f"--dbname={target}", str(file))
