"""Operations: replays that workers carry on in slices, begun with a reason and watched to their end.

Reads: outbox.operation_log. Writes: the setting outbox.reason of the transaction, no more.
Guarantee: to watch changes nothing; whoever stops watching leaves the operation running.
"""

import time
from typing import Any
from uuid import UUID

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from outbox_worker.cli.output import Output
from outbox_worker.cli.session import Connection, one, rows
from outbox_worker.errors import ConfigError

_POLL_SECONDS = 0.5


def begin_operation(connection: Connection, reason: str | None) -> None:
    connection.execute("select set_config('outbox.reason', %s::text, true)", [reason or ""])


def newest_operation(connection: Connection, endpoint: UUID | None) -> UUID:
    """Give the operation that this transaction has begun; replay functions return a count."""
    operation: UUID = one(
        connection,
        """
        select o.operation_id from outbox.operation_log o
        where o.kind = 'replay' and o.created_at >= now() and o.requested_by = session_user
          and o.endpoint_id is not distinct from %s::uuid
        order by o.created_at desc limit 1
        """,
        [endpoint],
    )
    return operation


def follow(connection: Connection, operation: UUID, output: Output, *, wait: bool) -> None:
    if wait:
        watch(connection, operation, output)
        return
    state = operation_state(connection, operation)
    told(output, f"replay {operation} goes on: outbox-worker replay --resume {operation}", state)


def watch(connection: Connection, operation: UUID, output: Output) -> None:
    """Show how far the workers are, until they are through."""
    state = operation_state(connection, operation)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.screen, disable=not output.terminal) as progress:
        bar = progress.add_task("replay", total=state["total"], completed=state["affected"])
        if state["state"] == "running":
            live = one(connection, "select count(*) from outbox.workers w where w.state = 'live'")
            going = (
                "the workers carry it on" if live else "no worker is live: start one with outbox-worker run"
            )
            output.say(f"replay {operation}: {state['affected']} of {state['total']} so far, {going}")
        while state["state"] == "running":
            time.sleep(_POLL_SECONDS)  # nothing signals a slice; the bar needs no more
            state = operation_state(connection, operation)
            progress.update(bar, completed=state["affected"])
    text = f"replay {operation} {state['state']}: {state['affected']} of {state['total']} deliveries are due again"
    if state["state"] == "done" and state["affected"] < state["total"]:
        text += "; the others were due already (somebody else replayed them), or are gone"
    told(output, text, state)


def operation_state(connection: Connection, operation: UUID) -> dict[str, Any]:
    found = rows(
        connection,
        """
        select o.operation_id, o.state, o.affected, coalesce((o.parameters ->> 'total')::bigint, o.affected) as total,
               o.endpoint_id, o.event_id, o.requested_by, o.reason, o.created_at
        from outbox.operation_log o where o.operation_id = %s
        """,
        [operation],
    )
    if not found:
        raise ConfigError(
            f"looking for operation {operation}: it does not exist. "
            "List them in psql: table outbox.operation_log;"
        )
    return found[0]


def told(output: Output, text: str, row: dict[str, Any]) -> None:
    if output.as_json:
        output.json(row)
    else:
        output.say(text)
