"""Send the test event to one endpoint and watch for the answer of its first attempt."""

import time
from uuid import UUID

import typer

from outbox_worker.cli.output import Output
from outbox_worker.cli.session import Connection, one, rows

_POLL_SECONDS = 0.2


def send_and_watch(connection: Connection, endpoint_id: UUID, output: Output, *, seconds: float) -> None:
    event_id = one(connection, "select outbox.send_test_event(%s::uuid)", [endpoint_id])
    deadline = time.monotonic() + seconds
    attempts = first_attempt(connection, event_id, endpoint_id) if seconds else []
    while not attempts and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)  # nothing signals an attempt's record
        attempts = first_attempt(connection, event_id, endpoint_id)
    if attempts:
        output.facts({"event_id": event_id, **attempts[0]})
        return
    output.facts({"event_id": event_id})
    if seconds:
        typer.echo(
            f"sent the test event: no attempt within {seconds:g} s. See why: outbox-worker show {event_id}",
            err=True,
        )


def first_attempt(connection: Connection, event_id: UUID, endpoint_id: UUID) -> list[dict[str, object]]:
    return rows(
        connection,
        """
        select a.attempt_no, a.url, a.status, a.error, a.duration_ms, a.started_at, a.response_headers, a.response_body, a.worker
        from outbox.attempts a
        where a.event_id = %s and a.endpoint_id = %s
        order by a.attempt_no limit 1
        """,
        [event_id, endpoint_id],
    )
