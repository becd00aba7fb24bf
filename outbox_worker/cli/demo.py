"""demo: the main job from end to end, on a PostgreSQL of its own."""

from pathlib import Path
from typing import Annotated

import typer

from outbox_worker import settings


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running afterwards, to look around.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object, and nothing else.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the data stay between runs.")] = None,
) -> None:
    """Publish, deliver, retry, replay: every promise, watched live, on this machine. Exit 0 if all held."""
    from outbox_worker import demo as story  # noqa: PLC0415  (its server and receiver are nobody else's)

    url = settings.database_url_if_given()
    raise typer.Exit(story.run(folder=folder, keep=keep, as_json=as_json, database_url=url))
