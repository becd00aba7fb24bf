"""The screen: a live table where there is a terminal, plain lines where there is none, with --json neither.

Reads: the receiver's counts. Writes: standard output.
Guarantee: escape codes go to a terminal only; a reader that has gone ends the output, not the demo.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from outbox_worker.demo.cast import Role
    from outbox_worker.demo.children import Arrival, Receiver
    from outbox_worker.demo.summary import Summary


class Screen:
    def __init__(self, *, as_json: bool) -> None:
        self.silent = self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json and os.environ.get("TERM") != "dumb"
        self.console = Console(force_terminal=self.terminal, markup=False, highlight=False, emoji=False)
        self.began = time.monotonic()
        self.act = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def say(self, text: str, style: str = "") -> None:
        if self.silent:
            return
        line = f"{self.seconds:6.1f} s  {text}"
        if self.terminal:
            self.console.print(Text(line, style), soft_wrap=True)
        else:
            self.write(line)

    def step(self, text: str) -> None:
        """Name what happens now."""
        self.act = text
        self.say(text, "bold")

    def loud(self, lines: Sequence[str]) -> None:
        """Say what must not be overlooked."""
        for line in lines:
            self.say(f"! {line}", "bold yellow")

    def arrived(self, arrival: Arrival) -> None:
        self.say(
            f"{arrival.path}: {arrival.event_type}, attempt {arrival.attempt_no}, answered {arrival.status}"
        )

    def live(self, roles: Sequence[Role], receiver: Receiver) -> AbstractContextManager[object]:
        """Show what the receiver gets, for the time of a block."""
        if not self.terminal:
            return nullcontext()
        return Live(
            console=self.console,
            get_renderable=lambda: self.picture(roles, receiver),
            refresh_per_second=8,
        )

    def picture(self, roles: Sequence[Role], receiver: Receiver) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("endpoint", "subscription", "its receiver"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for name in ("2xx", "failed", "requests"):
            table.add_column(name, justify="right", no_wrap=True)
        for role in roles:
            good, bad = receiver.answered[role.path, True], receiver.answered[role.path, False]
            table.add_row(
                role.path,
                Text(role.subscription, "dim"),
                Text(role.behaviour, "dim" if role.behaviour == "answers 200" else "yellow"),
                Text(str(good), "green" if good else "dim"),
                Text(str(bad), "red" if bad else "dim"),
                str(good + bad),
            )
        return Group(Text(), table, Text(f"{self.seconds:6.1f} s  {self.act}", "cyan"))

    def summary(self, summary: Summary) -> None:
        if self.as_json:
            self.write(json.dumps(summary.as_row()))
            return
        self.line()
        for name, value in figures(summary):
            self.line(f"  {name:<24}{value}")
        self.line()
        held, broken = marks()
        for promise in summary.promises:
            text = f"  {held if promise.held else broken} {promise.promise}: {promise.found}"
            self.line(text, "green" if promise.held else "bold red")
        kept = sum(promise.held for promise in summary.promises)
        self.line()
        self.line(
            f"  {kept} of {len(summary.promises)} promises held, in {summary.seconds} s",
            "bold" if summary.ok else "bold red",
        )

    def look_around(self, introduction: str, lines: Sequence[str]) -> None:
        self.line()
        self.line(f"  {introduction}")
        for line in lines:
            self.line(f"    {line}")

    def line(self, text: str = "", style: str = "") -> None:
        if self.silent:
            return
        if self.terminal:
            self.console.print(Text(text, style), soft_wrap=True)
        else:
            self.write(text)

    def write(self, text: str) -> None:
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes standard output once more as it ends: that must not fail either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.silent = True


def figures(summary: Summary) -> Iterator[tuple[str, str]]:
    types = f"all {summary.event_types} types of the catalogue, {summary.workspaces} workspaces"
    yield "events", f"{summary.events}; {types}"
    yield (
        "deliveries",
        f"{summary.deliveries} to {summary.endpoints} endpoints, {summary.delivered} delivered",
    )
    yield "attempts", f"{summary.attempts}; {summary.retried} deliveries were retried"
    yield "dead letters", f"{summary.dead}; {summary.replayed} replayed"
    yield "signatures verified", f"{summary.signatures_verified} of {summary.signatures_total}"
    yield "custom headers seen", f"{summary.headers_seen} of {summary.headers_expected}"
    if summary.latency_p50_ms is not None:
        text = f"p50 {summary.latency_p50_ms} ms, p99 {summary.latency_p99_ms} ms"
        yield "commit to receiver", f"{text} (first attempts, one transaction after the other)"


def marks() -> tuple[str, str]:
    try:
        "✔✘".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok  ", "FAIL"
    return "✔", "✘"
