"""Database: how this worker is connected, and how it waits while the database is away.

Reads: the connection string. Writes: nothing.
Guarantee: a dead or half-open connection is noticed by keepalives and deadlines; a lost database is said once, waited
for with growing, jittered pauses, and said again when it is back.
If it dies: connections close; what was under way rolls back.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from outbox_worker import telemetry
from outbox_worker.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")

KEEPALIVE = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "target_session_attrs": "read-write",
}
# Generic plans that walk indexes in their order: the statements are made for them, and tests hold them to it. A plan that
# was made while a queue was empty is kept when a burst comes: it must not sort or collect all that waits.
SESSION = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "timezone": "UTC",
    "synchronous_commit": "on",
}
AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
    TimeoutError,
)
"""What a database that is gone, starting, full, read-only, locked or too slow looks like."""
TOO_SLOW = (psycopg.errors.QueryCanceled, TimeoutError)
"""What a statement that runs into its deadline looks like. Some read what an old snapshot keeps, while the others are quick:
to wait for the database until such a one succeeds would hold up all the work behind it."""


async def while_database_returns(
    call: Callable[[], Awaitable[T]], *, but: tuple[type[Exception], ...] = ()
) -> T:
    """Do it, and again with growing pauses while the database is away; `but` names what the caller deals with."""
    lost_at: float | None = None
    pause = 0.05
    while True:
        try:
            result = await call()
        except but:
            raise
        except AWAY as error:
            if lost_at is None:
                lost_at = time.monotonic()
                telemetry.database_lost(f"{type(error).__name__}: {error}".split("\n")[0])
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311  (spreads reconnects, guards nothing)
            pause = min(pause * 2, 2.0)
        else:
            if lost_at is not None:
                telemetry.database_recovered(time.monotonic() - lost_at)
            return result


def bounds(deadline: float) -> dict[str, str]:
    return {**SESSION, "statement_timeout": str(int(deadline * 500))}


@asynccontextmanager
async def borrow(pool: AsyncConnectionPool, deadline: float) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection under the deadline and the settings, whether they last as long as it or one transaction."""
    try:
        async with asyncio.timeout(deadline), pool.connection() as connection:
            if connection.prepare_threshold is None:  # a pooler gives each transaction another session
                settings = "; ".join(
                    f"set local {name} = '{value}'" for name, value in bounds(deadline).items()
                )
                await connection.execute(f"begin; {settings}".encode())  # the pool commits or rolls back
            yield connection
    except TimeoutError:
        await pool.drain()  # the others are half-open too: better fresh ones than a deadline for each
        raise


@asynccontextmanager
async def open_pool(
    conninfo: str, *, poll_only: bool, deadline: float, name: str, size: int = 4
) -> AsyncIterator[AsyncConnectionPool]:
    async def prepare(connection: psycopg.AsyncConnection) -> None:
        connection.prepare_threshold = None if poll_only else 0

    kwargs: dict[str, Any] = {
        **KEEPALIVE,
        "autocommit": True,
        "application_name": f"outbox-worker {name}"[:60],
    }
    if not poll_only:  # a pooler refuses start-up parameters that it does not know
        kwargs["options"] = " ".join(f"-c {name}={value}" for name, value in bounds(deadline).items())
    pool = AsyncConnectionPool(
        conninfo,
        min_size=2,
        max_size=size,
        timeout=deadline,
        kwargs=kwargs,
        configure=prepare,
        open=False,
        reconnect_timeout=5,
    )
    try:
        await pool.open(wait=True, timeout=deadline)
    except PoolTimeout as error:
        await pool.close()
        raise DatabaseUnavailable(
            f"connecting to the database: no connection within {deadline:g} s ({error}). "
            "Check OUTBOX_DATABASE_URL, the server's connection limit and that it is not read-only."
        ) from None
    try:
        yield pool
    finally:
        await pool.close()
