"""The campaign's PostgreSQL: fsync on, its own folder, logins of the least rights, an audit of every lease.

Reads: the schema of this tree. Writes: one cluster, dropped at the end.
Guarantee: the audit is written by triggers of the superuser, in the transaction that it is about.
If it is wrong: a settlement by a stale token passes unseen.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from outbox_worker import vault
from outbox_worker.migrate import migrate
from outbox_worker.server import LocalServer
from outbox_worker.server.programs import server_account
from tests.campaign.scene import LEASE_SECONDS, RETRY_SECONDS, Consumer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaign.disk import Disk

OPTIONS = {
    "fsync": "on",
    "max_connections": "60",
    "superuser_reserved_connections": "5",
    "shared_buffers": "64MB",
    "log_min_messages": "warning",
    "track_commit_timestamp": "on",
}
LOGINS = {"app_login": "outbox_app", "worker_login": "outbox_worker", "operator_login": "outbox_operator"}
AUDIT = f"""
create schema campaign;
create table campaign.leases (
    no bigserial, event_id uuid, endpoint_id uuid, what text, token uuid, worker_no int, attempt_no int, at timestamptz);
create function campaign.note() returns trigger language plpgsql security definer as $$
begin
    if tg_op = 'DELETE' then
        insert into campaign.leases (event_id, endpoint_id, what, token, worker_no, attempt_no, at)
        values (old.event_id, old.endpoint_id, 'ended', old.lease_token, old.leased_by, old.attempt_count + 1, clock_timestamp());
        return null;
    end if;
    if new.lease_expires_at is not null and (tg_op = 'INSERT' or new.lease_token is distinct from old.lease_token) then
        insert into campaign.leases (event_id, endpoint_id, what, token, worker_no, attempt_no, at)
        values (new.event_id, new.endpoint_id, 'leased', new.lease_token, new.leased_by, new.attempt_count + 1,
                new.lease_expires_at - interval '{LEASE_SECONDS} s');
    elsif tg_op = 'UPDATE' and new.attempt_count > old.attempt_count then
        insert into campaign.leases (event_id, endpoint_id, what, token, worker_no, attempt_no, at)
        values (old.event_id, old.endpoint_id, 'ended', old.lease_token, old.leased_by, new.attempt_count, clock_timestamp());
    end if;
    return null;
end
$$;
create trigger note after insert or update or delete on outbox.open_deliveries for each row execute function campaign.note();
"""


@dataclass
class Database:
    """The cluster and who may log in. `dsn` is direct; workers and publishers are given a proxy's port.

    Where there is a `disk`, everything in schema outbox lies on it: WAL and the audit do not.
    """

    folder: Path
    disk: Disk | None = None
    copies: int = 0  # standbys made so far
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    def start(self) -> None:
        self.server = LocalServer(self.folder / "pg", options=OPTIONS)
        self.server.start()

    def prepare(self) -> None:
        """The schema, the logins, the vault and the audit."""
        migrate(self.server.dsn() + (self._tables_on_disk(self.disk) if self.disk else ""))
        private, public = vault.generate_key()
        self.key_file = self.folder / "vault.key"
        self.key_file.write_text(private)
        self.key_file.chmod(0o600)
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            for login, role in LOGINS.items():
                words = sql.SQL("create role {} login password {} in role {}")
                connection.execute(
                    words.format(sql.Identifier(login), sql.Literal(self.password), sql.Identifier(role))
                )
            connection.execute("select outbox.install_vault_key(%s)", (public,))
            connection.execute(AUDIT.encode())

    def _tables_on_disk(self, disk: Disk) -> str:
        """Make the tablespace; give what a connection needs to create everything in it."""
        self.tables_folder = disk.folder / "tables"
        self.tables_folder.mkdir(mode=0o700)
        server_account().give(self.tables_folder)
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            words = sql.SQL("create tablespace small location {}")
            connection.execute(words.format(sql.Literal(str(self.tables_folder))))
            connection.execute("grant create on tablespace small to public")  # partitions are the owner's
        return "?options=-c%20default_tablespace%3Dsmall"

    def create_endpoints(self, consumers: list[Consumer], ports: dict[str, int]) -> None:
        schedule = "{" + ",".join(f"{seconds}s" for seconds in RETRY_SECONDS) + "}"
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(
                "update outbox.settings set allow_plain_http = true, allow_ip_literals = true, "
                "allowed_ports = allowed_ports || %s",
                (list(ports.values()),),
            )
            for one in consumers:
                row = connection.execute(
                    "select endpoint_id::text, secret from outbox.create_endpoint(%s, %s, %s, filter => %s::text::jsonpath, "
                    "max_in_flight => %s, retry_schedule => %s::interval[])",
                    (one.workspace, f"http://{one.host}:{ports[one.way]}/e/{one.number}", list(one.types), one.filter,
                     one.max_in_flight, schedule),
                ).fetchone()  # fmt: skip
                one.endpoint_id, one.secrets = row[0], (row[1],)

    def dsn(self, login: str, port: int | None = None) -> str:
        return f"postgresql://{login}:{self.password}@127.0.0.1:{port or self.server.port}/postgres"

    async def rows(self, text: str, *parameters: object) -> list[tuple[Any, ...]]:
        """A superuser's question on a connection of its own."""
        async with await psycopg.AsyncConnection.connect(
            self.server.dsn(), autocommit=True, connect_timeout=5, application_name="campaign"
        ) as connection:
            cursor = await connection.execute(text.encode(), parameters or None)
            return await cursor.fetchall() if cursor.description else []

    async def restart(self, mode: str) -> None:
        await asyncio.to_thread(self.server.stop, mode)
        await asyncio.to_thread(self.server.start)

    def discard(self) -> None:
        self.server.discard()
        if self.disk is not None:
            self.disk.unmount()
