"""Moments and lengths of time as people type them: `2026-11-23T14:00`, `2h`, `3d`.

Reads: the text of an option; for a relative one, the database's clock. Writes: nothing.
Guarantee: what cannot be understood is refused with the accepted forms; a moment always has a time zone.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import typer

_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LENGTH = re.compile(r"\s*(\d{1,9}(?:\.\d{1,3})?)\s*(s|m|min|h|d|w)\s*")
FORMS = "a moment such as 2026-11-23T14:00 (local time, unless it says another zone) or a time ago such as 90s, 2h, 3d"


@dataclass(frozen=True, slots=True)
class When:
    """Either a moment or a distance from now, which only the database's clock can place."""

    at: datetime | None = None
    distance: timedelta | None = None

    def before_now(self, connection: psycopg.Connection[Any]) -> datetime:
        return self._placed(connection, "select clock_timestamp() - %s::interval")

    def after_now(self, connection: psycopg.Connection[Any]) -> datetime:
        return self._placed(connection, "select clock_timestamp() + %s::interval")

    def _placed(self, connection: psycopg.Connection[Any], query: str) -> datetime:
        if self.at is not None:
            return self.at
        row = connection.execute(query.encode(), [self.distance]).fetchone()
        assert row is not None  # noqa: S101  (a select without FROM has one row)
        moment: datetime = row[0]
        return moment


def when(text: str) -> When:
    """Parse a moment or a distance; for typer's `parser`."""
    length = _LENGTH.fullmatch(text)
    try:
        if length:
            return When(distance=duration(text))
        moment = datetime.fromisoformat(text.strip())
        return When(at=moment if moment.tzinfo else moment.astimezone())
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a time. Give {FORMS}.") from None


def duration(text: str) -> timedelta:
    """Parse a length of time: 30s, 10m, 4h, 3d."""
    length = _LENGTH.fullmatch(text)
    if length is None:
        raise typer.BadParameter(
            f"{text!r} is not a length of time. Give a number and a unit, such as 30s, 10m, 4h or 3d."
        )
    try:
        return timedelta(**{_UNITS[length[2]]: float(length[1])})
    except OverflowError:
        raise typer.BadParameter(
            f"{text!r} is too long. Give a length of time such as 30s, 10m, 4h or 3d."
        ) from None


def before_now(connection: psycopg.Connection[Any], moment: When | None) -> datetime | None:
    return moment.before_now(connection) if moment else None


def spoken(length: timedelta | float | None) -> str:
    """Say a length of time in one or two units: 850 ms, 12 s, 2 min 5 s, 3 d 4 h."""
    if length is None:
        return ""
    seconds = length.total_seconds() if isinstance(length, timedelta) else float(length)
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    parts, rest = [], abs(round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return ("-" if seconds < 0 else "") + " ".join(parts[:2])
