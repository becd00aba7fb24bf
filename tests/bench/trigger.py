"""trigger: what publishing adds to PostgreSQL's CPU of one business transaction, part by part, and what a worker takes beside it.

Reads: pgbench's counts, the CPU of PostgreSQL and of the worker. Writes: orders, events, and the same events in copies of the table.
Guarantee: counted is CPU, not time, at 8 clients; the arms take turns. `empty trigger` returns its row and does nothing; `least
trigger` queues a row and knocks, and checks nothing: no outbox with such a queue costs less. The events match nobody.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from tests.bench import load, publish
from tests.bench.figures import Figure, Plan, Report, median, spread
from tests.bench.place import cpu_seconds
from tests.bench.waits import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.place import Place, Worker

ROUNDS = 3
COPIES = """
create function bench.empty() returns trigger language plpgsql as $$
begin
    return new;
end
$$;
create function bench.least() returns trigger language plpgsql as $$
begin
    insert into bench.queue (bucket, priority, event_id, workspace_id, ordering_key)
    values (1, new.priority, new.event_id, new.workspace_id, new.ordering_key);
    if not pg_try_advisory_xact_lock_shared(1869968482, 1) then
        perform pg_notify('bench', '');
    end if;
    return new;
end
$$;
create table bench.queue (like outbox.fan_out_queue including all);
grant insert on bench.queue to app_login;
create trigger empty before insert on bench.empty_events for each row execute function bench.empty();
create trigger least before insert on bench.least_events for each row execute function bench.least();
"""
ARMS = {
    "bare": "insert into bench.events",
    "empty trigger": "insert into bench.empty_events",
    "least trigger": "insert into bench.least_events",
    "insert": "insert into outbox.events",
    "publish": "",
}
COUNTED = re.compile(r"number of transactions actually processed: (\d+)")


def run(plan: Plan) -> Report:
    seconds = plan.seconds(default=120, short=36)
    each = max(1.0, seconds / (ROUNDS * (len(ARMS) + 1)))
    with publish.shop(plan) as (place, scripts):
        for name in ("empty_events", "least_events"):
            place.db.execute(publish.TABLE.format(name=name))
        place.db.execute(COPIES)
        alone = in_turns(place, arms(place, scripts), each)
        place.db.execute("truncate outbox.fan_out_queue")
        with place.worker() as worker:
            load.warm_up(place)
            beside = in_turns(place, {"insert": scripts["insert"]}, each, worker)
    bare, least = (middle(alone, name, "server") for name in ("bare", "least trigger"))
    sessions, of_worker = (middle(beside, "insert", whose) for whose in ("sessions", "worker"))
    figures = [
        Figure(f"PostgreSQL's CPU of a transaction, {name}", middle(alone, name, "server"), "µs", "", spread_of(alone, name))
        for name in ARMS
    ]  # fmt: skip
    figures += [
        Figure("CPU of the worker's sessions, an event that nobody hears", sessions, "µs", "", spread_of(beside, "insert", "sessions")),
        Figure("CPU of the worker, an event that nobody hears", of_worker, "µs", "", spread_of(beside, "insert", "worker")),
        Figure("what the empty trigger leaves, if only CPU counts", bare / middle(alone, "empty trigger", "server"), "of a bare insert's"),
        Figure("what the least trigger leaves", bare / least, "of a bare insert's"),
        Figure("what the least trigger and this worker leave", bare / (least + sessions + of_worker), "of a bare insert's"),
    ]  # fmt: skip
    return Report("trigger", plan.seed, figures, {"alone": alone, "beside": beside})


def arms(place: Place, scripts: dict[str, Path]) -> dict[str, Path]:
    """The scripts of publish, and the bare one's on the copies."""
    bare = scripts["bare"].read_text()
    return {
        name: scripts.get(name)
        or load.script(place, name.replace(" ", "_"), bare.replace(ARMS["bare"] + " ", ARMS[name] + " "))
        for name in ARMS
    }


def in_turns(
    place: Place, scripts: dict[str, Path], seconds: float, worker: Worker | None = None
) -> list[dict[str, dict[str, float]]]:
    found = []
    for number in range(ROUNDS):
        names = list(scripts)
        turn = number % len(names)
        found.append({n: one_arm(place, scripts[n], seconds, worker) for n in names[turn:] + names[:turn]})
    return found


def one_arm(place: Place, path: Path, seconds: float, worker: Worker | None) -> dict[str, float]:
    """Give microseconds of CPU a transaction, of all of PostgreSQL, the worker's sessions and the worker, until all is fanned out."""
    place.db.execute("checkpoint")
    sessions = worker_sessions(place)
    processes, before = place.server_processes(), cpu(place, sessions, worker)
    command, env = load.pgbench_command(place, str(path), clients=8, seconds=seconds)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    counted = COUNTED.search(done.stdout)
    if done.returncode or counted is None or not int(counted[1]):
        raise RuntimeError(
            f"ran pgbench: it ended with {done.returncode}: {done.stdout[-400:]}{done.stderr[-400:]}"
        )
    if worker:
        load.drained(place)
    now_there = worker_sessions(place)  # the pool may have grown
    processes += len(set(now_there) - set(sessions))
    until(lambda: place.server_processes() <= processes, "pgbench's sessions to end", seconds=90)
    after = cpu(place, now_there, worker)
    return {whose: (after[whose] - before[whose]) / int(counted[1]) * 1e6 for whose in after}


def worker_sessions(place: Place) -> list[int]:
    rows = place.db.execute(
        "select pid from pg_stat_activity where starts_with(application_name, 'outbox-worker')"
    )
    return [pid for (pid,) in rows.fetchall()]


def cpu(place: Place, sessions: list[int], worker: Worker | None) -> dict[str, float]:
    return {
        "server": place.server_cpu_seconds(),
        "sessions": sum(map(cpu_seconds, sessions)),
        "worker": worker.cpu_seconds() if worker else 0.0,
    }


def middle(found: list[dict[str, dict[str, float]]], name: str, whose: str) -> float:
    return median([one[name][whose] for one in found])


def spread_of(found: list[dict[str, dict[str, float]]], name: str, whose: str = "server") -> str:
    return spread([one[name][whose] for one in found])
