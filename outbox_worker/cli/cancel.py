"""cancel: stop the pending deliveries of an event, asked before anything moves."""

from typing import Annotated
from uuid import UUID

import typer

from outbox_worker.cli.endpoint_options import Yes, agreed
from outbox_worker.cli.operations import begin_operation, told
from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import one, session


def cancel(
    event_id: Annotated[UUID, typer.Argument(metavar="EVENT_ID", help="The event.")],
    *,
    endpoint: Annotated[UUID | None, typer.Option("--endpoint", "-e", help="Only for this endpoint.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the history.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Stop the pending deliveries of an event. A request in flight cannot be called back."""
    with session() as connection:
        agreed(
            f"Cancel event {event_id} {f'for endpoint {endpoint}' if endpoint else 'for every endpoint'}?",
            yes=yes,
        )
        with connection.transaction():
            begin_operation(connection, reason)
            closed = one(connection, "select outbox.cancel(%s::uuid, %s::uuid)", [event_id, endpoint])
    told(
        Output(as_json=as_json),
        f"event {event_id}: {closed} pending deliveries canceled",
        {"canceled": closed},
    )
