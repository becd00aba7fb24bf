"""search: find deliveries, and events that nobody got, by what people remember of them.

Reads: outbox.event_log, outbox.delivery_log, outbox.attempts. Writes: nothing.
Guarantee: what the text of a search cannot reach any more is said.
"""

import re
from typing import Annotated, Any
from uuid import UUID

import typer

from outbox_worker.cli.condition import Condition, State, found
from outbox_worker.cli.index import is_indexed
from outbox_worker.cli.moments import FORMS, When, before_now, when
from outbox_worker.cli.output import AsJson, Output, cell
from outbox_worker.cli.payload_paths import Equality, equality
from outbox_worker.cli.session import Connection, one, session

DEFAULT_SINCE = "7d"
_STATUS = re.compile(r"([1-9])(\d\d|xx)", re.IGNORECASE)


def search(
    *,
    event: Annotated[UUID | None, typer.Option(help="The event id, which is the webhook-id.")] = None,
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="The tenant.")] = None,
    event_type: Annotated[
        str | None, typer.Option("--type", "-t", help="A type, or a prefix such as message.*.")
    ] = None,
    endpoint: Annotated[UUID | None, typer.Option("--endpoint", "-e", help="The endpoint.")] = None,
    state: Annotated[
        list[State] | None,
        typer.Option("--state", "-s", help="How the delivery stands; none: no endpoint got it."),
    ] = None,
    since: Annotated[
        When | None,
        typer.Option(
            parser=when,
            metavar="TIME",
            help=f"Events from then on: {FORMS}. Default: {DEFAULT_SINCE}, unless --event or an indexed --jsonpath.",
        ),
    ] = None,
    until: Annotated[
        When | None, typer.Option(parser=when, metavar="TIME", help="Events before then.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="An attempt was answered so: 503 or 5xx.")] = None,
    text: Annotated[str | None, typer.Option(help="Text in the payload, an error or a response.")] = None,
    jsonpath: Annotated[
        str | None,
        typer.Option(
            help="A predicate on the payload: '$.order.id == 17'; see outbox-worker index to make it fast."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most so many, newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Search the history; one line is one event at one endpoint, newest first."""
    statuses = status_range(status) if status else None
    with session() as connection:
        condition = Condition({"limit": limit})
        same = indexed_equality(connection, jsonpath)
        for name, value in {
            "endpoint": endpoint,
            "event": event,
            "workspace": workspace,
            "type": event_type,
            "states": sorted({str(one) for one in state or []}),
            "since": since_or_default(connection, since, bounded=event is not None or same is not None),
            "until": before_now(connection, until),
            "text": text,
            "jsonpath": jsonpath,
        }.items():
            condition.add(name, value)
        if same:
            condition.values |= {"path": same.path, "values": same.value}
        if statuses:
            condition.add("status", statuses[0])
            condition.values["status_to"] = statuses[1]
        matching = list(found(connection, condition))
        gone = gone_until(connection, condition) if text or jsonpath else None
    columns = [
        "created_at",
        "event_id",
        "event_type",
        "workspace_id",
        "url",
        "state",
        "attempt_count",
        "last_status",
        "last_error",
    ]
    output = Output(as_json=as_json)
    if gone:
        output.aside(
            f"payloads or responses of events before {cell(gone)} are gone: --text and --jsonpath do not find by those"
        )
    output.rows(matching, columns, nothing="nothing found; widen --since, or leave a condition out")


def gone_until(connection: Connection, condition: Condition) -> Any:
    """Up to when, in the time that is searched, something went that --text or --jsonpath would have looked at."""
    return one(
        connection,
        """
        select max(p.upper_bound) from outbox.partitions p
        where p.stripped_at is not null and (p.parent = 'events' or %(text)s::text is not null)
          and p.upper_bound > coalesce(%(since)s::timestamptz, '-infinity')
          and p.lower_bound < coalesce(%(until)s::timestamptz, 'infinity')
        """,
        {name: condition.values.get(name) for name in ("text", "since", "until")},
    )


def indexed_equality(connection: Connection, jsonpath: str | None) -> Equality | None:
    same = equality(jsonpath) if jsonpath else None
    if (
        jsonpath
        and not same
        and one(connection, r"select %s::text::jsonpath::text ~ '^(strict )?\$'", [jsonpath])
    ):
        raise typer.BadParameter(
            f"--jsonpath {jsonpath!r} is no predicate, so it is true for no event. Say which: '$.order.id == 4711'."
        )
    return same if same and is_indexed(connection, same.path) else None


def since_or_default(connection: Connection, since: When | None, *, bounded: bool) -> Any:
    if since is None and bounded:
        return None  # the event id, or the index, is enough
    return before_now(connection, since or when(DEFAULT_SINCE))


def status_range(text: str) -> tuple[int, int]:
    found = _STATUS.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(
            f"--status {text!r} is not an HTTP status. Give a number such as 503, or a class such as 5xx."
        )
    if found[2].lower() == "xx":
        return int(found[1]) * 100, int(found[1]) * 100 + 99
    return int(text), int(text)
