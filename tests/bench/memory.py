"""memory: what a worker holds with 2,000 requests in flight, to endpoints that do not answer.

Reads: the worker's resident memory. Writes: events.
Guarantee: measured when the receiver holds every one of the requests, or the benchmark fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report
from tests.bench.place import open_place
from tests.bench.receiver import own_receiver
from tests.bench.waits import pause, until

if TYPE_CHECKING:
    from tests.bench.place import Place

IN_FLIGHT = 2000
WORKSPACES = 500
"""Of two endpoints each: a worker begins with few requests to an endpoint that it does not know."""
PATIENT = {
    "MAX_IN_FLIGHT": IN_FLIGHT,
    "ENDPOINT_MAX_IN_FLIGHT": IN_FLIGHT,
    "REQUEST_TIMEOUT_SECONDS": 60,
    "LEASE_SECONDS": 600,
    "DATABASE_TIMEOUT_SECONDS": 30,
    "DRAIN_SECONDS": 66,
}


def run(plan: Plan) -> Report:
    figures = []
    for name, filler in (("0.5 KB", 0), ("16 KB", 16_000)):
        with open_place(plan) as place:
            figures += held(place, name, filler)
    return Report("memory", plan.seed, figures)


def held(place: Place, name: str, filler: int) -> list[Figure]:
    with own_receiver("hang") as black_hole:
        place.allow_port(black_hole.port)
        load.make_endpoints(place, black_hole.url, workspaces=WORKSPACES)
        with place.worker(**PATIENT) as worker:
            pause(1)
            idle = worker.resident_mib()
            place.db.execute(
                "insert into outbox.events (workspace_id, event_type, payload)"
                f" select 'ws_' || n %% {WORKSPACES}, 'message.received',"
                f" {load.PAYLOAD.format(n='n')} || jsonb_build_object('filler', repeat('x', %s))"
                f" from generate_series(1, {2 * IN_FLIGHT}) n",
                [filler],
            )
            until(
                lambda: black_hole.count() >= IN_FLIGHT,
                f"{IN_FLIGHT} requests in flight",
                seconds=60,
                every=0.1,
            )
            now, most = worker.resident_mib(), worker.resident_mib("VmHWM")
    reach = "≤ 200 MiB" if not filler else ""
    return [
        Figure(
            f"resident, {IN_FLIGHT:,} in flight, bodies of {name}", now, "MiB", reach, f"at most {most:.0f}"
        ),
        Figure(f"resident, idle (before bodies of {name})", idle, "MiB"),
    ]
