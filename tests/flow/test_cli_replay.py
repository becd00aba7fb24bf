"""Replay and cancel from the shell: counted, asked, then done, with a reason."""

from __future__ import annotations

import pytest

from tests.support import factories
from tests.support.commands import Commands, Past, make_past

NOBODY = "01970000-0000-7000-8000-000000000000"


@pytest.fixture
def cli(dsn_of) -> Commands:
    return Commands(dsn_of("operator_login"))


@pytest.fixture
async def past(shop, receiver, working) -> Past:
    return await make_past(shop, receiver, working)


async def test_replay_counts_first_asks_then_acts(past, cli, shop):
    """--dry-run changes nothing; without a terminal only --yes acts; the reason is in the history."""
    of_endpoint = ["replay", "--endpoint", past.bad, "--since", "1h"]
    assert cli(*of_endpoint, "--dry-run", "--json").json == [{"would_replay": 1}]
    assert cli(*of_endpoint).code == 2
    assert factories.state_of(shop, past.event, past.bad) == "dead"
    ran = cli(*of_endpoint, "--yes", "--reason", "their outage", "--json")
    assert ran.code == 0, ran.err
    (operation,) = ran.json
    assert (operation["state"], operation["affected"], operation["reason"]) == ("done", 1, "their outage")
    assert factories.state_of(shop, past.event, past.bad) == "pending"
    assert "their outage" in cli("show", past.event).out
    assert cli("replay", "--resume", operation["operation_id"], "--json").json[0]["state"] == "done"
    assert cli(*of_endpoint, "--yes", "--json").json == [{"replayed": 0}]


async def test_replay_by_event_to_all_to_one_and_from_a_list(past, cli, shop):
    """Also to an endpoint that never had the event, and from standard input."""
    assert cli("replay", "--event", past.event, "--dry-run", "--json").json == [{"would_replay": 2}]
    assert cli("replay", "--event", past.event, "--endpoint", past.other, "--yes", "--json").json == [
        {"replayed": 1}
    ]
    assert factories.state_of(shop, past.event, past.other) == "pending"
    second = factories.publish(shop)
    ran = cli("replay", "--events-from", "-", "--yes", "--json", stdin=f"{past.event}\n{second}\n")
    assert ran.code == 0, ran.err
    assert (ran.json[0]["state"], ran.json[0]["affected"]) == ("done", 2)
    assert factories.state_of(shop, past.event, past.good) == "pending"


async def test_a_dry_run_counts_nothing_of_what_was_erased(past, cli, shop):
    """To every endpoint that had it, to one of them and to one that had not: as the replay itself then says."""
    shop.execute("select outbox.erase(array[%s::uuid], 'request 17')", [past.event])
    for to in ([], ["--endpoint", past.bad], ["--endpoint", past.other]):
        counted = cli("replay", "--event", past.event, *to, "--dry-run", "--json")
        assert counted.json == [{"would_replay": 0}], to
    assert cli("replay", "--event", past.event, "--yes").code == 2


async def test_a_replay_that_found_less_than_was_counted_says_why(past, cli, shop):
    """Two operators replay the same rows at once: the second one is told that somebody has the rest."""
    operation = shop.execute(
        "insert into outbox.operations (kind, endpoint_id, state, affected, parameters)"
        " values ('replay', %s, 'done', 1, '{\"total\": 2}') returning operation_id",
        [past.bad],
    ).fetchone()[0]
    said = cli("replay", "--resume", operation).out
    assert "1 of 2 deliveries are due again; the others were due already" in " ".join(said.split())


async def test_a_replay_is_watched_until_the_workers_are_through(past, cli, shop, monkeypatch):
    """An operation that runs is polled; an interrupted wait leaves it running."""
    operation = shop.execute(
        "insert into outbox.operations (kind, endpoint_id, state, affected, parameters)"
        " values ('replay', %s, 'running', 1, '{\"total\": 2}') returning operation_id",
        [past.bad],
    ).fetchone()[0]
    assert cli("replay", "--endpoint", past.bad, "--since", "1h", "--no-wait", "--yes").code == 0

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("outbox_worker.cli.operations.time.sleep", interrupt)
    assert cli("replay", "--resume", operation).code == 130

    def finish(_seconds: float) -> None:
        shop.execute(
            "update outbox.operations set state = 'done', affected = 2 where operation_id = %s", [operation]
        )

    monkeypatch.setattr("outbox_worker.cli.operations.time.sleep", finish)
    ran = cli("replay", "--resume", operation)
    assert ran.code == 0
    assert "1 of 2" in ran.lines[0]
    assert "done: 2 of 2" in ran.lines[-1]


async def test_a_running_replay_can_be_stopped(past, cli, shop):
    """Its state is then canceled; a second stop is refused."""
    operation = shop.execute(
        "insert into outbox.operations (kind, endpoint_id, state, parameters)"
        " values ('replay', %s, 'running', '{}') returning operation_id",
        [past.bad],
    ).fetchone()[0]
    assert cli("replay", "--stop", operation, "--json").json[0]["state"] == "canceled"
    assert cli("replay", "--stop", operation).code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "--event", NOBODY, "--yes"],
        ["replay", "--endpoint", NOBODY, "--since", "1h", "--yes"],
        ["replay", "--resume", NOBODY],
        ["replay", "--events-from", "/nowhere/at/all"],
        ["replay", "--event", NOBODY, "--resume", NOBODY],
        ["cancel", NOBODY, "--yes"],
        ["cancel", NOBODY],
    ],
)
def test_what_cannot_be_replayed_or_canceled_exits_2(cli, arguments):
    """With a reason on standard error, nothing on standard output."""
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err) > 30


async def test_cancel_stops_what_waits_and_keeps_the_reason(past, cli, shop):
    """The pending delivery ends as canceled."""
    cli("replay", "--event", past.event, "--endpoint", past.bad, "--yes")
    ran = cli("cancel", past.event, "--endpoint", past.bad, "--yes", "--reason", "wrong price", "--json")
    assert ran.json == [{"canceled": 1}]
    assert factories.state_of(shop, past.event, past.bad) == "canceled"
    assert "wrong price" in cli("show", past.event).out
