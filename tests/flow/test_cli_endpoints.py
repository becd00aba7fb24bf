"""Endpoints, publishing and the catalogue from the shell."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support import factories
from tests.support.commands import Commands

MARK = "marker-7f3a-never-shown"
URL = "https://hooks.example.com/in/T0K3N"


@pytest.fixture
def cli(db, dsn_of, vault_key) -> Commands:
    factories.install_key(db, vault_key)
    return Commands(dsn_of())


@pytest.fixture
def endpoint(cli) -> str:
    return cli("endpoint", "create", "ws_1", URL, "-e", "message.*", "--json").json[0]["endpoint_id"]


def shown(cli, endpoint) -> dict:
    return cli("endpoint", "show", endpoint, "--json").json[0]


def test_create_prints_the_secret_once_and_says_so(cli):
    """The signing secret is on standard output at creation and nowhere afterwards."""
    made = cli(
        "endpoint", "create", "ws_1", URL, "--event", "message.*,order.created", "-e", "contact.created",
        "--description", "orders", "--filter", '$.message.type == "text"', "--ordered", "--max-in-flight", 4,
        "--max-per-second", 2.5, "--timeout", "10s", "--retry-schedule", "30s,2m,1h",
    )  # fmt: skip
    assert made.code == 0, made.err
    facts = dict(line.split(": ", 1) for line in made.lines)
    assert facts["secret"].startswith("whsec_")
    assert "shown this once" in made.err
    later = cli("endpoint", "show", facts["endpoint_id"])
    assert "retry_schedule: 30 s, 2 min, 1 h" in later.lines
    for ran in (later, cli("endpoint", "list"), cli("endpoint", "list", "--json")):
        assert facts["endpoint_id"] in ran.out
        assert facts["secret"] not in ran.out + ran.err
    stored = shown(cli, facts["endpoint_id"])
    assert stored["event_types"] == ["message.*", "order.created", "contact.created"]
    assert (stored["timeout"], stored["retry_schedule"]) == (10.0, [30.0, 120.0, 3600.0])
    assert (stored["ordered"], stored["max_in_flight"], stored["max_per_second"]) == (True, 4, 2.5)


@pytest.mark.parametrize("way", ["option", "file", "stdin"])
def test_header_values_are_sealed_and_never_printed(cli, endpoint, tmp_path, way):
    """Headers come from options, a file or standard input; only their names can be read back."""
    text = json.dumps({"x-api-key": MARK})
    file = tmp_path / "headers.json"
    file.write_text(text)
    given = {
        "option": ["-H", f"x-api-key: {MARK}"],
        "file": ["--headers-file", file],
        "stdin": ["--headers-file", "-"],
    }
    ran = cli("endpoint", "headers", endpoint, *given[way], stdin=text)
    assert ran.code == 0, ran.err
    assert shown(cli, endpoint)["header_names"] == ["x-api-key"]
    assert cli("endpoint", "headers", endpoint, "--none").code == 0
    assert shown(cli, endpoint)["header_names"] == []
    assert MARK not in ran.out + ran.err


@pytest.mark.parametrize(
    "given",
    [
        ["-H", f"x-a {MARK}"],
        ["-H", f"x-a: {MARK}", "-H", f"x-a: {MARK}"],
        ["-H", f"host: {MARK}"],
        ["-H", f"x-a: {MARK}\r\nx-b: 1"],
        ["--headers-file", "-"],
        ["--headers-file", "/nowhere/at/all"],
        [],
    ],
)
def test_headers_that_cannot_be_used_are_refused_without_their_values(cli, endpoint, given):
    """Exit 2; the message names the fault, not the value."""
    ran = cli("endpoint", "headers", endpoint, *given, stdin=f'{{"x-a": "{MARK}",}}')
    assert (ran.code, ran.out) == (2, "")
    assert MARK not in ran.err
    assert shown(cli, endpoint)["header_names"] == []


def test_update_changes_what_is_given_and_nothing_else(cli, endpoint):
    """Each value by itself; nothing at all is bad usage."""
    before = shown(cli, endpoint)
    assert cli("endpoint", "update", endpoint, "-e", "order.*", "--timeout", "5s").code == 0
    after = shown(cli, endpoint)
    assert (after["event_types"], after["timeout"]) == (["order.*"], 5.0)
    changed = {"event_types", "timeout", "version", "updated_at"}
    assert {k: v for k, v in before.items() if k not in changed} == {
        k: v for k, v in after.items() if k not in changed
    }
    assert cli("endpoint", "update", endpoint).code == 2


def test_rotate_prints_a_new_secret(cli, endpoint):
    """Another one each time, as one JSON object too."""
    first, second = (
        cli("endpoint", "rotate", endpoint, "--overlap", "1h", "--json").json[0] for _ in range(2)
    )
    assert first["secret"].startswith("whsec_")
    assert first["secret"] != second["secret"]


def test_pause_resume_and_delete_change_the_state(cli, endpoint):
    """Delete asks first; where nobody can be asked, only --yes will do."""
    assert cli("endpoint", "pause", endpoint).code == 0
    assert cli("endpoint", "list", "--state", "paused", "--json").json[0]["endpoint_id"] == endpoint
    assert cli("endpoint", "resume", endpoint).code == 0
    assert shown(cli, endpoint)["state"] == "active"
    assert cli("endpoint", "delete", endpoint).code == 2
    assert shown(cli, endpoint)["state"] == "active"
    assert cli("endpoint", "delete", endpoint, "--yes").code == 0
    assert cli("endpoint", "list", "--json").json == []
    assert shown(cli, endpoint)["state"] == "deleted"


@pytest.mark.parametrize("command", ["show", "pause", "resume", "rotate", "test"])
def test_an_endpoint_that_does_not_exist_exits_2_and_says_where_to_look(cli, command):
    """The id may be of another database."""
    ran = cli("endpoint", command, "01970000-0000-7000-8000-000000000000")
    assert (ran.code, ran.out) == (2, "")
    assert "does not exist" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ws_1", "http://127.0.0.1/", "-e", "*"], "cannot store the URL"),
        (["ws_1", URL, "-e", "no.such"], "no event type of this name"),
        (["ws_1", URL, "-e", "*", "--filter", "$.["], "jsonpath"),
        (["ws_1", URL, "-e", "*", "--timeout", "soon"], "'soon' is not a length of time"),
        (["ws_1", URL, "-e", "*", "--max-in-flight", 0], "max_in_flight"),
        (["ws_1", URL], "--event"),
    ],
)
def test_what_the_database_refuses_exits_2_with_its_reason(cli, arguments, said):
    """The database's own message and hint reach the person."""
    ran = cli("endpoint", "create", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


async def test_the_test_event_shows_what_came_back(shop, cli, receiver, working):
    """`endpoint test` waits for the first attempt and prints its answer."""
    endpoint_id, _ = factories.make_endpoint(shop, receiver.url)
    async with working():
        ran = await asyncio.to_thread(cli, "endpoint", "test", endpoint_id, "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(next(line for line in ran.lines if '"attempt_no"' in line))
    assert (answer["status"], answer["attempt_no"]) == (200, 1)


def test_the_test_event_returns_at_once_when_nobody_shall_wait(cli, endpoint):
    """`--wait 0` prints the event's id."""
    ran = cli("endpoint", "test", endpoint, "--wait", 0)
    assert ran.code == 0
    assert ran.lines[0].startswith("event_id: ")


@pytest.mark.parametrize("way", ["argument", "stdin", "example"])
def test_publish_records_the_event_and_prints_its_id(cli, db, way):
    """Payload as an argument, from standard input, or the catalogue's own example."""
    payload = {"argument": ['{"n": 1}'], "stdin": ["-"], "example": ["--example"]}[way]
    ran = cli(
        "publish", "ws_1", "message.received", *payload, "--ordering-key", "c1", "--priority", 0, "--deliver-at", "2h",
        "--traceparent", f"00-{'a' * 32}-{'b' * 16}-01", stdin='{"n": 1}',
    )  # fmt: skip
    assert ran.code == 0, ran.err
    row = db.execute(
        "select payload, ordering_key, priority, deliver_at - now() > interval '1 h 59 min', traceparent is not null"
        " from outbox.events where event_id = %s",
        [ran.out.strip()],
    ).fetchone()
    assert row[1:] == ("c1", 0, True, True)
    assert row[0] == {"n": 1} if way != "example" else len(row[0]) > 2


def test_the_same_idempotency_key_gives_the_same_event(cli, db):
    """One event, however often the command is given; another payload is refused."""
    give = ["publish", "ws_1", "message.received", '{"n": 1}', "--idempotency-key", "k", "--json"]
    assert cli(*give).json == cli(*give).json
    assert db.execute("select count(*) from outbox.events").fetchone()[0] == 1
    give[3] = '{"n": 2}'
    assert cli(*give).code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.such", "{}"], "not in the catalogue"),
        (["message.received", "[1]"], "not a JSON object"),
        (["message.received", "{"], "json"),
        (["message.received", "{}", "--deliver-at", "40d"], "ahead"),
        (["message.received", "{}", "--example"], "either"),
        (["message.received", '{"a": "\\u0000"}'], "Unicode"),
    ],
)
def test_what_cannot_be_published_exits_2_and_stores_nothing(cli, db, arguments, said):
    """The refusal is the database's, so it is the app's too."""
    ran = cli("publish", "ws_1", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert db.execute("select count(*) from outbox.events").fetchone()[0] == 0


def test_events_lists_the_catalogue_and_shows_one_type(cli):
    """A line for each type; one type with description, schema and example."""
    listed = cli("events")
    assert len(listed.lines) >= 30
    assert "message.received" in [line.split("\t")[0] for line in listed.lines]
    assert all(row["name"].startswith("message.") for row in cli("events", "message.*", "--json").json)
    one = cli("events", "message.received")
    assert one.code == 0
    assert "schema:" in one.lines
    assert "example:" in one.lines
    row = cli("events", "message.received", "--json").json[0]
    assert row["example"]
    assert cli("events", "no.such").code == 2
