"""`status` lists the endpoints that need a person, the worst first, by the rule that its help states.

Reads: endpoint_health, through the command. Writes: endpoints and reports as a worker would leave them.
Guarantee: the same order on a terminal, in a pipe and as JSON; a healthy endpoint is not listed.
If it is wrong: an operator looks at a slow endpoint while a disabled one scrolls out of sight.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from outbox_worker.cli.status import Backlog, drawn, look
from tests.support.commands import Commands
from tests.support.rows import live_worker, new_endpoint, report

NOW = datetime.now(UTC)
WORST_FIRST = [
    ("disabled", {"state": "disabled", "state_reason": "failing", "failing_since": NOW}, None),
    ("held", {"hold_reason": "secret_unreadable"}, {"attempts": 9, "successes": 9}),
    ("open", {"failing_since": NOW}, {"attempts": 5, "successes": 1, "circuit": "open"}),
    ("half_open", {"failing_since": NOW}, {"attempts": 5, "successes": 4, "circuit": "half_open"}),
    ("never", {"failing_since": NOW}, {"attempts": 10, "successes": 0}),
    ("unreported", {"failing_since": NOW}, None),
    ("busy_half", {}, {"attempts": 100, "successes": 50}),
    ("half", {}, {"attempts": 10, "successes": 5}),
    ("nearly", {}, {"attempts": 100, "successes": 99}),
    ("paused", {"state": "paused"}, None),
]


@pytest.fixture
def names(db) -> list[str]:
    live_worker(db)
    made = [("fine", {}, {"attempts": 1000, "successes": 1000}), *reversed(WORST_FIRST)]
    for name, columns, minute in made:
        endpoint_id = new_endpoint(db, url=f"https://{name.replace('_', '-')}.example.com/", **columns)
        if minute:
            report(db, endpoint_id, **minute)
    return [f"https://{name.replace('_', '-')}.example.com/" for name, _, _ in WORST_FIRST]


def test_status_shows_the_worst_first(names, dsn_of):
    """Disabled or held, then by circuit, success rate and attempts; as JSON, in a pipe, and no more than were asked for."""
    cli = Commands(dsn_of("operator_login"))
    (found,) = cli("status", "--json").json
    assert [row["url"].replace("…", "") for row in found["worst_endpoints"]] == names
    piped = [line.split("\t") for line in cli("status").lines if line.startswith("worst endpoint\t")]
    assert [columns[1].replace("…", "") for columns in piped] == names
    (few,) = cli("status", "--json", "--worst", 3).json
    assert few["worst_endpoints"] == found["worst_endpoints"][:3]


@pytest.mark.parametrize("width", [300, 60])
def test_a_terminal_shows_the_worst_first_too(names, connect, width):
    """In one table where it fits, in lines where it does not."""
    connection = connect("operator_login")
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    screen.print(drawn(look(connection, Backlog(connection), 10)))
    text = screen.file.getvalue()
    places = [text.index(name.removesuffix("/")) for name in names]
    assert places == sorted(places)


def test_the_rule_is_in_the_commands_help(dsn_of):
    """What worst means is said where it is asked for."""
    said = " ".join(Commands(dsn_of("operator_login"))("status", "--help").out.replace("│", " ").split())
    assert "disabled or held, then by circuit, success rate and attempts" in said
