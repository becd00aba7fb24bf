"""Where the demo happens: a database with the schema, a vault key, login roles, settings for loopback.

Reads and writes: one folder, kept between runs (the cluster, `vault.key`, logs); the named database, else
one in a PostgreSQL of the folder's own.
Guarantee: a database with endpoints or workers of anybody else is refused before anything is written to it;
plain http and IP literals are forbidden again, and the vault key is put back, when the demo ends.
If it dies: the data stay, the next run takes them over; loopback stays allowed until then.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from outbox_worker.demo.cast import WORKSPACES
from outbox_worker.errors import ConfigError, DatabaseUnavailable
from outbox_worker.migrate import migrate
from outbox_worker.server import LocalServer
from outbox_worker.server.programs import find_programs, server_account
from outbox_worker.vault import generate_key, keyring_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack
    from pathlib import Path

Connection = psycopg.Connection[tuple[Any, ...]]

LOCK_KEY = (0x6F757464, 1)  # "outd"
LOGINS = {"app": "outbox_app", "worker": "outbox_worker", "operator": "outbox_operator"}

SHOP = """
    create schema if not exists shop;
    create table if not exists shop.actions (
        action_id     bigint generated always as identity primary key,
        run_id        uuid not null,
        workspace_id  text not null,
        what          text not null,
        happened_at   timestamptz not null default now());
    comment on table shop.actions is 'Business rows of the demo: what people, bots and campaigns did.';
    grant usage on schema shop to outbox_demo_app, outbox_demo_operator;
    grant select, insert on shop.actions to outbox_demo_app;
    grant select on shop.actions to outbox_demo_operator;
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A database made ready, and how to reach it."""

    folder: Path
    owner: Connection  # as outbox_owner; it holds the lock that says that a demo runs here
    key_file: Path
    public_key: bytes
    logins: dict[str, str]  # app, worker, operator: connection strings
    environment: dict[str, str]  # what a worker's connection may need beside them
    look_around: tuple[str, ...]  # shell lines

    @contextmanager
    def connect(self, login: str) -> Iterator[Connection]:
        with connected(self.logins[login], f"outbox-demo {login}") as connection:
            yield connection


def prepare(stack: ExitStack, folder: Path, database_url: str | None, say: Callable[[str], None]) -> Place:
    """Make everything ready up to the endpoints; what was started ends with the stack."""
    environment: dict[str, str] = {}
    if database_url is None:
        server = LocalServer(folder, say=say)
        stack.callback(server.stop)  # before the start: an interrupt may come in between
        server.start()
        say(f"PostgreSQL {server.version} runs in {server.folder}, port {server.port}")
        folder = server.folder
        url = database_of_our_own(server)
        programs = find_programs(None, server_account(), folder, say)
        psql = (
            f"{shlex.quote(str(programs.bin_dir / 'psql'))} -h 127.0.0.1 -p {server.port} -U postgres -d shop"
        )
        look_around: tuple[str, ...] = (f"PGPASSFILE={shlex.quote(str(folder / 'pgpass'))} {psql}",)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        url = database_url
        environment = {name: value for name, value in os.environ.items() if name.startswith("PG")}
        look_around = ('psql "$OUTBOX_DATABASE_URL"',)
    admin = stack.enter_context(connected(url, "outbox-demo owner"))
    if not one(admin, "select pg_try_advisory_lock(%s, %s)", *LOCK_KEY):
        raise ConfigError(
            "starting the demo: another one runs in this database. End it, or name another folder."
        )
    if database_url is not None:
        refuse_others(admin)
    applied = migrate(url)
    say(f"schema outbox: {len(applied)} files applied" if applied else "schema outbox: up to date")
    key_file = folder / "vault.key"
    public_key = vault_key(key_file, say)
    logins = {name: make_conninfo(url, **make_login(admin, name, role)) for name, role in LOGINS.items()}
    admin.execute(SHOP)
    admin.execute("set role outbox_owner")
    clear_earlier_run(admin)
    if database_url is None:
        url_file = folder / "database.url"
        write_private(url_file, url)
        command = f"{shlex.quote(sys.executable)} -m outbox_worker search --since 1h"  # on no PATH, perhaps
        look_around = (*look_around, f"OUTBOX_DATABASE_URL_FILE={shlex.quote(str(url_file))} {command}")
    return Place(folder, admin, key_file, public_key, logins, environment, look_around)


def database_of_our_own(server: LocalServer) -> str:
    """Give the URL of the database `shop`, made if there is none."""
    with connected(local_url(server, "postgres"), "outbox-demo owner") as connection:
        if one(connection, "select 1 from pg_catalog.pg_database where datname = 'shop'") is None:
            connection.execute("create database shop")
    return local_url(server, "shop")


def local_url(server: LocalServer, dbname: str) -> str:
    # The caller's PGSSLMODE is for other servers: this one has no certificate.
    return make_conninfo(server.dsn(dbname), sslmode="disable", gssencmode="disable")


@contextmanager
def connected(url: str, name: str) -> Iterator[Connection]:
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=10, application_name=name)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"connecting to the demo's database as {name}: {str(error).strip()}. Check OUTBOX_DATABASE_URL: "
            "the server must take logins by password; or unset it for a PostgreSQL of the demo's own."
        ) from error
    with connection:
        yield connection


def refuse_others(admin: Connection) -> None:
    """Refuse a database that anybody else uses: the demo allows plain http, and installs a vault key."""
    if one(admin, "select to_regclass('outbox.shards')") is None:
        return
    endpoints = one(
        admin,
        "select count(*) from outbox.endpoints where state <> 'deleted' and workspace_id <> all (%s)",
        list(WORKSPACES),
    )
    workers = one(
        admin,
        "select count(*) from outbox.worker_processes where stopped_at is null and expires_at > now()",
    )
    if endpoints or workers:
        raise ConfigError(
            f"looked at the database in OUTBOX_DATABASE_URL: it has {endpoints} endpoints that are not the "
            f"demo's and {workers} live workers, and the demo would allow plain http in it. Name an empty "
            "database, or unset the variable. (A worker that was killed counts as live for some seconds.)"
        )


def make_login(admin: Connection, name: str, role: str) -> dict[str, str]:
    """Make a login role that is a member of `role` and nothing else, with a new password."""
    login, password = f"outbox_demo_{name}", secrets.token_urlsafe(24)
    known = one(admin, "select 1 from pg_catalog.pg_roles where rolname = %s", login)
    statement = "alter role {} login password {}" if known else "create role {} login password {}"
    try:
        admin.execute(sql.SQL(statement).format(sql.Identifier(login), sql.Literal(password)))
        admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(login)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(
            f"making the login role {login}: {error.diag.message_primary}. Give OUTBOX_DATABASE_URL a user "
            "with CREATEROLE, or unset it for a PostgreSQL of the demo's own."
        ) from None
    return {"user": login, "password": password}


def vault_key(file: Path, say: Callable[[str], None]) -> bytes:
    """Give the public half of the folder's key, made if there is none."""
    if not file.exists():
        private, _ = generate_key()
        write_private(file, private)
        say(f"vault key made: {file}, mode 0600; the database gets its public half only")
    keyring = keyring_from(file.read_text(), str(file))
    return keyring.public_key(keyring.key_ids[0])


def write_private(file: Path, text: str) -> None:
    """Write a file of mode 0600; it appears whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)


def clear_earlier_run(owner: Connection) -> None:
    """End the endpoints of earlier runs, whose secrets nobody knows, and events not fanned out yet."""
    owner.execute("select outbox.cancel(q.event_id) from outbox.fan_out_queue q")
    owner.execute(
        "select outbox.delete_endpoint(e.endpoint_id) from outbox.endpoints e"
        " where e.state <> 'deleted' and e.workspace_id = any (%s)",
        [list(WORKSPACES)],
    )


def one(connection: Connection, query: str, *values: Any) -> Any:
    """Run a fixed statement; give the first column of its first row, or None."""
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


@contextmanager
def borrowed(place: Place, port: int) -> Iterator[None]:
    """Let endpoints be http://127.0.0.1:port and seal for the demo's key, until the block ends."""
    owner, ours = place.owner, place.public_key
    ports = one(owner, "select allowed_ports from outbox.settings")
    key = one(owner, "select public_key from outbox.vault_keys where active")
    owner.execute("select outbox.install_vault_key(%s)", [ours])
    owner.execute(
        "update outbox.settings set allow_plain_http = true, allow_ip_literals = true,"
        " allowed_ports = array[80, 443, 8080, 8443, %s]",
        [port],
    )
    try:
        yield
    finally:
        with suppress(psycopg.OperationalError):  # the server is gone
            owner.execute(
                "update outbox.settings set allow_plain_http = false, allow_ip_literals = false,"
                " allowed_ports = %s",
                [ports],
            )
            if key is not None:
                owner.execute("select outbox.install_vault_key(%s)", [key])
