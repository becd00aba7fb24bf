"""Nothing leaks, second part: every command, every form of replay, a bug at OUTBOX_LOG_LEVEL=debug.

Reads: a PostgreSQL of its own that logs everything, worker processes, one of them broken; every command's output.
Guarantee: a marker is in no output, no error and no traceback; a new secret is printed by `create` and `rotate` alone.
If it is wrong: a credential is read by whoever may read a terminal, a log or a bug report.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import psycopg
from psycopg.conninfo import conninfo_to_dict

from outbox_worker.cli import endpoint as endpoint_commands
from tests.support.factories import allow_loopback, publish, state_of
from tests.support.receiver import status
from tests.support.waiting import eventually
from tests.support.watched import LOGIN_PASSWORD, finds, views_of, worker_process

GIVEN = "MARKHEADERgiven"
REPLACED = "MARKHEADERreplaced"
REFUSED = "MARKHEADERrefused"
HEADERS = (GIVEN, REPLACED, REFUSED)
PATH, QUERY, PAYLOAD = "MARKPATH", "MARKQUERY", "MARKPAYLOAD"
UNREADABLE = "MARKVAULTnotakey"
NOBODY = "00000000-0000-4000-8000-000000000000"
# A worker with a bug, in a function that is given secrets and header values.
BROKEN = """
from outbox_worker import cli, {module}
def broken(*given, **named):
    kept = (given, named)
    raise RuntimeError("a bug")
{module}.{name} = broken
cli.main(["run"])
"""


class Told:
    """Run commands, with and without --json, and keep what they said."""

    def __init__(self, watched, receiver):
        self.watched = watched
        self.support = watched.commands("app_login")  # of the app, and may read and operate
        self.owner = watched.commands("app_login")
        self.owner.dsn = watched.url
        for commands in (self.support, self.owner):
            commands.environment["OUTBOX_LOG_LEVEL"] = "debug"
        self.url = f"{receiver.url}{PATH}?key={QUERY}"

    def run(self, *command, code=0, by=None, **how):
        ran = (by or self.support)(*command, **how)
        assert ran.code == code, (command, ran)
        self.keep(command, ran.out + ran.err)
        return ran

    def keep(self, command, text):
        self.watched.told[f"{len(self.watched.told)}: {command}"] = text

    def both(self, *command, **how):
        self.run(*command, **how)
        return self.run(*command, "--json", **how)

    def secret_from(self, *command, **how):
        """What `create` and `rotate` print holds the secret, once, and nothing else that is searched for."""
        ran = self.support(*command, "--json", **how)
        assert ran.code == 0, ran.err
        (made,) = ran.json
        self.watched.secrets.append(made.pop("secret"))
        self.keep(command, json.dumps(made) + ran.err)
        return made["endpoint_id"]


def endpoints(told):
    """Every `endpoint` command but `test`; gives one that takes events, and one that refuses them."""
    headers = json.dumps({"x-api-key": GIVEN})
    options = ("--event", "message.*", "--headers-file", "-")
    good = told.secret_from("endpoint", "create", "ws_1", told.url, *options, stdin=headers)
    schedule = ("--retry-schedule", "1s")
    line = ("--event", "message.*", "--header", f"X-Api-Key: {GIVEN}")
    bad = told.secret_from("endpoint", "create", "ws_1", told.url.replace("?", "bad?"), *line, *schedule)
    gone = told.secret_from("endpoint", "create", "ws_1", told.url, *options, stdin=headers)
    told.secret_from("endpoint", "rotate", good)
    told.run("endpoint", "headers", good, "--headers-file", "-", stdin=headers.replace(GIVEN, REPLACED))
    told.run("endpoint", "update", bad, "--url", told.url.replace("?", "bad?more&"), *line[2:])
    told.run("endpoint", "pause", good)
    told.both("endpoint", "show", good)
    told.run("endpoint", "resume", good)
    told.both("endpoint", "list")
    told.run("endpoint", "delete", gone, "--yes")
    told.both("endpoint", "show", gone)
    return good, bad


def refusals(told, endpoint):
    """Input that is refused, settings that are no settings, ids of nobody."""
    for bad in (f"X-A: {REFUSED}\nb", f"Host: {REFUSED}", REFUSED):
        told.run("endpoint", "headers", endpoint, "--header", bad, code=2)
    for bad in (f"[{REFUSED!r}", json.dumps([REFUSED]), json.dumps({"x-a": f"{REFUSED}\n"})):
        told.run("endpoint", "headers", endpoint, "--headers-file", "-", stdin=bad, code=2)
    for url in (f"ftp://h.example/{PATH}?{QUERY}", f"https://h.example/{PATH} {QUERY}"):
        told.run("endpoint", "create", "ws_1", url, "--event", "*", code=2)
        told.run("endpoint", "update", endpoint, "--url", url, code=2)
    for command in (
        ("show",),
        ("endpoint", "show"),
        ("endpoint", "rotate"),
        ("endpoint", "test"),
        ("cancel",),
    ):
        told.run(*command, NOBODY, "--json" if command != ("cancel",) else "--yes", code=2)
    told.run("publish", "ws_1", "message.received", f"{{{PAYLOAD}", code=2)
    told.run("publish", "ws_1", "message.unknown", json.dumps({"text": PAYLOAD}), code=2)
    for url in (f"postgresql://u:{LOGIN_PASSWORD}/x@127.0.0.1/db", f"host=127.0.0.1 port=x{LOGIN_PASSWORD}"):
        told.run("status", OUTBOX_DATABASE_URL=url, code=2)
    nowhere = psycopg.conninfo.make_conninfo(told.support.dsn, port=1)
    told.run("status", OUTBOX_DATABASE_URL=nowhere, code=3)
    told.run("rekey", OUTBOX_VAULT_KEY=UNREADABLE, code=2, by=told.owner)
    with worker_process(replace(told.watched, key=(UNREADABLE, b"")), code=2):
        pass


def looks(told, event, endpoint):
    for command in (
        ("status",),
        ("tail",),
        ("events",),
        ("endpoint", "list"),
        ("endpoint", "show", endpoint),
    ):
        told.both(*command)
    for options in ((), ("--workspace", "ws_1"), ("--state", "dead"), ("--endpoint", endpoint)):
        told.both("search", *options)
    told.both("check", by=told.watched.commands("worker_login"))
    for options in ((), ("--full",)):
        told.both("show", event, *options)


async def replays(told, event, bad, db):
    """Each form, by command and by SQL; every one goes out again."""
    since = ("--endpoint", bad, "--since", "1h")
    told.both("replay", *since, "--dry-run")
    for form in (
        ("--event", event),
        ("--event", event, "--endpoint", bad),
        ("--events-from", "-"),
        since,
        (*since, "--state", "dead", "--state", "delivered", "--reason", "asked"),
    ):
        told.run("replay", *form, "--yes", "--json", "--no-wait", stdin=f"{event}\n")
    (operation,) = db.execute("select operation_id from outbox.operations order by 1 limit 1").fetchone()
    told.both("replay", "--resume", operation)
    told.both("replay", "--stop", operation, code=2)  # it has ended
    with psycopg.connect(told.support.dsn, autocommit=True) as operator:
        for statement in (
            "select outbox.replay(%(event)s)",
            "select outbox.replay(%(event)s, %(bad)s)",
            "select outbox.replay_many(array[%(event)s]::uuid[])",
            "select outbox.replay_endpoint(%(bad)s, now() - interval '1 hour')",
            "update outbox.deliveries set state = 'pending' where state = 'dead' and endpoint_id = %(bad)s",
            "update outbox.deliveries set next_attempt_at = now() where state = 'pending'",
        ):
            answer = operator.execute(statement, {"event": event, "bad": bad})
            told.keep(statement, repr(answer.fetchall() if answer.description else answer.rowcount))
    await eventually(lambda: state_of(db, event, bad) == "dead", 30)


def as_owner(told, folder):
    """What changes keys and schema; the vault's new key is made by keygen."""
    key = folder / "vault.key"
    told.run("keygen", "--out", key, "--json", by=told.owner)
    private = key.read_text()
    told.watched.key = (told.watched.key[0] + private, told.watched.key[1])
    for form in ("--json",), ():
        told.run("rekey", *form, by=told.owner, OUTBOX_VAULT_KEY=told.watched.key[0])
    for options in ((), ("--dry-run",)):
        told.run("migrate", *options, by=told.owner)
    told.both("index", "$.text", by=told.owner)
    told.both("index", by=told.owner)
    told.run("index", "$.text", "--drop", "--yes", by=told.owner)
    return private


def restoring(told, db):
    waits = publish(db, payload={"text": PAYLOAD})
    told.run("restored", "--hold", "--yes", "--json")
    told.both("restored")
    told.run("run", code=2)
    told.run("restored", "--release", "--yes", "--json")
    told.run("cancel", waits, "--yes", "--json", "--reason", "asked")


def bug_of_a_command(told, monkeypatch, endpoint):
    """The new secret is in hand when it happens."""

    def broken(_output, made):
        told.watched.secrets.append(made["secret"])
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(endpoint_commands, "show_secret", broken)
        assert "Traceback" in told.run("endpoint", "rotate", endpoint, code=1).err


def bugs_of_workers(told, db):
    """The first loses one delivery, the second ends: what it printed at debug has a traceback."""
    publish(db, payload={"text": PAYLOAD})
    program = ("-c", BROKEN.format(module="deliver", name="prepare"))
    with worker_process(told.watched, program) as process:
        for line in process.stdout:
            told.keep(program, line)
            if "delivery.crashed" in line:
                break
    publish(db, payload={"text": PAYLOAD})
    program = ("-c", BROKEN.format(module="endpoint_book", name="decode_secret"))
    with worker_process(told.watched, program, code=1):
        pass
    assert "Traceback" in list(told.watched.told.values())[-1]


async def test_no_command_no_replay_and_no_traceback_shows_a_secret_a_header_value_or_a_path(
    watched, receiver, monkeypatch, tmp_path
):
    """Every command in both forms, refused input, bugs at debug, every form of replay: zero finds."""
    receiver.script(f"/{PATH}bad?more&key={QUERY}", status(500, [("x-why", "no")], b"no"))
    told = Told(watched, receiver)
    with psycopg.connect(watched.url, autocommit=True) as db:
        allow_loopback(db, receiver.port)
        db.execute("grant outbox_reader, outbox_operator to app_login")
        good, bad = endpoints(told)
        refusals(told, bad)
        private = as_owner(told, tmp_path)
        with worker_process(watched):
            payload = json.dumps({"text": PAYLOAD})
            (published,) = told.run("publish", "ws_1", "message.received", payload, "--json").json
            event = published["event_id"]
            await eventually(lambda: state_of(db, event, good) == "delivered", 60)
            await eventually(lambda: state_of(db, event, bad) == "dead", 30)
            await asyncio.to_thread(told.run, "endpoint", "test", good, "--json")
            looks(told, event, bad)
            await replays(told, event, bad, db)
        restoring(told, db)
        bug_of_a_command(told, monkeypatch, good)
        bugs_of_workers(told, db)
        texts = db.execute("select query from pg_stat_statements").fetchall()
    for role in ("reader_login", "operator_login"):
        told.keep(f"views of {role}", views_of(watched, role))
    everything = {**watched.told, "statistics": repr(texts), "the server's log": watched.log.read_text()}

    sent = repr([request.headers for request in receiver.requests])
    assert GIVEN in sent  # the search has something to find
    assert REPLACED in sent
    assert len(watched.secrets) == 5
    assert finds(everything, *(secret.removeprefix("whsec_") for secret in watched.secrets)) == []
    assert finds(everything, *HEADERS) == []
    assert finds(everything, *(line for line in private.splitlines() if len(line) > 50), UNREADABLE) == []
    assert finds(watched.told, PATH, QUERY, LOGIN_PASSWORD, conninfo_to_dict(watched.url)["password"]) == []
    assert (
        finds({where: text for where, text in watched.told.items() if "the log of" in where}, PAYLOAD) == []
    )
