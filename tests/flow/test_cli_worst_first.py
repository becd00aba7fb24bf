"""`status` lists the endpoints that need a person, the worst first, by the rule that its help states.

Reads: endpoint_health, through the command. Writes: endpoints and reports as a worker would leave them.
Guarantee: the same order on a terminal, in a pipe and as JSON; a healthy endpoint is not listed.
If it is wrong: an operator looks at a slow endpoint while a disabled one scrolls out of sight.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from outbox_worker.cli.status import Backlog, drawn, look, sparkline, without_lone_gaps
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


def test_an_outage_shows_as_dots_and_a_late_report_does_not(db, dsn_of):
    """Ten minutes without a report are ten dots; one is what the report's own pace may leave out."""
    endpoint_id = new_endpoint(db, url="https://one.example.com/")
    for minutes in (*range(1, 5), *range(15, 20), 21, 22):
        report(db, endpoint_id, attempts=8, successes=8)
        db.execute(
            "update outbox.endpoint_minutes set at = date_trunc('minute', now()) - make_interval(mins => %s)"
            " + interval '3 seconds' where at > now() - interval '30 seconds'",
            [minutes],
        )
    cli = Commands(dsn_of("operator_login"))
    (line,) = (line for line in cli("status").lines if line.startswith("attempts a minute"))
    assert line.split(": ")[1].split()[0].rstrip("·").strip("·") == "█" * 7 + "·" * 10 + "█" * 4
    (found,) = cli("status", "--json").json
    newest = datetime.fromisoformat(found["rates"]["counted_until"])
    assert newest == max(datetime.fromisoformat(m["reported_at"]) for m in found["minutes"] if m["attempts"])
    (said,) = (line for line in cli("status").lines if line.startswith("last 5 minutes"))
    assert "counted until" in said


def test_the_minute_under_way_is_no_outage():
    """Nor is the one before, until two reports are missing."""
    told = [
        {"reported_at": NOW - timedelta(minutes=m) if m > 1 else None, "attempts": m > 1}
        for m in (3, 2, 1, 0)
    ]
    assert sparkline([m["attempts"] for m in without_lone_gaps(told)]).split()[0] == "██"
    later = [*told, {"reported_at": None, "attempts": 0}]
    assert sparkline([m["attempts"] for m in without_lone_gaps(later)]).split()[0] == "██··"
