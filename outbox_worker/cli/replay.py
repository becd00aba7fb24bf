"""replay: send again what was finished; counted and asked before anything moves.

Reads: outbox.count_replay, outbox.operation_log. Writes: through outbox.replay, replay_many, replay_endpoint.
Guarantee: --dry-run changes nothing; one call is one transaction; an interrupted wait leaves the operation running,
since the workers carry it on.
"""

import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from outbox_worker.cli.endpoint_options import Yes, agreed
from outbox_worker.cli.moments import FORMS, When, when
from outbox_worker.cli.operations import begin_operation, follow, newest_operation, told, watch
from outbox_worker.cli.output import AsJson, Output, cell
from outbox_worker.cli.session import Connection, one, session
from outbox_worker.errors import ConfigError


class State(StrEnum):
    DEAD = "dead"
    DELIVERED = "delivered"
    CANCELED = "canceled"
    MISSING = (
        "missing"  # events that the endpoint should have had: before it existed, or behind a broken filter
    )


Reason = Annotated[str | None, typer.Option(help="Why, for the history.")]


def replay(
    *,
    event: Annotated[
        list[UUID] | None, typer.Option("--event", help="An event id; repeat it for more.")
    ] = None,
    events_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file of event ids, one a line, or - for standard input."),
    ] = None,
    endpoint: Annotated[
        UUID | None,
        typer.Option(
            "--endpoint",
            "-e",
            help="Only to this endpoint, which need not have had the event; alone: with --since.",
        ),
    ] = None,
    since: Annotated[
        When | None, typer.Option(parser=when, metavar="TIME", help=f"What finished from then on: {FORMS}.")
    ] = None,
    until: Annotated[
        When | None,
        typer.Option(parser=when, metavar="TIME", help="What finished before then. Default: now."),
    ] = None,
    state: Annotated[
        list[State] | None,
        typer.Option(
            "--state",
            "-s",
            help="Of an endpoint: which deliveries; missing adds events it should have had. Default: dead.",
        ),
    ] = None,
    reason: Reason = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    resume: Annotated[
        UUID | None, typer.Option(metavar="OPERATION_ID", help="Watch a replay that goes on.")
    ] = None,
    stop: Annotated[
        UUID | None,
        typer.Option(
            metavar="OPERATION_ID", help="End a replay that goes on; what it has replayed stays so."
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Watch until all is replayed; the workers carry it on in either case."
        ),
    ] = True,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send events again: by event id, or everything that failed for an endpoint since a time.

    The event id and the body stay the same, the signature is fresh, the old attempts stay in the history.
    """
    events = [*(event or []), *(ids_in(events_from) if events_from else [])]
    output = Output(as_json=as_json)
    chosen = [
        bool(events),
        endpoint is not None and since is not None and not events,
        resume is not None,
        stop is not None,
    ]
    if sum(chosen) != 1:
        raise typer.BadParameter(
            "say what to replay: --event ID, or --endpoint ID with --since TIME, or --resume or --stop OPERATION_ID"
        )
    with session() as connection:
        if resume is not None:
            watch(connection, resume, output)
        elif stop is not None:
            connection.execute("select outbox.stop_operation(%s::uuid)", [stop])
            watch(connection, stop, output)
        elif events:
            replay_events(
                connection, sorted(set(events)), endpoint, reason, output, dry_run=dry_run, yes=yes, wait=wait
            )
        elif endpoint is not None and since is not None:
            start = since.before_now(connection)
            end = until.before_now(connection) if until else one(connection, "select clock_timestamp()")
            states = [str(one_state) for one_state in state or [State.DEAD]]
            replay_endpoint(
                connection,
                (endpoint, start, end, states),
                reason,
                output,
                dry_run=dry_run,
                yes=yes,
                wait=wait,
            )


def replay_endpoint(
    connection: Connection,
    asked: tuple[UUID, datetime, datetime, list[str]],
    reason: str | None,
    output: Output,
    *,
    dry_run: bool,
    yes: bool,
    wait: bool,
) -> None:
    endpoint, since, until, states = asked
    count = one(
        connection,
        "select outbox.count_replay(%s::uuid, %s::timestamptz, %s::timestamptz, %s::text[])",
        asked,
    )
    what = f"{count} {' and '.join(states)} deliveries of endpoint {endpoint}, {cell(since)} to {cell(until)}"
    if dry_run or not count:
        told(
            output,
            f"{what}: {'would be replayed' if dry_run else 'nothing to replay'}",
            {"would_replay" if dry_run else "replayed": count},
        )
        return
    agreed(f"Replay {what}?", yes=yes)
    with connection.transaction():
        begin_operation(connection, reason)
        one(
            connection,
            "select outbox.replay_endpoint(%s::uuid, %s::timestamptz, %s::timestamptz, %s::text[])",
            asked,
        )
        operation = newest_operation(connection, endpoint)
    follow(connection, operation, output, wait=wait)


def replay_events(
    connection: Connection,
    events: list[UUID],
    endpoint: UUID | None,
    reason: str | None,
    output: Output,
    *,
    dry_run: bool,
    yes: bool,
    wait: bool,
) -> None:
    count = count_events(connection, events, endpoint)
    named = f"event {events[0]}" if len(events) == 1 else f"{len(events)} events"
    what = f"{named} to {f'endpoint {endpoint}' if endpoint else f'{count} endpoints that had it'}"
    if dry_run:
        told(output, f"{what}: {count} finished deliveries would be replayed", {"would_replay": count})
        return
    agreed(f"Replay {what}?", yes=yes)
    if len(events) == 1:
        with connection.transaction():
            begin_operation(connection, reason)
            moved = one(connection, "select outbox.replay(%s::uuid, %s::uuid)", [events[0], endpoint])
        told(output, f"{what}: {moved} deliveries replayed, what was pending is due now", {"replayed": moved})
        return
    with connection.transaction():
        begin_operation(connection, reason)
        one(connection, "select outbox.replay_many(%s::uuid[], %s::uuid)", [events, endpoint])
        operation = newest_operation(connection, endpoint)
    follow(connection, operation, output, wait=wait)


def count_events(connection: Connection, events: list[UUID], endpoint: UUID | None) -> int:
    """Count the finished deliveries; to one endpoint, an event that it never had counts too."""
    if endpoint is None:
        query = """
            select count(*) from outbox.deliveries d where d.event_id = any (%(events)s::uuid[]) and d.state <> 'pending'
              and d.reason is distinct from 'erased' and not exists (
                select from outbox.event_log e where e.event_id = d.event_id and e.payload_gone_at is not null)
            """
    else:
        query = """
            select count(*) from outbox.event_log e where e.event_id = any (%(events)s::uuid[]) and e.payload_gone_at is null
              and e.payload <> '{"erased": true}' and not exists (
                select from outbox.deliveries d
                where d.event_id = e.event_id and d.endpoint_id = %(endpoint)s::uuid and d.state = 'pending')
            """
    return int(one(connection, query, {"events": events, "endpoint": endpoint}))


def ids_in(file: str) -> list[UUID]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        return [UUID(word) for word in text.split()]
    except OSError as error:
        raise ConfigError(f"reading event ids: {file}: {error.strerror}. Give a readable file.") from None
    except ValueError:
        raise ConfigError(
            f"reading event ids: {file} holds something that is not an event id. Give one UUID a line."
        ) from None
