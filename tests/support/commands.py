"""Run the command line in this process, as a shell would see it: arguments, environment, streams, exit code.

Reads: nothing. Writes: nothing that outlives the call.
Guarantee: no OUTBOX_ variable of the machine reaches a command; the streams are no terminals.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

from outbox_worker.cli import main
from tests.support import factories
from tests.support.receiver import status
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from uuid import UUID

ESCAPE = "\x1b]0;owned\x07"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class Commands:
    """`commands("search", "--state", "dead")`, on one database."""

    dsn: str | None
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: object, stdin: str = "", **environment: str) -> Ran:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        url = {"OUTBOX_DATABASE_URL": self.dsn} if self.dsn else {}
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with (
            patch.dict(os.environ, {**kept, **url, **self.environment, **environment}, clear=True),
            patch.object(sys, "stdin", io.StringIO(stdin)),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as end:
                code = end.code
        return Ran(code or 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Past:
    """One event that one endpoint took, one refused to its end, and one never subscribed to."""

    event: UUID
    good: UUID
    bad: UUID
    other: UUID
    secrets: tuple[str, ...]


async def make_past(shop, receiver, working) -> Past:
    """Let a worker make that past; what was said on the way holds escape codes."""
    receiver.script("/bad", status(500, [("x-why", "no")], f"teapot {ESCAPE}".encode()))
    ends = [timedelta(milliseconds=20)]
    good, first = factories.make_endpoint(shop, receiver.url, headers={"x-api-key": "marker-header"})
    bad, second = factories.make_endpoint(shop, f"{receiver.url}bad", retry_schedule=ends)
    other, third = factories.make_endpoint(shop, f"{receiver.url}other", ["order.*"])
    event = factories.publish(shop, payload={"order": {"id": 4711}, "text": f"Grüße {ESCAPE}"})
    async with working():
        await eventually(lambda: factories.state_of(shop, event, bad) == "dead")
        await eventually(lambda: factories.state_of(shop, event, good) == "delivered")
    return Past(event, good, bad, other, (first, second, third, "marker-header"))
