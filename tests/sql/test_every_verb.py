"""Every verb on every relation, column and function, for every role and for a login without one.

Reads: the catalogs, tests/sql/privileges.golden.txt. Writes: nothing; what should be refused is rolled back.
Guarantee: what the golden file does not grant is refused by PostgreSQL, tried by a login; a new object is tried too.
If it fails: a role can do what another is trusted with, or the golden file tells a fiction.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql

ROLES = ("app", "worker", "operator", "reader", "tenant", "secrets", "public")
GOLDEN = Path(__file__).with_name("privileges.golden.txt")
RELATIONS = """
select c.relname, c.relkind = 'v', c.relkind = 'S', array_agg(a.attname order by a.attnum),
       (select array_agg(format_type(k.atttypid, k.atttypmod) order by k.attnum) from pg_index i
        join pg_attribute k on k.attrelid = i.indrelid and k.attnum = any (i.indkey)
        where i.indrelid = c.oid and i.indisprimary)
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'outbox'::regnamespace and c.relkind not in ('i', 'I', 'c', 't')
group by c.oid
"""
FUNCTIONS = """
select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', p.proname,
       array(select format_type(t, null) from unnest(p.proargtypes) t)
from pg_proc p where p.pronamespace = 'outbox'::regnamespace and p.proowner = 'outbox_owner'::regrole
"""
# What is refused for its kind, before anybody asks who it is: a view that takes no rows, a key that a table lacks.
OF_ITS_KIND = (
    errors.ObjectNotInPrerequisiteState,
    errors.WrongObjectType,
    errors.UndefinedObject,
    errors.FeatureNotSupported,
)
VERBS = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
OF_COLUMNS = ("select", "insert", "update")
SUPPRESS = "pg_catalog.suppress_redundant_updates_trigger()"


def try_on_relation(verb, name, *, is_view, is_sequence, columns, key):
    """The statement that needs this verb, and no other that the role lacks."""
    if is_sequence:
        return {"select": f"select last_value from {name}", "update": f"select setval('{name}', 1)"}.get(
            verb, f"select nextval('{name}')"
        )
    local = ", ".join(f"k{number} {kind}" for number, kind in enumerate(key or ["int"]))
    keys = ", ".join(f"k{number}" for number in range(len(key or ["int"])))
    return {
        "select": f"select count(*) from {name}",
        "insert": f"insert into {name} default values",
        "update": f'update {name} set "{columns[-1]}" = default',
        "delete": f"delete from {name}",
        "truncate": f"truncate {name}",
        "references": f"create table elsewhere.t ({local}, foreign key ({keys}) references {name})",
        "trigger": f"create trigger mine {'instead of' if is_view else 'before'} insert on {name}"
        f" for each row execute function {SUPPRESS}",
    }[verb]


def try_on_column(verb, name, column):
    return {
        "select": f'select "{column}" from {name}',
        "insert": f'insert into {name} ("{column}") values (default)',
        "update": f'update {name} set "{column}" = default',
    }[verb]


def granted():
    """By role and verb: relations and functions, and columns as `relation (column)`."""
    found = set()
    for line in GOLDEN.read_text().splitlines():
        role, thing, verb = line.split(" | ")
        kind, _, name = thing.partition(" ")
        if kind != "schema":
            found.add((role.removeprefix("outbox_"), name, verb))
    return found


@pytest.fixture(scope="module")
def people(cluster, template, maintenance):
    """A login for each role, and one without any, in a database with a schema where everybody may make tables."""
    name = f"outbox_verbs_{os.getpid()}"
    logins = {role: f"verbs_{role}_{os.getpid()}" for role in ROLES}
    for role, login in logins.items():
        maintenance.execute(
            sql.SQL("create role {} login password {}").format(
                sql.Identifier(login), sql.Literal(cluster.login_password)
            )
        )
        if role != "public":
            maintenance.execute(f"grant outbox_{role} to {login}")
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as owner,
    ):
        owner.execute("create schema elsewhere; grant all on schema elsewhere to public")
        # Without the schema itself nothing would be reached, and nothing behind that door be tried.
        owner.execute("grant usage on schema outbox to public")
        people = {
            role: psycopg.connect(cluster.dsn(name, login), autocommit=True) for role, login in logins.items()
        }
        yield owner, people
        for connection in people.values():
            connection.close()
    for login in logins.values():
        maintenance.execute(f"drop role {login}")


def refused(connection, statement, but=()):
    """Whether the login may not; whatever it could do is undone. Another error is the test's own fault."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except (errors.InsufficientPrivilege, *but):
        return True
    return False


@pytest.mark.parametrize("role", ROLES)
def test_every_verb_on_every_relation_that_is_not_granted_is_refused(people, role):
    """Tables, partitions, views and sequences, from the catalog; and each column where only some are granted."""
    owner, logins = people
    allowed, wrong, tried = granted(), [], 0
    for relation, is_view, is_sequence, columns, key in owner.execute(RELATIONS).fetchall():
        name = f"outbox.{relation}"
        for verb in VERBS if not is_sequence else ("select", "update", "usage"):
            if (role, relation, verb) in allowed:
                continue
            some = [column for column in columns if (role, f"{relation} ({column})", verb) in allowed]
            if some:
                statements = [try_on_column(verb, name, column) for column in columns if column not in some]
            else:
                how = {"is_view": is_view, "is_sequence": is_sequence, "columns": columns, "key": key}
                statements = [try_on_relation(verb, name, **how)]
            tried += len(statements)
            but = OF_ITS_KIND if is_view or (verb == "references" and not key) else ()
            wrong += [one for one in statements if not refused(logins[role], one, but)]
    assert wrong == []
    assert tried > 300


@pytest.mark.parametrize("role", ROLES)
def test_every_function_that_is_not_granted_is_refused(people, role):
    """Called with nulls that the planner cannot see through: it would not ask for a strict function's privilege."""
    owner, logins = people
    allowed, wrong, tried = granted(), [], 0
    for function, name, kinds in owner.execute(FUNCTIONS).fetchall():
        if (role, function, "execute") in allowed:
            continue
        given = ", ".join(f"(select null::{kind})" for kind in kinds)
        tried += 1
        if not refused(logins[role], f"select outbox.{name}({given})"):
            wrong.append(function)
    assert wrong == []
    assert tried > 60


@pytest.mark.parametrize("role", ROLES)
def test_what_the_login_has_is_what_the_file_grants(people, role):
    """PostgreSQL's own answer, which counts roles that contain each other and PUBLIC, is the file's: no more, no less."""
    owner, logins = people
    allowed = {(name, verb) for who, name, verb in granted() if who == role}
    login = logins[role].info.user
    maintain = ["maintain"] if owner.info.server_version >= 170000 else []
    found = set()
    for relation, _, is_sequence, columns, _ in owner.execute(RELATIONS).fetchall():
        name = f"outbox.{relation}"
        if is_sequence:
            asked = "select verb from unnest(%s::text[]) verb where has_sequence_privilege(%s, %s, verb)"
            rows = owner.execute(asked, [["select", "update", "usage"], login, name])
            found |= {(relation, verb) for (verb,) in rows}
            continue
        asked = "select verb from unnest(%s::text[]) verb where has_table_privilege(%s, %s, verb)"
        whole = {verb for (verb,) in owner.execute(asked, [[*VERBS, *maintain], login, name])}
        found |= {(relation, verb) for verb in whole}
        asked = (
            "select c, verb from unnest(%s::text[]) c cross join unnest(%s::text[]) verb"
            " where has_column_privilege(%s, %s, c, verb)"
        )
        rows = owner.execute(asked, [columns, [*OF_COLUMNS, "references"], login, name])
        found |= {(f"{relation} ({column})", verb) for column, verb in rows if verb not in whole}
    asked = f"select f from ({FUNCTIONS}) as t (f, n, k) join pg_proc p on p.proname = n and p.pronamespace = 'outbox'::regnamespace"
    asked += " and n || '(' || pg_get_function_identity_arguments(p.oid) || ')' = f where has_function_privilege(%s, p.oid, 'execute')"
    found |= {(function, "execute") for (function,) in owner.execute(asked, [login])}
    implied = {
        (name, verb)
        for name, verb in allowed
        if (re.sub(r" \(.*", "", name), verb) in allowed and " (" in name
    }
    assert found == allowed - implied
