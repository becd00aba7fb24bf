"""The SQL interface as a small model: what two sessions see, hold and may do, in any order.

Reads: nothing. Writes: nothing: plain dictionaries of what is committed, and of what each open transaction changed.
Guarantee: a statement either happens whole, waits for the other session (`Waits`), or is refused (`Refused`).
If it is wrong: the property test of the schema is tested against a fiction.

Time is a count of steps: every step's clock is later than all before; now() is the step at which a transaction began.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from outbox_worker.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from outbox_worker.model import Settlement

Key = tuple[Any, ...]
LATER = float("inf")
MOST_LOST = 2
FINAL = ("delivered", "dead", "canceled")


class WaitsError(Exception):
    """The statement needs what the other session's transaction holds."""


class RefusedError(Exception):
    """The schema refuses it, with this SQLSTATE."""


@dataclass(frozen=True)
class Event:
    workspace: str
    priority: int


@dataclass(frozen=True)
class Endpoint:
    workspace: str
    takes: tuple[str, ...]  # the event types that its subscription matches
    version: int
    state: str = "active"
    failing: bool = False
    rotated: bool = False


@dataclass(frozen=True)
class Delivery:
    priority: int
    due: float
    state: str = "pending"
    attempts: int = 0
    failed: int = 0
    lost: int = 0
    replays: int = 0
    status: int | None = None
    reason: str | None = None
    lease: str | None = None  # live or expired
    token: UUID | None = None

    def finished(self, state: str, **changes: Any) -> Delivery:
        return replace(self, state=state, lease=None, token=None, due=0.0, **changes)

    def reopened(self, priority: int, due: float) -> Delivery:
        again = Delivery(priority, due, attempts=self.attempts, status=self.status)
        return replace(again, replays=self.replays + 1)


@dataclass
class Transaction:
    began: float
    changes: dict[Key, Any] = field(default_factory=dict)
    held: set[Key] = field(default_factory=set)
    savepoints: list[tuple[dict[Key, Any], set[Key]]] = field(default_factory=list)

    def remember(self) -> tuple[dict[Key, Any], set[Key]]:
        return dict(self.changes), set(self.held)


class Model:
    def __init__(self) -> None:
        self.committed: dict[Key, Any] = {}
        self.open: dict[str, Transaction] = {}
        self.clock = 0.0

    # ------------------------------------------------------------------ transactions

    def begin(self, who: str) -> None:
        self.clock += 1
        self.open[who] = Transaction(self.clock)

    def commit(self, who: str) -> None:
        for key, row in self.open.pop(who).changes.items():
            if row is None:
                self.committed.pop(key, None)
            else:
                self.committed[key] = row

    def rollback(self, who: str) -> None:
        del self.open[who]

    def savepoint(self, who: str) -> None:
        self.open[who].savepoints.append(self.open[who].remember())

    def rollback_to_savepoint(self, who: str) -> None:
        """To the last one, which stays."""
        changes, held = self.open[who].savepoints[-1]
        self.open[who].changes, self.open[who].held = dict(changes), set(held)

    def run(self, who: str, statement: Callable[..., Any], *arguments: Any) -> Any:
        """Run one of the statements below, in the open transaction or in one of its own."""
        own = who not in self.open
        if own:
            self.begin(who)
        else:
            self.clock += 1
        before = self.open[who].remember()
        try:
            value = statement(self, who, *arguments)
        except (WaitsError, RefusedError):
            self.open[who].changes, self.open[who].held = before
            if own:
                self.rollback(who)
            raise
        if own:
            self.commit(who)
        return value

    # ------------------------------------------------------------------ rows and locks

    def see(self, who: str, *key: Any) -> Any:
        changes = self.open[who].changes if who in self.open else {}
        return changes[key] if key in changes else self.committed.get(key)

    def seen(self, who: str, kind: str) -> dict[Key, Any]:
        """What this session sees of a kind, by the rest of the key, in order of creation."""
        changes = self.open[who].changes if who in self.open else {}
        rows = {**self.committed, **changes}
        return {key[1:]: row for key, row in rows.items() if key[0] == kind and row is not None}

    def free(self, who: str, *key: Any) -> bool:
        return all(key not in other.held for name, other in self.open.items() if name != who)

    def hold(self, who: str, *key: Any) -> None:
        """Lock, or find out that the other session has it."""
        if not self.free(who, *key):
            raise WaitsError(key)
        self.open[who].held.add(key)

    def put(self, who: str, *key_and_row: Any) -> None:
        *key, row = key_and_row
        self.hold(who, *key)
        self.open[who].changes[tuple(key)] = row

    def now(self, who: str) -> float:
        return self.open[who].began


# ---------------------------------------------------------------------- what the app and operators call


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
    return _close(m, who, pending)


def cancel_by_update(m: Model, who: str, endpoint: UUID) -> int:
    rows = m.seen(who, "delivery").items()
    return _close(m, who, [key for key, row in rows if key[1] == endpoint and row.state == "pending"])


def _close(m: Model, who: str, keys: Sequence[Key]) -> int:
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


# ---------------------------------------------------------------------- what workers run: nothing here ever waits


def fan_out(m: Model, who: str, token: UUID | None, *, mine: bool) -> set[Key]:
    """Returns event, endpoint and version of what is handed over leased: the active ones, if the shards are mine."""
    handed_over = set()
    for (event,), event_type in m.seen(who, "queued").items():
        if not m.free(who, "queued", event):
            continue
        m.put(who, "queued", event, None)
        known = m.see(who, "event", event)
        for (endpoint,), row in m.seen(who, "endpoint").items():
            if (
                row.workspace != known.workspace
                or event_type not in row.takes
                or m.see(who, "canceled", event)
            ):
                continue
            made = Delivery(known.priority, m.clock)
            if mine and row.state == "active":
                made = replace(made, lease="live", token=token)
                handed_over.add((event, endpoint, row.version))
            m.put(who, "delivery", event, endpoint, made)
    return handed_over


def claimable(m: Model, who: str, endpoint: UUID) -> set[Key]:
    """Attempt number and schedule place come with it."""
    row = m.see(who, "endpoint", endpoint)
    now = m.now(who) if who in m.open else m.clock + 1
    return {
        (event, n, d.attempts + 1, d.failed, d.priority, row.version)
        for (event, n), d in m.seen(who, "delivery").items()
        if n == endpoint
        and d.state == "pending"
        and d.lease is None
        and d.due <= now
        and row.state == "active"
        and m.free(who, "delivery", event, n)
    }


def claim(m: Model, who: str, taken: set[Key], token: UUID | None) -> None:
    for event, endpoint, *_ in taken:
        row = m.see(who, "delivery", event, endpoint)
        m.put(who, "delivery", event, endpoint, replace(row, lease="live", token=token))


def release(m: Model, who: str, leases: Sequence[Key]) -> set[Key]:
    """Returns event, endpoint, released and locked of each."""
    results = set()
    for event, endpoint, token in leases:
        row = m.see(who, "delivery", event, endpoint)
        current = row is not None and row.token == token
        free = m.free(who, "delivery", event, endpoint)
        results.add((event, endpoint, current and free, current and not free))
        if current and free:
            m.put(who, "delivery", event, endpoint, replace(row, lease=None, token=None))
    return results


def reap(m: Model, who: str, endpoint: UUID) -> set[Key]:
    lost = set()
    for (event, n), row in m.seen(who, "delivery").items():
        if n != endpoint or row.lease != "expired" or not m.free(who, "delivery", event, n):
            continue
        hopeless = row.lost + 1 >= MOST_LOST
        lost.add((event, n, row.lost + 1, hopeless))
        m.put(who, "lost", event, n, row.token, row.attempts + 1)
        if hopeless:
            after = row.finished("dead", reason="crash_loop", lost=row.lost + 1)
        else:
            after = replace(row, lease=None, lost=row.lost + 1, due=m.clock)
        m.put(who, "delivery", event, n, after)
    return lost


def cancel_slice(m: Model, who: str) -> int:
    found = [
        (event, n)
        for (event, n), row in m.seen(who, "delivery").items()
        if m.see(who, "canceled", event)
        and row.state == "pending"
        and row.replays == 0
        and row.lease != "live"
        and m.free(who, "delivery", event, n)
    ]
    return _close(m, who, found)


def settle(m: Model, who: str, settlements: Sequence[Settlement]) -> set[Key]:
    """Returns event, endpoint, applied, locked and endpoint disabled of each."""
    results, held = {}, []
    for s in settlements:
        d = s.delivery
        row = m.see(who, "delivery", d.event_id, d.endpoint_id)
        current = row is not None and row.token == d.lease_token
        locked = current and not m.free(who, "delivery", d.event_id, d.endpoint_id)
        if s.verdict is Verdict.DISABLE_ENDPOINT:  # the endpoint first, whatever becomes of the delivery
            if m.free(who, "endpoint", d.endpoint_id):
                m.hold(who, "endpoint", d.endpoint_id)
            else:
                locked = current
        results[d.event_id, d.endpoint_id] = (current and not locked, locked)
        if current and not locked:
            held.append(s)
            _apply(m, who, s, row)
        elif not current and s.verdict is not Verdict.NOT_ATTEMPTED:
            recorded = m.see(who, "attempt", d.event_id, d.endpoint_id, d.attempt_no)
            if recorded is None or recorded[1] != s.started_at:
                m.put(
                    who,
                    "late",
                    m.clock,
                    d.event_id,
                    d.endpoint_id,
                    (d.attempt_no, d.lease_token, s.outcome.status),
                )
    disabled = _tell_endpoints(m, who, held)
    return {(*key, *result, result[0] and key[1] in disabled) for key, result in results.items()}


def _apply(m: Model, who: str, s: Settlement, row: Delivery) -> None:
    key = (s.delivery.event_id, s.delivery.endpoint_id)
    due = m.clock if not s.retry_in else LATER
    counted = {"attempts": row.attempts + 1, "status": s.outcome.status}
    if s.verdict is not Verdict.NOT_ATTEMPTED:
        m.put(who, "attempt", *key, row.attempts + 1, (s.outcome.status, s.started_at))
    if s.verdict is Verdict.DELIVERED:
        after = row.finished("delivered", **counted)
    elif s.verdict is Verdict.RETRY:
        after = replace(row, due=due, lease=None, token=None, failed=row.failed + 1, **counted)
    elif s.verdict is Verdict.NOT_ATTEMPTED:
        after = replace(row, due=due, lease=None, token=None)
    else:
        reason = "exhausted" if s.verdict is Verdict.GIVE_UP else "gone"
        after = row.finished("dead", reason=reason, failed=row.failed + 1, **counted)
    m.put(who, "delivery", *key, after)


def _tell_endpoints(m: Model, who: str, held: Sequence[Settlement]) -> set[UUID]:
    """An endpoint whose row another session holds is told at the next attempt."""
    disabled = set()
    for endpoint in {s.delivery.endpoint_id for s in held}:
        verdicts = {s.verdict for s in held if s.delivery.endpoint_id == endpoint} - {Verdict.NOT_ATTEMPTED}
        row = m.see(who, "endpoint", endpoint)
        succeeded, gone = Verdict.DELIVERED in verdicts, Verdict.DISABLE_ENDPOINT in verdicts
        concerned = verdicts and (
            (succeeded and row.failing) or (not succeeded and (not row.failing or gone))
        )
        if not concerned or not m.free(who, "endpoint", endpoint):
            continue
        after = replace(row, failing=not succeeded)
        if gone and row.state == "active":
            disabled.add(endpoint)
            after = replace(after, state="disabled")
        m.put(who, "endpoint", endpoint, after)
    return disabled
