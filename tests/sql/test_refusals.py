"""Refusals: whatever is given wrongly is told so in our words, by the database, without what was given.

Reads: errors as an app's driver shows them. Writes: a clone of the schema.
Guarantee: SQLSTATE OB…, a HINT, and neither a DETAIL with the row nor the payload or the URL's path in it.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.support.factories import install_key, new_key, publish

SECRET = "s3cr3t-in-it"
URL = f"https://example.com/hooks/{SECRET}"
PAYLOAD = f'{{"card": "{SECRET}"}}'


@pytest.fixture(scope="module")
def key():
    return new_key()


@pytest.fixture
def app(db, connect, key):
    install_key(db, key)
    return connect("app_login")


def refused(connection, query, parameters=None):
    """Run what must be refused, in an error of ours; give its SQLSTATE."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(query, parameters)
    said = caught.value.diag
    assert said.sqlstate.startswith("OB"), f"{said.sqlstate}: {said.message_primary}"
    assert said.message_hint
    assert said.message_detail is None
    assert SECRET not in f"{said.message_primary} {said.message_hint} {said.context}"
    return said.sqlstate


EVENT = {
    "workspace_id": "ws",
    "event_type": "message.received",
    "payload": PAYLOAD,
    "ordering_key": None,
    "priority": 1,
    "traceparent": None,
}
BAD_EVENTS = [
    ({"workspace_id": None}, "OB011"),
    ({"workspace_id": ""}, "OB011"),
    ({"workspace_id": "w" * 201}, "OB011"),
    ({"priority": 3}, "OB011"),
    ({"priority": -1}, "OB011"),
    ({"ordering_key": ""}, "OB011"),
    ({"ordering_key": "k" * 201}, "OB011"),
    ({"traceparent": "00-abc"}, "OB011"),
    ({"event_type": None}, "OB001"),
    ({"payload": None}, "OB002"),
    ({"payload": "null"}, "OB002"),
    ({"payload": "[]"}, "OB002"),
    ({"payload": '["many"]'}, "OB002"),
    ({"payload": '"text"'}, "OB002"),
    ({"payload": "7"}, "OB002"),
    ({"payload": "true"}, "OB002"),
    ({"deliver_at": "infinity"}, "OB011"),
]


@pytest.mark.parametrize(("wrong", "sqlstate"), BAD_EVENTS)
@pytest.mark.parametrize("how", ["publish", "keyed", "insert"])
def test_an_event_that_cannot_be_is_refused_in_our_words_however_it_comes(app, how, wrong, sqlstate):
    """By function, with an idempotency key, and by a plain INSERT: never a constraint's error with the row."""
    values = EVENT | wrong | ({"idempotency_key": "x"} if how == "keyed" else {})
    casts = {"payload": "::jsonb", "priority": "::smallint", "deliver_at": "::timestamptz"}
    marks = {name: f"%({name})s{casts.get(name, '')}" for name in values}
    if how == "insert":
        query = f"insert into outbox.events ({', '.join(marks)}) values ({', '.join(marks.values())})"
    else:
        query = f"select outbox.publish({', '.join(f'{name} => {mark}' for name, mark in marks.items())})"
    assert refused(app, query, values) == sqlstate


def test_an_explicit_null_priority_is_refused_by_insert_and_normal_by_publish(app, db):
    """The function has a default for it; a column that was named has none."""
    refused(
        app,
        "insert into outbox.events (workspace_id, event_type, payload, priority)"
        " values ('ws', 'message.received', '{}', null)",
    )
    publish(app, priority=None)
    assert db.execute("select priority from outbox.events").fetchall() == [(1,)]


@pytest.mark.parametrize("limit", [1024, 1500, 262144])
def test_a_payload_may_be_as_long_as_the_settings_say_and_no_longer(app, db, limit):
    """Also at the least limit, from which on an event is looked at twice, and without any other rare column."""
    db.execute("update outbox.settings set max_payload_bytes = %s", [limit])
    query = "insert into outbox.events (workspace_id, event_type, payload) values ('ws', 'message.received', %s::jsonb)"
    padding = "x" * (limit - len('{"a": ""}'))
    app.execute(query, [f'{{"a": "{padding}"}}'])
    assert refused(app, query, [f'{{"a": "{padding}{SECRET[0]}"}}']) == "OB003"


@pytest.mark.parametrize("given", ["", "k" * 201])
def test_an_idempotency_key_of_no_length_is_refused(app, given):
    """Empty, or longer than what is kept of it."""
    query = "select outbox.publish('ws', 'message.received', %s, idempotency_key => %s)"
    assert refused(app, query, [PAYLOAD, given]) == "OB011"


ENDPOINT = {"workspace_id": "ws", "url": URL, "event_types": ["message.*"]}
BAD_VALUES = [
    ({"event_types": []}, "OB007"),
    ({"event_types": ["message.*"] * 201}, "OB007"),
    ({"event_types": [None]}, "OB007"),
    ({"event_types": [["message.*"], ["order.*"]]}, "OB007"),
    ({"max_in_flight": 0}, "OB011"),
    ({"max_in_flight": 10001}, "OB011"),
    ({"max_per_second": 0}, "OB011"),
    ({"max_per_second": "NaN"}, "OB011"),
    ({"timeout": "1 hour"}, "OB011"),
    ({"timeout": "1 ms"}, "OB011"),
    ({"retry_schedule": []}, "OB011"),
    ({"retry_schedule": ["1 s", None]}, "OB011"),
    ({"retry_schedule": ["0 s"]}, "OB011"),
    ({"retry_schedule": ["31 days"]}, "OB011"),
    ({"retry_schedule": [["1 s"], ["2 s"]]}, "OB011"),
    ({"description": "d" * 2001}, "OB011"),
]
BAD_NULLS = [
    ({"event_types": None}, "OB007"),
    ({"workspace_id": None}, "OB011"),
    ({"workspace_id": ""}, "OB011"),
    ({"url": None}, "OB005"),
]
CASTS = {
    "event_types": "::text[]",
    "retry_schedule": "::interval[]",
    "timeout": "::interval",
    "max_per_second": "::numeric",
}


@pytest.mark.parametrize(("wrong", "sqlstate"), BAD_VALUES + BAD_NULLS)
def test_an_endpoint_that_cannot_be_is_refused_without_its_url(app, wrong, sqlstate):
    """The path of a URL can be a secret: it stands in no error that a limit of ours raises."""
    values = ENDPOINT | wrong
    arguments = ", ".join(f"{name} => %({name})s{CASTS.get(name, '')}" for name in values)
    assert refused(app, f"select outbox.create_endpoint({arguments})", values) == sqlstate


@pytest.mark.parametrize(("wrong", "sqlstate"), [*BAD_VALUES, *BAD_NULLS[::3]])
def test_a_change_that_cannot_be_is_refused_without_the_url(app, connect, wrong, sqlstate):
    """By the function and by an operator's UPDATE; the endpoint stays as it is."""
    (endpoint,) = app.execute(
        "select endpoint_id from outbox.create_endpoint('ws', %s, '{message.*}')", [URL]
    ).fetchone()
    ((name, given),) = wrong.items()
    cast = CASTS.get(name, "")
    if given is not None:
        query = f"select outbox.update_endpoint(%s, {name} => %s{cast})"
        assert refused(app, query, [endpoint, given]) == sqlstate
    by_hand = f"update outbox.endpoints set {name} = %s{cast} where endpoint_id = %s"
    assert refused(connect("operator_login"), by_hand, [given, endpoint]) == sqlstate


@pytest.mark.parametrize(
    "arguments",
    [
        "'a.b', null",
        "'a.b', ''",
        "'a.b', 'What.', '[]'",
        "'a.b', 'What.', 'null'",
        "'a.b', 'What.', '{}', '[]'",
        "null, 'What.'",
    ],
)
def test_an_event_type_that_cannot_be_is_refused_in_our_words(app, arguments):
    """A description is what the developer of a receiver reads; schema and example are objects."""
    refused(app, f"select outbox.register_event_type({arguments})")


@pytest.mark.parametrize("given", [b"x", b"", None])
def test_what_is_no_key_is_refused_with_the_command_that_makes_one(db, given):
    """What pgcrypto says of it names neither the vault nor what to do."""
    assert refused(db, "select outbox.install_vault_key(%s::bytea)", [given]) == "OB012"
