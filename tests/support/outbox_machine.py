"""What all rules of the property test stand on: two sessions, the model, and how they are compared.

Reads and writes: one clone of the schema, emptied before each example.
Guarantee: after each statement both sessions see exactly what the model says.
If it is wrong: the property test looks away, or is red without a fault.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support import factories
from tests.support import outbox_model as m
from tests.support.outbox_seen import SEEN, TABLES, shown

if TYPE_CHECKING:
    from tests.support.sessions import Session

MESSAGES = ("message.received",)
EVERYTHING = ("message.received", "order.paid")
ORDERED = 3
ENDPOINTS = (
    ("ws_1", MESSAGES, {}),
    ("ws_1", EVERYTHING, {"filter": "$.n == 1"}),
    ("ws_2", EVERYTHING, {}),
    ("ws_1", MESSAGES, {"ordered": True}),
)
session = st.sampled_from(["a", "b"])
which = st.integers(0, 3)
endpoint = st.sampled_from([0, 0, 0, 1, 1, 2, ORDERED, ORDERED])


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self, db: psycopg.Connection, sessions: dict[str, Session]) -> None:
        super().__init__()
        self.db, self.sessions = db, sessions
        self.model = m.Model()
        self.events, self.leases, self.settled = [], [], []  # in order, for the draws
        self.requests = 0
        db.execute("; ".join(f"delete from outbox.{table}" for table in TABLES))
        self.endpoints = []
        for workspace, takes, options in ENDPOINTS:
            subscribed = ["message.*"] if takes == MESSAGES else ["*"]
            url = "https://a.example.com/"
            made, _ = factories.make_endpoint(db, url, subscribed, workspace_id=workspace, **options)
            self.endpoints.append(made)
            version = db.execute("select version from outbox.endpoints where endpoint_id = %s", [made])
            self.model.committed["endpoint", made] = m.Endpoint(
                workspace,
                takes,
                version.fetchone()[0],
                ordered="ordered" in options,
                filtered="filter" in options,
            )

    def teardown(self):
        for one in self.sessions.values():
            one.connection.rollback()

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
