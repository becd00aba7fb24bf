"""endpoint: create, list, show, change, pause and delete endpoints, through the functions that an app calls.

Reads: outbox.endpoint_health, outbox.endpoints. Writes: through outbox.create_endpoint and its siblings only.
Guarantee: a signing secret is printed by create and rotate, once, and by nothing else; header values are never printed.
"""

from typing import Annotated, Any
from uuid import UUID

import typer

from outbox_worker.cli.endpoint_options import (
    Description,
    EndpointId,
    EventTypes,
    EventTypesOrNone,
    Filter,
    HeaderLines,
    HeadersFile,
    MaxInFlight,
    MaxPerSecond,
    RetrySchedule,
    Timeout,
    Yes,
    agreed,
    headers_from,
    named,
    schedule_from,
    types_from,
)
from outbox_worker.cli.first_answer import send_and_watch
from outbox_worker.cli.moments import duration, spoken
from outbox_worker.cli.output import AsJson, Output, Row
from outbox_worker.cli.session import Connection, one, rows, session
from outbox_worker.errors import ConfigError

app = typer.Typer(help="Create, list, change, pause and delete endpoints.", no_args_is_help=True)

SHOWN_ONCE = "This secret is shown this once and stored sealed. Give it to the receiver's developer now."


@app.command()
def create(
    workspace: Annotated[str, typer.Argument(help="The tenant that owns the endpoint.")],
    url: Annotated[str, typer.Argument(help="Where events are POSTed.")],
    *,
    events: EventTypes,
    description: Description = None,
    header: HeaderLines = None,
    headers_file: HeadersFile = None,
    filter_: Filter = None,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="One at a time and in order, for each ordering key.")
    ] = False,
    max_in_flight: MaxInFlight = None,
    max_per_second: MaxPerSecond = None,
    timeout: Timeout = None,
    retry_schedule: RetrySchedule = None,
    as_json: AsJson = False,
) -> None:
    """Create an endpoint and print its id and its signing secret, this once."""
    given = {
        "workspace_id": workspace,
        "url": url,
        "event_types": types_from(events),
        "description": description,
        "headers": headers_from(header, headers_file),
        "filter": filter_,
        "ordered": ordered or None,
        "max_in_flight": max_in_flight,
        "max_per_second": max_per_second,
        "timeout": duration(timeout) if timeout else None,
        "retry_schedule": schedule_from(retry_schedule),
    }
    arguments, values = named(given)
    with session() as connection:
        query = f"select endpoint_id, secret from outbox.create_endpoint({arguments})"  # noqa: S608  (placeholders)
        made = rows(connection, query, values)[0]
    show_secret(Output(as_json=as_json), made)


@app.command()
def update(
    endpoint_id: EndpointId,
    *,
    url: Annotated[
        str | None,
        typer.Option(help="New URL. Another origin holds deliveries until secret and headers are renewed."),
    ] = None,
    events: EventTypesOrNone = None,
    description: Description = None,
    header: HeaderLines = None,
    headers_file: HeadersFile = None,
    filter_: Filter = None,
    ordered: Annotated[
        bool | None, typer.Option("--ordered/--unordered", help="In order for each ordering key, or not.")
    ] = None,
    max_in_flight: MaxInFlight = None,
    max_per_second: MaxPerSecond = None,
    timeout: Timeout = None,
    retry_schedule: RetrySchedule = None,
) -> None:
    """Change an endpoint; what is not given stays.

    To take a limit or filter away, set its column to null: update outbox.endpoints set filter = null where …
    """
    arguments, values = named(
        {
            "endpoint_id": endpoint_id,
            "url": url,
            "event_types": types_from(events) if events else None,
            "description": description,
            "headers": headers_from(header, headers_file),
            "filter": filter_,
            "ordered": ordered,
            "max_in_flight": max_in_flight,
            "max_per_second": max_per_second,
            "timeout": duration(timeout) if timeout else None,
            "retry_schedule": schedule_from(retry_schedule),
        }
    )
    if len(values) == 1:
        raise typer.BadParameter("nothing to change was given")
    with session() as connection:
        connection.execute(f"select outbox.update_endpoint({arguments})".encode(), values)
    Output().say(f"endpoint {endpoint_id} changed")


@app.command("list")
def list_endpoints(
    workspace: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those active, paused or disabled.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the endpoints with their state and their last hour."""
    with session() as connection:
        found = rows(
            connection,
            """
            select h.endpoint_id, h.workspace_id, h.url, h.state, coalesce(h.hold_reason, h.state_reason,
                   h.filter_error) as reason, h.attempts, round(h.success_rate, 4) as success_rate, h.p95_ms,
                   h.failing_since, h.description, h.created_at
            from outbox.endpoint_health h
            where (%(workspace)s::text is null or h.workspace_id = %(workspace)s::text)
              and (%(state)s::text is null or h.state = %(state)s::text)
            order by h.workspace_id, h.created_at
            """,
            {"workspace": workspace, "state": state},
        )
    columns = ["endpoint_id", "workspace_id", "url", "state", "reason", "attempts", "success_rate", "p95_ms"]
    Output(as_json=as_json).rows(found, columns, title="Endpoints", nothing="no endpoints")


@app.command()
def show(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Show one endpoint: subscription, limits, health, what waits and why."""
    with session() as connection:
        found = known(connection, endpoint_id)
    if not as_json:
        found["retry_schedule"] = ", ".join(map(spoken, found["retry_schedule"] or [])) or None
        found["timeout"] = spoken(found["timeout"]) or None
        for column in ("event_types", "header_names"):
            found[column] = ", ".join(found[column]) or None
    Output(as_json=as_json).facts(found)


def known(connection: Connection, endpoint_id: UUID) -> dict[str, Any]:
    found = rows(
        connection,
        """
        select n.endpoint_id, n.workspace_id, h.url, n.description, n.state, n.state_reason, n.state_changed_at,
               n.hold_reason, n.event_types, n.filter::text as filter, n.filter_error, n.ordered, n.header_names,
               n.max_in_flight, n.max_per_second, n.timeout, n.retry_schedule, n.failing_since, h.circuit,
               h.in_flight, h.in_flight_limit, h.attempts, h.successes, h.timeouts,
               round(h.success_rate, 4) as success_rate, h.per_second,
               h.p50_ms, h.p95_ms, h.p99_ms, h.waiting, h.oldest_waiting_at, h.why, h.worker, n.version,
               n.created_at, n.updated_at
        from outbox.endpoints n
        left join outbox.endpoint_health h on h.endpoint_id = n.endpoint_id and h.workspace_id = n.workspace_id
        where n.endpoint_id = %s
        """,
        [endpoint_id],
    )
    if not found:
        raise ConfigError(
            f"looking for endpoint {endpoint_id}: it does not exist. List them: outbox-worker endpoint list"
        )
    return found[0]


@app.command()
def headers(
    endpoint_id: EndpointId,
    header: HeaderLines = None,
    headers_file: HeadersFile = None,
    none: Annotated[bool, typer.Option("--none", help="Remove all custom headers.")] = False,
) -> None:
    """Replace the custom headers of an endpoint. They are sealed: nobody can read them back."""
    wanted = "{}" if none else headers_from(header, headers_file)
    if wanted is None or (none and (header or headers_file)):
        raise typer.BadParameter("give --header or --headers-file, or --none to remove them")
    with session() as connection:
        connection.execute(
            "select outbox.set_endpoint_headers(%s::uuid, %s::text::jsonb)", [endpoint_id, wanted]
        )
    Output().say(f"headers of endpoint {endpoint_id} " + ("removed" if none else "replaced and sealed"))


@app.command()
def rotate(
    endpoint_id: EndpointId,
    overlap: Annotated[str, typer.Option(help="How long the old secret signs too.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a new signing secret and print it, this once. Both sign until the overlap ends."""
    length = duration(overlap)
    with session() as connection:
        secret = one(connection, "select outbox.rotate_secret(%s::uuid, %s::interval)", [endpoint_id, length])
    show_secret(Output(as_json=as_json), {"endpoint_id": endpoint_id, "secret": secret})


def show_secret(output: Output, made: Row) -> None:
    output.facts(made)
    if not output.as_json:
        typer.echo(SHOWN_ONCE, err=True)


@app.command()
def pause(endpoint_id: EndpointId) -> None:
    """Hold an endpoint's deliveries until it is resumed."""
    with session() as connection:
        connection.execute("select outbox.pause_endpoint(%s::uuid)", [endpoint_id])
    Output().say(f"endpoint {endpoint_id} paused: its deliveries wait until outbox-worker endpoint resume")


@app.command()
def resume(endpoint_id: EndpointId) -> None:
    """Let a paused or disabled endpoint go on; what waited is delivered."""
    with session() as connection:
        connection.execute("select outbox.resume_endpoint(%s::uuid)", [endpoint_id])
    Output().say(f"endpoint {endpoint_id} active: what waited is delivered")


@app.command()
def delete(endpoint_id: EndpointId, yes: Yes = False) -> None:
    """End an endpoint: its secrets are destroyed, what waits is canceled, its history stays."""
    agreed(f"Delete endpoint {endpoint_id}, destroy its secrets and cancel what waits?", yes=yes)
    with session() as connection:
        connection.execute("select outbox.delete_endpoint(%s::uuid)", [endpoint_id])
    Output().say(f"endpoint {endpoint_id} deleted")


@app.command("test")
def send_test(
    endpoint_id: EndpointId,
    wait: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds to watch for the answer; 0 returns at once.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Send the test event to this endpoint, whatever it subscribes to, and show what came back."""
    with session() as connection:
        send_and_watch(connection, endpoint_id, Output(as_json=as_json), seconds=wait)
