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

from outbox_worker.cli.index import is_indexed
from outbox_worker.cli.moments import FORMS, When, before_now, when
from outbox_worker.cli.output import AsJson, Output, cell
from outbox_worker.cli.payload_paths import Equality, equality
from outbox_worker.cli.session import Connection, one, rows, session

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


_COLUMNS = """
select f.created_at, f.event_id, f.event_type, f.workspace_id, f.endpoint_id, f.url, f.state, f.why, f.attempt_count,
       f.last_status, f.last_error, f.next_attempt_at, f.finished_at, f.total_ms
"""
_EVERYTHING = """
from (select e.created_at, e.event_id, e.event_type, e.workspace_id, e.payload, d.endpoint_id, d.event_id as delivered_id, d.url,
             coalesce(d.state, 'none') as state, d.why, d.attempt_count, d.last_status, d.last_error, d.next_attempt_at,
             d.finished_at, d.total_ms
      from outbox.event_log e
      left join outbox.delivery_log d on d.event_id = e.event_id and d.workspace_id = e.workspace_id) f
"""
# Dead letters are few and have an index of their own, which a state that a view computes cannot use.
_DEAD_LETTERS = """
from (select l.event_created_at as created_at, l.event_id, l.event_type, l.workspace_id, l.payload, l.endpoint_id,
             l.event_id as delivered_id, l.url, 'dead' as state, l.reason as why, l.attempt_count, l.last_status, l.last_error,
             null::timestamptz as next_attempt_at, l.finished_at, null::bigint as total_ms
      from outbox.dead_letters l) f
"""
_FRAGMENTS = {
    "event": "f.event_id = %(event)s::uuid",
    "workspace": "f.workspace_id = %(workspace)s::text",
    "type": "outbox.pattern_matches(%(type)s::text, f.event_type)",
    "endpoint": "f.endpoint_id = %(endpoint)s::uuid",
    "states": "f.state = any (%(states)s::text[])",
    "since": "f.event_id >= outbox.event_id_floor(%(since)s::timestamptz)",
    "until": "f.event_id < outbox.event_id_floor(%(until)s::timestamptz)",
    "status": """exists (select from outbox.attempts a where a.event_id = f.event_id and a.endpoint_id = f.endpoint_id
                 and a.status between %(status)s::int and %(status_to)s::int)""",
    "text": """(strpos(lower(f.payload::text), lower(%(text)s::text)) > 0
                or exists (select from outbox.attempts a where a.event_id = f.event_id and a.endpoint_id = f.endpoint_id
                           and strpos(lower(concat(a.error, ' ', a.response_body)), lower(%(text)s::text)) > 0))""",
    "jsonpath": "f.payload @@ %(jsonpath)s::text::jsonpath",
    # The same as an equality, in the form that outbox-worker index has indexed; first, whatever the planner thinks of it.
    "values": """f.event_id = any (array(
                 select i.event_id from outbox.event_log i
                 where jsonb_path_query_array(i.payload, %(path)s::text::jsonpath) @> %(values)s::jsonb))""",
}
# With an endpoint, the same bound on both sides of the join: the deliveries may be the better beginning.
_DELIVERY_BOUNDS = {
    "event": "f.delivered_id = %(event)s::uuid",
    "since": "f.delivered_id >= outbox.event_id_floor(%(since)s::timestamptz)",
    "until": "f.delivered_id < outbox.event_id_floor(%(until)s::timestamptz)",
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
        few = self.values.get("states") == [State.DEAD] and "values" not in self.values
        source = _DEAD_LETTERS if few else _EVERYTHING
        where = " and ".join(self.fragments)
        return (
            f"{_COLUMNS} {source} where {where} order by f.event_id desc, f.endpoint_id limit %(limit)s::int"
        )


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
            "values": same.value if same else None,
        }.items():
            condition.add(name, value)
        if same:
            condition.values["path"] = same.path
        if statuses:
            condition.add("status", statuses[0])
            condition.values["status_to"] = statuses[1]
        found = rows(connection, condition.query(), condition.values)
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
    output.rows(found, columns, nothing="nothing found; widen --since, or leave a condition out")


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
