"""The summary: the figures of one run, and whether every promise held.

Reads: the facts of the run, the promises, the deliveries as an operator sees them. Writes: nothing.
Guarantee: `ok` is true only if every promise held.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from outbox_worker.demo.cast import HEALTHY
from outbox_worker.demo.promises import Promise, header_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outbox_worker.demo.place import Connection
    from outbox_worker.demo.promises import Facts


@dataclass(frozen=True, slots=True)
class Summary:
    ok: bool
    seconds: float
    workspaces: int
    endpoints: int
    event_types: int
    events: int
    deliveries: int
    delivered: int
    attempts: int
    retried: int
    dead: int
    replayed: int
    signatures_verified: int
    signatures_total: int
    headers_seen: int
    headers_expected: int
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    promises: tuple[Promise, ...]
    look_around: tuple[str, ...]

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def summarize(
    facts: Facts,
    operator: Connection,
    promises: Sequence[Promise],
    *,
    seconds: float,
    look_around: tuple[str, ...],
) -> Summary:
    row = operator.execute(
        "select count(*), count(*) filter (where d.state = 'delivered'), coalesce(sum(d.attempt_count), 0),"
        " count(*) filter (where d.attempt_count > 1), count(distinct d.event_id)"
        " from outbox.deliveries d where d.endpoint_id = any (%s)",
        [list(facts.endpoints.values())],
    ).fetchone() or (0, 0, 0, 0, 0)
    undelivered = {event.event_id for event in facts.events} - {a.event_id for a in facts.arrivals}
    latencies = sorted(latencies_ms(facts))
    seen, expected = header_counts(facts)
    return Summary(
        ok=bool(promises) and all(promise.held for promise in promises),
        seconds=round(seconds, 1),
        workspaces=len({role.workspace_id for role in facts.roles}),
        endpoints=len(facts.roles),
        event_types=len(facts.event_types),
        events=row[4] + len(undelivered),
        deliveries=row[0],
        delivered=row[1],
        attempts=int(row[2]),
        retried=row[3],
        dead=len(facts.dead),
        replayed=facts.replayed,
        signatures_verified=sum(a.standard_ok and a.own_ok for a in facts.arrivals),
        signatures_total=len(facts.arrivals),
        headers_seen=seen,
        headers_expected=expected,
        latency_p50_ms=percentile(latencies, 0.50),
        latency_p99_ms=percentile(latencies, 0.99),
        promises=tuple(promises),
        look_around=look_around,
    )


def latencies_ms(facts: Facts) -> list[float]:
    """Give the times from a commit's return to its request's arrival: first attempts at healthy endpoints."""
    healthy = {role.path for role in facts.roles if role.answers == HEALTHY}
    committed = {event.event_id: event.committed_at for event in facts.events}
    return [
        max(0.0, arrival.at - committed[arrival.event_id]) * 1000
        for arrival in facts.arrivals
        if arrival.path in healthy and arrival.attempt_no == 1 and arrival.event_id in committed
    ]


def percentile(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)], 1) if ordered else None
