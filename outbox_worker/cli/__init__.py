"""The command line: every command by name, and the one place that turns failures into exit codes.

Reads: the arguments. Writes: standard output, errors to standard error.
Guarantee: exit codes are those of `failures`; an error says what was tried, what was found, what to do.
If it dies: nothing of the database is half done: each command is one statement or can be given again.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from outbox_worker import __version__
from outbox_worker.cli import (
    cancel,
    check,
    demo,
    endpoint,
    events,
    index,
    keys,
    publish,
    rekey,
    replay,
    restored,
    run,
    schema,
    search,
    show,
    status,
    tail,
)
from outbox_worker.cli.failures import BUG, explain
from outbox_worker.cli.output import clean
from outbox_worker.errors import ConfigError
from outbox_worker.settings import load

app = typer.Typer(
    name="outbox-worker",
    help="Webhook delivery on PostgreSQL, configured by OUTBOX_ variables: at least OUTBOX_DATABASE_URL.",
    epilog="Exit codes: 0 ok, 1 bug, 2 configuration or refused input, 3 database, 4 schema, 130 interrupted.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Set up": {
        "demo": demo.demo,
        "run": run.run,
        "migrate": schema.migrate,
        "check": check.check,
        "keygen": keys.keygen,
        "rekey": rekey.rekey,
        "index": index.index,
    },
    "Publish": {"publish": publish.publish, "events": events.events},
    "Look": {"status": status.status, "tail": tail.tail, "search": search.search, "show": show.show},
    "Act": {"replay": replay.replay, "cancel": cancel.cancel, "restored": restored.restored},
}
for group, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=group)(command)
app.add_typer(endpoint.app, name="endpoint", rich_help_panel="Publish")


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outbox-worker {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # somebody's replacement
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(arguments, prog_name="outbox-worker", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the last stop before the shell)
        code, message = explain(error)
        if message:
            typer.secho(
                f"outbox-worker: {clean(message)}", fg="red" if sys.stderr.isatty() else None, err=True
            )
        if code == BUG and debugging():
            traceback.print_exc()
    sys.exit(code)


def debugging() -> bool:
    with suppress(ConfigError):
        return load().log_level == "debug"
    return False
