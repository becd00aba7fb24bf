"""What the app and operators call, on the model: they wait for what the other session holds.

Reads and writes: a Model. Nothing else.
Guarantee: as in outbox_model.
If it is wrong: the property test of the schema is tested against a fiction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.outbox_model import FINAL, Delivery, Endpoint, Event, Key, Model, RefusedError, WaitsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


PHASES = ("dead", "delivered", "canceled", "missing")
"""A bulk replay goes through them in this order."""


def publish(m: Model, who: str, event_id: UUID | None, event: Event, key: str | None) -> UUID:
    """`event_id` is what the database gave, or None if it gave an error."""
    if key is not None:
        if not m.free(who, "idempotency", key):
            raise WaitsError(key)
        if earlier := m.see(who, "idempotency", key):
            if earlier[1] != (event.event_type, event.content):
                raise RefusedError("OB004")
            return earlier[0]
        m.put(who, "idempotency", key, (event_id, (event.event_type, event.content)))
    m.put(who, "event", event_id, replace(event, seq=(m.clock, 0)))
    m.put(who, "queued", event_id, True)
    return event_id


def _reopen(m: Model, who: str, event: UUID, endpoint: UUID, priority: int) -> None:
    row = m.see(who, "delivery", event, endpoint)
    m.put(who, "delivery", event, endpoint, row.reopened(priority, m.clock))


def _finals(m: Model, who: str, event: UUID) -> list[UUID]:
    return [n for (e, n), row in m.seen(who, "delivery").items() if e == event and row.state in FINAL]


def _alive(m: Model, who: str, endpoint: UUID) -> Endpoint:
    row = m.see(who, "endpoint", endpoint)
    if row.state == "deleted":
        raise RefusedError("OB009")
    return row


def _open_new(m: Model, who: str, events: Sequence[UUID], endpoint: UUID, priority: int | None) -> int:
    """Deliveries to an endpoint that never had these events; the second of two sessions waits."""
    m.hold(who, "new deliveries", endpoint)
    target, opened = m.see(who, "endpoint", endpoint), 0
    for event in sorted(events):
        known = m.see(who, "event", event)
        if (
            known.workspace != target.workspace
            or m.see(who, "queued", event)
            or m.see(who, "delivery", event, endpoint)
        ):
            continue
        order = (known.ordering_key, (m.clock, opened)) if target.ordered and known.ordering_key else None
        chosen = known.priority if priority is None else priority
        m.put(who, "delivery", event, endpoint, Delivery(chosen, m.clock, replays=1, order=order))
        opened += 1
    return opened


def replay(m: Model, who: str, event: UUID, endpoint: UUID | None) -> int:
    known = m.see(who, "event", event)
    if known is None:
        raise RefusedError("OB009")
    moved = 0
    if endpoint is None:
        endpoints = [n for n in _finals(m, who, event) if m.see(who, "endpoint", n).state != "deleted"]
    else:
        if _alive(m, who, endpoint).workspace != known.workspace or m.see(who, "queued", event):
            raise RefusedError("OB008")
        endpoints = [endpoint] if endpoint in _finals(m, who, event) else []
    for one in endpoints:
        _reopen(m, who, event, one, known.priority)
        moved += 1
    if endpoint is not None:
        moved += _open_new(m, who, [event], endpoint, known.priority)
    for (e, n), row in m.seen(who, "delivery").items():
        if e == event and endpoint in {None, n} and row.due > m.clock and row.lease != "live":
            m.put(who, "delivery", e, n, replace(row, due=m.clock))
    return moved


def replay_endpoint(m: Model, who: str, endpoint: UUID, states: set[str]) -> int:
    target, moved = _alive(m, who, endpoint), 0
    for state in PHASES:
        if state not in states:
            continue
        if state == "missing":
            events = [
                event
                for (event,), row in m.seen(who, "event").items()
                if target.wants(row) and not m.see(who, "canceled", event)
            ]
            moved += _open_new(m, who, events, endpoint, 2)
            continue
        for (event, n), row in m.seen(who, "delivery").items():
            if n == endpoint and row.state == state:
                _reopen(m, who, event, endpoint, 2)
                moved += 1
    return moved


def replay_many(m: Model, who: str, events: Sequence[UUID], endpoint: UUID | None) -> int:
    if endpoint is not None:
        _alive(m, who, endpoint)
    known, moved = [event for event in events if m.see(who, "event", event)], 0
    for event in known:
        for n in _finals(m, who, event):
            if n == endpoint or (endpoint is None and m.see(who, "endpoint", n).state != "deleted"):
                _reopen(m, who, event, n, 2)
                moved += 1
    return moved if endpoint is None else moved + _open_new(m, who, known, endpoint, 2)


def replay_by_update(m: Model, who: str, endpoint: UUID, state: str) -> int:
    rows = [key for key, row in m.seen(who, "delivery").items() if key[1] == endpoint and row.state == state]
    if rows and m.see(who, "endpoint", endpoint).state == "deleted":
        raise RefusedError("OB008")
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
    row = _alive(m, who, endpoint)
    if row.state != "paused":
        m.put(who, "endpoint", endpoint, replace(row, state="paused"))


def resume(m: Model, who: str, endpoint: UUID) -> None:
    row = _alive(m, who, endpoint)
    if row.state != "active":
        m.put(who, "endpoint", endpoint, replace(row, state="active", failing=False))


def rotate(m: Model, who: str, endpoint: UUID) -> None:
    row = _alive(m, who, endpoint)
    m.put(who, "endpoint", endpoint, replace(row, version=row.version + 1, rotated=True))


def delete(m: Model, who: str, endpoint: UUID) -> None:
    row = _alive(m, who, endpoint)
    m.put(who, "endpoint", endpoint, replace(row, state="deleted", rotated=False))
