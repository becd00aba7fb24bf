"""The evidence: everything that was seen of a campaign, brought together for the invariants and the report.

Reads: the ledger, the journal, the history tables, the stage's record of faults. Writes: nothing.
Guarantee: a request belongs to a delivery by its webhook-id and its endpoint's number, to an attempt by number and time.
If it is wrong: invariants compare what does not belong together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaign.scene import LEASE_SECONDS

if TYPE_CHECKING:
    from tests.campaign.operators import Operators
    from tests.campaign.scene import Consumer
    from tests.campaign.stage import Played

CLOCK_SECONDS = 0.05  # how far two clocks of one machine, milliseconds rounded away, may seem to disagree
Pair = tuple[str, str]


@dataclass
class Evidence:
    ledger: list[dict[str, Any]]
    journal: list[dict[str, Any]]
    consumers: list[Consumer]
    deliveries: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    lost: list[dict[str, Any]]
    late: list[dict[str, Any]]
    leases: list[dict[str, Any]]
    people: Operators
    played: list[Played]
    drained: bool
    unasked: list[str]
    leftovers: list[str]

    def __post_init__(self) -> None:
        self.by_number = {one.number: one for one in self.consumers}
        self.committed = {e["id"]: e for e in self.ledger if e["state"] == "committed"}
        self.attempts_of: dict[Pair, list[dict[str, Any]]] = group(self.attempts)
        self.lost_of: dict[Pair, list[dict[str, Any]]] = group(self.lost)
        self.late_of: dict[Pair, list[dict[str, Any]]] = group(self.late)
        self.requests_of: dict[Pair, list[dict[str, Any]]] = defaultdict(list)
        for request in self.journal:
            request["pair"] = (request["id"], self.by_number[request["endpoint"]].endpoint_id)
            self.requests_of[request["pair"]].append(request)


QUIET = {
    "calm", "sigterm_under_load", "sigterm_all_in_turn", "sigterm_while_receivers_are_late", "old_snapshot_held",
    "clock_off_by_an_hour", "receivers down (503)", "receivers silent", "receivers dripping", "receivers late",
    "receivers black-holed", "receivers half-open", "receivers one-way", "receivers reset",
    "receivers slow", "receivers_lying", "names silent", "names failing", "names unknown",
}  # fmt: skip
"""Faults that cost no lease: no worker dies or is stopped, the database stays within reach."""


def group(rows: list[dict[str, Any]]) -> dict[Pair, list[dict[str, Any]]]:
    found: dict[Pair, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["event_id"], row["endpoint_id"]].append(row)
    return found


def succeeded(row: dict[str, Any]) -> bool:
    return 200 <= (row["status"] or 0) < 300


def matching(rows: dict[Pair, list[dict[str, Any]]], request: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row for row in rows.get(request["pair"], ())
        if row["attempt_no"] == request["attempt"] and abs(row["started_at"] - int(request["stamp"]) - 0.5) <= 0.5 + CLOCK_SECONDS
    ]  # fmt: skip


def lost_lease_of(e: Evidence, request: dict[str, Any]) -> bool:
    return any(
        row["attempt_no"] == request["attempt"]
        and row["expired_at"] - LEASE_SECONDS - 1 - CLOCK_SECONDS
        <= int(request["stamp"])
        <= row["expired_at"]
        for row in e.lost_of.get(request["pair"], ())
    )


def duplicates(e: Evidence) -> Counter[Pair]:
    """Successes beyond the first and beyond replays, per delivery."""
    extra: Counter[Pair] = Counter()
    for pair, rows in e.requests_of.items():
        count = sum(200 <= r["status"] < 300 for r in rows) - 1 - e.people.replays.get(pair, 0)
        if count > 0:
            extra[pair] = count
    return extra
