"""Nothing leaks: marker secrets go through everything, and everything that people read is searched for them.

Reads: a PostgreSQL of its own that logs every statement with its parameters, nested statements with their plans
(auto_explain) and normalized texts (pg_stat_statements); a worker process's log; the command line; the views.
Guarantee: a generated secret, and a header value passed as a parameter, is found nowhere; a URL's path in nothing
but the statement that stored it.
If it is wrong: a credential is read by whoever may read a log.
"""

from __future__ import annotations

import psycopg

from tests.support.factories import allow_loopback, make_endpoint, publish, state_of
from tests.support.receiver import status
from tests.support.waiting import eventually
from tests.support.watched import LOGIN_PASSWORD, Watched, finds, views_of, worker_process

HEADERS = ("MARKHEADERcreated", "MARKHEADERset", "MARKHEADERupdated", "MARKHEADERrefused", "MARKHEADERfaulty")
PATHS = ("MARKPATHgood", "MARKPATHbad", "MARKPATHheld", "MARKPATHmoved", "MARKPATHrefused")
QUERY = "MARKQUERY"


async def everything_happens(watched: Watched, receiver) -> None:
    receiver.script(f"/{PATHS[1]}?key={QUERY}", status(500, [("x-why", "no")], b"no"))
    path = "{}{}?key=" + QUERY
    good, bad, held, moved = (path.format(receiver.url, name) for name in PATHS[:4])
    app = psycopg.connect(watched.login("app_login"), autocommit=True)
    operator = psycopg.connect(watched.login("operator_login"), autocommit=True)
    db = psycopg.connect(watched.url, autocommit=True)
    with app, operator, db:
        allow_loopback(db, receiver.port)
        db.execute(
            "set auto_explain.log_verbose = on"
        )  # of this session, which gives no header: every constant
        delivered, secret = make_endpoint(app, good, headers={"x-api-key": HEADERS[0]})
        failing, second = make_endpoint(app, bad, headers={"authorization": f"Bearer {HEADERS[0]}"})
        unreadable, third = make_endpoint(db, held)
        elsewhere, fourth = make_endpoint(db, moved)
        for connection in (app, db):
            fresh = connection.execute("select outbox.rotate_secret(%s)", [delivered]).fetchone()[0]
            watched.secrets.append(fresh)
        watched.secrets += [secret, second, third, fourth]
        app.execute(
            "select outbox.set_endpoint_headers(%s, %s::jsonb)",
            [delivered, f'{{"x-api-key": "{HEADERS[1]}"}}'],
        )
        app.execute(
            "select outbox.update_endpoint(%s, headers => %s::jsonb)",
            [delivered, f'{{"x-api-key": "{HEADERS[2]}"}}'],
        )
        watched.refused(
            app,
            "select outbox.set_endpoint_headers(%s, %s::jsonb)",
            (delivered, f'{{"host": "{HEADERS[3]}"}}'),
        )
        watched.refused(
            app,
            "select outbox.update_endpoint(%s, headers => %s::jsonb)",
            (failing, f'{{"x-a": "{HEADERS[4]}\\n"}}'),
        )
        watched.refused(
            app,
            "select outbox.create_endpoint('ws_1', %s, '{message.*}')",
            (f"ftp://h.example/{PATHS[4]}?{QUERY}",),
        )
        watched.refused(
            app, "select outbox.update_endpoint(%s, url => %s)", (failing, f"https://a b/{PATHS[4]}")
        )
        watched.refused(
            operator, "update outbox.endpoints set max_in_flight = 0 where endpoint_id = %s", (delivered,)
        )
        watched.refused(operator, "update outbox.endpoints set event_types = '{nothing}'")
        db.execute(
            "update outbox.endpoint_vault set secret = '\\xdeadbeef' where endpoint_id = %s", [unreadable]
        )
        operator.execute(
            "update outbox.endpoints set url = %s where endpoint_id = %s",
            [f"http://127.0.0.1:8080/{PATHS[3]}", elsewhere],
        )
        with worker_process(watched):
            event = publish(db, payload={"text": "MARKPAYLOAD"})
            await eventually(lambda: state_of(db, event, delivered) == "delivered", 60)
            holds = "select count(*) from outbox.endpoints where hold_reason is not null"
            await eventually(lambda: db.execute(holds).fetchone() == (2,), 30)
            attempted = "select count(*) from outbox.attempts where endpoint_id = %s"
            await eventually(lambda: db.execute(attempted, [failing]).fetchone()[0] >= 1, 30)
        for role, command in [
            *(("reader_login", ("search", *more)) for more in ((), ("--workspace", "ws_1"))),
            ("reader_login", ("show", event)),
            *(("reader_login", (command,)) for command in ("status", "tail", "events")),
            ("reader_login", ("endpoint", "list")),
            ("reader_login", ("endpoint", "show", delivered)),
            ("worker_login", ("check",)),
        ]:
            for form in ((), ("--json",)):
                ran = watched.commands(role)(*command, *form)
                assert ran.code == 0, ran.err
                watched.told[f"{command} {form}"] = ran.out + ran.err
        for role in ("reader_login", "operator_login"):
            watched.told[f"views of {role}"] = views_of(watched, role)
        explained = "select string_agg(outbox.explain_delivery(%s, endpoint_id), ' ') from outbox.endpoints"
        watched.told["explain_delivery"] = operator.execute(explained, [event]).fetchone()[0]


async def test_nothing_that_people_read_holds_a_secret_a_header_value_or_a_path(watched, receiver):
    """Logs of worker and server, statistics, errors, views and the command line: zero finds."""
    await everything_happens(watched, receiver)
    with psycopg.connect(watched.url) as db:
        texts = db.execute("select query from pg_stat_statements").fetchall()
    told = watched.told
    server = {"the server's log": watched.log.read_text(), "pg_stat_statements": repr(texts)}

    sent = repr([request.headers for request in receiver.requests])
    assert f"Bearer {HEADERS[0]}" in sent  # the search has something to find
    assert HEADERS[2] in sent
    (log,) = [text for where, text in told.items() if where.startswith("the log of")]
    assert "delivery.attempted" in log
    assert "endpoint.held" in log
    for word in ("MARKPAYLOAD", "Query Text", "Output: ", "outbox.endpoint_vault"):
        assert word in server["the server's log"]
    assert "insert into outbox.endpoint_vault" in server["pg_stat_statements"]

    keys = [secret.removeprefix("whsec_") for secret in watched.secrets]
    assert finds({**told, **server}, *keys) == []
    assert finds({**told, **server}, *HEADERS) == []
    assert finds(told, *PATHS, QUERY) == []
    assert finds(told, LOGIN_PASSWORD) == []
