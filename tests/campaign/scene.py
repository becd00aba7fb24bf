"""Who takes part: workspaces, event types, endpoints, and how each receiver behaves when nothing is wrong with it.

Reads: nothing. Writes: nothing.
Guarantee: what an event must reach is computed here, in Python, from nothing but the subscription.
If it is wrong: an event that was lost is not missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaign.lies import LIES
from tests.campaign.receiver import Answer

if TYPE_CHECKING:
    import random

WORKSPACES = ("ws_0", "ws_1", "ws_2")
EVENT_TYPES = ("message.received", "message.sent", "order.created", "contact.created")
RETRY_SECONDS = (0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0)
LEASE_SECONDS = 7.0
REQUEST_SECONDS = 1.5
DATABASE_SECONDS = 3.0
POLL_SECONDS = 0.25
PROBE_SECONDS = 10.0
"""Longest wait for the next probe of an endpoint that was out of reach for one fault (5 s, then 10 s)."""
ENVIRONMENT = {
    "OUTBOX_LEASE_SECONDS": str(LEASE_SECONDS),
    "OUTBOX_REQUEST_TIMEOUT_SECONDS": str(REQUEST_SECONDS),
    "OUTBOX_SETTLE_MARGIN_SECONDS": "0.5",
    "OUTBOX_CONNECT_TIMEOUT_SECONDS": "1",
    "OUTBOX_DATABASE_TIMEOUT_SECONDS": str(DATABASE_SECONDS),
    "OUTBOX_POLL_MS": str(int(POLL_SECONDS * 1000)),
    "OUTBOX_DRAIN_SECONDS": "5",
    "OUTBOX_MAX_IN_FLIGHT": "200",
    "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
    "OUTBOX_LOG_LEVEL": "info",
}


@dataclass(eq=False)
class Consumer:
    """One endpoint of the campaign, its number in its URL."""

    number: int
    workspace: str
    way: str  # north: its network is left alone; south: it is not
    types: tuple[str, ...]
    kind: str = "healthy"
    filter: str | None = None
    max_in_flight: int | None = None
    named: bool = False  # its URL has a name, which the campaign's name server answers for
    endpoint_id: str = ""
    secrets: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return f"c{self.number}.example.com" if self.named else "127.0.0.1"

    def matches(self, workspace: str, event_type: str, payload: dict[str, Any]) -> bool:
        if workspace != self.workspace or (self.filter is not None and not payload["even"]):
            return False
        return any(
            t in ("*", event_type) or (t[-2:] == ".*" and event_type.startswith(t[:-1])) for t in self.types
        )


def consumers() -> list[Consumer]:
    rows: list[tuple[Any, ...]] = [
        ("ws_0", "north", ("message.received",)),
        ("ws_0", "north", ("message.*",), "healthy", "$.even == true"),
        ("ws_1", "north", ("*",), "healthy", None, None, True),
        ("ws_1", "north", ("order.*", "message.*"), "capped", None, 2),
        ("ws_2", "north", ("*",), "flaky"),
        ("ws_2", "south", ("message.received", "contact.*"), "healthy", None, None, True),
        ("ws_0", "south", ("*",), "liar"),
        ("ws_1", "south", ("contact.created",), "refuses"),
        ("ws_2", "north", ("order.*", "message.*"), "capped", None, 2),
        ("ws_1", "south", ("*",), "healthy", None, None, True),
    ]
    return [Consumer(number, *row) for number, row in enumerate(rows)]


def answer_of(kind: str, rng: random.Random) -> Answer:
    match kind:
        case "capped":
            return Answer(500 if rng.random() < 0.25 else 200, seconds=0.05 + rng.random() / 10)
        case "flaky":
            return Answer(rng.choice((200, 200, 200, 500, 503)), seconds=rng.random() / 20)
        case "liar":
            return rng.choice(LIES)
        case "refuses":
            return Answer(500)
        case _:
            return Answer(200, seconds=rng.choice((0, 0, 0, 0.03)))
