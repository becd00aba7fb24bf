"""What the tests share: one PostgreSQL, the schema in a template, a clone of it for each test that asks.

Reads: OUTBOX_TEST_PG_BIN (a folder with PostgreSQL's programs, else the wheel's), OUTBOX_DATABASE_URL (an
existing server instead, as a superuser). Writes: a folder of its own in the temporary folder.
Guarantee: a test that leaves an asyncio task or a database connection behind fails, and so does a session whose
workers ran as anybody but outbox_worker's login.
If it crashes: the next session stops the server and removes the folder that were left.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import secrets
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql.janitor import DatabaseJanitor

from outbox_worker.errors import OutboxError
from outbox_worker.migrate import migrate
from outbox_worker.server import LocalServer, local_server
from tests.support.roles import LOGGED, workers_of_another_role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=5000)
hypothesis.settings.load_profile("ci")  # pytest --hypothesis-profile=deep for the other

LOGINS = {
    "app_login": "outbox_app",
    "worker_login": "outbox_worker",
    "operator_login": "outbox_operator",
    "reader_login": "outbox_reader",
}
OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "jit": "off",
    "log_min_messages": "warning",
    **LOGGED,
}
SMALL = {"fsync": "off", "shared_buffers": "16MB", **LOGGED}


def pytest_xdist_auto_num_workers() -> int:
    """Each process of `-n auto` starts a server of its own; on a named one they would share its login roles."""
    return 1 if os.environ.get("OUTBOX_DATABASE_URL") else min(os.cpu_count() or 1, 4)


@dataclass(frozen=True)
class Cluster:
    """A running PostgreSQL and a superuser on it."""

    host: str
    port: int
    user: str
    password: str | None = field(repr=False)
    login_password: str = field(repr=False)  # of every login role in LOGINS

    def dsn(self, dbname: str, role: str | None = None) -> str:
        password = self.login_password if role else self.password
        return make_conninfo(
            host=self.host, port=self.port, user=role or self.user, password=password, dbname=dbname
        )

    def database(
        self, dbname: str, *, template: str | None = None, as_template: bool = False
    ) -> DatabaseJanitor:
        return DatabaseJanitor(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=dbname,
            template_dbname=template,
            as_template=as_template,
        )


@pytest.fixture(scope="session")
def pg_bin() -> Path | None:
    named = os.environ.get("OUTBOX_TEST_PG_BIN")
    return Path(named) if named else None


@pytest.fixture(scope="session")
def cluster(pg_bin) -> Iterator[Cluster]:
    password = secrets.token_urlsafe(12)
    if url := os.environ.get("OUTBOX_DATABASE_URL"):
        where = conninfo_to_dict(url)
        host, port = str(where.get("host", "127.0.0.1")), int(where.get("port", 5432))
        yield Cluster(host, port, str(where.get("user", "postgres")), where.get("password"), password)
        return
    with own_server(pg_bin) as server:
        where = conninfo_to_dict(server.dsn())
        yield Cluster("127.0.0.1", server.port, str(where["user"]), str(where["password"]), password)


@contextmanager
def own_server(pg_bin: Path | None) -> Iterator[LocalServer]:
    prefix = f"outbox-test-{os.getuid()}-"
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix).partition("-")[0]
        with suppress(FileNotFoundError):  # another run of the tests discards it too
            if (
                old.stat().st_uid == os.getuid()
                and not Path(f"/proc/{pid}").exists()
                and Path("/proc/self").exists()
            ):
                LocalServer(old, bin_dir=pg_bin).discard()
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))
    folder.chmod(0o711)  # PostgreSQL may run as another user
    with local_server(folder, bin_dir=pg_bin, options=OPTIONS) as server:
        yield server
    others = workers_of_another_role(server.folder)
    server.discard()
    assert not others, f"workers ran as another role than outbox_worker's login: {others}"


@pytest.fixture(scope="session")
def maintenance(cluster) -> Iterator[psycopg.Connection]:
    """One connection for the whole session, to a database that no test uses."""
    with closing(psycopg.connect(cluster.dsn("postgres"), autocommit=True)) as connection:
        yield connection


@pytest.fixture(scope="session")
def template(cluster, maintenance) -> Iterator[str]:
    """A database with the schema; the login roles, which belong to the whole cluster, come with it."""
    name = f"outbox_template_{os.getpid()}"
    with cluster.database(name, as_template=True):
        migrate(cluster.dsn(name))
        for login, granted in LOGINS.items():
            role = sql.Identifier(login)
            maintenance.execute(sql.SQL("drop role if exists {}").format(role))
            maintenance.execute(
                sql.SQL("create role {} login password {} in role {}").format(
                    role, sql.Literal(cluster.login_password), sql.Identifier(granted)
                )
            )
        yield name
    for login in LOGINS:
        maintenance.execute(sql.SQL("drop role {}").format(sql.Identifier(login)))


_numbers = itertools.count(1)


@pytest.fixture
def empty_database(cluster, maintenance) -> Iterator[str]:
    """The name of a fresh database without our schema, to migrate in a test."""
    with fresh(cluster, maintenance, template=None) as name:
        yield name


@pytest.fixture
def clone(cluster, maintenance, template) -> Iterator[str]:
    """The name of a fresh clone of the template."""
    with fresh(cluster, maintenance, template=template) as name:
        yield name


@contextmanager
def fresh(cluster: Cluster, maintenance: psycopg.Connection, *, template: str | None) -> Iterator[str]:
    name = f"outbox_test_{os.getpid()}_{next(_numbers)}"
    with cluster.database(name, template=template):
        yield name
        if left := connections_left(maintenance, name):
            pytest.fail(f"database connections left open (role, application, state, last statement): {left}")


def connections_left(maintenance: psycopg.Connection, dbname: str) -> list[tuple[str, ...]]:
    """Look until nobody is connected: a backend ends a moment after its client has closed."""
    deadline = time.monotonic() + 3
    while True:
        left = maintenance.execute(
            "select usename, application_name, state, query from pg_stat_activity"
            " where datname = %s and backend_type = 'client backend'",
            [dbname],
        ).fetchall()
        if not left or time.monotonic() > deadline:
            return left


@pytest.fixture
def dsn_of(cluster, clone) -> Callable[..., str]:
    """Give a connection string to this test's database: `dsn_of("app_login")`, `dsn_of()` for the owner."""
    return lambda role=None: cluster.dsn(clone, role)


@pytest.fixture
def connect(dsn_of) -> Iterator[Callable[..., psycopg.Connection]]:
    """Open an autocommit connection as a role; closed when the test ends."""
    with ExitStack() as stack:
        yield lambda role=None: stack.enter_context(closing(psycopg.connect(dsn_of(role), autocommit=True)))


@pytest.fixture
def db(connect) -> psycopg.Connection:
    """A superuser's autocommit connection to this test's own database."""
    return connect()


@pytest.fixture
async def all_tasks_ended() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"asyncio tasks left running: {[str(task.get_coro()) for task in left]}"


@pytest.fixture(autouse=True)
def no_task_left(request) -> None:
    """Only for tests with an event loop: the others would each pay for one."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("all_tasks_ended")


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user can pass through; pytest's own are closed to it."""
    with passable_folder() as folder:
        yield folder / "pg"


@contextmanager
def passable_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="outbox-server-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture(scope="session")
def ready_made(pg_bin) -> Iterator[Path]:
    """A cluster at rest, for copies: initdb is most of what a test of the server would cost."""
    with passable_folder() as folder, local_server(folder / "pg", bin_dir=pg_bin, options=SMALL) as server:
        server.stop()
        yield server.folder


@pytest.fixture
def make_server(server_folder, ready_made, pg_bin) -> Iterator[Callable[..., LocalServer]]:
    """Make a LocalServer: on a ready-made cluster, or in the folder that is named. Ended with the test."""
    made = []

    def make(folder: Path | None = None, **how) -> LocalServer:
        if folder is None and not server_folder.exists():
            subprocess.run(["cp", "-a", ready_made, server_folder], check=True)
        made.append(LocalServer(folder or server_folder, **{"bin_dir": pg_bin, "options": SMALL, **how}))
        return made[-1]

    yield make
    for server in made:
        with suppress(OutboxError):
            server.stop("immediate")
    others = [worker for server in made for worker in workers_of_another_role(server.folder)]
    for server in made:
        with suppress(OutboxError):
            server.discard()
    assert not others, f"workers ran as another role than outbox_worker's login: {others}"
