"""events: the catalogue, as a list or one type with its schema and example."""

import json
from typing import Annotated

import typer
from rich.json import JSON

from outbox_worker.cli.output import AsJson, Output, clean
from outbox_worker.cli.session import rows, session
from outbox_worker.errors import ConfigError


def events(
    name: Annotated[
        str | None, typer.Argument(help="One event type, or a prefix such as message.* for a shorter list.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the event types, or show one with its JSON Schema and example."""
    with session() as connection:
        found = rows(
            connection,
            """
            select t.name, t.description, t.operational, t.built_in, t.schema, t.example
            from outbox.event_types t
            where %(name)s::text is null or %(name)s::text in (t.name, '*')
               or (right(%(name)s::text, 2) = '.*' and starts_with(t.name, left(%(name)s::text, -1)))
            order by t.name collate "C"
            """,
            {"name": name},
        )
    if not found:
        raise ConfigError(
            f"looking for the event type {name}: the catalogue has none. List them: outbox-worker events"
        )
    output = Output(as_json=as_json)
    if as_json or name is None or name.endswith("*"):
        output.rows(found, ["name", "description"], title="Event types")
        return
    one = found[0]
    origin = "shipped with outbox-worker" if one["built_in"] else "the app's own"
    output.say(one["name"], "bold")
    output.say(one["description"])
    output.say(
        f"({origin}{'; operational: only endpoints that subscribe to this very name get it' if one['operational'] else ''})"
    )
    for part in ("schema", "example"):
        output.say(f"\n{part}:", "bold")
        text = json.dumps(one[part], indent=2, ensure_ascii=False)
        if output.terminal:
            output.screen.print(JSON(clean(text)))
        else:
            output.line(clean(text))
