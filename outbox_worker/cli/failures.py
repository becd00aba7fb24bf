"""Failures: what every error of a command means to the shell and to the person who typed it.

Exit codes: 0 ok, 1 bug, 2 configuration, bad usage and input that the database refuses (SQLSTATE OBnnn, 22xxx, 23xxx),
3 database (not there, no rights, timed out), 4 schema (missing or of another release), 130 interrupted.
"""

import psycopg
import typer

from outbox_worker.errors import OutboxError

BUG, CONFIGURATION, DATABASE, SCHEMA, INTERRUPTED = 1, 2, 3, 4, 130
# typer carries its own copy of click in newer releases: this is the class of usage errors in either.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

_MISSING = {"3F000", "42P01", "42883", "42703"}  # schema, table, function, column
_SYNTAX = "42601"  # our own statements are fixed: this is a jsonpath that somebody typed


def explain(error: BaseException) -> tuple[int, str]:
    """Give the exit code, and the message to print ('' for none)."""
    if isinstance(error, OutboxError):
        return error.exit_code, str(error)
    if isinstance(error, psycopg.Error):
        return explain_database(error)
    if isinstance(error, USAGE_ERROR):
        context = getattr(error, "ctx", None)
        message = error.format_message()  # type: ignore[attr-defined]
        where = context.command_path if context else "outbox-worker"
        return CONFIGURATION, f"{message.rstrip('.')}. See: {where} --help" if message else ""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted"
    return BUG, (
        f"this is a bug in outbox-worker: {type(error).__name__}: {error}. "
        "Run it again with OUTBOX_LOG_LEVEL=debug and report what it prints."
    )


def explain_database(error: psycopg.Error) -> tuple[int, str]:
    state = error.sqlstate or ""
    said = (error.diag.message_primary or str(error)).strip().rstrip(".")
    hint = f" {error.diag.message_hint}" if error.diag.message_hint else ""
    if state == "42501":
        return DATABASE, (
            f"asked the database: {said}. Log in as a member of the role that may (outbox_reader reads, outbox_operator "
            f"replays, outbox_app publishes), or let the owner grant it.{hint}"
        )
    if state in _MISSING:
        return (
            SCHEMA,
            f"asked the database: {said}. The schema outbox is missing or of another release: run outbox-worker migrate.",
        )
    if state.startswith(("OB", "22", "23")) or state == _SYNTAX:
        return CONFIGURATION, f"{said}.{hint}"
    if state == "57014":
        return (
            DATABASE,
            f"asked the database: {said}. Narrow the search (--since, --workspace, --endpoint), or raise statement_timeout.",
        )
    return (
        DATABASE,
        f"asked the database: {said}.{hint} Check that the server runs and accepts connections, then try again.",
    )
