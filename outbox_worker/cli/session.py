"""Session: the settings and one database connection for one command.

Reads: the environment, through settings.load. Writes: nothing.
Guarantee: a connection that cannot be made is a DatabaseUnavailable or a ConfigError; no password is in either.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from outbox_worker.errors import ConfigError, DatabaseUnavailable
from outbox_worker.settings import Settings, load

# postgresql://user:pass/word@host: what follows the slash would pass for the database's name
_UNQUOTED_SLASH = re.compile(r"\w+://[^@/?]*/[^?]*@")
Connection = psycopg.Connection[tuple[Any, ...]]
Values = Mapping[str, Any] | Sequence[Any] | None


@contextmanager
def session() -> Iterator[Connection]:
    """Open the connection that most commands need."""
    settings = load()
    with connected(settings.database_url.get_secret_value(), poll_only=settings.poll_only) as connection:
        yield connection


@contextmanager
def owner_session(settings: Settings) -> Iterator[Connection]:
    with connected(
        settings.owner_url, variable="OUTBOX_OWNER_DATABASE_URL or OUTBOX_DATABASE_URL"
    ) as connection:
        yield connection


@contextmanager
def connected(
    url: str, *, variable: str = "OUTBOX_DATABASE_URL", poll_only: bool = False
) -> Iterator[Connection]:
    check_conninfo(url, variable)
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            application_name="outbox-cli",
            connect_timeout=10,
            prepare_threshold=None if poll_only else 5,
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"connecting to the database: {str(error).strip()}. Check {variable}, and that the server accepts connections."
        ) from error
    with connection:
        yield connection


def check_conninfo(url: str, variable: str) -> None:
    """Refuse what libpq cannot parse, without its message: that quotes pieces of the password."""
    if parsed(url) is None:
        raise ConfigError(
            f"read {variable}: it is not a connection string that PostgreSQL's library understands. Give "
            "postgresql://user:password@host:5432/database, with each special character of the password as %XX."
        )


def parsed(url: str) -> dict[str, Any] | None:
    """Give the parts of a connection string, or None where a part of the password could pass for another."""
    if _UNQUOTED_SLASH.match(url):
        return None
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return None
    ports = str(parts.get("port") or "5432").split(",")
    return parts if all(port.isdecimal() and 0 < int(port) < 65536 for port in ports) else None


def rows(connection: Connection, query: str, values: Values = None) -> list[dict[str, Any]]:
    """Run a fixed statement with parameters; callers join fixed fragments, never values."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), values).fetchall()


def one(connection: Connection, query: str, values: Values = None) -> Any:
    """Give the first column of the first row, or None."""
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None
