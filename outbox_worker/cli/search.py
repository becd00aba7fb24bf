"""search: find deliveries, and events that nobody got, by what people remember of them.

Reads: outbox.event_log, outbox.delivery_log, outbox.attempts. Writes: nothing.
Guarantee: the condition is joined from fixed fragments; what was typed travels as parameters only.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import typer

from outbox_worker.cli.moments import FORMS, When, before_now, when
from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import Connection, rows, session

DEFAULT_SINCE = "7d"
_STATUS = re.compile(r"([1-9])(\d\d|xx)", re.IGNORECASE)


class State(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    HELD = "held"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELED = "canceled"
    NONE = "none"  # nobody got the event


_BEGINNING = """
select e.created_at, e.event_id, e.event_type, e.workspace_id, d.endpoint_id, d.url, coalesce(d.state, 'none') as state, d.why,
       d.attempt_count, d.last_status, d.last_error, d.next_attempt_at, d.finished_at, d.total_ms
from outbox.event_log e
left join outbox.delivery_log d on d.event_id = e.event_id and d.workspace_id = e.workspace_id
"""
# The same bound on both sides of the join: either may be the one to begin with.
_FRAGMENTS = {
    "event": "e.event_id = %(event)s::uuid",
    "workspace": "e.workspace_id = %(workspace)s::text",
    "type": "outbox.pattern_matches(%(type)s::text, e.event_type)",
    "endpoint": "d.endpoint_id = %(endpoint)s::uuid",
    "states": "coalesce(d.state, 'none') = any (%(states)s::text[])",
    "since": "e.event_id >= outbox.event_id_floor(%(since)s::timestamptz)",
    "until": "e.event_id < outbox.event_id_floor(%(until)s::timestamptz)",
    "status": """exists (select from outbox.attempts a where a.event_id = e.event_id and a.endpoint_id = d.endpoint_id
                 and a.status between %(status)s::int and %(status_to)s::int)""",
    "text": """(strpos(lower(e.payload::text), lower(%(text)s::text)) > 0
                or exists (select from outbox.attempts a where a.event_id = e.event_id and a.endpoint_id = d.endpoint_id
                           and strpos(lower(concat(a.error, ' ', a.response_body)), lower(%(text)s::text)) > 0))""",
    "jsonpath": "e.payload @@ %(jsonpath)s::text::jsonpath",
}
_DELIVERY_BOUNDS = {
    "event": "d.event_id = %(event)s::uuid",
    "since": "d.event_id >= outbox.event_id_floor(%(since)s::timestamptz)",
    "until": "d.event_id < outbox.event_id_floor(%(until)s::timestamptz)",
}


@dataclass
class Condition:
    """Which fragments apply, and the values of their parameters."""

    values: dict[str, Any] = field(default_factory=dict)
    fragments: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        if value is None or value == []:
            return
        self.values[name] = value
        self.fragments.append(_FRAGMENTS[name])
        if name in _DELIVERY_BOUNDS and "endpoint" in self.values:
            self.fragments.append(_DELIVERY_BOUNDS[name])

    def query(self) -> str:
        return f"{_BEGINNING} where {' and '.join(self.fragments)} order by e.event_id desc, d.endpoint_id limit %(limit)s::int"


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
            help=f"Events from then on: {FORMS}. Default: {DEFAULT_SINCE}, unless --event.",
        ),
    ] = None,
    until: Annotated[
        When | None, typer.Option(parser=when, metavar="TIME", help="Events before then.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="An attempt was answered so: 503 or 5xx.")] = None,
    text: Annotated[str | None, typer.Option(help="Text in the payload, an error or a response.")] = None,
    jsonpath: Annotated[
        str | None, typer.Option(help="A predicate on the payload: '$.order.id == 17'.")
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
        for name, value in {
            "endpoint": endpoint,
            "event": event,
            "workspace": workspace,
            "type": event_type,
            "states": [str(one) for one in state or []],
            "since": since_or_default(connection, since, event),
            "until": before_now(connection, until),
            "text": text,
            "jsonpath": jsonpath,
        }.items():
            condition.add(name, value)
        if statuses:
            condition.add("status", statuses[0])
            condition.values["status_to"] = statuses[1]
        found = rows(connection, condition.query(), condition.values)
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
    Output(as_json=as_json).rows(
        found, columns, nothing="nothing found; widen --since, or leave a condition out"
    )


def since_or_default(connection: Connection, since: When | None, event: UUID | None) -> Any:
    if since is None and event is not None:
        return None  # the event id is enough
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
