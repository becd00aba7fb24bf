"""The condition of a search: joined from fixed fragments, asked of the database in as few steps as it takes.

Reads: outbox.event_log, outbox.delivery_log, outbox.dead_letters, outbox.attempts. Writes: nothing.
Guarantee: what was typed travels as parameters only; an indexed value is looked up newest first, in two pages, so
that one which a million events hold costs what is shown; only what those do not fill is read as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from outbox_worker.cli.session import Connection, rows

_PAGES = (100, 1000)
Row = dict[str, Any]


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
      left join outbox.delivery_log d on d.event_id = e.event_id and d.workspace_id = e.workspace_id {more}) f
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
}
# With an endpoint, the same bound on both sides of the join: the deliveries may be the better beginning.
_DELIVERY_BOUNDS = {
    "event": "f.delivered_id = %(event)s::uuid",
    "since": "f.delivered_id >= outbox.event_id_floor(%(since)s::timestamptz)",
    "until": "f.delivered_id < outbox.event_id_floor(%(until)s::timestamptz)",
}


# What outbox-worker index has indexed: the same as an equality of jsonpath.
_INDEXED = "jsonb_path_query_array(f.payload, %(path)s::text::jsonpath) @> %(values)s::jsonb"
_BEFORE = "f.event_id < %(before)s::uuid"
_NEXT = "select f.event_id from outbox.event_log f"
_OF_THE_EVENT = ("event", "workspace", "type", "since", "until")
# The ids go into the statement on both sides of the join: partitions of other times are not even opened.
_IDS, _SAME_IDS = "f.event_id = any (%(ids)s::uuid[])", "and d.event_id = any (%(ids)s::uuid[])"


@dataclass
class Condition:
    """Which fragments apply, and the values of their parameters."""

    values: Row = field(default_factory=dict)
    fragments: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        if value is None or value == []:
            return
        self.values[name] = value
        self.fragments.append(_FRAGMENTS[name])
        if name in _DELIVERY_BOUNDS and "endpoint" in self.values:
            self.fragments.append(_DELIVERY_BOUNDS[name])

    def query(self) -> str:
        source = _EVERYTHING.format(more=_SAME_IDS if "ids" in self.values else "")
        if self.values.get("states") == [State.DEAD] and "ids" not in self.values:
            source = _DEAD_LETTERS
        where = " and ".join([*self.fragments, *([_IDS] if "ids" in self.values else [])])
        return (
            f"{_COLUMNS} {source} where {where} order by f.event_id desc, f.endpoint_id limit %(limit)s::int"
        )

    def page_query(self) -> str:
        """Give the statement for the next events that hold the indexed value, newest first."""
        about = [_FRAGMENTS[name] for name in _OF_THE_EVENT if name in self.values]
        if "before" in self.values:
            about.append(_BEFORE)
        where = " and ".join([_INDEXED, *about])
        return f"{_NEXT} where {where} order by f.event_id desc limit %(page)s::int"


def found(connection: Connection, condition: Condition) -> Iterator[Row]:
    """Ask for what the condition describes; with an indexed value in pages, and after these in one statement."""
    if "path" in condition.values:
        for page in _PAGES:
            held = rows(connection, condition.page_query(), {**condition.values, "page": page})
            ids = [row["event_id"] for row in held]
            if not ids:
                return
            condition.values |= {"ids": ids, "before": ids[-1]}
            matching = rows(connection, condition.query(), condition.values)
            yield from matching
            condition.values["limit"] -= len(matching)
            if len(ids) < page or condition.values["limit"] <= 0:
                return
        # Many hold the value and the rest of the condition rejects them: one join of all costs less than more pages.
        del condition.values["ids"]
        condition.fragments += [_INDEXED, _BEFORE]
    yield from rows(connection, condition.query(), condition.values)
