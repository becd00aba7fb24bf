"""Dump a database and restore it elsewhere, with PostgreSQL's own programs, as the README says.

Reads: the original. Writes: a folder with the dump; the other server.
Guarantee: a program that fails, fails the test with what it said.
If it is wrong: the README's way to restore is not what was tried.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def run(program: Path, *words: str) -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{program.name}: {done.stderr}"
    return done.stdout


def dump(bin_dir: Path, dsn: str, folder: Path) -> Path:
    file = folder / "outbox.dump"
    run(bin_dir / "pg_dump", "--format=custom", f"--file={file}", f"--dbname={dsn}")
    return file


def copy_roles(bin_dir: Path, source: str, target: str, folder: Path) -> None:
    """Copy all but the superuser, whom the other server has with a password of its own."""
    file = folder / "roles.sql"
    text = run(bin_dir / "pg_dumpall", "--roles-only", f"--dbname={source}")
    file.write_text("".join(f"{line}\n" for line in text.splitlines() if " ROLE postgres" not in line))
    run(bin_dir / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={file}", target)


def restore(bin_dir: Path, file: Path, target: str) -> None:
    run(bin_dir / "pg_restore", "--exit-on-error", f"--dbname={target}", str(file))
