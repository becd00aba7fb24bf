"""A session of the database that runs the worker's statements through outbox_worker.store, one call at a time.

Reads: sql/queries. Writes: the test's database, in the session's own open transaction if it has one.
Guarantee: a statement that waits for a lock is ended at once, and nothing of a statement that failed stays.
If it is wrong: the property test runs other statements than the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from outbox_worker import sqlfiles
from outbox_worker.database import SESSION
from outbox_worker.store import Store

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from outbox_worker.rows import Row

LOCK_WAIT = "20ms"
"""Long enough for locks that are held for a moment only; nothing else of the test waits."""


class SessionStore(Store):
    """The worker's own parameters and rows, on a connection that the test holds."""

    def __init__(self, connection: psycopg.Connection) -> None:
        super().__init__(None, lease_seconds=3600, deadline=60)
        self.connection = connection
        self.worker_no = 1

    async def rows(self, name: str, /, **parameters: object) -> list[Row]:
        text, names = sqlfiles.statement(name)
        cursor = psycopg.RawCursor(self.connection)
        cursor.format = psycopg.pq.Format.BINARY
        cursor.execute(text, [parameters[one] for one in names])
        return cursor.fetchall() if cursor.description else []


class Session:
    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.store = SessionStore(connection)
        for name, value in {**SESSION, "lock_timeout": LOCK_WAIT}.items():
            connection.execute(f"set {name} = '{value}'")
        connection.prepare_threshold = 0

    def call(self, query: str, *values: object) -> Any:
        """Give the first column of the only row, or how many rows an UPDATE changed."""
        with self.connection.transaction():  # a savepoint inside an open transaction
            cursor = self.connection.execute(query, values)
            return cursor.fetchone()[0] if cursor.description else cursor.rowcount

    def work(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one of the store's methods: with this session's `rows` it never has to wait for the event loop."""
        with self.connection.transaction():
            try:
                coroutine.send(None)
            except StopIteration as ended:
                return ended.value
        raise AssertionError("a statement of the store gave up control: it used another connection than ours")
