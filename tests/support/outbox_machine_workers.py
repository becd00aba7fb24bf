"""What workers do in the property test.

Reads and writes: the two sessions and the model.
Guarantee: as in outbox_machine; workers' statements wait for nobody.
If it is wrong: the property test looks away, or is red without a fault.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from outbox_worker.lane import Lane
from outbox_worker.model import FanOutAsk, Outcome, Room, Settlement, Verdict
from tests.support import outbox_workers as workers
from tests.support.outbox_machine import ORDERED, OutboxMachine, endpoint, session


def claimed(leased):
    return {
        (d.event_id, d.endpoint_id, d.attempt_no, d.failed_count, d.priority, d.endpoint_version)
        for d in (each.delivery for each in leased)
    }


class WorkersMachine(OutboxMachine):
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
        found = claimed(leased)
        assert found <= may, "only what may be claimed"
        assert len(found) == len(leased) == min(room, len(may)), "all that there is room for, once each"
        self.model.run(who, workers.claim, found, leased[0].delivery.lease_token if leased else None)
        self.remember(leased)

    @precondition(lambda self: self.some_are("pending"))
    @rule(who=session)
    def claim_in_order(self, who):
        one = self.endpoints[ORDERED]
        may = workers.claimable_in_order(self.model, who, one)
        leased = self.sessions[who].work(self.sessions[who].store.claim_ordered([(Lane(one), 100)]))
        found = claimed(leased)
        assert found == may, f"the heads of keys: the database says {found}, the model {may}"
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
