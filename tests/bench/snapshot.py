"""snapshot: deliveries per second while another session holds an old snapshot, from the first one on.

Reads: rows recorded. Writes: waiting deliveries, a batch whenever few are left.
Guarantee: the snapshot is older than every delivery, so that nothing dead can be removed while it is held.
The worker is whole but for HTTP, which does not depend on snapshots: `send` answers at once (tests.bench.instant).
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report
from tests.bench.place import open_place
from tests.bench.waits import pause

if TYPE_CHECKING:
    from tests.bench.place import Place

INSTANT = [sys.executable, "-m", "tests.bench.instant"]
STEP = 100_000
RECORDED = (
    "select coalesce(sum(pg_stat_get_tuples_inserted(inhrelid) + pg_stat_get_xact_tuples_inserted(inhrelid)), 0)::bigint"
    " from pg_inherits where inhparent = 'outbox.recorded_attempts'::regclass"
)


def run(plan: Plan) -> Report:
    seconds = plan.seconds(default=180, short=45)
    most = 3_000_000 if plan.full else 1_000_000
    with open_place(plan, unheard=True) as place:
        load.make_endpoints(place, place.receiver.url)
        with place.connect(autocommit=False) as old:
            old.execute("set transaction isolation level repeatable read")
            old.execute("select count(*) from outbox.open_deliveries")
            with place.worker(command=INSTANT):
                points = series(place, seconds, min(most, STEP if plan.short else most))
            dead = place.one(
                "select n_dead_tup from pg_stat_user_tables where relid = 'outbox.open_deliveries'::regclass"
            )
    first, last = points[0]["per_second"], points[-1]["per_second"]
    figures = [
        Figure(f"deliveries with an old snapshot, first {points[0]['step']:,.0f}, no HTTP", first, "/s"),
        Figure(f"deliveries with an old snapshot, after {points[-1]['recorded']:,.0f}, no HTTP", last, "/s"),
        Figure(
            "the last of these against the first",
            last / first,
            "",
            "≥ 0.9 after 1 million",
            f"{dead:,} dead rows in open_deliveries at the end",
        ),
    ]
    return Report("snapshot", plan.seed, figures, {"points": points})


def series(place: Place, seconds: float, most: int) -> list[dict[str, float]]:
    """Keep work waiting; give the rate over each step of deliveries."""
    step = min(STEP, most // 5)
    low = max(4_000, step // 4)
    points: list[dict[str, float]] = []
    load.add_waiting(place, 2 * low)
    inserted = 2 * low
    began = time.monotonic()
    mark: tuple[float, int] | None = None
    while time.monotonic() - began < seconds and (not points or points[-1]["recorded"] < most):
        recorded = place.one(RECORDED)
        now = time.monotonic()
        if mark is None and recorded >= place.plan.workspaces * load.MATCHING:
            mark = (now, recorded)  # every endpoint is known by now
        elif mark is not None and recorded - mark[1] >= step:
            points.append(
                {"recorded": recorded, "step": step, "per_second": (recorded - mark[1]) / (now - mark[0])}
            )
            mark = (now, recorded)
        if inserted - recorded < low:
            load.add_waiting(place, low)
            inserted += low
        pause(0.1)
    if not points:
        raise TimeoutError(
            f"counting {step} deliveries in {seconds:.0f} s: {place.one(RECORDED)} were recorded"
        )
    return points
