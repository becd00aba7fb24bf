"""restored: what a restored database could send twice, and what becomes of it before a worker may start.

Reads: outbox.why_held, outbox.could_be_sent_twice. Writes: outbox.home; with --cancel-until, what it lists is canceled.
Guarantee: without an option it changes nothing; each decision is one transaction.
If it dies: nothing has changed, and the workers are held as before.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from outbox_worker.cli.endpoint_options import Yes, agreed
from outbox_worker.cli.moments import FORMS, When, before_now, when
from outbox_worker.cli.operations import begin_operation, told
from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import Connection, one, rows, session
from outbox_worker.errors import ConfigError

_COLUMNS = ["event_id", "endpoint_id", "workspace_id", "event_type", "state", "attempt_count", "created_at"]
_LISTED = """
select t.event_id, t.endpoint_id, t.workspace_id, t.event_type, t.state, t.attempt_count, t.next_attempt_at, t.created_at
from outbox.could_be_sent_twice(coalesce(%(until)s::timestamptz, now())) t order by t.event_id, t.endpoint_id limit %(limit)s::int
"""
_COUNTED = """
select t.state, count(*) as waiting, min(t.created_at) as oldest, max(t.created_at) as newest
from outbox.could_be_sent_twice(coalesce(%(until)s::timestamptz, now())) t group by t.state order by t.state
"""


def restored(
    *,
    until: Annotated[
        When | None,
        typer.Option(
            parser=when,
            metavar="TIME",
            help=f"List what was due until the last worker of the original stopped: {FORMS}. Default: now.",
        ),
    ] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Workers may start; all that waits goes out, some of it twice.")
    ] = False,
    cancel_until: Annotated[
        When | None,
        typer.Option(
            parser=when,
            metavar="TIME",
            help="Cancel what is listed for --until TIME, then release. Some of it may never have been sent.",
        ),
    ] = None,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold", help="Stop all workers first: for a restored snapshot, which looks like the original."
        ),
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="List at most so many.")] = 1000,
    reason: Annotated[str | None, typer.Option(help="Why, for the history.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """After a restore: list what could be sent twice; then --release or --cancel-until lets the workers start.

    A restored copy is held by itself. An event that is sent twice has the same webhook-id both times.
    """
    if sum((release, hold, cancel_until is not None)) > 1:
        raise ConfigError(
            "reading the options: --release, --cancel-until and --hold are three decisions. Give one."
        )
    output = Output(as_json=as_json)
    with session() as connection:
        if hold:
            agreed("Stop every worker of this database?", yes=yes)
            decide(connection, reason, "select outbox.hold_restored()")
            told(
                output,
                "held: no worker starts, those that run stop. Now: outbox-worker restored",
                {"held": True},
            )
        elif release:
            agreed("Let workers start, and send all that waits?", yes=yes)
            decide(connection, reason, "select outbox.release_restored()")
            told(output, "released: start the workers", {"released": True, "canceled": 0})
        elif cancel_until is not None:
            moment = before_now(connection, cancel_until)
            count = one(
                connection, "select count(*) from outbox.could_be_sent_twice(%s::timestamptz)", [moment]
            )
            agreed(f"Cancel {count} that were due until {moment}, and let workers start?", yes=yes)
            closed = decide(connection, reason, "select outbox.release_restored(%s::timestamptz)", [moment])
            told(
                output,
                f"{closed} canceled, released: start the workers",
                {"released": True, "canceled": closed},
            )
        else:
            listed(connection, output, before_now(connection, until), limit)


def decide(connection: Connection, reason: str | None, query: str, values: Sequence[Any] = ()) -> Any:
    with connection.transaction():
        begin_operation(connection, reason)
        return one(connection, query, values)


def listed(connection: Connection, output: Output, until: datetime | None, limit: int) -> None:
    values = {"until": until, "limit": limit}
    why = one(connection, "select outbox.why_held()")
    output.rows(rows(connection, _LISTED, values), _COLUMNS)
    counts = rows(connection, _COUNTED, values)
    for count in counts:
        output.say(f"{count['waiting']} {count['state']}, of {count['oldest']} to {count['newest']}")
    total = sum(count["waiting"] for count in counts)
    if total > limit:
        output.say(f"only {limit} of {total} are listed: --limit")
    output.say(
        f"held: {why}"
        if why
        else "not held: workers may send. To stop them first: outbox-worker restored --hold"
    )
    if why:
        output.say(
            f"{total} could be sent twice. --release sends them all; --cancel-until TIME cancels those that were due "
            "until the last worker of the original stopped."
        )
