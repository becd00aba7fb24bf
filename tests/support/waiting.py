"""Wait for what a test needs, with a bound: the only module of the tests that may sleep.

Reads: whatever the check reads; pg_stat_activity. Writes: nothing.
Guarantee: a wait ends when the condition holds or fails loudly at its timeout, naming what never came.
If it is wrong: tests hang or pass by luck.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_INTERVAL_SECONDS = 0.01


async def pause(seconds: float) -> None:
    """For receivers that drip. A test that waits for something uses `eventually`."""
    await asyncio.sleep(seconds)


async def eventually(check: Callable[[], Any | Awaitable[Any]], timeout: float = 10.0) -> Any:  # noqa: ASYNC109
    """Poll until the check returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            where = f"{inspect.getsourcefile(check)}:{check.__code__.co_firstlineno}"
            raise AssertionError(f"waited {timeout} s for {where}: still {found!r}")
        await asyncio.sleep(_INTERVAL_SECONDS)


async def wait_for_lock_wait(connection: Any, application_name: str, timeout: float = 10.0) -> None:  # noqa: ASYNC109
    """Wait until the session of that name waits for a lock; `connection` is a psycopg AsyncConnection.

    Autocommit on that connection, or each look sees the same snapshot of the statistics.
    """

    async def waits_for_lock() -> bool:
        cursor = await connection.execute(
            "select exists (select from pg_stat_activity"
            " where application_name = %s and wait_event_type = 'Lock')",
            (application_name,),
        )
        row = await cursor.fetchone()
        return bool(row[0])

    await eventually(waits_for_lock, timeout)
