"""Latency samples: publish one event now and then, note its commit, look up when its requests arrived.

Reads: the system clock of this machine, which the noting receiver reads too. Writes: events by outbox.publish.
Guarantee: a sample is the time from the commit's return to the request's first byte; both are one clock.
If the clock is stepped meanwhile: the samples are wrong; they are told apart by their sign.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.waits import pause, ticks, until

if TYPE_CHECKING:
    from tests.bench.place import Place
    from tests.bench.receiver import Receiver

PAYLOAD = json.dumps({"message": {"id": 1, "type": "text", "direction": "in", "body": load.TEXT}})


def samples(
    place: Place, receiver: Receiver, *, seconds: float, every: float, wanted: int = 1, late: float = 0.0
) -> dict[str, list[float]]:
    """Give milliseconds to the arrival of each of the events' requests, from the commit's return and from its sending.

    The transaction goes on for `late` seconds after it has published.
    """
    draw = random.Random(place.plan.seed)
    moments: dict[str, tuple[int, int]] = {}
    found: dict[str, list[float]] = {"returned": [], "sent": []}
    arrived: dict[str, int] = {}
    with place.connect("app_login", autocommit=False) as app:
        receiver.arrivals()
        for _ in ticks(seconds, every):
            workspace = f"ws_{draw.randrange(place.plan.workspaces)}"
            row = app.execute(
                "select outbox.publish(%s, 'message.received', %s::jsonb)", [workspace, PAYLOAD]
            ).fetchone()
            if late:
                pause(late)
            sent = time.time_ns()
            app.commit()
            moments[str(row[0])] = (sent, time.time_ns())

    def all_arrived() -> bool:
        for event_id, moment in receiver.arrivals():
            if event_id in moments:
                arrived[event_id] = arrived.get(event_id, 0) + 1
                sent, returned = moments[event_id]
                found["sent"].append((moment - sent) / 1e6)
                found["returned"].append((moment - returned) / 1e6)
        return all(arrived.get(event_id, 0) >= wanted for event_id in moments)

    until(all_arrived, "every sample's requests", seconds=60, every=0.5)
    return found
