"""The SQL interface in any order, from two sessions at once, against the model in tests/support/outbox_*.py.

Reads and writes: one clone of the schema, emptied before each example. pytest --hypothesis-profile=deep tries more.
Guarantee: after each statement both sessions see exactly what the model says: states, counts, tokens, what may be
claimed, who waits for whom, what is refused; workers' statements wait for nobody.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from tests.support import factories
from tests.support import outbox_model as m
from tests.support.outbox_machine_people import PeopleMachine
from tests.support.outbox_machine_workers import WorkersMachine
from tests.support.sessions import Session

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # not explain: it takes minutes

ORDINARY_TABLES = (
    "select oid::regclass::text from pg_class where relkind = 'r' and relnamespace = 'outbox'::regnamespace"
)


class Outbox(PeopleMachine, WorkersMachine):
    @initialize(
        count=st.integers(1, 4),
        mine=st.booleans(),
        canceled=st.booleans(),
        order=st.sampled_from([None, "x"]),
        overtaken=st.sampled_from([None, "waiting", "worked at"]),
    )
    def something_to_do(self, count, mine, canceled, order, overtaken):
        """Events that are fanned out already, so that few steps lead far; perhaps one older than they comes late."""
        kind = ("ws_1", "message.received")
        if overtaken:
            self.begin("b")
            self.publish("b", kind, 1, None, 1, "x", later=False)
        for number in range(count):
            self.publish(
                "a", kind, number % 3, None, 1 + number % 2, order or (overtaken and "x"), later=False
            )
        if canceled:
            self.change_event("a", 0, None, "cancel")
        self.fan_out("a", mine)
        if overtaken == "worked at":
            self.claim_in_order("a")
        if overtaken:
            self.end("b", "commit")
            self.claim_in_order("a")
            self.fan_out("b", mine)
            self.claim_in_order("a")


@pytest.fixture(scope="module")
def vault_key():
    return factories.new_key()


def test_any_order_of_statements_from_two_sessions_does_what_the_model_says(db, connect, vault_key):
    """States, counts, tokens, claims, waits and refusals: all as predicted, after every single statement."""
    factories.install_key(db, vault_key)
    db.execute("update outbox.settings set max_lost_leases = %s", [m.MOST_LOST])
    # Autovacuum that gives back a table's end locks everybody out for a moment, which is no wait of ours.
    for (table,) in db.execute(ORDINARY_TABLES).fetchall():
        db.execute(f"alter table {table} set (vacuum_truncate = off, toast.vacuum_truncate = off)")
    sessions = {name: Session(connect()) for name in "ab"}
    run_state_machine_as_test(
        lambda: Outbox(db, sessions),
        settings=settings(stateful_step_count=50, suppress_health_check=list(HealthCheck), phases=PHASES),
    )
