"""outbox-worker index: built beside publishers, on partitions past and to come, resumable; search uses it.

Reads and writes: a clone of the schema.
Guarantee: an index that is said to be ready is on every table that holds events; no publisher waits for it long.
If it fails: publishing stops while an index is built, or a search misses events.
"""

from __future__ import annotations

import pytest

from outbox_worker.cli import index as command
from tests.support.commands import Commands
from tests.support.history import add_event, in_background, value
from tests.support.waiting import eventually

PATH = "$.order.id"
INDEXES = """
    select count(*) filter (where x.indisvalid), count(*) filter (where not x.indisvalid)
    from pg_index x join pg_class c on c.oid = x.indexrelid
    where c.relkind = 'i' and pg_get_indexdef(c.oid) like '%query_array%"order"."id"%'"""
TABLES = "select count(*) + 1 from pg_inherits where inhparent = 'outbox.events'::regclass"
NEXT_PARTITION = """
    select outbox.make_partition('events', max(upper_bound), max(upper_bound) + interval '1 day')
    from outbox.partition_registry where parent = 'events'"""


@pytest.fixture
def cli(dsn_of) -> Commands:
    return Commands(dsn_of())


def counted(db) -> tuple[int, int]:
    """Valid and invalid indexes on tables that hold rows."""
    return db.execute(INDEXES).fetchone()


def test_every_partition_past_and_to_come_has_the_index(db, cli):
    """One run makes it everywhere; the maker of partitions needs to know nothing; dropped, it is gone everywhere."""
    ran = cli("index", PATH, "--json")
    assert (ran.code, ran.json[-1]["state"]) == (0, "ready"), ran.err
    assert counted(db) == (value(db, TABLES), 0)
    db.execute(NEXT_PARTITION)
    (row,) = cli("index", "--json").json
    assert (row["path"], row["state"]) == (PATH, "ready")
    assert row["tables"] == f"{value(db, TABLES)} of {value(db, TABLES)}"
    assert cli("index", PATH, "--json").json[-1]["built"] == 0
    assert cli("index", PATH, "--drop", "--yes").code == 0
    assert cli("index", "--json").json == []
    assert counted(db) == (0, 0)


async def test_an_interrupted_build_is_taken_up_again_and_holds_up_no_publisher(
    db, cli, connect, monkeypatch
):
    """Killed while it waits for an old transaction: what is half built is replaced, what is built stays."""
    old = connect()
    old.autocommit = False
    assert cli("index", "$.customer.id").code == 0
    monkeypatch.setattr(command, "drop_leftovers", lambda *_: add_event(old))
    building = "select pid from pg_stat_activity where query like 'create index concurrently%' and wait_event_type = 'Lock'"
    with in_background(lambda: cli("index", PATH)) as outcome:
        await eventually(lambda: db.execute(building).fetchone())
        db.execute("set lock_timeout = '1s'")
        add_event(db, payload={"order": {"id": 17}})
        db.execute(NEXT_PARTITION)
        second = cli("index", PATH)
        assert (second.code, "another outbox-worker index" in second.err) == (2, True)
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like 'create index concurrently%'"
        )
        assert outcome().code == 3
    assert counted(db)[1] == 1
    assert [row["state"] for row in cli("index", "--json").json] == ["ready", "unfinished: run it again"]
    old.rollback()
    monkeypatch.undo()
    ran = cli("index", PATH, "--json")
    assert (ran.code, ran.json[-1]["state"]) == (0, "ready"), ran.err
    assert counted(db) == (value(db, TABLES), 0)
    assert len(cli("search", "--jsonpath", "$.order.id == 17", "--json").json) == 1


def test_a_writer_that_does_not_end_stops_the_index_and_not_the_publishers(db, cli, connect, monkeypatch):
    """The one lock on the parent is asked for a bounded time; the error says whom to look for."""
    monkeypatch.setattr(command, "LOCK_SECONDS", 0.05)
    old = connect()
    old.autocommit = False
    add_event(old)
    ran = cli("index", PATH)
    assert (ran.code, "pg_stat_activity" in ran.err) == (3, True)
    assert counted(db) == (0, 0)
    old.rollback()
    assert cli("index", PATH).code == 0


@pytest.mark.parametrize(
    ("path", "predicate", "found"),
    [
        (PATH, "$.order.id == 17", {"number", "list"}),
        (PATH, '$.order.id == "17"', {"text"}),
        (PATH, "$.order.id == 17.0", {"number", "list"}),
        (PATH, "$.order.id == true", set()),
        ("$.items[*].sku", '$.items[*].sku == "S-1"', {"number"}),
        ("$.items[0].sku", '$.items[0].sku == "S-1"', set()),
        ('$."a\'b"', '$."a\'b" == "x"', {"text"}),
    ],
)  # fmt: skip
def test_search_finds_the_same_with_the_index_and_without(db, cli, path, predicate, found):
    """Lists, numbers and texts mean what the jsonpath means; with the index all of the history is looked at."""
    events = {
        "number": add_event(db, payload={"order": {"id": 17}, "items": [{"sku": "S-0"}, {"sku": "S-1"}]}),
        "text": add_event(db, payload={"order": {"id": "17"}, "a'b": "x"}),
        "list": add_event(db, payload={"order": {"id": [16, 17]}}),
        "other": add_event(db, payload={"order": {"id": 171}}),
        "none": add_event(db, payload={"order": "17"}),
    }
    search = ("search", "--jsonpath", predicate, "--json")
    wanted = {str(events[name]) for name in found}
    assert {row["event_id"] for row in cli(*search).json} == wanted
    assert cli("index", path).code == 0
    assert {row["event_id"] for row in cli(*search).json} == wanted
    db.execute("insert into outbox.kept_events (event_id, workspace_id, event_type, payload, created_at)"
               " select '00000000-0000-7000-8000-000000000001', workspace_id, event_type, payload, '2020-01-01'"
               " from outbox.events where event_id = any (%s) limit 1", [[events[name] for name in found]])  # fmt: skip
    assert len(cli(*search).json) == len(found) + bool(found)


@pytest.mark.parametrize(
    "path", ["order.id", "$", "$.*", "$.**.id", "$.a.size()", "$.a == 1", "$.a ? (@ > 1)", "strict $.a", "$.a.'x", "$.a[last]", ""]
)  # fmt: skip
def test_what_is_no_path_to_a_value_is_refused(path):
    """Nothing that could raise an error in a publisher's transaction becomes an index."""
    ran = Commands(None)("index", path)
    assert (ran.code, ran.out) == (2, "")
    assert "$.order.id" in ran.err


def test_only_the_owner_may_and_everybody_may_look(cli, dsn_of):
    """A reader lists; to change needs the login that migrates."""
    reader = Commands(dsn_of("reader_login"))
    ran = reader("index", PATH)
    assert (ran.code, "OUTBOX_OWNER_DATABASE_URL" in ran.err) == (2, True)
    assert reader("index", PATH, OUTBOX_OWNER_DATABASE_URL=dsn_of()).code == 0
    assert [row["state"] for row in reader("index", "--json").json] == ["ready"]
    assert cli("index", "$.nobody.has", "--drop", "--yes").code == 2
    assert "say which" in cli("index", "--drop").err
