"""Load: endpoints, published events, waiting deliveries, and pgbench.

Reads: the place. Writes: its database.
Guarantee: events are about 500 bytes; what is inserted past the trigger has the rows that the pipeline would have made.
If it is wrong: the figures are those of another load.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.bench.waits import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.place import Place

MATCHING = 2
"""Endpoints of a workspace; each of its events goes to all of them."""
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
PAYLOAD = (
    "jsonb_build_object('message', jsonb_build_object('id', {n}, 'type', 'text', 'direction', 'in', 'body', '"
    + TEXT
    + "'), 'contact', jsonb_build_object('phone', '+4915112345678', 'name', 'Erika Mustermann'))"
)
CHUNK = 50_000
ALL_SHARDS = "select pg_notify('outbox_wake', 'shards:' || (select string_agg(s::text, ',') from generate_series(0, 63) s))"


def make_endpoints(
    place: Place, url: str, *, workspaces: int | None = None, each: int = MATCHING, prefix: str = "ws_"
) -> None:
    workspaces = workspaces or place.plan.workspaces
    place.db.execute(
        "select count(e.endpoint_id) from generate_series(0, %s - 1) w, generate_series(1, %s) k,"
        " lateral outbox.create_endpoint(%s || w, %s || '/hook/' || w || '/' || k, '{message.*}') e",
        [workspaces, each, prefix, url],
    )
    place.db.execute("analyze outbox.endpoints")


def publish(
    place: Place, events: int, *, first: int = 0, workspaces: int | None = None, prefix: str = "ws_"
) -> None:
    """Publish in one transaction, round the workspaces."""
    workspaces = workspaces or place.plan.workspaces
    place.db.execute(
        "insert into outbox.events (workspace_id, event_type, payload)"
        f" select '{prefix}' || n % {workspaces}, 'message.received', {PAYLOAD.format(n='n')}"
        f" from generate_series({first}, {first + events - 1}) n"
    )


def add_queued(place: Place, events: int) -> None:
    """Insert events and their rows for the fan-out as the trigger would have, without its checks."""
    past_triggers(
        place,
        events,
        place.plan.workspaces,
        "insert into outbox.fan_out_queue (bucket, priority, event_id, workspace_id)"
        " select hashtext(e.workspace_id) >> 16, 1, e.event_id, e.workspace_id from e",
    )


def add_waiting(place: Place, deliveries: int, *, workspaces: int | None = None, told: bool = True) -> None:
    """Insert due deliveries and their events as the fan-out would have, and tell the workers."""
    past_triggers(
        place,
        max(1, deliveries // MATCHING),
        workspaces or place.plan.workspaces,
        "insert into outbox.open_deliveries (event_id, endpoint_id, workspace_id, priority, next_attempt_at)"
        " select e.event_id, p.endpoint_id, e.workspace_id, 1, clock_timestamp()"
        " from e join outbox.endpoints p on p.workspace_id = e.workspace_id",
    )
    if told:
        place.db.execute(ALL_SHARDS)


def past_triggers(place: Place, events: int, workspaces: int, then: str) -> None:
    with place.connect() as db:
        db.execute("set session_replication_role = replica")
        for start in range(0, events, CHUNK):
            db.execute(
                "with e as (insert into outbox.events (workspace_id, event_type, payload)"
                f" select 'ws_' || n % {workspaces}, 'message.received', {PAYLOAD.format(n='n')}"
                f" from generate_series({start}, {min(start + CHUNK, events) - 1}) n returning event_id, workspace_id)"
                f" {then}"
            )


def warm_up(place: Place) -> None:
    """Deliver once to each endpoint: opening a sealed secret takes milliseconds, and is done once."""
    before, wanted = place.receiver.count(), place.plan.workspaces * MATCHING
    publish(place, place.plan.workspaces)
    until(lambda: place.receiver.count() - before >= wanted, "the warm-up's deliveries", seconds=120)
    drained(place)


def drained(place: Place, seconds: float = 120) -> None:
    until(
        lambda: place.one(
            "select not exists (select from outbox.fan_out_queue) and not exists (select from outbox.open_deliveries)"
        ),
        "the open deliveries to be settled",
        seconds=seconds,
    )


def drained_of(place: Place, prefix: str, seconds: float = 120) -> None:
    """Wait for the deliveries of some workspaces; others' may go on waiting."""
    until(
        lambda: place.one(
            "select not exists (select from outbox.fan_out_queue where starts_with(workspace_id, %s))"
            " and not exists (select from outbox.open_deliveries where starts_with(workspace_id, %s))",
            prefix,
            prefix,
        ),
        f"the deliveries of {prefix}",
        seconds=seconds,
        every=0.25,
    )


def settled_database(place: Place) -> None:
    """Begin each measured part alike: statistics fresh, no checkpoint about to come."""
    place.db.execute(
        "vacuum analyze outbox.open_deliveries, outbox.fan_out_queue, outbox.events, outbox.endpoints"
    )
    place.db.execute("checkpoint")


def script(place: Place, name: str, text: str) -> Path:
    path = place.folder / f"{name}.sql"
    path.write_text(text)
    return path


def pgbench_command(
    place: Place, *scripts: str, clients: int, seconds: float, rate: float | None = None
) -> tuple[list[str], dict[str, str]]:
    program = place.server._programs.bin_dir / "pgbench"
    words = f"-n -M prepared -c {clients} -j 1 -T {max(1, round(seconds))}".split()
    words = [str(program), *words, f"--random-seed={place.plan.seed}"]
    if rate is not None:
        words += ["-R", str(max(1, round(rate)))]
    for one in scripts:
        words += ["-f", one]
    return [*words, place.dsn("app_login")], {**os.environ, "LC_ALL": "C"}


def pgbench(place: Place, path: Path, *, clients: int, seconds: float) -> float:
    """Give the transactions per second after the first one: an app keeps its connections, and what each plans first."""
    for longer in (1, 5):  # on a busy machine, connecting alone can take all of a short round
        counted = max(1, round(seconds))
        command, env = pgbench_command(place, str(path), clients=clients, seconds=counted + longer)
        command[1:1] = ["-P", "1"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        rates = [
            float(rate) for rate in re.findall(r"^progress: [0-9.]+ s, ([0-9.]+) tps", said, re.MULTILINE)
        ]
        if done.returncode or len(rates) > counted:
            break
    if done.returncode or len(rates) < 2 or re.search(r"failed transactions: [1-9]", said):
        raise RuntimeError(f"ran pgbench: it ended with {done.returncode}: {said[-800:]}")
    return sum(rates[1:]) / len(rates[1:])


@contextmanager
def background_load(
    place: Place, *scripts: str, rate: float, seconds: float, clients: int = 8
) -> Iterator[None]:
    """Publish at an even mean rate (Poisson) while the block runs."""
    command, env = pgbench_command(place, *scripts, clients=clients, seconds=seconds, rate=rate)
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield
        finally:
            early = process.poll()
            process.terminate()
            said = process.communicate(timeout=30)[0]
            if early:
                raise RuntimeError(f"ran pgbench: it ended with {early}: {said[-800:]}")


def publish_script(
    place: Place, name: str = "publish", prefix: str = "ws_", workspaces: int | None = None
) -> str:
    """One business event, by outbox.publish, from a random workspace."""
    text = f"""
\\set w random(0, {(workspaces or place.plan.workspaces) - 1})
\\set n random(1, 1000000000)
select outbox.publish('{prefix}' || :w, 'message.received', {PAYLOAD.format(n=":n::bigint")});
"""
    return str(script(place, name, text))
