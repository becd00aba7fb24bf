"""An outbox in the middle of its work, of which a test makes a copy.

Reads: the receiver's requests. Writes: endpoints and events of one database.
Guarantee: each state that a delivery can wait in is there once.
If it is wrong: a restore is tried with less than a restored outbox holds.
"""

from __future__ import annotations

from datetime import timedelta

from tests.support import factories
from tests.support.factories import make_endpoint, publish, state_of
from tests.support.receiver import stall, status
from tests.support.waiting import eventually

ONCE = [timedelta(milliseconds=20)]


def ids(receiver, path):
    """Give the webhook-ids that arrived on a path, in order."""
    return [
        value
        for request in receiver.requests
        if request.path == path
        for name, value in request.headers
        if name.lower() == "webhook-id"
    ]


class Original:
    """An outbox in the middle of its work: some delivered, dead, pending, leased, and not fanned out."""

    def __init__(self, db, receiver, vault_key):
        self.db, self.receiver = db, receiver
        factories.allow_loopback(db, receiver.port)
        factories.install_key(db, vault_key)
        receiver.script("/bad", status(500))
        receiver.script("/leased", stall())
        self.good, _ = make_endpoint(db, f"{receiver.url}good", ["message.received"])
        self.paused, _ = make_endpoint(db, f"{receiver.url}paused", ["message.sent"])
        self.slow, _ = make_endpoint(db, f"{receiver.url}leased", ["order.paid"])
        self.bad, _ = make_endpoint(db, f"{receiver.url}bad", ["message.received"], retry_schedule=ONCE)
        db.execute("select outbox.pause_endpoint(%s)", [self.paused])

    async def work(self, running):
        db, receiver = self.db, self.receiver
        async with running:
            self.delivered = publish(db, "message.received")
            self.pending = publish(db, "message.sent")
            self.leased = publish(db, "order.paid")
            await eventually(lambda: state_of(db, self.delivered, self.good) == "delivered")
            await eventually(lambda: state_of(db, self.delivered, self.bad) == "dead")
            await eventually(lambda: state_of(db, self.pending) == "pending")
            await eventually(lambda: ids(receiver, "/leased"))
        self.unseen = publish(db, "message.received")

    @property
    def waiting(self):
        return {
            (str(self.pending), str(self.paused), "pending"),
            (str(self.leased), str(self.slow), "leased"),
            (str(self.unseen), "None", "not fanned out"),
        }
