"""latency: from an event's commit to the first byte of its request, idle and at shares of saturation.

Reads: the arrivals at a receiver that notes them. Writes: events.
Guarantee: saturation is measured first, in the same run, with the publishers' own load on the machine.
"""

from __future__ import annotations

from tests.bench import load
from tests.bench.arrivals import samples
from tests.bench.figures import Figure, Plan, Report, p50_p99
from tests.bench.place import open_place
from tests.bench.receiver import own_receiver
from tests.bench.waits import pause

SHARES = (0.1, 0.5, 0.7)
EVERY = 0.02
LATE_SHARE = 0.5
LATE_SECONDS = 0.02
"""A transaction that goes on so long after it published: its place in the queue commits behind those of others."""
REACH = {0.0: ("≤ 3 ms", "≤ 8 ms"), 0.7: ("", "≤ 50 ms")}


def run(plan: Plan) -> Report:
    each = plan.seconds(default=160, short=60) / (len(SHARES) + 3)
    figures, detail = [], {}
    with open_place(plan) as place, own_receiver("note") as receiver:
        place.receiver = receiver
        place.allow_port(receiver.port)
        load.make_endpoints(place, receiver.url)
        with place.worker():
            load.warm_up(place)
            for share in (0.0, None, *SHARES):
                if share is None:
                    detail["saturation"] = saturation(place, receiver, each)
                    continue
                found = at_share(place, receiver, detail.get("saturation", 0.0) * share, each)
                name = "idle" if share == 0 else f"{share:.0%} of saturation"
                figures += p50_p99(
                    f"commit to first byte, {name}", found["returned"], reach=REACH.get(share, ("", ""))
                )
                detail[name] = {way: [one.value for one in p50_p99("", of)] for way, of in found.items()}
            found = at_share(place, receiver, detail["saturation"] * LATE_SHARE, each, late=LATE_SECONDS)
            figures += p50_p99(
                f"commit to first byte, {LATE_SHARE:.0%} of saturation, {LATE_SECONDS * 1000:.0f} ms after its publish",
                found["returned"],
            )
    figures.append(
        Figure(
            "saturation while publishing", detail["saturation"], "deliveries/s", "", "the shares are of this"
        )
    )
    return Report("latency", plan.seed, figures, detail)


def saturation(place, receiver, seconds: float) -> float:
    """Publish a little more than is delivered; what is delivered then is the most."""
    script = load.publish_script(place)
    rate = 0.0
    for events_per_second in (1500.0, None):
        offered = events_per_second or rate / load.MATCHING * 1.15
        with load.background_load(place, script, rate=offered, seconds=seconds + 10):
            pause(1)
            before = receiver.count()
            pause(seconds / 2)
            rate = (receiver.count() - before) / (seconds / 2)
        load.drained(place)
        receiver.arrivals()
    return rate


def at_share(
    place, receiver, deliveries_per_second: float, seconds: float, *, late: float = 0.0
) -> dict[str, list[float]]:
    if not deliveries_per_second:
        return samples(place, receiver, seconds=seconds, every=EVERY * 2, wanted=load.MATCHING)
    script = load.publish_script(place)
    rate = max(1.0, deliveries_per_second / load.MATCHING - 1 / EVERY)
    with load.background_load(place, script, rate=rate, seconds=seconds + 60):
        pause(2)
        found = samples(place, receiver, seconds=seconds, every=EVERY, wanted=load.MATCHING, late=late)
    load.drained(place)
    return found
