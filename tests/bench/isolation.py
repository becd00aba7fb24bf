"""isolation: p99 of healthy endpoints with and without 1 % of the endpoints hanging to the timeout.

Reads: the arrivals of sampled events. Writes: events; a fifth of them for the endpoints that hang.
Guarantee: the healthy load is the same in both parts, at half of what this machine saturates at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.arrivals import samples
from tests.bench.figures import Figure, Plan, Report, p50_p99
from tests.bench.latency import saturation
from tests.bench.place import open_place
from tests.bench.receiver import own_receiver
from tests.bench.waits import pause

if TYPE_CHECKING:
    from tests.bench.place import Place
    from tests.bench.receiver import Receiver

HANGING_SHARE, HANGING_TRAFFIC = 0.01, 0.2
HEALTHY_LOAD = 0.4
EVERY = 0.02


def run(plan: Plan) -> Report:
    each = plan.seconds(default=150, short=45) / 3
    hanging = max(1, round(plan.workspaces * HANGING_SHARE))
    with open_place(plan) as place, own_receiver("note") as receiver, own_receiver("hang") as black_hole:
        place.receiver = receiver
        for one in (receiver, black_hole):
            place.allow_port(one.port)
        load.make_endpoints(place, receiver.url)
        with place.worker():
            load.warm_up(place)
            most = saturation(place, receiver, each / 2)
            rate = most * HEALTHY_LOAD / load.MATCHING
            without = part(place, receiver, {"ws_": (plan.workspaces, rate)}, each)
            load.make_endpoints(place, black_hole.url, workspaces=hanging, prefix="hang_")
            bad = rate * HANGING_TRAFFIC / (1 - HANGING_TRAFFIC)
            traffic = {"ws_": (plan.workspaces, rate), "hang_": (hanging, bad)}
            with_hanging = part(place, receiver, traffic, each)
            tried = black_hole.count()
    figures = p50_p99("healthy endpoints, none hangs", without)
    figures += p50_p99(
        f"healthy endpoints, {hanging * load.MATCHING} hang with a fifth of the traffic", with_hanging
    )
    figures.append(
        Figure(
            "p99 with against without",
            figures[3].value / figures[1].value,
            "",
            "≤ 1.5",
            f"{tried} requests hung",
        )
    )
    return Report("isolation", plan.seed, figures, {"saturation": most, "hung": tried})


def part(
    place: Place, receiver: Receiver, traffic: dict[str, tuple[int, float]], seconds: float
) -> list[float]:
    """Give the samples' latencies under this traffic, after a while in which circuits may open."""
    total = sum(rate for _, rate in traffic.values())
    scripts = []
    for prefix, (workspaces, rate) in traffic.items():
        weight = max(1, round(rate / total * 100))
        scripts.append(f"{load.publish_script(place, 'publish_' + prefix, prefix, workspaces)}@{weight}")
    with load.background_load(place, *scripts, rate=total, seconds=seconds * 2 + 60):
        pause(seconds / 4)
        return samples(place, receiver, seconds=seconds * 3 / 4, every=EVERY, wanted=load.MATCHING)[
            "returned"
        ]
