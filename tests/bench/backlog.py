"""backlog: deliveries per second while many others wait: 10 thousand, 1 million, with --full 10 million.

Reads: the receiver's count. Writes: waiting deliveries by SQL, topped up with what was delivered.
Guarantee: the level is held through the measurement, and the topping up costs the same at every size.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report
from tests.bench.place import open_place
from tests.bench.waits import ticks

if TYPE_CHECKING:
    from tests.bench.place import Place

SIZES = (10_000, 1_000_000)
LARGEST = 10_000_000
SETTLING = 3.0
TOP_UP = 0.5


def run(plan: Plan) -> Report:
    sizes = (SIZES[0], 100_000) if plan.short else (*SIZES, LARGEST) if plan.full else SIZES
    each = plan.seconds(default=60, short=20) / len(sizes)
    rates = {}
    with open_place(plan) as place:
        load.make_endpoints(place, place.receiver.url)
        with place.worker():
            load.warm_up(place)
        for size in sizes:
            missing = size - place.one("select count(*) from outbox.open_deliveries")
            load.add_waiting(place, missing)
            load.settled_database(place)
            with place.worker():
                rates[size] = held_level(place, each)
    figures = [Figure(f"deliveries with {size:,} waiting", rate, "/s") for size, rate in rates.items()]
    figures += [
        Figure(f"with {size:,} waiting", rates[size] / rates[sizes[0]], f"of that with {sizes[0]:,}", "≥ 0.9")
        for size in sizes[1:]
    ]
    return Report("backlog", plan.seed, figures, {str(size): rate for size, rate in rates.items()})


def held_level(place: Place, seconds: float) -> float:
    """Count for so long, once every endpoint has been opened; put back what was delivered, twice a second."""
    start = place.receiver.count()
    opened = place.plan.workspaces * load.MATCHING * 3
    put_back = start
    measured_from: tuple[float, int] | None = None
    began = time.monotonic()
    for _ in ticks(seconds + 60, TOP_UP):
        count = place.receiver.count()
        if count - put_back >= load.MATCHING:
            load.add_waiting(place, count - put_back, told=False)
            put_back = count
        now = time.monotonic()
        if measured_from is None:
            if count - start > opened and now - began > SETTLING:
                measured_from = (now, count)
        elif now - measured_from[0] >= seconds:
            return (place.receiver.count() - measured_from[1]) / (time.monotonic() - measured_from[0])
    raise TimeoutError(
        f"waited {seconds + 60:.0f} s for {opened} deliveries of the backlog: {put_back - start} came"
    )
