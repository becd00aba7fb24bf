"""soak: an even load for a long time (--minutes): does anything grow, does anything get lost?

Reads: rates, latencies, resident memory, open files, dead rows. Writes: events.
Guarantee: at the end every event has exactly one finished delivery for each endpoint, or the benchmark fails.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench import load
from tests.bench.arrivals import samples
from tests.bench.figures import Figure, Plan, Report, percentile, say
from tests.bench.place import open_place
from tests.bench.receiver import own_receiver
from tests.bench.waits import pause

EVENTS_PER_SECOND = 300.0
POINT_SECONDS = 20.0
LOST = """
select count(*) from outbox.events e join outbox.endpoints p on p.workspace_id = e.workspace_id
where not exists (select from outbox.finished_deliveries d where d.event_id = e.event_id and d.endpoint_id = p.endpoint_id
                  and d.workspace_id = e.workspace_id and d.state = 'delivered')
"""


def run(plan: Plan) -> Report:
    seconds = plan.seconds(default=150, short=40)
    point = min(POINT_SECONDS, seconds / 4)
    points = []
    with open_place(plan) as place, own_receiver("note") as receiver:
        place.receiver = receiver
        place.allow_port(receiver.port)
        load.make_endpoints(place, receiver.url)
        with place.worker() as worker:
            load.warm_up(place)
            script = load.publish_script(place)
            with load.background_load(place, script, rate=EVENTS_PER_SECOND, seconds=seconds * 2 + 60):
                for _ in range(max(2, round(seconds / point))):
                    before = receiver.count()
                    found = samples(place, receiver, seconds=point, every=0.05, wanted=load.MATCHING)[
                        "returned"
                    ]
                    points.append(
                        {
                            "per_second": (receiver.count() - before) / point,
                            "p99_ms": percentile(found, 0.99),
                            "resident_mib": worker.resident_mib(),
                            "open_files": len(list(Path(f"/proc/{worker.pid}/fd").iterdir())),
                            "open_rows": place.one("select count(*) from outbox.open_deliveries"),
                        }
                    )
                    say(str(points[-1]))
            load.drained(place)
            pause(0.5)
        lost = place.one(LOST)
        twice = place.one(
            "select count(*) - count(distinct (event_id, endpoint_id)) from outbox.recorded_attempts"
        )
        delivered = place.one("select count(*) from outbox.finished_deliveries")
    if lost:
        raise RuntimeError(
            f"counting what the soak delivered: {lost} deliveries are missing; look at outbox.backlog"
        )
    minutes = len(points) * point / 60
    first, last = points[0], points[-1]
    figures = [
        Figure(
            f"deliveries in {minutes:.1f} minutes", delivered, "", "", f"{lost} lost, {twice} attempted twice"
        ),
        Figure("p99 of the last part", last["p99_ms"], "ms", "", f"the first's: {first['p99_ms']:.1f} ms"),
        Figure(
            "resident memory at the end",
            last["resident_mib"],
            "MiB",
            "",
            f"first {first['resident_mib']:.0f}",
        ),
        Figure("open files at the end", last["open_files"], "", "", f"first {first['open_files']}"),
    ]
    return Report("soak", plan.seed, figures, {"points": points})
