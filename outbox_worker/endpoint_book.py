"""Endpoint book: endpoints as one version describes them, secrets opened once per version and kept in memory.

Reads: endpoints and their vault, in batches. Writes: a hold on an endpoint whose blobs cannot be opened.
Guarantee: opening happens once per version, never per request; an unreadable blob costs no attempt.
If it dies: the next worker opens them again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from outbox_worker import telemetry
from outbox_worker.backoff import DEFAULT_SCHEDULE
from outbox_worker.database import TOO_SLOW, while_database_returns
from outbox_worker.egress import header_problem
from outbox_worker.errors import Unreadable
from outbox_worker.model import Endpoint
from outbox_worker.signing import decode_secret
from outbox_worker.vault import Keyring, SealedFor

if TYPE_CHECKING:
    from uuid import UUID

    from outbox_worker.rows import Row
    from outbox_worker.store import Store

REMEMBERED = 20_000
"""Endpoints kept in memory; the longest unused goes first."""
LOADED_AT_ONCE = 200


FAILED_PAUSE = 1.0
"""Rest after a load that ended with an error, in seconds: what is given back is claimed again at once."""


@dataclass(slots=True)
class Entry:
    endpoint: Endpoint
    expires: float  # monotonic: a rotation's second secret ends


class EndpointBook:
    def __init__(self, store: Store, keyring: Keyring, request_timeout: float) -> None:
        self.store = store
        self.keyring = keyring
        self.request_timeout = request_timeout
        self.entries: OrderedDict[UUID, Entry] = OrderedDict()
        self.wanted: dict[UUID, list[asyncio.Future[Endpoint | None]]] = {}
        self.asked = asyncio.Event()
        self.opener = ThreadPoolExecutor(1, thread_name_prefix="vault")

    def known(self, endpoint_id: UUID, version: int) -> Endpoint | None:
        entry = self.entries.get(endpoint_id)
        if entry is None or entry.endpoint.version < version or entry.expires < time.monotonic():
            return None
        if len(self.entries) > REMEMBERED // 2:  # who was used last is asked only when somebody has to go
            self.entries.move_to_end(endpoint_id)
        return entry.endpoint

    async def endpoint(self, endpoint_id: UUID, version: int) -> Endpoint | None:
        """The endpoint at this version or a later one; None if it cannot be sent to."""
        found = self.known(endpoint_id, version)
        if found is not None:
            return found
        future: asyncio.Future[Endpoint | None] = asyncio.get_running_loop().create_future()
        self.wanted.setdefault(endpoint_id, []).append(future)
        self.asked.set()
        return await future

    async def load_forever(self) -> None:
        """Owned by the worker: loads what was asked for, many at a time."""
        while True:
            await self.asked.wait()
            self.asked.clear()
            while self.wanted:
                batch = {key: self.wanted.pop(key) for key in list(self.wanted)[:LOADED_AT_ONCE]}
                await self.load_all(batch)

    async def load_all(self, batch: dict[UUID, list[asyncio.Future[Endpoint | None]]]) -> None:
        """Load them at once or, if that fails, each alone; who waits for the one that fails alone gives its delivery back."""
        try:
            await while_database_returns(partial(self.load, batch))
        except psycopg.Error as error:  # not a database that is away
            telemetry.statement_failed("load_endpoints", f"{type(error).__name__}: {error.sqlstate}")
            if len(batch) > 1:
                for endpoint_id, futures in batch.items():
                    await self.load_all({endpoint_id: futures})
            else:
                answer(batch, None)
                await asyncio.sleep(FAILED_PAUSE)

    async def load(self, batch: dict[UUID, list[asyncio.Future[Endpoint | None]]]) -> None:
        rows = {row[0]: row for row in await self.store.load_endpoints(list(batch))}
        for endpoint_id, futures in batch.items():
            row = rows.get(endpoint_id)
            # What was asked for while its version was being opened is in memory by now.
            endpoint = (self.known(endpoint_id, row[2]) or await self.opened(row)) if row else None
            answer({endpoint_id: futures}, endpoint)

    async def opened(self, row: Row) -> Endpoint | None:
        try:
            endpoint = await asyncio.get_running_loop().run_in_executor(self.opener, self.read, row)
        except Unreadable as error:
            telemetry.endpoint_held(row[0], str(error))
            try:
                await self.store.call("hold_endpoint", row[0], row[2])
            except (
                TOO_SLOW
            ) as late:  # somebody has changed it and not committed: the next opening tells the same
                telemetry.statement_failed("hold_endpoint", type(late).__name__)
            return None
        self.entries[endpoint.endpoint_id] = Entry(
            endpoint, time.monotonic() + row[8] if row[8] and row[8] > 0 else float("inf")
        )
        self.entries.move_to_end(endpoint.endpoint_id)
        while len(self.entries) > REMEMBERED:
            self.entries.popitem(last=False)
        return endpoint

    def read(self, row: Row) -> Endpoint:
        (
            endpoint_id,
            workspace_id,
            version,
            url,
            timeout,
            schedule,
            secret,
            previous,
            _,
            headers,
            signature_header,
        ) = row
        expected = SealedFor(workspace_id, endpoint_id, url)
        if secret is None:
            raise Unreadable("opening the secret: there is none")
        secrets = [str(self.keyring.open(secret, "secret", expected))]
        if previous is not None:
            try:
                secrets.append(str(self.keyring.open(previous, "secret", expected)))
            except (
                Unreadable
            ) as error:  # the current one signs; the customer who still has the old one must switch
                telemetry.previous_secret_unreadable(endpoint_id, str(error))
        for one in secrets:
            try:
                decode_secret(one)
            except ValueError as error:
                raise Unreadable(f"opening the secret: {error}") from None
        opened = self.keyring.open(headers, "headers", expected) if headers is not None else {}
        pairs = tuple((str(name), str(value)) for name, value in opened.items())
        problem = header_problem(pairs, signature_header)
        if problem is not None:
            raise Unreadable(f"opening the headers: {problem}")
        return Endpoint(
            endpoint_id,
            workspace_id,
            version,
            url,
            tuple(secrets),
            pairs,
            min(timeout or self.request_timeout, self.request_timeout),
            tuple(schedule) if schedule else DEFAULT_SCHEDULE,
            signature_header,
        )


def answer(batch: dict[UUID, list[asyncio.Future[Endpoint | None]]], endpoint: Endpoint | None) -> None:
    for futures in batch.values():
        for future in futures:
            if not future.done():
                future.set_result(endpoint)
