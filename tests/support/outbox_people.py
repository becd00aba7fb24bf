"""What the app and operators call, on the model: they wait for what the other session holds.

Reads and writes: a Model. Nothing else.
Guarantee: as in outbox_model.
If it is wrong: the property test of the schema is tested against a fiction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.support.outbox_model import FINAL, Delivery, Event, Key, Model, RefusedError, WaitsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


def publish(
    m: Model, who: str, event_id: UUID | None, event: Event, event_type: str, key: str | None, content: Any
) -> UUID:
    """`event_id` is what the database gave, or None if it gave an error."""
    if key is not None:
        if not m.free(who, "idempotency", key):
            raise WaitsError(key)
        if earlier := m.see(who, "idempotency", key):
            if earlier[1] != (event_type, content):
                raise RefusedError("OB004")
            return earlier[0]
        m.put(who, "idempotency", key, (event_id, (event_type, content)))
    m.put(who, "event", event_id, event)
    m.put(who, "queued", event_id, event_type)
    return event_id


def _reopen(m: Model, who: str, event: UUID, endpoint: UUID, priority: int) -> None:
    row = m.see(who, "delivery", event, endpoint)
    m.put(who, "delivery", event, endpoint, row.reopened(priority, m.clock))


def _finals(m: Model, who: str, event: UUID) -> list[UUID]:
    return [n for (e, n), row in m.seen(who, "delivery").items() if e == event and row.state in FINAL]


def replay(m: Model, who: str, event: UUID, endpoint: UUID | None) -> int:
    known = m.see(who, "event", event)
    if known is None:
        raise RefusedError("OB009")
    moved = 0
    if endpoint is None:
        endpoints = _finals(m, who, event)
    else:
        if m.see(who, "endpoint", endpoint).workspace != known.workspace or m.see(who, "queued", event):
            raise RefusedError("OB008")
        endpoints = [endpoint] if endpoint in _finals(m, who, event) else []
    for one in endpoints:
        _reopen(m, who, event, one, known.priority)
        moved += 1
    if endpoint is not None:
        m.hold(who, "new deliveries", endpoint)
        if m.see(who, "delivery", event, endpoint) is None:
            m.put(who, "delivery", event, endpoint, Delivery(known.priority, m.clock, replays=1))
            moved += 1
    for (e, n), row in m.seen(who, "delivery").items():
        if e == event and endpoint in {None, n} and row.due > m.clock and row.lease != "live":
            m.put(who, "delivery", e, n, replace(row, due=m.clock))
    return moved


def replay_by_update(m: Model, who: str, endpoint: UUID, state: str) -> int:
    rows = [key for key, row in m.seen(who, "delivery").items() if key[1] == endpoint and row.state == state]
    for event, _ in rows:
        _reopen(m, who, event, endpoint, 2)
    return len(rows)


def move(m: Model, who: str, endpoint: UUID) -> None:
    for (event, n), row in m.seen(who, "delivery").items():
        if n == endpoint and row.state == "pending" and row.lease != "live":
            m.put(who, "delivery", event, n, replace(row, due=m.now(who)))


def cancel(m: Model, who: str, event: UUID, endpoint: UUID | None) -> int:
    if m.see(who, "event", event) is None:
        raise RefusedError("OB009")
    if endpoint is None:
        if not m.free(who, "canceled", event):
            raise WaitsError(event)
        if m.see(who, "canceled", event) is None:
            m.put(who, "canceled", event, True)
    elif m.see(who, "queued", event):
        raise RefusedError("OB008")
    rows = m.seen(who, "delivery").items()
    pending = [k for k, row in rows if k[0] == event and endpoint in {None, k[1]} and row.state == "pending"]
    return close(m, who, pending)


def cancel_by_update(m: Model, who: str, endpoint: UUID) -> int:
    rows = m.seen(who, "delivery").items()
    return close(m, who, [key for key, row in rows if key[1] == endpoint and row.state == "pending"])


def close(m: Model, who: str, keys: Sequence[Key]) -> int:
    for key in keys:
        m.put(who, "delivery", *key, m.see(who, "delivery", *key).finished("canceled"))
    return len(keys)


def pause(m: Model, who: str, endpoint: UUID) -> None:
    row = m.see(who, "endpoint", endpoint)
    if row.state != "paused":
        m.put(who, "endpoint", endpoint, replace(row, state="paused"))


def resume(m: Model, who: str, endpoint: UUID) -> None:
    row = m.see(who, "endpoint", endpoint)
    if row.state != "active":
        m.put(who, "endpoint", endpoint, replace(row, state="active", failing=False))


def rotate(m: Model, who: str, endpoint: UUID) -> None:
    row = m.see(who, "endpoint", endpoint)
    m.put(who, "endpoint", endpoint, replace(row, version=row.version + 1, rotated=True))
