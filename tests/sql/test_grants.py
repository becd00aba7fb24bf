"""Who may do what: the golden file of every privilege, and what each role is for.

Reads: the catalogs, tests/sql/privileges.golden.txt. Writes: that file, when asked:
OUTBOX_WRITE_GOLDEN=1 pytest tests/sql/test_grants.py -k golden
Guarantee: a privilege that appears or disappears is seen in a diff.
If it fails: somebody may do more, or less, than the roles promise.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from psycopg import errors, sql

from outbox_worker import sqlfiles
from tests.support.rows import attempt, finish, new_endpoint, owe, publish

SECRET_URL = "https://hooks.example.com/services/T0/SECRETPATH?key=1"
GOLDEN = Path(__file__).with_name("privileges.golden.txt")
PRIVILEGES = """
with acls (object, acl) as (
    select 'schema ' || n.nspname, coalesce(n.nspacl, acldefault('n', n.nspowner))
    from pg_namespace n where n.nspname = 'outbox'
    union all
    select case c.relkind when 'S' then 'sequence ' when 'v' then 'view ' else 'table ' end || c.relname,
           coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))
    from pg_class c where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
    union all
    select 'table ' || c.relname || ' (' || a.attname || ')', a.attacl
    from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'outbox'::regnamespace and a.attacl is not null
    union all
    select 'function ' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc p where p.pronamespace = 'outbox'::regnamespace and p.proowner = 'outbox_owner'::regrole
    union all
    select 'default privileges of ' || d.defaclrole::regrole || ' for ' || d.defaclobjtype::text, d.defaclacl
    from pg_default_acl d where d.defaclrole = 'outbox_owner'::regrole
)
select case when e.grantee = 0 then 'public' else e.grantee::regrole::text end
       || ' | ' || a.object || ' | ' || lower(e.privilege_type)
       || case when e.is_grantable then ' with grant option' else '' end
from acls a cross join aclexplode(a.acl) e
where e.grantee <> 'outbox_owner'::regrole
"""


def privileges(db):
    return "".join(sorted(f"{line}\n" for (line,) in db.execute(PRIVILEGES)))


def test_the_privileges_are_those_of_the_golden_file(db):
    """Every privilege on every object, partitions included, of everybody but the owner."""
    found = privileges(db)
    if os.environ.get("OUTBOX_WRITE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


def test_public_and_outbox_secrets_are_granted_nothing():
    """A login without one of our roles can do nothing; outbox_secrets is a mark, not a door."""
    grantees = {line.split(" | ")[0] for line in GOLDEN.read_text().splitlines()}
    assert grantees == {"outbox_app", "outbox_operator", "outbox_reader", "outbox_tenant", "outbox_worker"}


def test_a_function_made_later_is_not_executable_by_public(db):
    """The default of PostgreSQL, EXECUTE for everybody, is off for whatever the owner makes."""
    db.execute("set role outbox_owner")
    db.execute("create function outbox.made_later() returns int language sql return 1")
    assert db.execute(
        "select has_function_privilege('outbox_app', 'outbox.made_later()', 'execute')"
    ).fetchone() == (False,)


def test_a_grant_that_is_not_in_the_file_is_gone_after_the_next_migrate(db):
    """90_grants.sql takes everything back first."""
    db.execute("grant select on outbox.endpoint_vault to outbox_reader")
    db.execute("grant execute on function outbox.new_secret() to public")
    db.execute("set role outbox_owner")
    db.execute(sqlfiles.read("definitions/90_grants.sql"))
    assert privileges(db) == GOLDEN.read_text()


def test_the_app_publishes_by_function_insert_and_copy_and_reads_its_endpoints(db, connect):
    """What outbox_app is for works with nothing but that role."""
    new_endpoint(db, url=SECRET_URL)
    app = connect("app_login")
    app.execute("select outbox.publish('ws_1', 'message.received', '{}')")
    app.execute("select outbox.publish_many('ws_1', 'message.received', array['{}', '{}']::jsonb[])")
    app.execute(
        "insert into outbox.events (workspace_id, event_type, payload)"
        " values ('ws_1', 'message.received', '{}')"
    )
    with (
        app.cursor() as cursor,
        cursor.copy("copy outbox.events (workspace_id, event_type, payload) from stdin") as copy,
    ):
        copy.write_row(("ws_1", "message.received", "{}"))
    assert db.execute("select count(*) from outbox.fan_out_queue").fetchone() == (5,)
    assert app.execute("select workspace_id, state from outbox.endpoints").fetchall() == [("ws_1", "active")]


def test_every_statement_of_the_worker_may_be_run_by_outbox_worker(connect):
    """Each file of sql/queries is planned and checked as the worker's role; none lacks a privilege."""
    worker = connect("worker_login")
    refused = {}
    for file in (sqlfiles.sql_root() / "queries").iterdir():
        text = file.read_text()
        parameters = dict.fromkeys(re.findall(r"%\((\w+)\)s", text))
        explain = "" if re.search("^lock ", text, re.MULTILINE) else "explain "  # LOCK has no plan
        try:
            with worker.transaction():
                worker.execute((explain + text).encode(), parameters)
        except errors.InsufficientPrivilege as error:
            refused[file.name] = str(error)
    assert refused == {}


def test_an_operator_replays_and_changes_an_endpoint(db, connect):
    """What outbox_operator is for works with nothing but that role."""
    endpoint_id = new_endpoint(db, url=SECRET_URL)
    operator = connect("operator_login")
    operator.execute("update outbox.deliveries set state = 'pending' where state = 'dead'")
    operator.execute(
        "update outbox.deliveries set next_attempt_at = now() where endpoint_id = %s", [endpoint_id]
    )
    operator.execute("update outbox.endpoints set description = 'x' where endpoint_id = %s", [endpoint_id])
    operator.execute("select outbox.pause_endpoint(%s)", [endpoint_id])
    row = operator.execute("select state, description, url from outbox.endpoint_health").fetchone()
    assert row == ("paused", "x", "https://hooks.example.com/…")


VIEWS = """
select c.relname from pg_class c where c.relnamespace = 'outbox'::regnamespace and c.relkind = 'v'
"""


def test_readers_see_every_view_and_no_path_of_a_url(db, connect):
    """A path can be a secret: no view of a reader or an operator shows it; outbox_secrets reads it."""
    endpoint_id = new_endpoint(db, url=SECRET_URL)
    owe(db, publish(db), endpoint_id)
    dead = publish(db)
    finish(db, dead, endpoint_id, "dead")
    attempt(db, dead, endpoint_id, status=500)
    views = {name for (name,) in db.execute(VIEWS)}
    internal = {"known_events", "known_attempts", "endpoint_reports"}
    of_tenants = {name for name in views if name.startswith("tenant_")}
    of_readers = views - internal - of_tenants
    shown = {"attempts", "attempt_log", "dead_letters", "delivery_log", "backlog", "endpoint_health"}

    def whole_urls(login):
        connection = connect(login)
        return {
            name
            for name in of_readers
            if "SECRETPATH"
            in str(
                connection.execute(sql.SQL("select * from outbox.{}").format(sql.Identifier(name))).fetchall()
            )
        }

    assert whole_urls("reader_login") == set()
    assert whole_urls("operator_login") == set()
    db.execute("grant outbox_secrets to reader_login")
    try:
        assert whole_urls("reader_login") == shown
    finally:
        db.execute("revoke outbox_secrets from reader_login")
