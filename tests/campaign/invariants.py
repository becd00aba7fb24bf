"""The invariants: what must hold after any faults, each a function from the evidence to its violations.

Reads: the ledger, the journal, the history tables, the stage's record of faults. Writes: nothing.
Guarantee: zero tolerance; where a bound is allowed it is a constant with a name.
If it is wrong: `python -m tests.campaign.mutants` shows which of them cannot fail.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.campaign.evidence import CLOCK_SECONDS, QUIET, Evidence, Pair, lost_lease_of, matching, succeeded
from tests.campaign.scene import LEASE_SECONDS, REQUEST_SECONDS, RETRY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

STAMP_SECONDS = LEASE_SECONDS
"""A request may arrive this long after the moment it was signed for (a process stopped in between: SIGSTOP)."""
STOPPING = ("sigstop", "zombies", "dies at: reaping", "dies at: in reap")
"""Faults that stop a process for longer than that."""


def nothing_lost(e: Evidence) -> Iterator[str]:
    """Every committed event reaches its end at every matching endpoint: a journalled 2xx, or dead with a reason."""
    yield from [] if e.drained else ["work was left when the time to drain had passed"]
    ends = {(d["event_id"], d["endpoint_id"]): d for d in e.deliveries}
    for event in e.committed.values():
        for one in e.consumers:
            if not one.matches(event["workspace"], event["type"], event["payload"]):
                continue
            end = ends.get((event["id"], one.endpoint_id))
            if end is None:
                yield f"event {event['n']} has no delivery to endpoint {one.number}"
            elif end["state"] == "delivered":
                if not any(200 <= r["status"] < 300 for r in e.requests_of[event["id"], one.endpoint_id]):
                    yield f"event {event['n']} is delivered to endpoint {one.number}, which never answered 2xx"
            elif end["state"] != "dead" or end["reason"] not in ("exhausted", "crash_loop"):
                yield f"event {event['n']} to endpoint {one.number} is {end['state']} ({end['reason']})"


def nothing_else(e: Evidence) -> Iterator[str]:
    """What the receiver saw was committed, and matches the endpoint."""
    for request in e.journal:
        event = e.committed.get(request["id"])
        if event is None:
            yield f"request {request['r']}: event {request['id']} was never committed"
        elif not e.by_number[request["endpoint"]].matches(
            event["workspace"], event["type"], event["payload"]
        ):
            yield f"request {request['r']}: event {event['n']} is not for endpoint {request['endpoint']}"
    for delivery in e.deliveries:
        if delivery["event_id"] not in e.committed:
            yield f"a delivery of event {delivery['event_id']}, which was never committed"


def dead_letters_are_exhausted(e: Evidence) -> Iterator[str]:
    """Exhausted means 8 failed attempts since the last replay; attempts are numbered without a gap."""
    for delivery in e.deliveries:
        rows = e.attempts_of[delivery["event_id"], delivery["endpoint_id"]]
        if sorted(r["attempt_no"] for r in rows) != list(range(1, delivery["attempt_count"] + 1)):
            yield f"{delivery['event_id']}: {delivery['attempt_count']} attempts, recorded {[r['attempt_no'] for r in rows]}"
        if delivery["reason"] == "exhausted":
            last = sorted(rows, key=lambda r: r["attempt_no"])[-delivery["failed_count"] :]
            if delivery["failed_count"] != len(RETRY_SECONDS) + 1 or any(succeeded(r) for r in last):
                yield f"{delivery['event_id']} is exhausted after {delivery['failed_count']} failures"


def every_request_is_accounted_for(e: Evidence) -> Iterator[str]:
    """A request that the receiver saw is an attempt, a recorded lost lease or a recorded late result."""
    for request in e.journal:
        if not (
            matching(e.attempts_of, request) or matching(e.late_of, request) or lost_lease_of(e, request)
        ):
            yield f"request {request['r']} (attempt {request['attempt']} of {request['id']}) is recorded nowhere"


def every_status_was_journalled(e: Evidence) -> Iterator[str]:
    """An attempt or late result with a status has its request in the journal, answered with that status."""
    for pair, rows in [*e.attempts_of.items(), *e.late_of.items()]:
        for row in rows:
            seen = [
                r
                for r in e.requests_of.get(pair, ())
                if r["status"] == row["status"] and r["attempt"] == row["attempt_no"]
            ]
            if row["status"] is not None and not seen:
                yield f"attempt {row['attempt_no']} of {pair[0]} has status {row['status']}, which nobody answered"


def duplicates_are_explained(e: Evidence) -> Iterator[str]:
    """Successes of one delivery: one, one more per replay, one more per recorded lost lease; nothing else."""
    for pair, heard in successes_heard(e):
        allowed = 1 + e.people.replays.get(pair, 0) + len(e.lost_of.get(pair, ()))
        if heard > allowed:
            yield f"{pair[0]} was delivered {heard} times to {pair[1]}; {allowed} are explained"


def orderly_ends_duplicate_nothing(e: Evidence) -> Iterator[str]:
    """A campaign of nothing but SIGTERM: no lease is lost, no delivery succeeds twice unless a person replayed it."""
    if any(not one.name.startswith(("calm", "sigterm")) for one in e.played):
        return
    yield from (f"a lease of {row['event_id']} was lost" for row in e.lost)
    for pair, heard in successes_heard(e):
        if heard > 1 + e.people.replays.get(pair, 0):
            yield f"{pair[0]} was delivered {heard} times to {pair[1]}, and nobody died"


def successes_heard(e: Evidence) -> Iterator[tuple[Pair, int]]:
    """How many 2xx of a delivery were not recorded as something else (a deadline that passed before the answer)."""
    for pair, rows in e.requests_of.items():
        answered = [r for r in rows if 200 <= r["status"] < 300]
        attempts = [matching(e.attempts_of, r) for r in answered]
        yield pair, sum(any(succeeded(a) for a in found) or not found for found in attempts)


def nobody_retries_early(e: Evidence) -> Iterator[str]:
    """No attempt before the schedule's time after the one before, unless a person asked for it."""
    for pair, rows in e.attempts_of.items():
        if pair in e.people.touched:
            continue
        ordered = sorted(rows, key=lambda r: r["attempt_no"])
        for before, after in itertools.pairwise(ordered):
            wait = RETRY_SECONDS[min(before["attempt_no"], len(RETRY_SECONDS)) - 1]
            waited = after["started_at"] - before["started_at"] - before["duration_ms"] / 1000
            if waited < wait - CLOCK_SECONDS:
                yield f"attempt {after['attempt_no']} of {pair[0]} came {waited:.3f} s after a failure, not {wait}"


def every_try_is_the_same(e: Evidence) -> Iterator[str]:
    """One event, one body, byte for byte, with its own id in it."""
    hashes: dict[str, set[str]] = defaultdict(set)
    for request in e.journal:
        hashes[request["id"]].add(request["sha"])
        if not request["body"].startswith(f'{{"id": "{request["id"]}", '):
            yield f"request {request['r']}: the body does not name the event"
    yield from (
        f"event {event_id} was sent with {len(found)} bodies"
        for event_id, found in hashes.items()
        if len(found) > 1
    )


def every_signature_is_valid(e: Evidence) -> Iterator[str]:
    """Signed with a secret of the endpoint, for the database's time of the attempt."""
    for request in e.journal:
        stamp, *own = request["own_signature"].split(",")
        signed = f"{request['stamp']}.{request['body']}".encode()
        marks = {
            f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"
            for secret in e.by_number[request["endpoint"]].secrets
        }
        if stamp != f"t={request['stamp']}" or not marks & set(own):
            yield f"request {request['r']}: its own header holds no valid signature"
        signed = f"{request['id']}.{request['stamp']}.{request['body']}".encode()
        marks = {
            "v1,"
            + base64.b64encode(hmac.digest(base64.b64decode(secret[6:]), signed, hashlib.sha256)).decode()
            for secret in e.by_number[request["endpoint"]].secrets
        }
        if not marks & set(request["signature"].split()):
            yield f"request {request['r']}: no signature is valid"
        stopped = any(
            p.name.startswith(STOPPING) and p.began - 1 < request["at"] < p.ended + 2 for p in e.played
        )
        if (
            not -1 - CLOCK_SECONDS
            <= request["at"] - int(request["stamp"])
            <= (30 if stopped else STAMP_SECONDS)
        ):
            yield f"request {request['r']} was signed for {request['stamp']}, sent at {request['at']:.1f}"


def tokens_fence(e: Evidence) -> Iterator[str]:
    """No state set by a stale token: what ended a lease was begun under that lease."""
    taken: dict[Pair, dict[str, Any]] = {}
    begun = {(a["event_id"], a["endpoint_id"], a["attempt_no"]): a["started_at"] for a in e.attempts}
    for row in e.leases:
        pair = (row["event_id"], row["endpoint_id"])
        if row["what"] == "leased":
            taken[pair] = row
        elif (started := begun.get((*pair, row["attempt_no"]))) is not None and started < taken[pair][
            "at"
        ] - CLOCK_SECONDS:
            yield f"attempt {row['attempt_no']} of {pair[0]} began {taken[pair]['at'] - started:.2f} s before its lease"


def limits_hold(e: Evidence) -> Iterator[str]:
    """Requests at once to one endpoint within its limit, those of lost leases and late results left out."""
    for one in e.consumers:
        if one.max_in_flight is None:
            continue
        counted = [
            r for r in e.journal
            if r["endpoint"] == one.number and matching(e.attempts_of, r) and not lost_lease_of(e, r)
        ]  # fmt: skip
        moves = [(r["at"], 1) for r in counted] + [
            (min(r.get("end", 1e12), r["at"] + REQUEST_SECONDS), -1) for r in counted
        ]
        now = most = 0
        at = 0.0
        for moment, step in sorted(moves):
            now += step
            if now > most:
                most, at = now, moment
        if most > one.max_in_flight:
            yield f"endpoint {one.number} had {most} requests at once at {at:.2f}, its limit is {one.max_in_flight}"


def workers_recover(e: Evidence) -> Iterator[str]:
    """After each fault every healthy endpoint hears again within lease + poll + 2 s, or the fault's own bound."""
    from tests.campaign.faults import BOUND, BY_NAME  # noqa: PLC0415  (faults know the stage, the stage knows us)

    for one in e.played:
        bound = getattr(BY_NAME.get(one.name), "bound", BOUND)
        if one.recovery is not None and one.recovery > bound:
            yield f"after {one.name} it took {one.recovery:.1f} s, more than {bound:.1f}"


def workers_leave_only_when_asked(e: Evidence) -> list[str]:
    return e.unasked


def nothing_is_left_behind(e: Evidence) -> list[str]:
    """Descriptors, memory and connections are back at the baseline; nobody idles in a transaction."""
    return e.leftovers


def lost_leases_have_a_cause(e: Evidence) -> Iterator[str]:
    """A lease is lost only if a fault lay within its life."""
    for row in e.lost:
        alive = (row["expired_at"] - LEASE_SECONDS - 1, row["expired_at"])
        if not any(p.name not in QUIET and p.began <= alive[1] and p.ended + 2 >= alive[0] for p in e.played):
            yield f"a lease of {row['event_id']} was lost in peace, at {row['expired_at']:.1f}"


ALL = (
    nothing_lost, nothing_else, dead_letters_are_exhausted, every_request_is_accounted_for, every_status_was_journalled,
    duplicates_are_explained, orderly_ends_duplicate_nothing, nobody_retries_early, every_try_is_the_same, every_signature_is_valid, tokens_fence, limits_hold,
    workers_recover, workers_leave_only_when_asked, nothing_is_left_behind, lost_leases_have_a_cause,
)  # fmt: skip


def check(evidence: Evidence) -> dict[str, list[str]]:
    """Violations by the invariant's name; empty lists are kept, since they are the claim."""
    return {one.__name__: list(one(evidence)) for one in ALL}
