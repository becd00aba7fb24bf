"""The place of a benchmark: a PostgreSQL of its own with the schema, a receiver, worker processes.

Reads: the plan. Writes: a folder in the temporary folder, removed at the end.
Guarantee: fsync and synchronous_commit on, autovacuum on; workers log in as a member of outbox_worker and no more.
If it crashes: children end with their parents' files closed, the folder stays.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from outbox_worker import vault
from outbox_worker.migrate import migrate
from outbox_worker.server import LocalServer, local_server
from tests.bench.figures import Plan, say
from tests.bench.receiver import Receiver, fast_receiver, nobody, running
from tests.bench.waits import until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

SERVER = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "max_connections": "100",
    "jit": "off",
    "log_min_messages": "warning",
}
STATEMENTS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all"}
SHARDS = 64
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Worker:
    process: subprocess.Popen
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident_mib(self, field_name: str = "VmRSS") -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field_name + ":"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"read {field_name} of process {self.pid}: not there")

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


@dataclass
class Place:
    folder: Path
    server: LocalServer
    db: psycopg.Connection  # a superuser, autocommit
    receiver: Receiver
    key: str = field(repr=False)
    password: str = field(repr=False)
    plan: Plan

    def dsn(self, role: str | None = None) -> str:
        return self.server.dsn("bench", role or "postgres", self.password if role else None)

    def connect(self, role: str | None = None, **options: Any) -> psycopg.Connection:
        return psycopg.connect(self.dsn(role), **{"autocommit": True, **options})

    def one(self, query: str, *params: object) -> Any:
        row = self.db.execute(query, params or None).fetchone()
        return row[0] if row else None

    def allow_port(self, port: int) -> None:
        self.db.execute("update outbox.settings set allowed_ports = allowed_ports || %s", [port])

    def server_cpu_seconds(self) -> float:
        """CPU of all of PostgreSQL: the postmaster, what it has reaped, and what lives."""
        postmaster = self.postmaster()
        return cpu_seconds(postmaster, reaped=True) + sum(map(cpu_seconds, children(postmaster)))

    def server_processes(self) -> int:
        return len(children(self.postmaster()))

    def postmaster(self) -> int:
        return int((self.server._data / "postmaster.pid").read_text().splitlines()[0])

    @contextmanager
    def worker(self, *, command: list[str] | None = None, **environment: object) -> Iterator[Worker]:
        """Run one worker process with the default settings, or with these; it owns all shards when this returns."""
        log = self.folder / f"worker-{secrets.token_hex(4)}.log"
        values = {
            "DATABASE_URL": self.dsn("worker_login"),
            "VAULT_KEY_FILE": self.folder / "vault.key",
            "ALLOW_NETWORKS": "127.0.0.0/8",
            "LOG_LEVEL": os.environ.get("OUTBOX_LOG_LEVEL", "warning"),
            # A thousand customers are not on one host: its limit would be the receiver's, not theirs.
            "HOST_MAX_IN_FLIGHT": environment.get("MAX_IN_FLIGHT", 1000),
            **environment,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        env = kept | {f"OUTBOX_{name}": str(value) for name, value in values.items()}
        command = command or [sys.executable, "-m", "outbox_worker", "run"]
        with log.open("wb") as output, running(command, env=env, stdout=output, stderr=output) as process:
            worker = Worker(process, log)
            until(lambda: self.owned(worker), "a worker to own all shards", seconds=30)
            try:
                yield worker
            finally:
                died = process.poll()
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                if text := log.read_text().strip():
                    say(f"the worker said: {text[-2000:]}")
                if died is not None:
                    raise RuntimeError(f"the worker ended unasked with {died}")

    def owned(self, worker: Worker) -> bool:
        if worker.process.poll() is not None:
            raise RuntimeError(f"started a worker: it ended. It said: {worker.log.read_text()[-2000:]}")
        return self.one(
            "select count(*) = %s from outbox.shards s join outbox.worker_processes w using (worker_no)"
            " where w.stopped_at is null and w.name like %s",
            SHARDS,
            f"%:{worker.pid}",
        )


@contextmanager
def open_place(
    plan: Plan, *, tls: bool = False, unheard: bool = False, bin_dir: Path | None = None, **options: str
) -> Iterator[Place]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outbox-bench-")))
        folder.chmod(0o711)  # PostgreSQL may run as another user
        settings = {**SERVER, **(STATEMENTS if plan.statements else {}), **options}
        server = stack.enter_context(local_server(folder / "pg", bin_dir=bin_dir, options=settings))
        password = secrets.token_urlsafe(12)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create database bench")
            migrate(server.dsn("bench"))
            for login, role in (("app_login", "outbox_app"), ("worker_login", "outbox_worker")):
                connection.execute(
                    sql.SQL("create role {} login password {} in role {}").format(
                        sql.Identifier(login), sql.Literal(password), sql.Identifier(role)
                    )
                )
        receiver = stack.enter_context(nobody() if unheard else fast_receiver(folder, tls=tls))
        private, public = vault.generate_key()
        (folder / "vault.key").write_text(private)
        (folder / "vault.key").chmod(0o600)
        db = stack.enter_context(psycopg.connect(server.dsn("bench"), autocommit=True))
        db.execute("select outbox.install_vault_key(%s)", [public])
        db.execute(
            "update outbox.settings set allow_plain_http = true, allow_ip_literals = true,"
            " allowed_ports = allowed_ports || %s::int[]",
            [[port for port in (receiver.port, receiver.tls_port) if port]],
        )
        if "pg_stat_statements" in settings.get("shared_preload_libraries", ""):
            db.execute("create extension pg_stat_statements")
        db.execute("select setseed(%s)", [plan.seed % 1000 / 1000])
        yield Place(folder, server, db, receiver, private, password, plan)
        if plan.statements:
            tell_statements(db)


def tell_statements(db: psycopg.Connection) -> None:
    """Say which statements took the time: for whoever looks for a hot spot."""
    say("total ms | calls | mean ms | rows | hits | wal bytes | statement")
    for row in db.execute(
        "select round(total_exec_time)::int, calls, round(mean_exec_time::numeric, 3), rows, shared_blks_hit, wal_bytes,"
        " left(regexp_replace(query, '\\s+', ' ', 'g'), 90) from pg_stat_statements"
        " where toplevel order by total_exec_time desc limit 15"
    ):
        say(" | ".join(str(value) for value in row))


def cpu_seconds(pid: int, *, reaped: bool = False) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(word) for word in words[11 : 15 if reaped else 13]) / CLOCK_TICKS


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
