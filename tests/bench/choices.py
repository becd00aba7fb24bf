"""choices: what each choice of the design is worth, by a worker that has it undone (tests.bench.variant).

Reads: as throughput, publish and snapshot do. Writes: the same.
Guarantee: the arms take turns, so that whatever else the machine does falls on all of them; a ratio is of one round.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.bench import load, publish, snapshot
from tests.bench.figures import Figure, Plan, Report, median, say, spread
from tests.bench.place import open_place
from tests.bench.throughput import drain

if TYPE_CHECKING:
    from tests.bench.place import Place

DELIVERED = {
    "asyncio_loop": "asyncio's own event loop, not uvloop",
    "python_psycopg": "psycopg in Python, not in C",
    "collector_as_python_has_it": "the collector of cycles as often as Python has it",
    "nothing_prepared": "no prepared statements",
    "text_results": "results as text, not binary",
    "nothing_handed_over": "nothing handed over leased by the fan-out: every delivery is claimed",
    "one_settlement_a_statement": "one settlement a statement, not a batch",
    "settle_not_flushed": "commits of the worker that do not wait for the disk",
    "httpx_own_pool": "httpx's own connections (no egress guard)",
    "aiohttp_below": "aiohttp's connections below httpx's interface",
}
ROUNDS = 3
WORKSPACES = 100
ALWAYS = ("if not pg_try_advisory_xact_lock_shared(1869968482, 2) then", "if true then")


def run(plan: Plan) -> Report:
    plan = replace(plan, workspaces=WORKSPACES)
    deliveries = 6_000 if plan.short else 20_000
    figures = [*delivered(plan, deliveries), *notified(plan), *marked(plan)]
    return Report("choices", plan.seed, figures)


def command(choice: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.variant", choice, *words]


def delivered(plan: Plan, deliveries: int) -> list[Figure]:
    arms = [name for name in DELIVERED if name != "aiohttp_below" or importlib.util.find_spec("aiohttp")]
    if "aiohttp_below" not in arms:
        say("LEFT OUT: aiohttp is not installed")
    rates: dict[str, list[float]] = {name: [] for name in ("as_it_is", *arms)}
    with open_place(plan) as place:
        load.make_endpoints(place, place.receiver.url)
        for number in range(ROUNDS):
            for name in ("as_it_is", *(arms if number % 2 else reversed(arms))):
                rates[name].append(one_arm(place, name, deliveries))
                say(f"{name}: {rates[name][-1]:.0f}/s")
    base = rates["as_it_is"]
    return [
        Figure(
            DELIVERED[name],
            median([one / whole for one, whole in zip(rates[name], base, strict=True)]),
            "of the deliveries/s as it is",
            "",
            f"{spread(rates[name])}/s against {spread(base)}/s",
        )
        for name in arms
    ]


def one_arm(place: Place, name: str, deliveries: int) -> float:
    choice, environment = name, {}
    if name == "python_psycopg":
        choice, environment = "as_it_is", {"PSYCOPG_IMPL": "python"}
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        with place.worker(command=command(choice)) as worker:
            load.warm_up(place)
            return drain(place, worker, deliveries // load.MATCHING)["per_second"]
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def notified(plan: Plan) -> list[Figure]:
    """NOTIFY at every commit, against only when a worker sleeps."""
    ratios: dict[bool, list[float]] = {False: [], True: []}
    with open_place(plan) as place:
        place.db.execute(publish.TABLES + publish.TABLE.format(name="events"))
        scripts = publish.scripts_of(place, "none_", 500)
        defined = place.one("select pg_get_functiondef('outbox.accept_event()'::regprocedure)")
        if ALWAYS[0] not in defined:
            raise RuntimeError("undoing the doorbell: outbox.accept_event has another text; correct ALWAYS")
        with place.worker():
            for number in range(2 * ROUNDS):
                always = bool(number % 2)
                place.db.execute(defined.replace(*ALWAYS) if always else defined)
                bare = load.pgbench(place, scripts["bare"], clients=8, seconds=3)
                ratios[always].append(load.pgbench(place, scripts["insert"], clients=8, seconds=3) / bare)
                load.drained(place)
    return [
        Figure(
            f"transactions with an event, 8 clients, {name}", median(ratios[always]), "of a bare insert's", "", spread(ratios[always])
        )
        for always, name in ((False, "only sleepers notified"), (True, "NOTIFY at every commit"))
    ]  # fmt: skip


def marked(plan: Plan) -> list[Figure]:
    """The last 20 thousand of 100 thousand deliveries under an old snapshot, with low-water marks and without."""
    last: dict[str, float] = {}
    for choice in ("as_it_is", "no_low_water_marks"):
        with open_place(plan, unheard=True) as place:
            load.make_endpoints(place, place.receiver.url)
            with place.connect(autocommit=False) as old:
                old.execute("set transaction isolation level repeatable read")
                old.execute("select count(*) from outbox.open_deliveries")
                with place.worker(command=command(choice, "instant")):
                    points = snapshot.series(place, 60, 100_000)
        last[choice] = points[-1]["per_second"] / points[0]["per_second"]
    return [
        Figure(f"last against first of 100,000 under an old snapshot, {name}", last[choice], "")
        for choice, name in (("as_it_is", "low-water marks"), ("no_low_water_marks", "claims from the start"))
    ]
