"""cost: statements, WAL bytes, buffer hits, index entries and dead tuples per delivery, on single steps.

Reads: pg_stat_statements, the WAL's position, pg_stat_user_tables. Writes: a database of its own.
Guarantee: full-page images, autovacuum and timed checkpoints are off, so that the counts repeat.
If it is wrong: a regression is not seen. tests/sql/test_cost.py compares the short form with baseline.json.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report
from tests.bench.place import STATEMENTS, open_place
from tests.bench.steps import Steps, open_steps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.place import Place

BASELINE = Path(__file__).with_name("baseline.json")
BATCH = 200
"""Events of a fan-out: below what one statement takes, so that one call takes all."""
DELIVERIES = BATCH * load.MATCHING
QUIET = {
    "autovacuum": "off",
    "full_page_writes": "off",
    "checkpoint_timeout": "1d",
    "fsync": "off",  # nothing is timed
    "wal_writer_delay": "10s",
    "bgwriter_lru_maxpages": "0",
}


@dataclass(frozen=True)
class Cost:
    """Of one step, for each delivery."""

    statements: float
    wal_bytes: float
    buffer_hits: float
    index_entries: float
    dead_tuples: float
    hot_share: float  # of updates


def run(plan: Plan) -> Report:
    costs = measure(plan, rounds=2 if plan.short else 10)
    total = [costs[name] for name in ("publish", "fan_out", "settle")]
    figures = [
        Figure(
            "statements of the worker, publish to record", sum(c.statements for c in total[1:]), "a delivery"
        ),
        Figure("WAL, publish to record", sum(c.wal_bytes for c in total), "bytes a delivery"),
        Figure("buffer hits, publish to record", sum(c.buffer_hits for c in total), "a delivery"),
        Figure("index entries, publish to record", sum(c.index_entries for c in total), "a delivery"),
        Figure("dead tuples, publish to record", sum(c.dead_tuples for c in total), "a delivery"),
        Figure("HOT updates of a claim", costs["claim"].hot_share * 100, "%", "100 %"),
    ]
    figures += [Figure(f"WAL of {name}", cost.wal_bytes, "bytes a delivery") for name, cost in costs.items()]
    figures += [
        Figure(f"buffer hits of {name}", cost.buffer_hits, "a delivery") for name, cost in costs.items()
    ]
    return Report("cost", plan.seed, figures, {name: asdict(cost) for name, cost in costs.items()})


def measure(plan: Plan, rounds: int = 2, *, bin_dir: Path | None = None) -> dict[str, Cost]:
    """Give the cost of each step, the mean of some rounds after one that does not count."""
    with open_place(plan, unheard=True, bin_dir=bin_dir, **STATEMENTS, **QUIET) as place:
        load.make_endpoints(place, place.receiver.url, workspaces=100)
        return asyncio.run(all_steps(place, rounds))


async def all_steps(place: Place, rounds: int) -> dict[str, Cost]:
    found: dict[str, list[Cost]] = {}
    async with open_steps(place.dsn("worker_login"), slots=4 * DELIVERIES) as steps:
        meter = Meter(place, steps)
        for number in range(rounds + 1):
            for name, cost in (await one_round(meter, steps, place)).items():
                if number:  # the first one plans statements and fills caches
                    found.setdefault(name, []).append(cost)
    return {name: mean(costs) for name, costs in found.items()}


async def one_round(meter: Meter, steps: Steps, place: Place) -> dict[str, Cost]:
    costs = {"publish": await meter.measured(lambda: published(place))}
    costs["fan_out"] = await meter.measured(lambda: whole(steps.fan_out_whole, BATCH))
    await steps.landed()
    costs["settle"] = await meter.measured(lambda: whole(steps.settle, DELIVERIES))
    load.add_waiting(place, DELIVERIES, workspaces=100)
    await steps.sweep()
    costs["claim"] = await meter.measured(lambda: whole(steps.claim, DELIVERIES))
    await steps.landed()
    costs["settle_claimed"] = await meter.measured(lambda: whole(steps.settle, DELIVERIES))
    return costs


async def published(place: Place) -> int:
    await asyncio.to_thread(load.publish, place, BATCH, workspaces=100)
    return BATCH


async def whole(step: Callable[[], Awaitable[int]], wanted: int) -> int:
    """Call it until all is done, however little one call takes."""
    done = 0
    while done < wanted and (count := await step()) > 0:
        done += count
    if done != wanted:
        raise RuntimeError(f"measuring a step: it did {done} of {wanted}; look at what the step before left")
    return done


class Meter:
    """Counters before and after; other sessions are idle meanwhile."""

    def __init__(self, place: Place, steps: Steps) -> None:
        self.place = place
        self.steps = steps

    async def measured(self, step: Callable[[], Awaitable[int]]) -> Cost:
        await self.flush()
        self.place.db.execute("select pg_stat_statements_reset()")
        start = self.place.one("select pg_current_wal_insert_lsn()")
        before = self.tables()
        await step()
        wal = self.place.one("select pg_current_wal_insert_lsn() - %s::pg_lsn", start)
        calls, hits = self.place.db.execute(
            "select coalesce(sum(calls) filter (where toplevel), 0), coalesce(sum(shared_blks_hit + shared_blks_read)"
            " filter (where toplevel), 0) from pg_stat_statements s join pg_roles r on r.oid = s.userid"
            " where query ~ 'outbox\\.' and query !~ 'pg_stat_'"
        ).fetchone()
        await self.flush()
        after = self.tables()
        entries = dead = updates = hot = 0
        for name, (inserted, updated, hot_updated, deleted, indexes) in after.items():
            was = before.get(name, (0, 0, 0, 0, 0))
            new = inserted - was[0] + updated - was[1] - (hot_updated - was[2])
            entries += new * indexes
            dead += updated - was[1] + deleted - was[3]
            updates += updated - was[1]
            hot += hot_updated - was[2]
        share = hot / updates if updates else 0.0
        return Cost(*(float(n) / DELIVERIES for n in (calls, wal, hits, entries, dead)), share)

    async def flush(self) -> None:
        """Make every session hand in its counts."""
        pool = self.steps.store.pool
        held = [await pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
        for connection in held:
            await connection.execute("select pg_stat_force_next_flush()")
            await connection.execute("select 1")
            await pool.putconn(connection)
        self.place.db.execute("select pg_stat_force_next_flush()")
        self.place.db.execute("select pg_stat_clear_snapshot()")

    def tables(self) -> dict[str, tuple[int, ...]]:
        rows = self.place.db.execute(
            "select t.relid::regclass::text, t.n_tup_ins, t.n_tup_upd, t.n_tup_hot_upd, t.n_tup_del,"
            " (select count(*) from pg_index i where i.indrelid = t.relid and i.indpred is null)"
            " from pg_stat_user_tables t where t.schemaname = 'outbox'"
        )
        return {row[0]: tuple(row[1:]) for row in rows}


def mean(costs: list[Cost]) -> Cost:
    columns = zip(*(asdict(cost).values() for cost in costs), strict=True)
    return Cost(*(round(sum(column) / len(column), 4) for column in columns))


def write_baseline() -> None:
    """`python -m tests.bench.cost`: accept what is measured now, in the commit that explains it."""
    costs = measure(Plan(short=True))
    BASELINE.write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}, indent=2) + "\n")


if __name__ == "__main__":
    write_baseline()
