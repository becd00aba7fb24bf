"""Find and read `sql/`, in an installed wheel or in a checkout.

Reads: the folder `sql`, which the wheel carries as `outbox_worker/sql`. Writes: nothing.
Guarantee: names are relative to `sql/` and sorted, so that the order of the files is the order of the steps.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def sql_root() -> Traversable:
    packaged = resources.files("outbox_worker") / "sql"  # an installed wheel
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[1] / "sql"


def read(name: str) -> bytes:
    """Give a file's bytes, which psycopg takes as a statement: `read("queries/claim.sql")`."""
    return sql_root().joinpath(*name.split("/")).read_bytes()


def migrations() -> list[str]:
    return _names("migrations", ".sql")


def definitions() -> list[str]:
    return _names("definitions", ".sql")


def catalogue() -> list[str]:
    return _names("catalogue", ".json")


def _names(folder: str, suffix: str) -> list[str]:
    files = (sql_root() / folder).iterdir()
    return sorted(f"{folder}/{file.name}" for file in files if file.name.endswith(suffix))
