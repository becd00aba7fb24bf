"""isolation: what hanging endpoints, and a burst of one workspace, cost everybody else.

Reads: the arrivals of sampled events, the most requests at once that receivers saw. Writes: events; a fifth of them for
the endpoints that hang; then a million for one workspace (100,000 by default).
Guarantee: the healthy load is the same with and without those that hang, below half of what this machine saturates at.
With `--minutes M` the endpoints hang for M minutes and the burst is a million events; `--full` alone also takes a million.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.arrivals import samples
from tests.bench.figures import Figure, Plan, Report, p50_p99, percentile
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
LIMIT = 6
"""Most in flight of each endpoint that hangs, less than a new one may start with."""
BURST, FULL_BURST = 100_000, 1_000_000


def run(plan: Plan) -> Report:
    hanging_seconds = plan.seconds(default=45, short=20)
    without_seconds = min(hanging_seconds, 120) if plan.minutes else hanging_seconds
    burst = FULL_BURST if plan.full or plan.minutes else BURST
    hanging = max(1, round(plan.workspaces * HANGING_SHARE))
    with open_place(plan) as place, own_receiver("note") as receiver, own_receiver("hang") as black_hole:
        place.receiver = receiver
        for one in (receiver, black_hole):
            place.allow_port(one.port)
        load.make_endpoints(place, receiver.url)
        with place.worker():
            load.warm_up(place)
            most = saturation(place, receiver, min(without_seconds / 2, 20))
            rate = most * HEALTHY_LOAD / load.MATCHING
            without = part(place, receiver, {"ws_": (plan.workspaces, rate)}, without_seconds)
            load.make_endpoints(place, black_hole.url, workspaces=hanging, prefix="hang_")
            place.db.execute(
                "update outbox.endpoints set max_in_flight = %s where starts_with(workspace_id, 'hang_')",
                [LIMIT],
            )
            bad = rate * HANGING_TRAFFIC / (1 - HANGING_TRAFFIC)
            traffic = {"ws_": (plan.workspaces, rate), "hang_": (hanging, bad)}
            with_hanging = part(place, receiver, traffic, hanging_seconds)
            tried = black_hole.count()
            quiet, beside = around_burst(place, receiver, burst, 30 if burst == FULL_BURST else 12)
            at_once = black_hole.most_at_once()
            lost = place.one("select count(*) from outbox.lost_leases")
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
            f"{tried} requests hung in {hanging_seconds:.0f} s",
        )
    )
    figures.append(
        Figure(
            "most requests at once of an endpoint that hangs, by its receiver",
            at_once,
            "",
            f"≤ {LIMIT}",
            f"{lost} leases lost",
        )
    )
    figures += p50_p99("single events, nothing else", quiet)
    figures += p50_p99(f"single events beside a burst of {burst:,} of one workspace", beside)
    added = percentile(beside, 0.99) - percentile(quiet, 0.99)
    figures.append(Figure("p99 added by the burst", added, "ms", "≤ 100"))
    return Report("isolation", plan.seed, figures, {"saturation": most, "hung": tried, "burst": burst})


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
        pause(min(seconds / 4, 20))
        return samples(place, receiver, seconds=seconds, every=EVERY, wanted=load.MATCHING)["returned"]


def around_burst(
    place: Place, receiver: Receiver, events: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Give the latencies of single events of many workspaces, before one other publishes its burst and beside it."""
    load.make_endpoints(place, receiver.url, workspaces=1, prefix="burst_")
    load.drained_of(place, "ws_")
    quiet = samples(place, receiver, seconds=seconds, every=EVERY, wanted=load.MATCHING)["returned"]
    load.publish(place, events, workspaces=1, prefix="burst_")
    beside = samples(place, receiver, seconds=seconds, every=EVERY, wanted=load.MATCHING)["returned"]
    if not place.one(
        "select exists (select from outbox.fan_out_queue where workspace_id = 'burst_0')"
        " or exists (select from outbox.open_deliveries where workspace_id = 'burst_0')"
    ):
        raise RuntimeError(
            f"measured {seconds:.0f} s beside a burst of {events}: it was delivered before they ended. Take more events (--full)."
        )
    return quiet, beside
