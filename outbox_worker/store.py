"""Store: the only module that runs SQL while the worker works; one method is one file in sql/queries.

Reads and writes: everything in the schema `outbox` that role outbox_worker may.
Guarantee: each call is one transaction with a deadline; only the database's clock decides.
If it dies: the statement rolls back; claims that were committed expire, settlements are tried again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg

from outbox_worker import sqlfiles
from outbox_worker.database import borrow
from outbox_worker.errors import RestoredCopy
from outbox_worker.lane import WEIGHTS
from outbox_worker.rows import (
    Row,
    array,
    claim_parameters,
    fan_out_parameters,
    has_rows,
    leased,
    rows_to_fanned_out,
    settle_parameters,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from psycopg_pool import AsyncConnectionPool

    from outbox_worker.lane import Lane
    from outbox_worker.model import Delivery, FannedOut, FanOutAsk, Leased, Room, Settlement

LOOK = 300
"""Rows looked at per endpoint and priority when asking what is due."""
KEYS = 500
"""Ordering keys of an endpoint looked at in one claim."""
FILTER_MILLISECONDS = 500
"""How long the filters of one endpoint may take on one batch of events."""


class Store:
    def __init__(self, pool: AsyncConnectionPool, *, lease_seconds: float, deadline: float) -> None:
        self.pool = pool
        self.lease_seconds = lease_seconds
        self.deadline = deadline
        self.worker_no = 0

    async def rows(self, name: str, /, **parameters: object) -> list[Row]:
        """Run one file of sql/queries and return its rows."""
        text, names = sqlfiles.statement(name)
        async with borrow(self.pool, self.deadline) as connection:
            cursor = psycopg.AsyncRawCursor(connection)
            cursor.format = psycopg.pq.Format.BINARY
            await cursor.execute(text, [parameters[one] for one in names])
            return await cursor.fetchall() if has_rows(cursor) else []

    async def call(self, function: str, *arguments: object) -> Any:
        """Call one of the schema's functions (a literal name of ours) and return its value."""
        marks = ", ".join(["%s"] * len(arguments))
        async with borrow(self.pool, self.deadline) as connection:
            cursor = await connection.execute(f"select outbox.{function}({marks})".encode(), arguments)
            row = await cursor.fetchone()
            return row[0] if row else None

    # ------------------------------------------------------------------ fan-out

    async def fan_out(self, ask: FanOutAsk, room: Room, *, careful: bool = False) -> FannedOut:
        token = uuid4()
        rows = await self.rows(
            "fan_out",
            **fan_out_parameters(ask, room),
            careful=careful,
            lease_token=token,
            worker_no=self.worker_no,
            lease_seconds=self.lease_seconds,
        )
        return rows_to_fanned_out(rows, token)

    async def find_places(self, starts: Sequence[tuple[int, int]], looks: int) -> list[list[tuple[int, int]]]:
        """Priority and bucket of what waits behind each start, in order, at most so many."""
        found: list[list[tuple[int, int]]] = [[] for _ in starts]
        for start, priority, bucket in await self.rows(
            "find_places",
            priorities=array([str(priority) for priority, _ in starts]),
            buckets=array([str(bucket) for _, bucket in starts]),
            looks=looks,
        ):
            found[start - 1].append((priority, bucket))
        return found

    async def slow_filters(self, batch: int) -> list[UUID]:
        """The endpoints whose filters run past their deadline on the head of the queue, found by bisection."""
        rows = await self.rows("filtered_endpoints", batch=batch)
        suspects = list({row[0]: None for row in rows})
        events = list({(row[1], row[2]): None for row in rows})
        slow: list[UUID] = []
        patience = int(min(4 * FILTER_MILLISECONDS, self.deadline * 600))
        halves = [suspects] if suspects else []
        while halves:
            group = halves.pop()
            if await self.filters_end_in_time(group, events):
                continue
            if len(group) == 1:
                # Guilty only if a quarter of the events takes four times as long: a cold cache is no crime.
                quarter = events[: max(len(events) // 4, 1)]
                if not await self.filters_end_in_time(group, quarter, patience):
                    slow += group
            else:
                halves += [group[: len(group) // 2], group[len(group) // 2 :]]
        return slow

    async def filters_end_in_time(
        self,
        endpoint_ids: Sequence[UUID],
        events: Sequence[tuple[UUID, str]],
        milliseconds: int = FILTER_MILLISECONDS,
    ) -> bool:
        text = sqlfiles.read("queries/try_filters.sql")
        try:
            async with (
                borrow(self.pool, self.deadline) as connection,
                connection.transaction(),
            ):
                # A wait for somebody's lock is no filter's fault: it ends first, as an error that is waited out.
                limits = (str(milliseconds), str(milliseconds // 2))
                bounds = (
                    "select set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)"
                )
                await connection.execute(bounds, limits)
                given = {
                    "endpoint_ids": list(endpoint_ids),
                    "event_ids": [event_id for event_id, _ in events],
                    "workspace_ids": [workspace_id for _, workspace_id in events],
                }
                await connection.execute(text, given)
        except psycopg.errors.QueryCanceled:
            return False
        return True

    # ------------------------------------------------------------------ claim

    async def claim(self, asks: Sequence[tuple[Lane, int]]) -> list[Leased]:
        token = uuid4()
        rows = await self.rows(
            "claim",
            **claim_parameters(asks),
            weights=list(WEIGHTS),
            lease_token=token,
            worker_no=self.worker_no,
            lease_seconds=self.lease_seconds,
        )
        return [leased(row, token) for row in rows]

    async def claim_ordered(self, asks: Sequence[tuple[Lane, int]]) -> list[Leased]:
        """Go on where each lane's round of its keys stopped."""
        token = uuid4()
        rows = await self.rows(
            "claim_ordered",
            endpoint_ids=[lane.endpoint_id for lane, _ in asks],
            rooms=[room for _, room in asks],
            busy=[lane.in_flight for lane, _ in asks],
            after_keys=[lane.after_key for lane, _ in asks],
            look=KEYS,
            lease_token=token,
            worker_no=self.worker_no,
            lease_seconds=self.lease_seconds,
        )
        after_keys = {row[1]: row[12] or "" for row in rows}  # of each endpoint the last row counts
        for lane, _ in asks:
            lane.after_key = after_keys.get(lane.endpoint_id, "")
        return [leased(row, token) for row in rows if row[0] is not None]

    async def release(self, deliveries: Sequence[Delivery]) -> list[Row]:
        """Rows of event_id, endpoint_id, released, locked."""
        return await self.rows(
            "release",
            event_ids=[d.event_id for d in deliveries],
            endpoint_ids=[d.endpoint_id for d in deliveries],
            workspace_ids=[d.workspace_id for d in deliveries],
            lease_tokens=[d.lease_token for d in deliveries],
        )

    # ------------------------------------------------------------------ settle

    async def settle(self, settlements: Sequence[Settlement]) -> list[Row]:
        """Rows of place in the batch (from 1), applied, locked by another session, endpoint disabled."""
        return await self.rows("settle", **settle_parameters(settlements), worker_no=self.worker_no)

    # ------------------------------------------------------------------ upkeep

    async def find_due(self, shards: Sequence[int], marks: dict[UUID, list[datetime]]) -> list[Row]:
        """What is due from these low-water marks on; without them, from the start."""
        texts = {
            str(endpoint_id): [mark.isoformat() for mark in found] for endpoint_id, found in marks.items()
        }
        return await self.rows("find_due", shards=list(shards), look=LOOK, marks=json.dumps(texts))

    async def reap(self, endpoint_ids: Sequence[UUID]) -> list[Row]:
        return await self.rows("reap", endpoint_ids=list(endpoint_ids), look=LOOK)

    async def load_endpoints(self, endpoint_ids: Sequence[UUID]) -> list[Row]:
        return await self.rows("load_endpoints", endpoint_ids=list(endpoint_ids))

    async def register(self, name: str, version: str, capacity: int, presence_seconds: float) -> int:
        """Take a number. Raises RestoredCopy where nobody may send."""
        rows = await self.rows(
            "register_worker",
            name=name,
            version=version,
            capacity=capacity,
            presence_seconds=presence_seconds,
        )
        if not rows:
            raise RestoredCopy(str(await self.call("why_held")))
        self.worker_no = int(rows[0][0])
        return self.worker_no

    async def renew(self, in_flight: int, presence_seconds: float) -> bool:
        return bool(
            await self.rows(
                "renew_presence",
                worker_no=self.worker_no,
                in_flight=in_flight,
                presence_seconds=presence_seconds,
            )
        )

    async def balance(self, released: Sequence[int]) -> list[Row]:
        """Rows of shard, owner, heir."""
        async with (
            borrow(self.pool, self.deadline) as connection,
            connection.transaction(),
        ):
            await connection.execute(sqlfiles.read("queries/lock_shards.sql"))
            cursor = await connection.execute(
                sqlfiles.read("queries/balance_shards.sql"),
                {"worker_no": self.worker_no, "released": list(released)},
            )
            return await cursor.fetchall()

    async def stop_worker(self) -> None:
        await self.rows("stop_worker", worker_no=self.worker_no)

    async def report(self, reports: Sequence[dict[str, object]]) -> None:
        await self.rows("report_endpoints", worker_no=self.worker_no, reports=json.dumps(reports))

    async def notify(self, payload: str) -> None:
        """Tell the other workers, off the app's path: `shards:1,2` (work came in) or `balance`."""
        async with borrow(self.pool, self.deadline) as connection:
            await connection.execute("select pg_notify('outbox_wake', %s)", (payload,))
