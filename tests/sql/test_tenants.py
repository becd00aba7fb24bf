"""Tenants see their own workspaces, and of these nothing that came back.

Reads and writes: a clone of the template database and two login roles for each test.
Guarantee: the login role decides; nothing that a session can set widens what it sees.
If it fails: one customer reads another's events, or the answers of inner addresses.
"""

from __future__ import annotations

import os

import pytest
from psycopg import errors, sql

from tests.support.rows import attempt, new_endpoint, owe, publish

SECRET_URL = "https://hooks.example.com/services/T0/SECRETPATH?key=1"
BLOCKED = "blocked_address: 10.0.0.7"


@pytest.fixture
def tenants(db, cluster, maintenance):
    """Two login roles with outbox_tenant; in each one's workspace an event, a delivery and an attempt."""
    names = {f"ws_{n}": f"tenant_{os.getpid()}_{n}" for n in (1, 2)}
    for workspace_id, name in names.items():
        maintenance.execute(
            sql.SQL("create role {} login password {} in role outbox_tenant").format(
                sql.Identifier(name), sql.Literal(cluster.login_password)
            )
        )
        db.execute("insert into outbox.tenant_logins values (%s, %s)", [name, workspace_id])
        event_id = publish(db, workspace_id=workspace_id)
        endpoint_id = new_endpoint(db, workspace_id, SECRET_URL)
        owe(db, event_id, endpoint_id, workspace_id, last_error=BLOCKED)
        attempt(
            db,
            event_id,
            endpoint_id,
            workspace_id=workspace_id,
            error=BLOCKED,
            response_headers='{"x-inner": "INNER"}',
            response_body=b"INNER",
        )
    yield names
    for name in names.values():
        maintenance.execute(  # what the session made of its own would keep the role
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", [name]
        )
        maintenance.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


TENANT_VIEWS = ("tenant_events", "tenant_endpoints", "tenant_deliveries", "tenant_attempts")


def workspaces_seen(connection):
    return {
        view: connection.execute(f"select workspace_id from outbox.{view}").fetchall()
        for view in TENANT_VIEWS
    }


def test_a_tenant_sees_its_own_workspace_whatever_it_sets(tenants, connect):
    """The login decides: no session variable, SET ROLE or leaking function widens what a tenant sees."""
    own = {view: [("ws_1",)] for view in TENANT_VIEWS}
    tenant = connect(tenants["ws_1"])
    assert workspaces_seen(tenant) == own
    tenant.execute("set outbox.workspace_id = 'ws_2'")
    tenant.execute("set role outbox_tenant")
    assert workspaces_seen(tenant) == own
    for change in ("set role {}", "set session authorization {}"):
        with pytest.raises(errors.InsufficientPrivilege):
            tenant.execute(sql.SQL(change).format(sql.Identifier(tenants["ws_2"])))
    tenant.execute("reset role")
    tenant.execute(
        "create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001"
        " as $$ begin raise warning 'leaked %', $1; return true; end $$"
    )
    notices = []
    tenant.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    for view in TENANT_VIEWS:
        tenant.execute(f"select 1 from outbox.{view} where pg_temp.leak(workspace_id)")
    assert set(notices) == {"leaked ws_1"}


@pytest.mark.parametrize(
    "relation",
    [
        "events",
        "deliveries",
        "attempts",
        "endpoints",
        "endpoint_health",
        "event_log",
        "recorded_attempts",
        "tenant_logins",
    ],
)
def test_a_tenant_reads_its_views_and_nothing_else(tenants, connect, relation):
    """Neither the tables nor the readers' views are a tenant's."""
    with pytest.raises(errors.InsufficientPrivilege):
        connect(tenants["ws_1"]).execute(f"select workspace_id from outbox.{relation}")


def test_a_tenant_sees_no_answer_and_no_inner_address(tenants, connect):
    """What came back stays away from tenants: else a request to an inner address becomes a way to read it."""
    tenant = connect(tenants["ws_1"])
    shown = str([tenant.execute(f"select * from outbox.{view}").fetchall() for view in TENANT_VIEWS])
    assert "blocked_address" in shown
    assert not {word for word in ("INNER", "10.0.0.7", "SECRETPATH") if word in shown}


def test_a_login_that_is_no_tenant_sees_no_rows(db):
    """The views are empty for whoever is not in tenant_logins, a superuser included."""
    new_endpoint(db)
    assert workspaces_seen(db) == {view: [] for view in TENANT_VIEWS}
