"""What a person sees: rows at any width of the terminal.

Reads and writes: nothing.
Guarantee: no identifier, state or URL is torn, and no line is wider than the screen, while one line can hold it.
If it fails: people cannot copy an id from the terminal.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from uuid import UUID

import pytest
from rich.console import Console

from outbox_worker.cli.output import Listing

ROW = {
    "created_at": datetime(2026, 11, 23, 14, 0, 5, 123456, tzinfo=UTC),
    "event_id": UUID("01a217bf-620e-740b-972d-6061f30475e7"),
    "event_type": "message.received",
    "workspace_id": "ws_42",
    "url": "https://hooks.example.com/services/***",
    "state": "delivered",
    "attempt_count": 3,
    "last_status": None,
    "last_error": "no answer: read timeout after 15.0 s",
}


def drawn(width: int, *rows: dict) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(Listing(rows, list(ROW), title="Found"))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 240])
def test_a_row_is_readable_at_every_width(width):
    """Narrow: lines that follow each other; wide: one table with a heading."""
    lines = drawn(width, ROW, {**ROW, "last_status": 200, "last_error": None})
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("2026-11-23 14:00:05Z") == 2
    for whole in (str(ROW["event_id"]), "message.received", "delivered"):
        assert text.count(whole) == 2, whole
    if width < 160:
        assert text.count("attempt count 3") == 2
        assert ROW["url"] in text
        assert ROW["last_error"] in text
        assert len(lines) <= 1 + 2 * 5
    else:
        assert "attempt" in lines[1] + lines[2]


def test_every_row_begins_at_the_margin_and_goes_on_indented():
    """Where one row ends and the next begins is seen at a glance."""
    lines = drawn(80, ROW, ROW, ROW)[1:]
    assert sum(not line.startswith(" ") for line in lines) == 3
