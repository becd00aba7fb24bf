"""tail: attempts as they are recorded.

Reads: outbox.attempt_log. Writes: nothing.
Guarantee: with -f every attempt that is recorded within OVERLAP of its end is printed, once.
Attempts commit out of order, so nothing is skipped by "greater than the last": each look goes back over OVERLAP and
remembers what it has printed.
"""

import time
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import typer

from outbox_worker.cli.moments import When, when
from outbox_worker.cli.output import AsJson, Output, cell
from outbox_worker.cli.session import Connection, one, rows, session

OVERLAP = timedelta(seconds=20)  # from the end of a request to the commit of its record
LONGEST = timedelta(seconds=65)  # from the start of a request to its end
_POLL_SECONDS = 0.5
_QUERY = """
select a.started_at, a.event_id, a.endpoint_id, a.attempt_no, a.workspace_id, a.event_type, a.url_host, a.status, a.error,
       a.duration_ms, a.worker, a.started_at + a.duration_ms * interval '1 ms' as ended_at
from outbox.attempt_log a
where a.started_at >= %(started)s::timestamptz and a.started_at + a.duration_ms * interval '1 ms' >= %(ended)s::timestamptz
  and (%(workspace)s::text is null or a.workspace_id = %(workspace)s::text)
  and (%(endpoint)s::uuid is null or a.endpoint_id = %(endpoint)s::uuid)
  and (not %(failed)s::boolean or a.status is null or a.status not between 200 and 299)
order by a.started_at desc
limit %(limit)s::int
"""
_MOST_AT_ONCE = 10_000
Key = tuple[UUID, UUID, int]


def tail(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=_MOST_AT_ONCE, help="Begin with so many.")
    ] = 20,
    since: Annotated[
        When | None,
        typer.Option(parser=when, metavar="TIME", help="How far back to begin, such as 2h. Default: 15m."),
    ] = None,
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Only this tenant's.")] = None,
    endpoint: Annotated[UUID | None, typer.Option("--endpoint", "-e", help="Only this endpoint's.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the last attempts, and with -f each new one as it happens."""
    output = Output(as_json=as_json)
    with session() as connection:
        wanted = {"workspace": workspace, "endpoint": endpoint, "failed": failed}
        begin = (since or when("15m")).before_now(connection)
        printed: dict[Key, datetime] = {}
        now: datetime = one(connection, "select clock_timestamp()")
        # what lies before the first line is remembered as printed: the next look goes back over it
        recent = rows(
            connection,
            _QUERY,
            {**wanted, "started": begin, "ended": begin, "limit": _MOST_AT_ONCE if follow else lines},
        )
        for row in recent[lines:]:
            printed[key(row)] = row["ended_at"]
        print_new(output, recent[:lines], printed)
        while follow:
            time.sleep(_POLL_SECONDS)  # polling is the truth; a reader may not LISTEN for attempts
            now = look(connection, output, wanted, printed, max(begin, now - OVERLAP))


def look(
    connection: Connection,
    output: Output,
    wanted: dict[str, Any],
    printed: dict[Key, datetime],
    ended: datetime,
) -> datetime:
    """Print what ended since then and was not printed yet; give the time of this look."""
    now: datetime = one(connection, "select clock_timestamp()")
    found = rows(
        connection, _QUERY, {**wanted, "started": ended - LONGEST, "ended": ended, "limit": _MOST_AT_ONCE}
    )
    print_new(output, found, printed)
    for gone in [one_key for one_key, ended_at in printed.items() if ended_at < ended]:
        del printed[gone]
    return now


def print_new(output: Output, found: list[dict[str, Any]], printed: dict[Key, datetime]) -> None:
    for row in reversed(found):
        if key(row) in printed:
            continue
        printed[key(row)] = row["ended_at"]
        if output.as_json:
            output.json(row)
            continue
        good = row["status"] is not None and 200 <= row["status"] <= 299
        pieces = [
            f"{cell(row['started_at'])}  {row['status'] or '---'}  {row['duration_ms']:>6} ms",
            row["event_type"] or "?",
            row["url_host"] or "?",
            f"attempt {row['attempt_no']}",
            str(row["event_id"]),
        ]
        output.pieces([*pieces, row["error"]] if row["error"] else pieces, "green" if good else "red")


def key(row: dict[str, Any]) -> Key:
    return row["event_id"], row["endpoint_id"], row["attempt_no"]
