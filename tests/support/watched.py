"""A PostgreSQL that logs everything, and a search through all that people read.

Reads: its server's log, a worker process's output, what commands and errors said. Writes: a server of its own.
Guarantee: `finds` sees a marker as it is, in base64 and in hexadecimal.
If it is wrong: a leak passes for none.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from outbox_worker.migrate import migrate
from tests.support.commands import Commands
from tests.support.factories import install_key
from tests.support.roles import LOGGED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outbox_worker.server import LocalServer

ROOT = Path(__file__).parents[2]
LOGIN_PASSWORD = "marker-of-no-secret"
LOGS_EVERYTHING = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "shared_preload_libraries": "pg_stat_statements,auto_explain",
    "pg_stat_statements.track": "all",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_triggers": "on",
    "auto_explain.log_level": "log",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "verbose",
    "fsync": "off",
    **LOGGED,
}
SECRET_SAFE = (
    "log_parameter_max_length",
    "log_parameter_max_length_on_error",
    "auto_explain.log_parameter_max_length",
)


@dataclass
class Watched:
    """A database whose server tells everything, and what was told elsewhere."""

    url: str
    log: Path
    key: tuple[str, bytes]
    secrets: list[str] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)  # by where it was told

    def login(self, role: str) -> str:
        return psycopg.conninfo.make_conninfo(self.url, user=role, password=LOGIN_PASSWORD)

    def commands(self, role: str) -> Commands:
        return Commands(
            self.login(role), {"OUTBOX_VAULT_KEY": self.key[0], "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8"}
        )

    def refused(self, connection: psycopg.Connection, statement: str, values: tuple = ()) -> None:
        with pytest.raises(psycopg.Error) as raised:
            connection.execute(statement, values)
        diag = raised.value.diag
        said = (diag.message_primary, diag.message_detail, diag.message_hint, diag.context)
        self.told[f"error of {statement}"] = f"{raised.value!r} {raised.value} {said}"


def watch(server: LocalServer, key: tuple[str, bytes]) -> Watched:
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as db:
        db.execute("create extension pg_stat_statements")
        for role in ("app", "worker", "operator", "reader"):
            name = sql.Identifier(f"{role}_login")
            password = sql.Literal(LOGIN_PASSWORD)
            db.execute(sql.SQL("create role {} login password {}").format(name, password))
        migrate(server.dsn())
        for role in ("app", "worker", "operator", "reader"):
            db.execute(f"grant outbox_{role} to {role}_login")
        for name in SECRET_SAFE:  # what the README asks for
            if db.execute("select current_setting(%s, true)", [name]).fetchone() != (None,):
                db.execute(f"alter role app_login set {name} = 0")
        install_key(db, key)
    return Watched(server.dsn(), server.folder / "server.log", key)


@contextmanager
def worker_process(
    watched: Watched, program: tuple[str, ...] = ("-m", "outbox_worker", "run"), code: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """A worker as a process that ends with this code; what it printed is kept."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    environment = {
        **kept,
        "OUTBOX_DATABASE_URL": watched.login("worker_login"),
        "OUTBOX_VAULT_KEY": watched.key[0],
        "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        "OUTBOX_LOG_LEVEL": "debug",
        "OUTBOX_MAX_IN_FLIGHT": "50",
    }
    process = subprocess.Popen(
        [sys.executable, *program],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
        if code == 0:
            process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
        watched.told[f"the log of {program}, {len(watched.told)}"] = said
        assert process.returncode == code, said
    finally:
        process.kill()
        process.communicate()


def views_of(watched: Watched, role: str) -> str:
    """Every row of everything that this login may read."""
    with psycopg.connect(watched.login(role), autocommit=True) as reading:
        found = reading.execute(
            "select a.attrelid::regclass::text, string_agg(quote_ident(a.attname), ', ') from pg_attribute a"
            " join pg_class c on c.oid = a.attrelid where c.relnamespace = 'outbox'::regnamespace and a.attnum > 0"
            " and not a.attisdropped and c.relkind in ('r', 'p', 'v') and has_column_privilege(c.oid, a.attnum, 'select')"
            " group by 1"
        ).fetchall()
        rows = [reading.execute(f"select {columns} from {name}").fetchall() for name, columns in found]
    assert {"outbox.attempt_log", "outbox.endpoint_health", "outbox.dead_letters"} <= {
        name for name, _ in found
    }
    return repr(rows)


def finds(told: dict[str, str], *markers: str) -> list[tuple[str, str, str]]:
    """Where a marker stands, with the text before it: as it is, in base64 and in hexadecimal."""
    found = []
    for marker in markers:
        raw = marker.encode()
        for form in (marker, raw.hex(), base64.b64encode(raw).decode().rstrip("=")[:-1]):
            found += [
                (where, marker, text[max(0, text.find(form) - 300) : text.find(form)])
                for where, text in told.items()
                if form in text
            ]
    return found
