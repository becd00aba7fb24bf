"""What workers run, on the model: nothing here ever waits.

Reads and writes: a Model. Nothing else.
Guarantee: as in outbox_model.
If it is wrong: the property test of the schema is tested against a fiction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outbox_worker.model import Verdict
from tests.support.outbox_model import LATER, MOST_LOST, Delivery, Key, Model, Place
from tests.support.outbox_people import close

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from outbox_worker.model import Settlement


def fan_out(m: Model, who: str, token: UUID | None, *, mine: bool) -> set[Key]:
    """Returns event, endpoint and version of what is handed over leased: the active ones, if the shards are mine."""
    handed_over = set()
    for (event,) in m.seen(who, "queued"):
        if not m.free(who, "queued", event):
            continue
        m.put(who, "queued", event, None)
        known = m.see(who, "event", event)
        for (endpoint,), row in m.seen(who, "endpoint").items():
            if not row.wants(known) or m.see(who, "canceled", event):
                continue
            order = (known.ordering_key, known.seq) if row.ordered and known.ordering_key else None
            made = Delivery(known.priority, LATER if known.later else m.clock, order=order)
            if mine and row.state == "active" and not known.later and not order:
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
        and d.order is None
        and d.due <= now
        and row.state == "active"
        and m.free(who, "delivery", event, n)
    }


def claimable_in_order(m: Model, who: str, endpoint: UUID) -> set[Key]:
    """The oldest of each ordering key, if it is due, nobody works at the key, and nothing older can still come."""
    row = m.see(who, "endpoint", endpoint)
    now = m.now(who) if who in m.open else m.clock + 1
    keys: dict[str, list[tuple[Place, UUID, Delivery]]] = {}
    for (event, n), d in m.seen(who, "delivery").items():
        if n == endpoint and d.state == "pending" and d.order:
            keys.setdefault(d.order[0], []).append((d.order[1], event, d))
    queued = [m.see(who, "event", event) for (event,) in m.seen(who, "queued")]
    found = set()
    for key, waiting in keys.items():
        place, event, d = min(waiting, key=lambda one: one[0])
        older = any(q.workspace == row.workspace and q.ordering_key == key and q.seq < place for q in queued)
        worked_at = any(other.lease for _, _, other in waiting)
        due = row.state == "active" and d.due <= now and not older and not worked_at
        if due and m.free(who, "delivery", event, endpoint):
            found.add((event, endpoint, d.attempts + 1, d.failed, d.priority, row.version))
    return found


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
        if (
            m.see(who, "endpoint", n).state == "deleted"
            or (m.see(who, "canceled", event) and row.replays == 0)
        )
        and row.state == "pending"
        and row.lease != "live"
        and m.free(who, "delivery", event, n)
    ]
    return close(m, who, found)


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
