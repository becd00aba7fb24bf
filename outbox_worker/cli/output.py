"""Output: tables and colours for people, plain lines in a pipe, one JSON object a line for machines.

Reads: rows from the database, which hold what customers and receivers wrote. Writes: standard output.
Guarantee: no control character of a value reaches a terminal or ends a line; with `--json` nothing but objects is
printed; escape codes go to a terminal only.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, and nothing else.")]

# Control characters, and the marks that reorder text: a receiver's answer must not drive the reader's terminal.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_KNOWN_BY_SIGHT = {
    "created_at", "event_id", "event_type", "endpoint_id", "workspace_id", "url", "state", "last_error", "name",
    "description", "path",
}  # fmt: skip
_FOLDED = 20  # a longer text may be folded to this width before a table counts as too wide
_STYLES = {
    "delivered": "green", "active": "green", "live": "green", "done": "green", "ok": "green",
    "pending": "yellow", "leased": "cyan", "running": "cyan", "held": "magenta", "paused": "magenta", "warn": "yellow",
    "dead": "red", "disabled": "red", "expired": "red", "FAIL": "bold red", "canceled": "dim", "deleted": "dim", "stopped": "dim",
}  # fmt: skip


class Screen(Console):
    """Standard output that ends quietly when its reader has gone."""

    def on_broken_pipe(self) -> None:
        quiet_broken_pipe()


def quiet_broken_pipe() -> None:
    # Python flushes standard output once more as it ends: that must not fail either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(0)


class Output:
    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json
        # force_terminal: rich believes FORCE_COLOR rather than the pipe.
        self.screen = Screen(force_terminal=self.terminal, markup=False, highlight=False, emoji=False)

    def line(self, text: str) -> None:
        """Print one line as it is, never wrapped."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            quiet_broken_pipe()

    def json(self, row: Row) -> None:
        self.line(json.dumps(row, default=plain))

    def say(self, text: str, style: str | None = None) -> None:
        """Say something to people; machines do not hear it. What is wrapped keeps its margin."""
        if self.terminal:
            for line in clean(text).split("\n"):
                told = line.lstrip(" ")
                if not told:
                    self.screen.print()
                    continue
                self.screen.print(
                    Padding(Text(told, style or ""), (0, 0, 0, len(line) - len(told)), expand=False)
                )
        elif not self.as_json:
            self.line(clean(text))

    def aside(self, text: str) -> None:
        """Tell people something beside the answer: a program that counts its lines must count none of these."""
        print(text, file=sys.stderr)  # noqa: T201

    def pieces(self, pieces: Sequence[str], style: str) -> None:
        """Say one thing in pieces that are not torn: one line, or as many as the screen needs."""
        if self.terminal:
            for line in flow((Text(clean_line(piece), style) for piece in pieces), self.screen.width):
                self.screen.print(line)
        else:
            self.say("  ".join(pieces))

    def rows(
        self, rows: Iterable[Row], columns: Sequence[str], *, title: str = "", nothing: str = ""
    ) -> None:
        """Print the columns of each row as a table or as tab-separated lines; as JSON, all of each row."""
        if self.as_json:
            for row in rows:
                self.json(row)
            return
        listed = list(rows)
        if not listed and nothing:
            self.aside(nothing)
        elif self.terminal:
            if listed:
                self.screen.print(Listing(listed, columns, title=title))
        else:
            for row in listed:
                self.line("\t".join(cell(row[column]) for column in columns))

    def facts(self, row: Row, *, title: str = "") -> None:
        """Print one row as lines of name and value."""
        if self.as_json:
            self.json(row)
        elif self.terminal:
            self.screen.print(facts_table(row, title=title))
        else:
            for name, value in row.items():
                self.line(f"{name}: {cell(value)}")


class Listing:
    """Rows as a table where the screen is wide enough; where it is not, each row in as few lines as it needs."""

    def __init__(self, rows: Sequence[Row], columns: Sequence[str], *, title: str = "") -> None:
        self.columns, self.title = columns, title
        self.cells = [[styled(column, row[column]) for column in columns] for row in rows]
        self.numeric = [
            bool(rows)
            and all(isinstance(row[column], (int, float, Decimal)) or row[column] is None for row in rows)
            for column in columns
        ]
        self.widths = [
            max([0, *(cells[place].cell_len for cells in self.cells)]) for place in range(len(columns))
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, "italic")
        needed = [
            max(
                min(width, _FOLDED) if self.folds(place) else width, *map(len, self.columns[place].split("_"))
            )
            for place, width in enumerate(self.widths)
        ]
        if sum(needed) + 2 * (len(needed) - 1) <= options.max_width:
            yield self.table()
            return
        for cells in self.cells:
            named = [
                cell
                if column in _KNOWN_BY_SIGHT
                else Text.assemble((f"{column.replace('_', ' ')} ", "dim"), cell)
                for column, cell in zip(self.columns, cells, strict=True)
                if cell.plain
            ]
            yield from flow(named, options.max_width)

    def folds(self, place: int) -> bool:
        return self.widths[place] > _FOLDED and not self.columns[place].endswith(("_id", "_at", "state"))

    def table(self) -> Table:
        made = Table(box=None, header_style="bold", pad_edge=False)
        for place, column in enumerate(self.columns):
            made.add_column(
                column.replace("_", " " if self.widths[place] >= len(column) else "\n"),
                justify="right" if self.numeric[place] else "left",
                no_wrap=not self.folds(place),
                overflow="fold",
            )
        for cells in self.cells:
            made.add_row(*cells)
        return made


def flow(pieces: Iterable[Text], width: int) -> Iterator[Text]:
    """Put pieces side by side, going on in the next line, indented, where one would not fit."""
    line = Text()
    for piece in pieces:
        if line.plain.strip() and line.cell_len + 2 + piece.cell_len > width:
            yield line
            line = Text("    ")
        elif line.plain.strip():
            line.append("  ")
        line.append_text(piece)
    yield line


def facts_table(row: Row, *, title: str = "") -> Table:
    made = Table(title=title or None, title_justify="left", box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in row.items():
        if value is not None:
            made.add_row(name.replace("_", " "), styled(name, value))
    return made


def styled(column: str, value: Any) -> Text:
    # people read seconds; milliseconds are in what is piped and in --json
    text = (
        cell(value.replace(microsecond=0)).replace(".000Z", "Z")
        if isinstance(value, datetime)
        else cell(value)
    )
    if column in {"state", "level", "endpoint_state"}:
        return Text(text, _STYLES.get(text, ""))
    if column.endswith("status") and isinstance(value, int):
        return Text(text, "green" if 200 <= value <= 299 else "red")
    return Text(text, "red" if column.endswith("error") else "")


def cell(value: Any) -> str:
    """Give a value in one line."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, (dict, list)):
        return clean_line(json.dumps(value, default=plain, ensure_ascii=False))
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    return clean_line(str(value))


def clean(text: str) -> str:
    """Spell out control characters; lines and tabs stay."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def clean_line(text: str) -> str:
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def plain(value: Any) -> Any:
    """Give JSON for what json does not know."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)
