"""The SQL interface in any order, from two sessions at once, against the model in tests/support/outbox_*.py.

Reads and writes: one clone of the schema, emptied before each example. pytest --hypothesis-profile=deep tries more.
Guarantee: after each statement both sessions see exactly what the model says: states, counts, tokens, what may be
claimed, who waits for whom, what is refused; workers' statements wait for nobody.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from outbox_worker.lane import Lane
from outbox_worker.model import FanOutAsk, Outcome, Room, Settlement, Verdict
from tests.support import factories
from tests.support import outbox_model as m
from tests.support import outbox_people as people
from tests.support import outbox_workers as workers
from tests.support.outbox_seen import SEEN, TABLES, shown
from tests.support.sessions import Session

MESSAGES = ("message.received",)
EVERYTHING = ("message.received", "order.paid")
UPDATES = {
    "cancel": ("state = 'canceled'", "pending", people.cancel_by_update),
    "replay canceled": ("state = 'pending'", "canceled", people.replay_by_update),
    "replay dead": ("state = 'pending'", "dead", people.replay_by_update),
    "retry now": ("next_attempt_at = now()", "pending", people.move),
}
CHANGES = {
    "pause": ("pause_endpoint", people.pause),
    "resume": ("resume_endpoint", people.resume),
    "rotate": ("rotate_secret", people.rotate),
}


PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # not explain: it takes minutes

session = st.sampled_from(["a", "b"])
which = st.integers(0, 3)
endpoint = st.sampled_from([0, 0, 0, 1, 1, 2])


class Outbox(RuleBasedStateMachine):
    def __init__(self, db: psycopg.Connection, sessions: dict[str, Session]) -> None:
        super().__init__()
        self.db, self.sessions = db, sessions
        self.model = m.Model()
        self.events, self.leases, self.settled = [], [], []  # in order, for the draws
        self.requests = 0
        db.execute("; ".join(f"delete from outbox.{table}" for table in TABLES))
        self.endpoints = []
        for workspace, takes in (("ws_1", MESSAGES), ("ws_1", EVERYTHING), ("ws_2", EVERYTHING)):
            subscribed = ["message.*"] if takes == MESSAGES else ["*"]
            made, _ = factories.make_endpoint(
                db, "https://a.example.com/", subscribed, workspace_id=workspace
            )
            self.endpoints.append(made)
            version = db.execute("select version from outbox.endpoints where endpoint_id = %s", [made])
            self.model.committed["endpoint", made] = m.Endpoint(workspace, takes, version.fetchone()[0])

    def teardown(self):
        for one in self.sessions.values():
            one.connection.rollback()

    @initialize(count=st.integers(1, 4), mine=st.booleans(), canceled=st.booleans())
    def something_to_do(self, count, mine, canceled):
        """Events that are fanned out already, so that few steps lead far."""
        for number in range(count):
            self.publish("a", ("ws_1", "message.received"), number % 3, None, 1)
        if canceled:
            self.change_event("a", 0, None, "cancel")
        self.fan_out("a", mine)

    # ------------------------------------------------------------------ how a statement is run and compared

    def both(self, who, statement, arguments, act):
        """The same in the database and in the model, which is given what only the database can know."""
        try:
            got, outcome = act(), "done"
        except psycopg.errors.LockNotAvailable:
            got, outcome = None, "waits"
        except psycopg.Error as error:
            got, outcome = None, f"refused {error.sqlstate}"
        arguments = arguments(got) if callable(arguments) else arguments
        try:
            expected, predicted = self.model.run(who, statement, *arguments), "done"
        except m.WaitsError:
            expected, predicted = None, "waits"
        except m.RefusedError as error:
            expected, predicted = None, f"refused {error}"
        assert outcome == predicted, f"{statement.__name__}: the database {outcome}, the model {predicted}"
        return got, expected

    def same(self, who, statement, arguments, act):
        got, expected = self.both(who, statement, arguments, act)
        assert got == expected, f"{statement.__name__}: the database says {got}, the model {expected}"

    def some_are(self, state):
        return any(
            d.state == state for who in self.sessions for d in self.model.seen(who, "delivery").values()
        )

    def event(self, number):
        return self.events[number % len(self.events)]

    def remember(self, leased):
        found = [one.delivery for one in leased]
        order = {event: place for place, event in enumerate(self.events)}
        found.sort(key=lambda d: (order[d.event_id], self.endpoints.index(d.endpoint_id)))
        self.leases += found

    @invariant()
    def both_sessions_see_what_the_model_says(self):
        for who, one in self.sessions.items():
            rows = one.connection.execute(SEEN).fetchall()
            found = sorted(repr((kind, json.dumps(key), json.dumps(row))) for kind, key, row in rows)
            kinds = ("delivery", "event", "queued", "canceled", "endpoint", "attempt", "late", "lost")
            expected = sorted(
                repr((kind, *(json.dumps(part, default=str) for part in shown(kind, key, row))))
                for kind in kinds
                for key, row in self.model.seen(who, kind).items()
            )
            assert found == expected, f"what session {who} sees"

    # ------------------------------------------------------------------ transactions

    @precondition(lambda self: len(self.model.open) < 2)
    @rule(who=session)
    def begin(self, who):
        if who not in self.model.open:
            self.sessions[who].connection.execute("begin")
            self.model.begin(who)

    @precondition(lambda self: self.model.open)
    @rule(who=session, how=st.sampled_from(["commit", "commit", "rollback"]))
    def end(self, who, how):
        if who in self.model.open:
            self.sessions[who].connection.execute(how)
            getattr(self.model, how)(who)

    @precondition(lambda self: self.model.open)
    @rule(who=session)
    def savepoint(self, who):
        if who in self.model.open:
            self.sessions[who].connection.execute(f"savepoint s{len(self.model.open[who].savepoints)}")
            self.model.savepoint(who)

    @precondition(lambda self: any(one.savepoints for one in self.model.open.values()))
    @rule(who=session)
    def rollback_to_savepoint(self, who):
        if who in self.model.open and (depth := len(self.model.open[who].savepoints)):
            self.sessions[who].connection.execute(f"rollback to savepoint s{depth - 1}")
            self.model.rollback_to_savepoint(who)

    # ------------------------------------------------------------------ the app and its operators

    @rule(
        who=session,
        kind=st.sampled_from(
            [
                ("ws_1", "message.received"),
                ("ws_1", "message.received"),
                ("ws_1", "order.paid"),
                ("ws_2", "order.paid"),
            ]
        ),
        priority=st.integers(0, 2),
        key=st.sampled_from([None, None, "k"]),
        content=st.integers(1, 2),
    )
    def publish(self, who, kind, priority, key, content):
        workspace, event_type = kind
        stored = key and f"{workspace} {key}"
        query = (
            "select outbox.publish(%s, %s, jsonb_build_object('n', %s::int), %s, priority => %s::smallint)"
        )
        event = m.Event(workspace, priority)
        got, expected = self.both(
            who,
            people.publish,
            lambda given: (given, event, event_type, stored, content),
            lambda: self.sessions[who].call(query, workspace, event_type, content, key, priority),
        )
        assert got == expected
        if got is not None and got not in self.events:
            self.events.append(got)

    @precondition(lambda self: self.events)
    @rule(
        who=session, event=which, to=st.none() | endpoint, how=st.sampled_from(["replay", "replay", "cancel"])
    )
    def change_event(self, who, event, to, how):
        given = self.event(event), None if to is None else self.endpoints[to]
        statement = {"replay": people.replay, "cancel": people.cancel}[how]
        self.same(
            who, statement, given, lambda: self.sessions[who].call(f"select outbox.{how}(%s, %s)", *given)
        )

    @precondition(lambda self: self.events)
    @rule(who=session, number=endpoint, how=st.sampled_from(sorted(UPDATES)))
    def update_deliveries(self, who, number, how):
        change, where, statement = UPDATES[how]
        query = f"update outbox.deliveries set {change} where endpoint_id = %s and state = '{where}'"
        one = self.endpoints[number]
        arguments = (one, where) if statement is people.replay_by_update else (one,)
        got, expected = self.both(who, statement, arguments, lambda: self.sessions[who].call(query, one))
        assert statement is people.move or got == expected

    @rule(who=session, number=endpoint, how=st.sampled_from(["pause", "pause", "resume", "rotate"]))
    def change_endpoint(self, who, number, how):
        function, statement = CHANGES[how]
        one = self.endpoints[number]
        query = f"select outbox.{function}(%s)"
        self.both(who, statement, (one,), lambda: self.sessions[who].call(query, one))

    # ------------------------------------------------------------------ workers

    @precondition(lambda self: any(self.model.seen(who, "queued") for who in self.sessions))
    @rule(who=session, mine=st.booleans())
    def fan_out(self, who, mine):
        store = self.sessions[who].store
        room = Room(shards=range(64) if mine else (), endpoints={}, default=1000, total=1000)
        ask = FanOutAsk(fair=False, mark=0, batch=100)
        got, expected = self.both(
            who,
            lambda model, name, token: workers.fan_out(model, name, token, mine=mine),
            lambda fanned: (fanned.handed_over[0].delivery.lease_token if fanned.handed_over else None,),
            lambda: self.sessions[who].work(store.fan_out(ask, room)),
        )
        found = {
            (one.delivery.event_id, one.delivery.endpoint_id, one.delivery.endpoint_version)
            for one in got.handed_over
        }
        assert found == expected
        self.remember(got.handed_over)

    @precondition(lambda self: self.some_are("pending"))
    @rule(who=session, endpoint=endpoint, room=st.sampled_from([100, 100, 1]))
    def claim(self, who, endpoint, room):
        if who in self.model.open:
            room = 100  # what a smaller room leaves of the other priorities stays locked until the end
        one = self.endpoints[endpoint]
        may = workers.claimable(self.model, who, one)
        leased = self.sessions[who].work(self.sessions[who].store.claim([(Lane(one), room)]))
        found = {
            (d.event_id, d.endpoint_id, d.attempt_no, d.failed_count, d.priority, d.endpoint_version)
            for d in (each.delivery for each in leased)
        }
        assert found <= may, "only what may be claimed"
        assert len(found) == len(leased) == min(room, len(may)), "all that there is room for, once each"
        self.model.run(who, workers.claim, found, leased[0].delivery.lease_token if leased else None)
        self.remember(leased)

    @precondition(lambda self: self.leases)
    @rule(
        who=session,
        numbers=st.lists(
            st.tuples(st.integers(0, 9), st.sampled_from(list(Verdict)), st.booleans()),
            min_size=1,
            max_size=3,
        ),
    )
    def settle(self, who, numbers):
        batch = {}
        for number, verdict, soon in numbers:
            lease = self.leases[
                -1 - number % len(self.leases)
            ]  # the latest are the most likely to be current
            self.requests += 1
            status = {Verdict.DELIVERED: 200, Verdict.DISABLE_ENDPOINT: 410}.get(verdict, 503)
            outcome = Outcome(status, None, "", (), b"", 12.0)
            began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.requests)
            retry_in = timedelta(hours=0 if soon else 1)
            batch[lease.event_id, lease.endpoint_id] = Settlement(lease, outcome, verdict, retry_in, began)
        self.settled.append(list(batch.values()))
        self.record(who, self.settled[-1])

    @precondition(lambda self: self.settled)
    @rule(who=session)
    def settle_once_more(self, who):
        """The answer of the commit was lost: the worker cannot know and does it again."""
        self.record(who, self.settled[-1])

    def record(self, who, batch):
        def act():
            rows = self.sessions[who].work(self.sessions[who].store.settle(batch))
            named = [(batch[place - 1].delivery, rest) for place, *rest in rows]
            return {(delivery.event_id, delivery.endpoint_id, *rest) for delivery, rest in named}

        self.same(who, workers.settle, (batch,), act)

    @precondition(lambda self: self.leases)
    @rule(who=session, numbers=st.sets(st.integers(0, 9), min_size=1, max_size=3))
    def release(self, who, numbers):
        given = [self.leases[-1 - n % len(self.leases)] for n in sorted(numbers)]
        given = list({(d.event_id, d.endpoint_id): d for d in given}.values())
        keys = [(d.event_id, d.endpoint_id, d.lease_token) for d in given]

        def act():
            return {tuple(row) for row in self.sessions[who].work(self.sessions[who].store.release(given))}

        self.same(who, workers.release, (keys,), act)

    @precondition(lambda self: self.leases)
    @rule(number=st.integers(0, 9))
    def lease_expires(self, number):
        lease = self.leases[-1 - number % len(self.leases)]
        key = ("delivery", lease.event_id, lease.endpoint_id)
        row = self.model.committed.get(key)
        if row and row.lease == "live" and not any(key in one.held for one in self.model.open.values()):
            self.db.execute(
                "update outbox.open_deliveries set lease_expires_at = now() - interval '1 hour'"
                " where event_id = %s and endpoint_id = %s",
                key[1:],
            )
            self.model.committed[key] = replace(row, lease="expired")

    @precondition(lambda self: self.leases)
    @rule(who=session, endpoint=endpoint)
    def reap(self, who, endpoint):
        one = self.endpoints[endpoint]

        def act():
            rows = self.sessions[who].work(self.sessions[who].store.reap([one]))
            return {(event, n, lost, hopeless) for event, n, _, _, lost, hopeless in rows}

        self.same(who, workers.reap, (one,), act)

    @precondition(lambda self: self.leases)
    @rule(who=session)
    def cancel_slice(self, who):
        self.same(
            who, workers.cancel_slice, (), lambda: self.sessions[who].call("select outbox.cancel_slice(100)")
        )


@pytest.fixture(scope="module")
def vault_key():
    return factories.new_key()


def test_any_order_of_statements_from_two_sessions_does_what_the_model_says(db, connect, vault_key):
    """States, counts, tokens, claims, waits and refusals: all as predicted, after every single statement."""
    factories.install_key(db, vault_key)
    db.execute("update outbox.settings set max_lost_leases = %s", [m.MOST_LOST])
    sessions = {name: Session(connect()) for name in "ab"}
    run_state_machine_as_test(
        lambda: Outbox(db, sessions),
        settings=settings(stateful_step_count=50, suppress_health_check=list(HealthCheck), phases=PHASES),
    )
