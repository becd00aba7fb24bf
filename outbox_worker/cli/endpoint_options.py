"""What the endpoint commands take: options, and how their text becomes what the SQL functions want.

Reads: arguments, a file of headers. Writes: nothing; `agreed` asks on the terminal.
Guarantee: no header value occurs in an error.
"""

import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from outbox_worker.cli.moments import duration
from outbox_worker.errors import ConfigError

EndpointId = Annotated[
    UUID, typer.Argument(metavar="ENDPOINT_ID", help="The endpoint: outbox-worker endpoint list.")
]
_EVENTS = typer.Option(
    "--event",
    "-e",
    help="What it subscribes to: a name, a prefix such as message.*, or *. Repeat it, or join with commas.",
)
EventTypes = Annotated[list[str], _EVENTS]
EventTypesOrNone = Annotated[list[str] | None, _EVENTS]
Description = Annotated[str | None, typer.Option(help="Free text for people.")]
HeaderLines = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        "-H",
        metavar="NAME:VALUE",
        help="A custom header. Other users of this machine may see it: prefer a file.",
    ),
]
HeadersFile = Annotated[
    str | None,
    typer.Option(help="A file with the custom headers as one JSON object, or - for standard input."),
]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="JSONPATH", help="""A predicate on the payload: '$.message.type == "text"'."""
    ),
]
MaxInFlight = Annotated[int | None, typer.Option(help="Most requests at once.")]
MaxPerSecond = Annotated[float | None, typer.Option(help="Most requests a second.")]
Timeout = Annotated[str | None, typer.Option(metavar="LENGTH", help="Deadline of one request, such as 10s.")]
RetrySchedule = Annotated[
    str | None,
    typer.Option(metavar="LENGTHS", help="Delays after each failed attempt: 30s,2m,10m,1h,4h,12h,24h."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_TYPES = {
    "endpoint_id": "uuid",
    "event_types": "text[]",
    "headers": "text::jsonb",
    "filter": "text::jsonpath",
    "ordered": "boolean",
    "max_in_flight": "int",
    "max_per_second": "numeric",
    "timeout": "interval",
    "retry_schedule": "interval[]",
}


def named(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Write a function's arguments by name, as placeholders, leaving out what was not given."""
    values = {name: value for name, value in given.items() if value is not None}
    return ", ".join(f"{name} => %({name})s::{_TYPES.get(name, 'text')}" for name in values), values


def types_from(given: list[str]) -> list[str]:
    return [name.strip() for item in given for name in item.split(",") if name.strip()]


def schedule_from(text: str | None) -> list[timedelta] | None:
    return [duration(part) for part in text.split(",")] if text else None


def headers_from(lines: list[str] | None, file: str | None) -> str | None:
    """Give the JSON text of the headers. The database checks names and values."""
    if lines and file:
        raise typer.BadParameter("give --header or --headers-file, not both")
    if file:
        return object_in(file)
    if not lines:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise typer.BadParameter("a --header has no colon; write it as 'Name: value'")
        if name.strip() in headers:
            raise typer.BadParameter(f"the header {name.strip()} is given twice")
        headers[name.strip()] = value.strip()
    return json.dumps(headers)


def object_in(file: str) -> str:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        found = json.loads(text)
    except OSError as error:
        raise ConfigError(f"reading the headers: {file}: {error.strerror}. Give a readable file.") from None
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(
            f'reading the headers: {file} is not JSON{where}. Write {{"x-api-key": "…"}}.'
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f'reading the headers: {file} is not one JSON object. Write {{"x-api-key": "…"}}.')
    return text


def agreed(question: str, *, yes: bool) -> None:
    """Ask before acting; without a terminal to ask on, only --yes will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on; add --yes to act without asking")
    typer.confirm(question, abort=True, err=True)
