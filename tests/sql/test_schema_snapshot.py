"""The whole shape of the schema in one file, so that a migration shows its net effect in the diff.

Reads: the catalogs through pg_dump 17 of the wheel, tests/sql/schema.snapshot.sql. Writes: that file, when asked:
OUTBOX_WRITE_GOLDEN=1 pytest tests/sql/test_schema_snapshot.py
Guarantee: a table, column, default, constraint, index, trigger, view or signature that changes is seen in a diff.
If it fails: a migration did more, or less, than its author read.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from outbox_worker.server import programs

SNAPSHOT = Path(__file__).with_name("schema.snapshot.sql")
MAJOR = 17
HEAD = """\
-- The schema outbox as migrate leaves it: pg_dump --schema-only, without owners and privileges (privileges.golden.txt),
-- comments, the weekly partitions and the bodies of functions, which stand in sql/definitions word for word.
-- Made by: OUTBOX_WRITE_GOLDEN=1 .venv/bin/pytest tests/sql/test_schema_snapshot.py
"""
DOLLARS = re.compile(r"\n    AS (\$\w*\$).*?\1;", re.DOTALL)
ATOMIC = re.compile(r"\n    BEGIN ATOMIC\n.*?\nEND;", re.DOTALL)
RETURNED = re.compile(r"\n    RETURN .*?;(?=\n\n)", re.DOTALL)
NOISE = re.compile(r"--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict ")


def pg_dump(conninfo: str, *words: str) -> str:
    where = conninfo_to_dict(conninfo)
    done = subprocess.run(
        [programs._wheel() / "pg_dump", "--no-password", *words],
        env=os.environ
        | {
            "PGHOST": str(where["host"]),
            "PGPORT": str(where["port"]),
            "PGUSER": str(where["user"]),
            "PGPASSWORD": str(where.get("password") or ""),
            "PGDATABASE": str(where["dbname"]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def normalised(dump: str) -> str:
    """What says something about the schema, and nothing of when, by whom and with what it was written down."""
    for body in (DOLLARS, ATOMIC, RETURNED):
        dump = body.sub(";", dump)
    lines = [line.rstrip() for line in dump.splitlines() if not NOISE.match(line)]
    return HEAD + "\n" + re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def test_the_schema_is_that_of_the_snapshot(db, dsn_of):
    """Every change of its shape is one that somebody has looked at."""
    if db.info.server_version // 10000 != MAJOR:
        pytest.skip(f"another major version writes its catalogs down otherwise; the snapshot is of {MAJOR}")
    weekly = [
        f"--exclude-table=outbox.{name}"
        for (name,) in db.execute("select name from outbox.partition_registry order by name")
    ]
    assert weekly
    dump = pg_dump(
        dsn_of(),
        "--schema-only",
        "--schema=outbox",
        "--no-owner",
        "--no-privileges",
        "--no-comments",
        *weekly,
    )
    found = normalised(dump)
    if os.environ.get("OUTBOX_WRITE_GOLDEN"):
        SNAPSHOT.write_text(found)
    assert found == SNAPSHOT.read_text(), (
        f"the schema differs from {SNAPSHOT.name}: read the difference, then write it with the command in its head"
    )
