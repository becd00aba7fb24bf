"""publish: record one event from the shell, as an app would from its own transaction."""

import sys
from typing import Annotated

import typer

from outbox_worker.cli.moments import When, when
from outbox_worker.cli.output import AsJson, Output
from outbox_worker.cli.session import one, session


def publish(
    workspace: Annotated[str, typer.Argument(help="The tenant the event belongs to.")],
    event_type: Annotated[
        str, typer.Argument(metavar="TYPE", help="A name in the catalogue: outbox-worker events.")
    ],
    payload: Annotated[
        str | None, typer.Argument(help="A JSON object, or - to read it from standard input.")
    ] = None,
    *,
    example: Annotated[
        bool, typer.Option("--example", help="Publish the catalogue's example of this type.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and payload store nothing the second time.")
    ] = None,
    ordering_key: Annotated[
        str | None, typer.Option(help="Ordered endpoints get the events of one key in order.")
    ] = None,
    priority: Annotated[int, typer.Option(min=0, max=2, help="0 urgent, 1 normal, 2 bulk.")] = 1,
    deliver_at: Annotated[
        When | None,
        typer.Option(
            parser=when, metavar="TIME", help="Not before this moment, or 2h for two hours from now."
        ),
    ] = None,
    traceparent: Annotated[
        str | None, typer.Option(help="W3C trace context, passed on to the receiver.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish an event and print its id, which is also the webhook-id."""
    if example == (payload is not None):
        raise typer.BadParameter(
            "give either a payload (a JSON object, or - for standard input) or --example"
        )
    text = sys.stdin.read() if payload == "-" else payload
    with session() as connection:
        if example:
            text = one(
                connection, "select example::text from outbox.event_types where name = %s", [event_type]
            )
            if text is None:
                raise typer.BadParameter(
                    f"the event type {event_type} has no example in the catalogue; give a payload"
                )
        event_id = one(
            connection,
            """
            select outbox.publish(
                workspace_id => %(workspace)s::text, event_type => %(event_type)s::text, payload => %(payload)s::text::jsonb,
                idempotency_key => %(idempotency_key)s::text, ordering_key => %(ordering_key)s::text,
                priority => %(priority)s::smallint, deliver_at => %(deliver_at)s::timestamptz,
                traceparent => %(traceparent)s::text)
            """,
            {
                "workspace": workspace,
                "event_type": event_type,
                "payload": text,
                "idempotency_key": idempotency_key,
                "ordering_key": ordering_key,
                "priority": priority,
                "deliver_at": deliver_at.after_now(connection) if deliver_at else None,
                "traceparent": traceparent,
            },
        )
    output = Output(as_json=as_json)
    if as_json:
        output.json({"event_id": event_id})
    else:
        output.line(str(event_id))
