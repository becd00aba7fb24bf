"""Find and read `sql/`, in an installed wheel or in a checkout.

Reads: the folder `sql`, which the wheel carries as `outbox_worker/sql`. Writes: nothing.
Guarantee: names are relative to `sql/` and sorted, so that the order of the files is the order of the steps.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def sql_root() -> Traversable:
    packaged = resources.files("outbox_worker") / "sql"  # an installed wheel
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[1] / "sql"


def read(name: str) -> bytes:
    """Give a file's bytes: `read("queries/claim.sql")`."""
    return sql_root().joinpath(*name.split("/")).read_bytes()


class Statement(NamedTuple):
    """A statement as the server takes it: `$1`, `$2`, and whose values these are."""

    text: bytes
    names: tuple[str, ...]


@cache
def statement(name: str) -> Statement:
    """Give a file of `sql/queries`, made once: psycopg would look for the names in its text at every call."""
    return numbered(read(f"queries/{name}.sql"))


def numbered(text: bytes) -> Statement:
    """Write `%(name)s` as `$1`, the same number for the same name."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        return b"$%d" % numbers.setdefault(found[1].decode(), len(numbers) + 1)

    return Statement(re.sub(rb"%\((\w+)\)s", number, text), tuple(numbers))


def migrations() -> list[str]:
    return _names("migrations", ".sql")


def definitions() -> list[str]:
    return _names("definitions", ".sql")


def catalogue() -> list[str]:
    return _names("catalogue", ".json")


def _names(folder: str, suffix: str) -> list[str]:
    files = (sql_root() / folder).iterdir()
    return sorted(f"{folder}/{file.name}" for file in files if file.name.endswith(suffix))
