"""The SQL interface as a small model: what two sessions see, hold and may do, in any order.

Reads: nothing. Writes: nothing: plain dictionaries of what is committed, and of what each open transaction changed.
Guarantee: a statement either happens whole, waits for the other session (`Waits`), or is refused (`Refused`).
If it is wrong: the property test of the schema is tested against a fiction.

Time is a count of steps: every step's clock is later than all before; now() is the step at which a transaction began.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

Key = tuple[Any, ...]
Place = tuple[float, int]
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
    event_type: str
    content: int
    ordering_key: str | None = None
    later: bool = False  # deliver_at lies an hour ahead
    seq: Place = (0.0, 0)  # of its row in the queue


@dataclass(frozen=True)
class Endpoint:
    workspace: str
    takes: tuple[str, ...]  # the event types that its subscription matches
    version: int
    ordered: bool = False
    filtered: bool = False  # takes content 1 only
    state: str = "active"
    failing: bool = False
    rotated: bool = False

    def wants(self, event: Event) -> bool:
        return (
            event.workspace == self.workspace
            and event.event_type in self.takes
            and (not self.filtered or event.content == 1)
            and self.state != "deleted"
        )


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
    order: tuple[str, Place] | None = None  # ordering key, and place among those of the key

    def finished(self, state: str, **changes: Any) -> Delivery:
        return replace(self, state=state, lease=None, token=None, due=0.0, **changes)

    def reopened(self, priority: int, due: float) -> Delivery:
        again = Delivery(priority, due, attempts=self.attempts, status=self.status, order=self.order)
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
