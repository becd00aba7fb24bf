"""A finding of `check`: what was looked at, how it stands, what was found, what to do."""

from dataclasses import dataclass
from enum import StrEnum

from outbox_worker.cli.session import Connection
from outbox_worker.settings import Settings


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    found: str
    advice: str = ""
    exit_code: int = 0  # of a FAIL


@dataclass(frozen=True, slots=True)
class Patient:
    """What the checks examine: this worker's settings and a connection with its login."""

    settings: Settings
    connection: Connection


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Level.WARN, found, advice)


def fail(check: str, found: str, advice: str, *, exit_code: int) -> Finding:
    return Finding(check, Level.FAIL, found, advice, exit_code)
