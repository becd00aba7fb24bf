"""Nothing leaks: marker secrets go through everything, and everything that people read is searched for them.

Reads: a PostgreSQL of its own that logs every statement with its parameters, nested statements with their plans
(auto_explain) and normalized texts (pg_stat_statements); a worker process's log; the command line; the views.
Guarantee: a generated secret, and a header value passed as a parameter, is found nowhere; a URL's path in nothing
but the statement that stored it.
If it is wrong: a credential is read by whoever may read a log.
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

import psycopg
import pytest
from psycopg import sql

from outbox_worker.migrate import migrate
from tests.support.commands import Commands
from tests.support.factories import allow_loopback, install_key, make_endpoint, publish, state_of
from tests.support.receiver import status
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
LOGIN_PASSWORD = "marker-of-no-secret"
HEADERS = ("MARKHEADERcreated", "MARKHEADERset", "MARKHEADERupdated", "MARKHEADERrefused", "MARKHEADERfaulty")
PATHS = ("MARKPATHgood", "MARKPATHbad", "MARKPATHheld", "MARKPATHmoved", "MARKPATHrefused")
QUERY = "MARKQUERY"
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


@pytest.fixture
def watched(make_server, vault_key):
    server = make_server(options=LOGS_EVERYTHING)
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
        install_key(db, vault_key)
    return Watched(server.dsn(), server.folder / "server.log", vault_key)


@contextmanager
def worker_process(watched: Watched):
    """A worker as a process; what it printed is kept."""
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
        [sys.executable, "-m", "outbox_worker", "run"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield
        process.send_signal(signal.SIGTERM)
        watched.told["the worker's log"] = process.communicate(timeout=30)[0]
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


async def everything_happens(watched: Watched, receiver) -> None:
    receiver.script(f"/{PATHS[1]}", status(500, [("x-why", "no")], b"no"))
    path = "{}{}?key=" + QUERY
    good, bad, held, moved = (path.format(receiver.url, name) for name in PATHS[:4])
    app = psycopg.connect(watched.login("app_login"), autocommit=True)
    operator = psycopg.connect(watched.login("operator_login"), autocommit=True)
    db = psycopg.connect(watched.url, autocommit=True)
    with app, operator, db:
        allow_loopback(db, receiver.port)
        db.execute(
            "set auto_explain.log_verbose = on"
        )  # of this session, which gives no header: every constant
        delivered, secret = make_endpoint(app, good, headers={"x-api-key": HEADERS[0]})
        failing, second = make_endpoint(app, bad, headers={"authorization": f"Bearer {HEADERS[0]}"})
        unreadable, third = make_endpoint(db, held)
        elsewhere, fourth = make_endpoint(db, moved)
        for connection in (app, db):
            fresh = connection.execute("select outbox.rotate_secret(%s)", [delivered]).fetchone()[0]
            watched.secrets.append(fresh)
        watched.secrets += [secret, second, third, fourth]
        app.execute(
            "select outbox.set_endpoint_headers(%s, %s::jsonb)",
            [delivered, f'{{"x-api-key": "{HEADERS[1]}"}}'],
        )
        app.execute(
            "select outbox.update_endpoint(%s, headers => %s::jsonb)",
            [delivered, f'{{"x-api-key": "{HEADERS[2]}"}}'],
        )
        watched.refused(
            app,
            "select outbox.set_endpoint_headers(%s, %s::jsonb)",
            (delivered, f'{{"host": "{HEADERS[3]}"}}'),
        )
        watched.refused(
            app,
            "select outbox.update_endpoint(%s, headers => %s::jsonb)",
            (failing, f'{{"x-a": "{HEADERS[4]}\\n"}}'),
        )
        watched.refused(
            app,
            "select outbox.create_endpoint('ws_1', %s, '{message.*}')",
            (f"ftp://h.example/{PATHS[4]}?{QUERY}",),
        )
        watched.refused(
            app, "select outbox.update_endpoint(%s, url => %s)", (failing, f"https://a b/{PATHS[4]}")
        )
        watched.refused(
            operator, "update outbox.endpoints set max_in_flight = 0 where endpoint_id = %s", (delivered,)
        )
        watched.refused(operator, "update outbox.endpoints set event_types = '{nothing}'")
        db.execute(
            "update outbox.endpoint_vault set secret = '\\xdeadbeef' where endpoint_id = %s", [unreadable]
        )
        operator.execute(
            "update outbox.endpoints set url = %s where endpoint_id = %s",
            [f"http://127.0.0.1:8080/{PATHS[3]}", elsewhere],
        )
        with worker_process(watched):
            event = publish(db, payload={"text": "MARKPAYLOAD"})
            await eventually(lambda: state_of(db, event, delivered) == "delivered", 60)
            holds = "select count(*) from outbox.endpoints where hold_reason is not null"
            await eventually(lambda: db.execute(holds).fetchone() == (2,), 30)
            attempted = "select count(*) from outbox.attempts where endpoint_id = %s"
            await eventually(lambda: db.execute(attempted, [failing]).fetchone()[0] >= 1, 30)
        for role, command in [
            *(("reader_login", ("search", *more)) for more in ((), ("--workspace", "ws_1"))),
            ("reader_login", ("show", event)),
            *(("reader_login", (command,)) for command in ("status", "tail", "events")),
            ("reader_login", ("endpoint", "list")),
            ("reader_login", ("endpoint", "show", delivered)),
            ("worker_login", ("check",)),
        ]:
            for form in ((), ("--json",)):
                ran = watched.commands(role)(*command, *form)
                assert ran.code == 0, ran.err
                watched.told[f"{command} {form}"] = ran.out + ran.err
        for role in ("reader_login", "operator_login"):
            watched.told[f"views of {role}"] = views_of(watched, role)
        explained = "select string_agg(outbox.explain_delivery(%s, endpoint_id), ' ') from outbox.endpoints"
        watched.told["explain_delivery"] = operator.execute(explained, [event]).fetchone()[0]


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


async def test_nothing_that_people_read_holds_a_secret_a_header_value_or_a_path(watched, receiver):
    """Logs of worker and server, statistics, errors, views and the command line: zero finds."""
    await everything_happens(watched, receiver)
    with psycopg.connect(watched.url) as db:
        texts = db.execute("select query from pg_stat_statements").fetchall()
    told = watched.told
    server = {"the server's log": watched.log.read_text(), "pg_stat_statements": repr(texts)}

    sent = repr([request.headers for request in receiver.requests])
    assert f"Bearer {HEADERS[0]}" in sent  # the search has something to find
    assert HEADERS[2] in sent
    assert "delivery.attempted" in told["the worker's log"]
    assert "endpoint.held" in told["the worker's log"]
    for word in ("MARKPAYLOAD", "Query Text", "Output: ", "outbox.endpoint_vault"):
        assert word in server["the server's log"]
    assert "insert into outbox.endpoint_vault" in server["pg_stat_statements"]

    keys = [secret.removeprefix("whsec_") for secret in watched.secrets]
    assert finds({**told, **server}, *keys) == []
    assert finds({**told, **server}, *HEADERS) == []
    assert finds(told, *PATHS, QUERY) == []
    assert finds(told, LOGIN_PASSWORD) == []
