"""Everything in the schema says what it is.

Reads: the catalogs of a migrated database. Writes: nothing.
Guarantee: no table, view, column or function without a comment, partitions and pgcrypto aside.
If it fails: a DBA who describes a table in psql has to guess.
"""

from __future__ import annotations

RELATIONS = """
select c.relname, a.attname, col_description(c.oid, a.attnum), obj_description(c.oid, 'pg_class')
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
"""
FUNCTIONS = """
select p.oid::regprocedure::text, obj_description(p.oid, 'pg_proc')
from pg_proc p
where p.pronamespace = 'outbox'::regnamespace and p.proowner = 'outbox_owner'::regrole
"""


def test_every_table_view_and_column_has_a_comment(db):
    """What psql shows of a table explains itself."""
    rows = db.execute(RELATIONS).fetchall()
    assert len(rows) > 200
    assert {table for table, _, _, comment in rows if not comment} == set()
    assert [f"{table}.{column}" for table, column, comment, _ in rows if not comment] == []


def test_every_function_has_a_comment(db):
    """What psql shows of a function explains itself."""
    rows = db.execute(FUNCTIONS).fetchall()
    assert len(rows) > 20
    assert [name for name, comment in rows if not comment] == []
