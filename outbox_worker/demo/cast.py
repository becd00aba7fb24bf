"""The cast: three workspaces, their endpoints, and which event each endpoint must get.

Reads: nothing. Writes: nothing.
Guarantee: `wants` says in Python what the subscription says in SQL, so that neither vouches for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

WORKSPACES = ("demo_acme", "demo_bela", "demo_cyan")
SCHEDULE_SECONDS = (0.5, 0.5, 1.0, 1.0, 1.0, 1.5, 1.5)
"""In place of 30 s, 2 min, 10 min, 1 h, 4 h, 12 h and 24 h: as many retries, sooner."""
ATTEMPTS = len(SCHEDULE_SECONDS) + 1
HEALTHY, FAILS_TWICE, NEVER = (200,), (503, 500, 200), (500,)


@dataclass(frozen=True, slots=True)
class Event:
    """One committed event, as the app knows it."""

    event_id: UUID
    workspace_id: str
    event_type: str
    kind: str | None  # of `payload.message.type`
    committed_at: float  # monotonic seconds, when the commit had returned


@dataclass(frozen=True, slots=True)
class Role:
    """One endpoint to be: its subscription, its headers, and how its receiver answers."""

    path: str
    workspace_id: str
    event_types: tuple[str, ...]
    wants: Callable[[Event], bool]
    filter: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    answers: tuple[int, ...] = HEALTHY

    @property
    def subscription(self) -> str:
        return " ".join([*self.event_types, *([f"where {self.filter}"] if self.filter else [])])

    @property
    def behaviour(self) -> str:
        return {HEALTHY: "answers 200", FAILS_TWICE: "fails twice", NEVER: "500 until healed"}[self.answers]


def begins(*prefixes: str) -> Callable[[Event], bool]:
    return lambda event: event.event_type.startswith(prefixes)


def cast(mark: str) -> list[Role]:
    """Give the endpoints. `mark` makes the header values of this run like no others, to search for them."""
    acme, bela, cyan = WORKSPACES
    return [
        Role("/acme/everything", acme, ("*",), lambda _: True, headers={"X-Api-Key": f"key-{mark}"}),
        Role("/acme/messages", acme, ("message.*",), begins("message.")),
        Role(
            "/acme/text",
            acme,
            ("message.received",),
            lambda event: event.event_type == "message.received" and event.kind == "text",
            filter='$.message.type == "text"',
            headers={"Authorization": f"Bearer {mark}", "X-Team": f"inbox-{mark}"},
        ),
        Role("/bela/everything", bela, ("*",), lambda _: True),
        Role(
            "/bela/orders",
            bela,
            ("order.created", "order.paid"),
            lambda event: event.event_type in {"order.created", "order.paid"},
            headers={"X-Tenant": f"bela-{mark}"},
            answers=FAILS_TWICE,
        ),
        Role("/cyan/growth", cyan, ("lead.*", "campaign.*"), begins("lead.", "campaign.")),
        Role("/cyan/reviews", cyan, ("review.*",), begins("review."), answers=NEVER),
        Role("/cyan/dead-letters", cyan, ("delivery.dead",), lambda _: False),
    ]
