"""What happened, from the shell: search, show, tail, status; replay and cancel."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.support.commands import Commands, Past, make_past

NOBODY = "01970000-0000-7000-8000-000000000000"


@pytest.fixture
def cli(dsn_of) -> Commands:
    return Commands(dsn_of("operator_login"))


@pytest.fixture
async def past(shop, receiver, working) -> Past:
    return await make_past(shop, receiver, working)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], {"good", "bad"}),
        (["--event", "{event}"], {"good", "bad"}),
        (["--workspace", "ws_1"], {"good", "bad"}),
        (["--workspace", "ws_2"], set()),
        (["--type", "message.*"], {"good", "bad"}),
        (["--type", "order.created"], set()),
        (["--endpoint", "{bad}"], {"bad"}),
        (["--endpoint", "{other}"], set()),
        (["--state", "dead"], {"bad"}),
        (["--state", "delivered", "--state", "dead"], {"good", "bad"}),
        (["--since", "1h"], {"good", "bad"}),
        (["--since", "3000-01-01"], set()),
        (["--until", "1h"], set()),
        (["--status", "500"], {"bad"}),
        (["--status", "2xx"], {"good"}),
        (["--text", "GRüßE"], {"good", "bad"}),
        (["--text", "teapot"], {"bad"}),
        (["--text", "%"], set()),
        (["--jsonpath", "$.order.id == 4711"], {"good", "bad"}),
        (["--jsonpath", "$.order.id == 4712"], set()),
        (["--endpoint", "{bad}", "--state", "dead", "--since", "1d", "--status", "5xx", "--event", "{event}"], {"bad"}),
    ],
)  # fmt: skip
async def test_search_finds_by_each_condition_and_by_all_together(past, cli, conditions, expected):
    """Each fragment of the condition alone, and several joined."""
    ids = {"event": past.event, "good": past.good, "bad": past.bad, "other": past.other}
    ran = cli("search", *(condition.format(**ids) for condition in conditions), "--json")
    assert ran.code == 0, ran.err
    assert {row["endpoint_id"] for row in ran.json} == {str(ids[name]) for name in expected}


async def test_search_finds_events_that_nobody_got(past, cli, shop):
    """State `none`: the event exists, no endpoint subscribed to it."""
    shop.execute(
        "insert into outbox.events (workspace_id, event_type, payload) values ('ws_9', 'message.received', '{}')"
    )
    found = cli("search", "--state", "none", "--json").json
    assert [(row["workspace_id"], row["endpoint_id"]) for row in found] == [("ws_9", None)]


@pytest.mark.parametrize(
    "value", ["' or true --", '$.a == "\'; drop table outbox.events; --"', "%(limit)s", "{limit}"]
)
async def test_what_is_searched_for_is_never_part_of_the_statement(past, cli, shop, value):
    """Quotes, placeholders and braces are text."""
    for option in ("--text", "--workspace", "--type"):
        assert cli("search", option, value, "--json").json == []
    assert cli("search", "--jsonpath", value).code in {0, 2}
    assert shop.execute("select count(*) from outbox.events").fetchone()[0] == 1


async def test_show_tells_the_whole_story(past, cli):
    """Payload, each endpoint with each attempt, and why the third got nothing; no secret, no escape code."""
    ran = cli("show", past.event)
    assert ran.code == 0, ran.err
    for said in (
        "4711",
        "delivered",
        "dead (exhausted)",
        "HTTP 200",
        "HTTP 500",
        "attempt 2",
        "teapot",
        "not sent to",
        "order.*",
    ):
        assert said in ran.out, said
    assert str(past.other) in ran.out
    full = cli("show", past.event, "--full")
    assert "< x-why: no" in full.out
    assert f"> webhook-id: {past.event}" in full.out
    for text in (ran.out, full.out, cli("show", past.event, "--json").out):
        assert "\x1b" not in text
        assert not [secret for secret in past.secrets if secret in text]


async def test_show_tells_a_response_once_that_came_again(past, cli):
    """Eight attempts that were refused alike fit on a screen; --full tells each."""
    out = cli("show", past.event).out
    assert out.count("teapot") == 1
    assert out.count("with the same response") == 1
    full = cli("show", past.event, "--full").out
    assert full.count("teapot") == 2
    assert "the same response" not in full


async def test_show_lists_the_replays_that_may_have_taken_the_event_along(past, cli, shop):
    """Of a whole endpoint, and begun between the first and the last attempt there; not one that found nothing."""
    shop.execute("update outbox.finished_deliveries set replay_count = 1 where endpoint_id = %s", [past.bad])
    first, last = shop.execute(
        "select min(started_at), max(started_at) from outbox.recorded_attempts where endpoint_id = %s",
        [past.bad],
    ).fetchone()
    for reason, at, affected in (
        ("before it", first - timedelta(seconds=1), 1),
        ("of nothing", first + (last - first) / 2, 0),
        ("in between", first + (last - first) / 2, 1),
        ("after it", last + timedelta(seconds=1), 1),
    ):
        shop.execute(
            "insert into outbox.operations (kind, endpoint_id, state, affected, parameters, reason, created_at)"
            " values ('replay', %s, 'done', %s, '{\"since\": \"2020-01-01\"}', %s, %s)",
            [past.bad, affected, reason, at],
        )
    (story,) = cli("show", past.event, "--json").json
    assert [operation["reason"] for operation in story["operations"]] == ["in between"]


async def test_show_gives_one_object_with_everything(past, cli, receiver):
    """The body is the one that was sent, byte for byte."""
    (story,) = cli("show", past.event, "--json").json
    by_endpoint = {row["endpoint_id"]: row for row in story["deliveries"]}
    assert [a["status"] for a in by_endpoint[str(past.bad)]["attempts"]] == [500, 500]
    assert [a["status"] for a in by_endpoint[str(past.good)]["attempts"]] == [200]
    assert [row["endpoint_id"] for row in story["not_delivered"]] == [str(past.other)]
    assert story["request_body"].encode() in {request.body for request in receiver.requests}


async def test_show_tells_of_retry_dead_letter_and_replay_in_one_story(past, cli):
    """A replay of a list of events is part of each one's story: who, when, why; the old attempts stay."""
    ran = cli(
        "replay",
        "--event",
        past.event,
        "--event",
        NOBODY,
        "--reason",
        "INC-7",
        "--yes",
        "--no-wait",
        "--json",
    )
    assert ran.code == 0, ran.err
    said = cli("show", past.event).out
    assert said.count("replayed: 1") == 2
    assert "replay by operator_login of a list of events (2 deliveries, done): INC-7" in said
    assert said.count("HTTP 500") == 2
    (story,) = cli("show", past.event, "--json").json
    assert [(one["kind"], one["reason"]) for one in story["operations"]] == [("replay", "INC-7")]


def test_show_of_an_unknown_event_exits_2_and_says_why_it_may_be_missing(cli):
    """Nothing on standard output."""
    ran = cli("show", NOBODY)
    assert (ran.code, ran.out) == (2, "")
    assert "rolled back" in ran.err


async def test_tail_prints_the_attempts_oldest_first(past, cli):
    """As lines and as objects, all of them or only what failed."""
    rows = cli("tail", "--json").json
    assert [row["started_at"] for row in rows] == sorted(row["started_at"] for row in rows)
    assert sorted(row["status"] for row in rows) == [200, 500, 500]
    assert len(cli("tail", "-n", 1).lines) == 1
    assert [row["status"] for row in cli("tail", "--failed", "--json").json] == [500, 500]
    assert {row["endpoint_id"] for row in cli("tail", "-e", past.good, "--json").json} == {str(past.good)}


async def test_tail_follows_each_attempt_once_although_they_commit_out_of_order(past, cli, shop, monkeypatch):
    """An attempt that began before the last look and is recorded after it is printed, and nothing twice."""
    looks = []

    def between_looks(_seconds: float) -> None:
        looks.append(True)
        if len(looks) == 5:
            raise KeyboardInterrupt
        shop.execute(
            "insert into outbox.recorded_attempts (event_id, endpoint_id, attempt_no, workspace_id, endpoint_version, started_at,"
            " duration_ms, worker_no, status) select event_id, endpoint_id, 100 + %s, workspace_id, endpoint_version,"
            " clock_timestamp() - interval '10 seconds' * %s, 5, worker_no, 200 from outbox.recorded_attempts"
            " where attempt_no = 1 and endpoint_id = %s",
            [len(looks), 1 if len(looks) % 2 else 0, past.good],
        )

    monkeypatch.setattr("outbox_worker.cli.tail.time.sleep", between_looks)
    ran = cli("tail", "-f", "-n", 1, "--json")
    assert ran.code == 130
    assert [row["attempt_no"] for row in ran.json[1:]] == [101, 102, 103, 104]
    assert len(ran.json) == 5


def test_a_search_by_a_path_that_is_no_predicate_is_refused(cli):
    """It would find nothing, as if no event had one."""
    ran = cli("search", "--jsonpath", "$.order.id")
    assert ran.code == 2
    assert "is no predicate" in " ".join(ran.err.replace("│", " ").split())
    assert cli("search", "--jsonpath", "exists($.order.id)").code == 0


async def test_status_shows_rates_backlog_workers_and_the_endpoints_that_need_a_look(past, cli, shop):
    """Once, as lines and as one object; with --watch, again and again."""
    shop.execute("select outbox.pause_endpoint(%s)", [past.other])
    ran = cli("status")
    assert ran.code == 0, ran.err
    assert "deliveries waiting: 0: 0 due, 0 leased, 0 held" in ran.lines
    assert any(line.startswith("worst endpoint\t") and "paused" in line for line in ran.lines)
    (row,) = cli("status", "--json").json
    assert {"at", "rates", "backlog", "worst_endpoints", "workers", "minutes"} == set(row)
    assert [worker["state"] for worker in row["workers"]] in ([], ["stopped"])


def test_status_watches_until_it_is_interrupted(cli, monkeypatch):
    """Each look is one object."""
    looks = iter([None, None])

    def sleep(_seconds: float) -> None:
        if next(looks, "end") == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr("outbox_worker.cli.status.time.sleep", sleep)
    ran = cli("status", "--watch", "--json")
    assert (ran.code, len(ran.json)) == (130, 3)


async def test_a_reader_may_use_every_reading_command(past, dsn_of):
    """Rights of outbox_reader are enough to look, and not enough to act."""
    cli = Commands(dsn_of("reader_login"))
    for command in (["search"], ["show", past.event], ["tail"], ["status"], ["events"], ["endpoint", "list"], ["endpoint", "show", past.bad],
                    ["replay", "--event", past.event, "--dry-run"]):  # fmt: skip
        ran = await asyncio.to_thread(cli, *command)
        assert ran.code == 0, (command, ran.err)
        assert "/bad" not in ran.out
    ran = cli("replay", "--event", past.event, "--yes")
    assert ran.code == 3
    assert "outbox_operator" in ran.err
