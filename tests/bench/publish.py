"""publish: what one event adds to the app's transaction, at 1, 8 and 32 clients, workers running.

Reads: pgbench's rates. Writes: orders, events, and the same events in an identical table without a trigger.
Guarantee: the arms take turns, so that whatever else the machine does falls on all of them; the ratio is the figure.
`quiet`: the events match no endpoint. `busy`: the worker delivers a backlog as fast as it can, in every arm alike.
`no worker`: the trigger alone. `notify`: a trigger that sends a NOTIFY at every commit instead, and queues nothing. `slow disk`: quiet, and each commit waits a millisecond before it flushes (commit_delay),
as on a disk that takes that long: there the processor is not what a transaction waits for. The first second of each
round does not count: an app keeps its connections, and each of these 32 plans its statements in it. So the default form
counts one second of each arm in each of three rounds; `--minutes` gives more.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.bench import load
from tests.bench.figures import Figure, Plan, Report, median, spread
from tests.bench.place import open_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.bench.place import Place

ARMS = ("bare", "insert", "publish")
COMPARED = {"no worker", "worker quiet, slow disk"}
"""Where the arm `notify` stands in the place of `publish`: what the doorbell spares the app."""
CLIENTS = (1, 8, 32)
MANY_CLIENTS = (8, 32)
REACHED = {"worker quiet", "worker busy"}
SLOW_DISK = {"commit_delay": "1000", "commit_siblings": "0"}
ROUNDS = 3
BACKLOG = 40_000
"""Deliveries that wait when a busy round begins; more than the worker manages in it."""
TABLES = """
create schema bench;
create table bench.orders (order_id bigint generated always as identity primary key, workspace_id text not null,
    amount numeric not null, created_at timestamptz not null default now());
grant usage on schema bench to app_login;
grant insert on bench.orders to app_login;
"""
TABLE = """
create table bench.{name} (like outbox.events including all) partition by range (event_id);
do $$
declare
    one record;
begin
    for one in select c.relname, pg_get_expr(c.relpartbound, c.oid) as bound from pg_inherits i
               join pg_class c on c.oid = i.inhrelid where i.inhparent = 'outbox.events'::regclass loop
        execute format('create table bench.%I partition of bench.{name} %s', '{name}_' || one.relname, one.bound);
    end loop;
end
$$;
grant insert on bench.{name} to app_login;
"""
NOTIFY = """
create function bench.notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('bench', '');
    return new;
end
$$;
create trigger notify before insert on bench.notify_events for each row execute function bench.notify();
"""
TRANSACTION = """
\\set w random(0, {last})
\\set n random(1, 1000000000)
begin;
insert into bench.orders (workspace_id, amount) values ('{prefix}' || :w, :n::numeric / 100);
{event}
commit;
"""
ROW = "(workspace_id, event_type, payload) values ('{prefix}' || :w, 'message.received', {payload});"


def run(plan: Plan) -> Report:
    seconds = plan.seconds(default=200, short=50)
    parts = len(CLIENTS) * 2 + len(MANY_CLIENTS) * 2
    each = max(1.0, seconds / (parts * len(ARMS) * ROUNDS + 2 * ROUNDS) - 1)
    with shop(plan) as (place, scripts):
        notify = with_notify(place, scripts)
        found = {"no worker": {c: rounds(place, notify, c, each) for c in MANY_CLIENTS}}
        subscribed = subscribers(place, scripts, each)
        place.db.execute("truncate outbox.fan_out_queue")
        with place.worker():
            load.warm_up(place)
            found["worker quiet"] = {c: rounds(place, scripts, c, each, after=load.drained) for c in CLIENTS}
            found["worker busy"] = {c: rounds(place, scripts, c, each, before=refill) for c in CLIENTS}
    with shop(plan, **SLOW_DISK) as (place, scripts), place.worker():
        load.warm_up(place)
        notify = with_notify(place, scripts)
        found["worker quiet, slow disk"] = {
            c: rounds(place, notify, c, each, after=load.drained) for c in MANY_CLIENTS
        }
    figures = [
        Figure(
            f"transactions with one event by {way}, {clients} clients, {name}",
            ratio(rates[clients], way),
            "of a bare insert's",
            "≥ 0.92" if clients > 1 and way == "insert" and name in REACHED else "",
            f"bare {spread([r['bare'] for r in rates[clients]])}/s",
        )
        for name, rates in found.items()
        for clients in rates
        for way in ("insert", "notify" if name in COMPARED else "publish")
    ]
    figures.append(
        Figure(
            "transactions where 20 endpoints subscribe, 8 clients, no worker",
            median([one["many"] / one["none"] for one in subscribed]),
            "of those where none does",
            "1",
        )
    )
    return Report("publish", plan.seed, figures, {**found, "subscribed": subscribed})


@contextmanager
def shop(plan: Plan, **options: str) -> Iterator[tuple[Place, dict[str, Path]]]:
    with open_place(plan, **options) as place:
        place.db.execute(TABLES + TABLE.format(name="events"))
        load.make_endpoints(place, place.receiver.url)
        load.make_endpoints(place, place.receiver.url, workspaces=10, each=20, prefix="many_")
        yield place, scripts_of(place, "none_", 500)


def scripts_of(place: Place, prefix: str, workspaces: int) -> dict[str, Path]:
    payload = load.PAYLOAD.format(n=":n::bigint")
    row = ROW.format(prefix=prefix, payload=payload)
    events = {
        "bare": f"insert into bench.events {row}",
        "insert": f"insert into outbox.events {row}",
        "publish": f"select outbox.publish('{prefix}' || :w, 'message.received', {payload});",
    }
    return {
        name: load.script(
            place, prefix + name, TRANSACTION.format(last=workspaces - 1, prefix=prefix, event=event)
        )
        for name, event in events.items()
    }


def with_notify(place: Place, scripts: dict[str, Path]) -> dict[str, Path]:
    """Instead of the function: the same events in a table whose trigger rings at every commit."""
    place.db.execute(TABLE.format(name="notify_events") + NOTIFY)
    text = scripts["bare"].read_text().replace("bench.events", "bench.notify_events")
    return {
        "bare": scripts["bare"],
        "insert": scripts["insert"],
        "notify": load.script(place, "notify", text),
    }


def rounds(
    place: Place,
    scripts: dict[str, Path],
    clients: int,
    each: float,
    *,
    before: Callable[[Place], None] = lambda _place: None,
    after: Callable[[Place], None] = lambda _place: None,
) -> list[dict[str, float]]:
    found = []
    for number in range(ROUNDS):
        rates = {}
        names = list(scripts)
        for name in names[number % 3 :] + names[: number % 3]:  # each arm is first, second and last once
            before(place)
            rates[name] = load.pgbench(place, scripts[name], clients=clients, seconds=each)
            after(place)
        found.append(rates)
    return found


def refill(place: Place) -> None:
    waiting = place.one("select count(*) from outbox.open_deliveries")
    if waiting < BACKLOG:
        load.add_waiting(place, BACKLOG - waiting)


def subscribers(place: Place, scripts: dict[str, Path], each: float) -> list[dict[str, float]]:
    """The same events in workspaces with twenty endpoints each; nobody fans out, so only the app's path is timed."""
    many = scripts_of(place, "many_", 10)["insert"]
    return [
        {
            "none": load.pgbench(place, scripts["insert"], clients=8, seconds=each),
            "many": load.pgbench(place, many, clients=8, seconds=each),
        }
        for _ in range(ROUNDS)
    ]


def ratio(found: list[dict[str, float]], way: str) -> float:
    """The median of the rounds' own ratios."""
    return median([one[way] / one["bare"] for one in found])
