"""throughput: recorded deliveries per second of one worker process, plain and over TLS.

Reads: N events published in one transaction, 1,000 endpoints, two matching each. Writes: their deliveries.
Guarantee: the clock runs from the commit until the last attempt is recorded; endpoints were opened before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report, median, spread
from tests.bench.place import open_place
from tests.bench.waits import until

if TYPE_CHECKING:
    from tests.bench.place import Place, Worker

GUESS = 6000
"""Deliveries per second, to size a round."""
DISK = """
select sum(pg_total_relation_size(i.inhrelid))::float8 from pg_inherits i
where i.inhparent in ('outbox.events'::regclass, 'outbox.finished_deliveries'::regclass, 'outbox.recorded_attempts'::regclass)
"""


def run(plan: Plan) -> Report:
    seconds = plan.seconds(default=150, short=40)
    plain = arm(plan, seconds / 2, rounds=3, tls=False)
    secured = arm(plan, seconds / 2, rounds=3, tls=True)
    figures = figures_of("plain http", plain, "see peers")
    figures += figures_of("TLS", secured, "") if secured else []
    return Report("throughput", plan.seed, figures, {"plain": plain, "tls": secured})


def arm(plan: Plan, seconds: float, *, rounds: int, tls: bool) -> list[dict[str, float]]:
    events = max(500, int(seconds * GUESS / rounds / load.MATCHING))
    with open_place(plan, tls=tls) as place:
        url = place.receiver.url
        extra = {}
        if tls:
            if place.receiver.certificate is None:  # nginx is not installed
                return []
            url, extra = place.receiver.tls_url, {"CA_FILE": place.receiver.certificate}
        load.make_endpoints(place, url)
        with place.worker(**extra) as worker:
            load.warm_up(place)
            found = [drain(place, worker, events) for _ in range(rounds)]
        found[-1]["disk"] = place.one(DISK) / place.one("select count(*) from outbox.recorded_attempts")
        return found


def drain(place: Place, worker: Worker, events: int) -> dict[str, float]:
    """Publish so many events at once and time their deliveries."""
    load.settled_database(place)
    deliveries = events * load.MATCHING
    before = place.receiver.count()
    worker_cpu, server_cpu = worker.cpu_seconds(), place.server_cpu_seconds()
    with place.db.transaction():
        load.publish(place, events)
        server_cpu = place.server_cpu_seconds()
        began = time.monotonic()
    until(
        lambda: place.receiver.count() - before >= deliveries,
        f"{deliveries} deliveries",
        seconds=60 + deliveries / 100,
        every=0.05,
    )
    load.drained(place)
    seconds = time.monotonic() - began
    return {
        "deliveries": deliveries,
        "seconds": seconds,
        "per_second": deliveries / seconds,
        "worker_cpu_per_1000": (worker.cpu_seconds() - worker_cpu) / deliveries * 1000,
        "server_cpu_per_1000": (place.server_cpu_seconds() - server_cpu) / deliveries * 1000,
    }


def figures_of(name: str, rounds: list[dict[str, float]], reach: str) -> list[Figure]:
    rates = [one["per_second"] for one in rounds]
    size = f"{rounds[0]['deliveries']:,.0f} deliveries a round"
    return [
        Figure(f"recorded deliveries, {name}", median(rates), "/s", reach, f"{spread(rates)}; {size}"),
        Figure(
            f"CPU of the worker, {name}", median([r["worker_cpu_per_1000"] for r in rounds]), "s per 1,000"
        ),
        Figure(
            f"CPU of PostgreSQL, {name}", median([r["server_cpu_per_1000"] for r in rounds]), "s per 1,000"
        ),
        Figure(f"disk with all indexes, {name}", rounds[-1]["disk"], "bytes a delivery"),
    ]
