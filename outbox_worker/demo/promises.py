"""The promises: what was committed, what the receiver saw and what the history says, held against each other.

Reads: the facts of one run; the database as an operator and, to search it for secrets, as the owner. Writes:
nothing.
Guarantee: nothing here asks the worker; a promise holds only if the receiver or the history shows it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outbox_worker.demo.cast import ATTEMPTS, FAILS_TWICE, NEVER
from outbox_worker.demo.place import one

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from outbox_worker.demo.cast import Event, Role
    from outbox_worker.demo.children import Arrival
    from outbox_worker.demo.place import Connection


@dataclass(slots=True)
class Facts:
    """What the story did and saw."""

    run_id: UUID
    roles: list[Role]
    event_types: list[str]
    endpoints: dict[str, UUID] = field(default_factory=dict)  # by path
    secrets: list[str] = field(
        default_factory=list
    )  # and header values: nobody may find them in the database
    events: list[Event] = field(default_factory=list)
    test_events: dict[str, UUID] = field(default_factory=dict)  # by path
    rolled_back: list[UUID] = field(default_factory=list)
    dead: set[UUID] = field(default_factory=set)  # dead letters before the replay
    dead_attempts: list[int] = field(default_factory=list)  # how many attempts each had
    replayed: int = 0
    arrivals: list[Arrival] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Promise:
    promise: str
    held: bool
    found: str


def wanted(facts: Facts, role: Role) -> set[UUID]:
    """Give the events that this endpoint must get of those that the app and the operator published."""
    asked = {facts.test_events[role.path]} if role.path in facts.test_events else set()
    return asked | {e.event_id for e in facts.events if e.workspace_id == role.workspace_id and role.wants(e)}


def judge(facts: Facts, operator: Connection, owner: Connection) -> list[Promise]:
    return [
        *of_the_transaction(facts, operator),
        *of_the_subscriptions(facts, operator),
        *of_the_wire(facts),
        *of_the_retries(facts),
        *of_the_dead_letters(facts, operator),
        *of_the_history(facts, operator),
        nothing_readable(facts, owner),
    ]


def of_the_transaction(facts: Facts, operator: Connection) -> Iterator[Promise]:
    rows = one(operator, "select count(*) from shop.actions where run_id = %s", facts.run_id)
    stored = one(
        operator,
        "select count(*) from outbox.events where event_id = any (%s)",
        [event.event_id for event in facts.events],
    )
    yield Promise(
        "a commit keeps the business row and its event together",
        rows == stored == len(facts.events) > 0,
        f"{rows} rows, {stored} events, {len(facts.events)} commits",
    )
    left = one(operator, "select count(*) from outbox.events where event_id = any (%s)", facts.rolled_back)
    seen = sum(arrival.event_id in facts.rolled_back for arrival in facts.arrivals)
    yield Promise(
        "a rolled-back transaction delivers nothing",
        left == seen == 0 < len(facts.rolled_back),
        f"{len(facts.rolled_back)} rolled back, {left} stored, {seen} received",
    )


def of_the_subscriptions(facts: Facts, operator: Connection) -> Iterator[Promise]:
    delivered = {arrival.event_type for arrival in facts.arrivals if arrival.accepted}
    types = set(facts.event_types)
    yield Promise(
        "every event type of the catalogue is delivered",
        delivered >= types,
        f"{len(delivered & types)} of {len(types)} types",
    )
    notices = operator.execute(
        "select event_id from outbox.events"
        " where event_type = 'delivery.dead' and payload ->> 'event_id' = any (%s)",
        [[str(event_id) for event_id in facts.dead]],
    )
    told = {event_id for (event_id,) in notices}
    accepted: defaultdict[str, set[UUID]] = defaultdict(set)
    for arrival in facts.arrivals:
        if arrival.accepted:
            accepted[arrival.path].add(arrival.event_id)
    missing = wrong = right = 0
    for role in facts.roles:
        due = wanted(facts, role) | (told if "delivery.dead" in role.event_types else set())
        right += len(due & accepted[role.path])
        missing += len(due - accepted[role.path])
        wrong += len(accepted[role.path] - due)
    yield Promise(
        "each endpoint gets exactly what it subscribed to (exact, prefix.*, *, filter)",
        missing == wrong == 0 < right,
        f"{right} delivered, {missing} missing, {wrong} not subscribed",
    )
    homes = {role.path: role.workspace_id for role in facts.roles}
    strays = sum(arrival.workspace_id != homes[arrival.path] for arrival in facts.arrivals)
    yield Promise(
        "no workspace sees another's events",
        strays == 0 < len(facts.arrivals),
        f"{strays} of {len(facts.arrivals)} requests strayed",
    )


def of_the_wire(facts: Facts) -> Iterator[Promise]:
    total = len(facts.arrivals)
    verified = sum(a.standard_ok and a.own_ok for a in facts.arrivals)
    refused = sum(a.changed_refused for a in facts.arrivals)
    yield Promise(
        "every request is signed, twice",
        verified == total > 0,
        f"{verified} of {total} verified by the receiver",
    )
    yield Promise(
        "a changed body is refused",
        refused == total > 0,
        f"{refused} of {total} refused when changed by one byte",
    )
    seen, expected = header_counts(facts)
    yield Promise("custom headers arrive", seen == expected > 0, f"{seen} of {expected} headers")


def header_counts(facts: Facts) -> tuple[int, int]:
    return sum(a.headers_seen for a in facts.arrivals), sum(a.headers_expected for a in facts.arrivals)


def of_the_retries(facts: Facts) -> Iterator[Promise]:
    answers = {role.path: role.answers for role in facts.roles}
    requests: defaultdict[tuple[str, UUID], list[Arrival]] = defaultdict(list)
    for arrival in facts.arrivals:
        requests[arrival.path, arrival.event_id].append(arrival)
    recovered = [tries for (path, _), tries in requests.items() if answers[path] == FAILS_TWICE]
    good = [tries for tries in recovered if [t.accepted for t in tries] == [False, False, True]]
    due = sum(len(wanted(facts, role)) for role in facts.roles if role.answers == FAILS_TWICE)
    yield Promise(
        "what fails is retried until it is delivered",
        len(good) == due > 0,
        f"{len(good)} of {due} delivered at the third attempt",
    )
    again = [tries for tries in requests.values() if len(tries) > 1]
    same = [
        tries
        for (_, event_id), tries in requests.items()
        if len(tries) > 1
        and len({t.body_sha256 for t in tries}) == 1
        and all(t.body_id == str(event_id) for t in tries)
        and [t.attempt_no for t in tries] == list(range(1, len(tries) + 1))
    ]
    yield Promise(
        "every retry carries the same webhook-id and the same bytes",
        len(same) == len(again) > 0,
        f"{len(same)} of {len(again)} retried deliveries",
    )


def of_the_dead_letters(facts: Facts, operator: Connection) -> Iterator[Promise]:
    never = next(role for role in facts.roles if role.answers == NEVER)
    due = wanted(facts, never)
    yield Promise(
        f"what keeps failing is a dead letter after {ATTEMPTS} attempts",
        facts.dead == due and set(facts.dead_attempts) == {ATTEMPTS},
        f"{len(facts.dead)} of {len(due)} dead, after {dict(Counter(facts.dead_attempts)) or 'no'} attempts",
    )
    states = operator.execute(
        "select d.state, d.attempt_count, d.replay_count from outbox.deliveries d where d.endpoint_id = %s"
        " and d.event_id = any (%s)",
        [facts.endpoints[never.path], list(facts.dead)],
    ).fetchall()
    good = [row for row in states if row == ("delivered", ATTEMPTS + 1, 1)]
    yield Promise(
        "an UPDATE replays dead letters, their history kept",
        len(good) == facts.replayed == len(due) > 0,
        f"{facts.replayed} replayed, {len(good)} delivered at attempt {ATTEMPTS + 1}",
    )


def of_the_history(facts: Facts, operator: Connection) -> Iterator[Promise]:
    """Compare the attempts as SQL shows them with the requests as the receiver saw them."""
    paths = {endpoint_id: path for path, endpoint_id in facts.endpoints.items()}
    rows = operator.execute(
        "select endpoint_id, event_id, attempt_no, status, request_body, request_headers is not null"
        " from outbox.attempts where endpoint_id = any (%s)",
        [list(paths)],
    ).fetchall()
    recorded = Counter(
        (paths[endpoint_id], event_id, number, status, hashlib.sha256(body.encode()).hexdigest())
        for endpoint_id, event_id, number, status, body, has_headers in rows
        if has_headers and body is not None
    )
    received = Counter((a.path, a.event_id, a.attempt_no, a.status, a.body_sha256) for a in facts.arrivals)
    alike = (recorded & received).total()
    yield Promise(
        "every attempt is recorded, the request byte for byte",
        recorded == received and alike > 0,
        f"{alike} alike of {len(rows)} recorded and {len(facts.arrivals)} received",
    )


def nothing_readable(facts: Facts, owner: Connection) -> Promise:
    """Search every table of the schema, bytes included, for the secrets and header values of this run."""
    tables = owner.execute(
        "select c.oid::regclass::text from pg_catalog.pg_class c"
        " where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"
    ).fetchall()
    needles = [form for text in facts.secrets for form in (text, text.encode().hex())]
    found = sum(
        one(
            owner,
            f"select count(*) from {table} t where exists"  # noqa: S608  (names from the catalog, quoted)
            " (select from unnest(%s::text[]) as n (text) where strpos(t::text, n.text) > 0)",
            needles,
        )
        for (table,) in tables
    )
    return Promise(
        "secrets and header values are sealed: no table shows one",
        found == 0 < len(facts.secrets),
        f"{len(facts.secrets)} searched for in {len(tables)} tables, {found} rows hold one",
    )
