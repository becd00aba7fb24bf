"""What the app and operators do in the property test.

Reads and writes: the two sessions and the model.
Guarantee: as in outbox_machine.
If it is wrong: the property test looks away, or is red without a fault.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support import outbox_model as m
from tests.support import outbox_people as people
from tests.support.outbox_machine import OutboxMachine, endpoint, session, which

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


class PeopleMachine(OutboxMachine):
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
        order=st.sampled_from([None, "x", "x", "y"]),
        later=st.sampled_from([False, False, False, True]),
    )
    def publish(self, who, kind, priority, key, content, order, *, later):
        workspace, event_type = kind
        stored = key and f"{workspace} {key}"
        query = (
            "select outbox.publish(%s, %s, jsonb_build_object('n', %s::int), %s, priority => %s::smallint,"
            " ordering_key => %s, deliver_at => clock_timestamp() + %s::interval)"
        )
        event = m.Event(workspace, priority, event_type, content, order, later)
        later_by = "1 hour" if later else None
        got, expected = self.both(
            who,
            people.publish,
            lambda given: (given, event, stored),
            lambda: self.sessions[who].call(
                query, workspace, event_type, content, key, priority, order, later_by
            ),
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

    @rule(who=session, number=endpoint, how=st.sampled_from([*CHANGES, "pause"]))
    def change_endpoint(self, who, number, how):
        function, statement = CHANGES[how]
        one = self.endpoints[number]
        query = f"select outbox.{function}(%s)"
        self.both(who, statement, (one,), lambda: self.sessions[who].call(query, one))

    @rule(who=session, number=endpoint)
    def delete_endpoint(self, who, number):
        one = self.endpoints[number]
        self.both(
            who,
            people.delete,
            (one,),
            lambda: self.sessions[who].call("select outbox.delete_endpoint(%s)", one),
        )

    @rule(who=session, number=endpoint, states=st.sets(st.sampled_from(people.PHASES), min_size=1))
    def replay_endpoint(self, who, number, states):
        query = "select outbox.replay_endpoint(%s, now() - interval '1 day', clock_timestamp(), %s)"
        one = self.endpoints[number]
        act = lambda: self.sessions[who].call(query, one, sorted(states))  # noqa: E731
        self.same(who, people.replay_endpoint, (one, states), act)

    @precondition(lambda self: self.events)
    @rule(who=session, numbers=st.sets(which, min_size=1), to=st.none() | endpoint)
    def replay_many(self, who, numbers, to):
        given = sorted({self.event(number) for number in numbers}), None if to is None else self.endpoints[to]
        query = "select outbox.replay_many(%s, %s)"
        self.same(who, people.replay_many, given, lambda: self.sessions[who].call(query, *given))
