"""Every worker of this suite is a member of outbox_worker and of nothing else: never a superuser, never the owner.

Reads: the log of the tests' server, pg_roles. Writes: sessions on a server of its own.
Guarantee: what the suite shows of workers, it shows with the worker's own rights.
If it fails: production lacks a privilege that no test has missed.
"""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from outbox_worker import worker
from tests.support.factories import worker_settings
from tests.support.roles import LOGINS, sessions_of_workers, workers_of_another_role


async def test_a_worker_that_logs_in_as_a_superuser_is_found(make_server, vault_key):
    """At the end of each server the suite looks for such a session, and fails: here it finds one made on purpose."""
    server = make_server()
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as db:
        db.execute("create role worker_login login password 'x'")
        superuser = db.info.user
    for who in ({}, {"user": "worker_login", "password": "x"}):
        settings = worker_settings(make_conninfo(server.dsn(), **who), vault_key)
        with pytest.raises(
            psycopg.errors.UndefinedTable
        ):  # there is no schema: it logs in, and can do no more
            await worker.run(settings, name="on purpose")
    assert {role for role, _ in sessions_of_workers(server.folder)} == {superuser, "worker_login"}
    found = workers_of_another_role(server.folder)
    assert {role for role, _ in found} == {superuser}
    for log in server.folder.glob("server.log*"):
        log.write_text("")  # what was done on purpose is not held against this test


def test_the_workers_logins_are_members_of_outbox_worker_alone(db):
    """No superuser, no creator of roles, no owner, no second role."""
    rows = db.execute(
        "select r.rolname, r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolbypassrls or r.rolreplication,"
        " (select array_agg(m.roleid::regrole::text) from pg_auth_members m where m.member = r.oid)"
        " from pg_roles r where r.rolname = any (%s)",
        [list(LOGINS)],
    ).fetchall()
    assert "worker_login" in {name for name, *_ in rows}
    assert {(mighty, *of) for _, mighty, of in rows} == {(False, "outbox_worker")}
