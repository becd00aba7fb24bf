"""Store: the only module that runs SQL while the worker works; one method is one file in sql/queries.

Reads and writes: everything in the schema `outbox` that role outbox_worker may.
Guarantee: each call is one transaction with a deadline; only the database's clock decides.
If it dies: the statement rolls back; claims that were committed expire, settlements are tried again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from outbox_worker import sqlfiles, telemetry
from outbox_worker.errors import DatabaseUnavailable
from outbox_worker.limits import Lane
from outbox_worker.model import Delivery, Settlement

Row = tuple[Any, ...]
T = TypeVar("T")
LOOK = 300
"""Rows looked at per endpoint and priority when asking what is due."""
FILTER_MILLISECONDS = 500
"""How long the filters of one endpoint may take on one batch of events."""

KEEPALIVE = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "target_session_attrs": "read-write",
}
# Generic plans that walk indexes: the statements are made for them, and tests hold them to it.
SESSION = "-c plan_cache_mode=force_generic_plan -c jit=off -c enable_seqscan=off -c timezone=UTC -c synchronous_commit=on"


@dataclass(frozen=True, slots=True)
class FanOutAsk:
    """Which part of the queue to take: all in order, or a share of each bucket."""

    fair: bool
    mark: int
    batch: int
    shares: Sequence[tuple[int, int, int, int]] = ()  # priority, bucket, mark, quota


@dataclass(frozen=True, slots=True)
class Room:
    """What this worker can take over at once."""

    shards: Sequence[int]
    endpoints: dict[UUID, tuple[int, int]]  # room and requests in flight, where not untouched
    default: int
    total: int


@dataclass(frozen=True, slots=True)
class FannedOut:
    taken: list[tuple[int, int, int]]  # seq, bucket, priority of each event
    handed_over: list[Leased]
    waiting: list[tuple[UUID, int, datetime]]  # endpoint, shard, due: inserted as pending
    endpoints: dict[UUID, tuple[int, int]]  # shard and most in flight of each endpoint met
    found_at: datetime


@dataclass(frozen=True, slots=True)
class Leased:
    """A delivery under our lease, and the database's clock when it was claimed."""

    delivery: Delivery
    next_attempt_at: datetime
    claimed_at: datetime


class Store:
    def __init__(self, pool: AsyncConnectionPool, *, lease_seconds: float, deadline: float) -> None:
        self.pool = pool
        self.lease_seconds = lease_seconds
        self.deadline = deadline
        self.worker_no = 0
        self.texts: dict[str, bytes] = {}

    async def rows(self, name: str, /, **parameters: object) -> list[Row]:
        """Run one file of sql/queries and return its rows."""
        text = self.texts.get(name) or self.texts.setdefault(name, sqlfiles.read(f"queries/{name}.sql"))
        async with asyncio.timeout(self.deadline), self.pool.connection() as connection:
            cursor = await connection.execute(text, parameters, binary=True)
            return await cursor.fetchall() if cursor.description else []

    async def call(self, function: str, *arguments: object) -> Any:
        """Call one of the schema's functions (a literal name of ours) and return its value."""
        marks = ", ".join(["%s"] * len(arguments))
        async with asyncio.timeout(self.deadline), self.pool.connection() as connection:
            cursor = await connection.execute(f"select outbox.{function}({marks})".encode(), arguments)
            row = await cursor.fetchone()
            return row[0] if row else None

    # ------------------------------------------------------------------ fan-out

    async def fan_out(self, ask: FanOutAsk, room: Room, *, careful: bool = False) -> FannedOut:
        priorities, buckets, marks, quotas = ([share[i] for share in ask.shares] for i in range(4))
        token = uuid4()
        rows = await self.rows(
            "fan_out",
            fair=ask.fair,
            mark=ask.mark,
            batch=ask.batch,
            priorities=priorities,
            buckets=buckets,
            marks=marks,
            quotas=quotas,
            shards=list(room.shards),
            rooms=Jsonb({str(endpoint_id): known for endpoint_id, known in room.endpoints.items()}),
            default_room=room.default,
            room=room.total,
            careful=careful,
            lease_token=token,
            worker_no=self.worker_no,
            lease_seconds=self.lease_seconds,
        )
        taken = {row[0]: (row[0], row[1], row[2]) for row in rows}
        handed_over, waiting, endpoints = [], [], {}
        for row in rows:
            if row[3] is not None:
                endpoints[row[3]] = (row[4], row[15])
            if row[5]:
                delivery = Delivery(row[7], row[3], row[8], row[9], 1, 0, row[10], token, row[11], row[12], row[2], row[13], None)
                handed_over.append(Leased(delivery, row[6], row[14]))
            elif row[3] is not None:
                waiting.append((row[3], row[4], row[6]))
        return FannedOut(list(taken.values()), handed_over, waiting, endpoints, rows[0][14] if rows else datetime.min)  # noqa: DTZ901

    async def slow_filters(self, batch: int) -> list[UUID]:
        """The endpoints whose filters run past their deadline on the head of the queue, found by bisection."""
        suspects = [row[0] for row in await self.rows("filtered_endpoints", batch=batch)]
        slow: list[UUID] = []
        halves = [suspects] if suspects else []
        while halves:
            group = halves.pop()
            if await self.filters_end_in_time(group, batch):
                continue
            if len(group) == 1:
                slow += group
            else:
                halves += [group[: len(group) // 2], group[len(group) // 2 :]]
        return slow

    async def filters_end_in_time(self, endpoint_ids: Sequence[UUID], batch: int) -> bool:
        text = sqlfiles.read("queries/try_filters.sql")
        try:
            async with asyncio.timeout(self.deadline), self.pool.connection() as connection, connection.transaction():
                await connection.execute(f"set local statement_timeout = {FILTER_MILLISECONDS}".encode())
                await connection.execute(text, {"endpoint_ids": list(endpoint_ids), "batch": batch})
        except psycopg.errors.QueryCanceled:
            return False
        return True

    # ------------------------------------------------------------------ claim

    async def claim(self, asks: Sequence[tuple[Lane, int]]) -> list[Leased]:
        token = uuid4()
        rows = await self.rows(
            "claim",
            endpoint_ids=[lane.endpoint_id for lane, _ in asks],
            rooms=[room for _, room in asks],
            busy=[lane.in_flight for lane, _ in asks],
            marks0=[lane.marks[0] for lane, _ in asks],
            marks1=[lane.marks[1] for lane, _ in asks],
            marks2=[lane.marks[2] for lane, _ in asks],
            lease_token=token,
            worker_no=self.worker_no,
            lease_seconds=self.lease_seconds,
        )
        return [leased(row, token) for row in rows]

    async def claim_ordered(self, asks: Sequence[tuple[Lane, int]]) -> list[Leased]:
        token = uuid4()
        rows = await self.rows(
            "claim_ordered",
            endpoint_ids=[lane.endpoint_id for lane, _ in asks],
            rooms=[room for _, room in asks],
            busy=[lane.in_flight for lane, _ in asks],
            lease_token=token,
            worker_no=self.worker_no,
            lease_seconds=self.lease_seconds,
        )
        return [leased(row, token) for row in rows]

    async def release(self, deliveries: Sequence[Delivery]) -> int:
        rows = await self.rows(
            "release",
            event_ids=[d.event_id for d in deliveries],
            endpoint_ids=[d.endpoint_id for d in deliveries],
            workspace_ids=[d.workspace_id for d in deliveries],
            lease_tokens=[d.lease_token for d in deliveries],
        )
        return len(rows)

    # ------------------------------------------------------------------ settle

    async def settle(self, settlements: Sequence[Settlement]) -> list[Row]:
        """Rows of event_id, endpoint_id, applied, endpoint_disabled."""
        items = [(s, s.delivery, s.outcome) for s in settlements]
        return await self.rows(
            "settle",
            event_ids=[d.event_id for _, d, _ in items],
            endpoint_ids=[d.endpoint_id for _, d, _ in items],
            workspace_ids=[d.workspace_id for _, d, _ in items],
            lease_tokens=[d.lease_token for _, d, _ in items],
            attempt_nos=[d.attempt_no for _, d, _ in items],
            versions=[d.endpoint_version for _, d, _ in items],
            event_types=[d.event_type for _, d, _ in items],
            verdicts=[s.verdict.value for s, _, _ in items],
            retry_seconds=[s.retry_in.total_seconds() if s.retry_in is not None else None for s, _, _ in items],
            started_ats=[s.started_at for s, _, _ in items],
            durations=[round(o.duration_ms) for _, _, o in items],
            statuses=[o.status for _, _, o in items],
            errors=[error_text(s) for s, _, _ in items],
            response_headers=[headers_text(o.response_headers) for _, _, o in items],
            response_bodies=[o.response_body for _, _, o in items],
            worker_no=self.worker_no,
        )

    # ------------------------------------------------------------------ upkeep

    async def find_due(self, shards: Sequence[int]) -> list[Row]:
        return await self.rows("find_due", shards=list(shards), look=LOOK)

    async def reap(self, endpoint_ids: Sequence[UUID]) -> list[Row]:
        return await self.rows("reap", endpoint_ids=list(endpoint_ids), look=LOOK)

    async def load_endpoints(self, endpoint_ids: Sequence[UUID]) -> list[Row]:
        return await self.rows("load_endpoints", endpoint_ids=list(endpoint_ids))

    async def register(self, name: str, version: str, capacity: int, presence_seconds: float) -> int:
        rows = await self.rows("register_worker", name=name, version=version, capacity=capacity, presence_seconds=presence_seconds)
        self.worker_no = int(rows[0][0])
        return self.worker_no

    async def renew(self, in_flight: int, presence_seconds: float) -> bool:
        return bool(
            await self.rows("renew_presence", worker_no=self.worker_no, in_flight=in_flight, presence_seconds=presence_seconds)
        )

    async def balance(self, released: Sequence[int]) -> list[Row]:
        """Rows of shard, owner, heir."""
        async with asyncio.timeout(self.deadline), self.pool.connection() as connection, connection.transaction():
            await connection.execute(sqlfiles.read("queries/lock_shards.sql"))
            cursor = await connection.execute(
                sqlfiles.read("queries/balance_shards.sql"), {"worker_no": self.worker_no, "released": list(released)}
            )
            return await cursor.fetchall()

    async def stop_worker(self) -> None:
        await self.rows("stop_worker", worker_no=self.worker_no)

    async def report(self, reports: Sequence[dict[str, object]]) -> None:
        await self.rows("report_endpoints", worker_no=self.worker_no, reports=json.dumps(reports))

    async def notify(self, payload: str) -> None:
        """Tell the other workers, off the app's path: `shards:1,2` (work came in) or `balance`."""
        async with asyncio.timeout(self.deadline), self.pool.connection() as connection:
            await connection.execute("select pg_notify('outbox_wake', %s)", (payload,))


def leased(row: Row, token: UUID) -> Leased:
    delivery = Delivery(row[0], row[1], row[2], row[8], row[5] + 1, row[6], row[7], token, row[9], row[10], row[3], row[11], row[12])
    return Leased(delivery, row[4], row[13])


def error_text(settlement: Settlement) -> str | None:
    outcome = settlement.outcome
    if outcome.failure is not None:
        text = f"{outcome.failure.value}: {outcome.error}" if outcome.error else outcome.failure.value
        return text.replace("\0", "")[:500]
    return None if outcome.status is not None and 200 <= outcome.status < 300 else f"status {outcome.status}"


def headers_text(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Headers as a JSON object; one name twice is joined by a comma (RFC 9110, 5.3)."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower().replace("\0", ""), value.decode("latin-1").replace("\0", "")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return json.dumps(joined)


async def while_database_returns(call: Callable[[], Awaitable[T]]) -> T:
    """Do it, and again with growing pauses while the database is away; says so once and once when it is back."""
    lost_at: float | None = None
    pause = 0.05
    while True:
        try:
            result = await call()
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction, PoolTimeout, TimeoutError) as error:
            if lost_at is None:
                lost_at = time.monotonic()
                telemetry.database_lost(f"{type(error).__name__}: {error}".split("\n")[0])
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311  (spreads reconnects, guards nothing)
            pause = min(pause * 2, 2.0)
        else:
            if lost_at is not None:
                telemetry.database_recovered(time.monotonic() - lost_at)
            return result


@asynccontextmanager
async def open_store(
    conninfo: str, *, poll_only: bool, lease_seconds: float, deadline: float, name: str, size: int = 4
) -> AsyncIterator[Store]:
    async def prepare(connection: psycopg.AsyncConnection) -> None:
        connection.prepare_threshold = None if poll_only else 0

    kwargs: dict[str, Any] = {**KEEPALIVE, "autocommit": True, "application_name": f"outbox-worker {name}"[:60]}
    if not poll_only:  # a pooler refuses start-up parameters that it does not know
        kwargs["options"] = SESSION
    pool = AsyncConnectionPool(
        conninfo, min_size=2, max_size=size, timeout=deadline, kwargs=kwargs, configure=prepare, open=False, reconnect_timeout=5
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
        yield Store(pool, lease_seconds=lease_seconds, deadline=deadline)
    finally:
        await pool.close()
