"""Erasure: one customer's data goes, the fact that it went stays.

Reads: every table of the schema. Writes: a clone of the schema.
Guarantee: after an erasure no row holds the data, nothing more is sent, and who did it and why is recorded.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.test_operational import add_leased, settle
from tests.support.history import add_endpoint, add_event, add_finished, add_open, delivery, value

MARK = "Ada-4711"
ERASED = {"erased": True}
BY_PATH = """select outbox.erase('ws', '$.customer.name == "Ada-4711"', 'request 17')"""


@pytest.fixture
def endpoint(db):
    return add_endpoint(db)


@pytest.fixture
def story(db, endpoint):
    """Events of one customer in every place an event can be, and one of somebody else."""
    payload = {"customer": {"name": MARK}, "n": 1}
    db.execute(
        "select outbox.make_partition(parent, first - interval '7 days' * n, first - interval '7 days' *"
        " (n - 1))"
        " from unnest('{events,finished_deliveries,recorded_attempts}'::text[]) as parent,"
        " generate_series(1, 16) n,"
        " (select min(lower_bound) as first from outbox.partition_registry) r"
    )
    other = add_endpoint(db)
    events = {
        "dead": add_event(db, payload=payload, ordering_key=MARK),
        "kept": add_event(db, payload=payload, age="105 days", ordering_key=MARK),
        "open": add_event(db, payload=payload, ordering_key=MARK),
        "queued": add_event(db, payload=payload, queued=True, ordering_key=MARK),
        "else": add_event(db, payload={"customer": {"name": "Bob"}}),
        "foreign": add_event(db, "other", payload=payload),
    }
    add_finished(db, events["dead"], endpoint)
    add_finished(db, events["dead"], other, "delivered")
    add_finished(db, events["kept"], endpoint, ago="104 days")
    add_finished(db, events["else"], endpoint)
    add_open(db, events["open"], endpoint, ordering_key=MARK, ordering_seq=1)
    for workspace, event in (("ws", events["dead"]), ("ws", events["queued"]), ("other", events["foreign"])):
        db.execute(
            "insert into outbox.idempotency_keys (workspace_id, idempotency_key, event_id, fingerprint)"
            " values (%s, %s, %s, '')",
            [workspace, f"{MARK} {event}", event],
        )
    db.execute(
        "update outbox.recorded_attempts set response_body = convert_to('thanks, ' || %s, 'UTF8') where"
        " event_id <> %s",
        [MARK, events["else"]],
    )
    while value(db, "select outbox.drop_partitions()") > 0:
        pass
    assert value(db, "select count(*) from outbox.kept_events") == 1
    return events


def tables_with(db, text: str, workspace: str) -> list[str]:
    """Name the tables with a row of this workspace that holds the text; bytea is looked at as text."""
    found = []
    for (table,) in db.execute(
        "select c.table_name from information_schema.columns c join information_schema.tables t"
        " using (table_schema, table_name) where table_schema = 'outbox' and column_name = 'workspace_id'"
        " and table_type = 'BASE TABLE'"
    ).fetchall():
        encoded = text.encode().hex()
        query = (
            f"select exists (select from outbox.{table} t where workspace_id = %s"
            " and (t::text like '%%' || %s || '%%' or t::text like '%%' || %s || '%%'))"
        )
        if value(db, query, workspace, text, encoded):
            found.append(table)
    return found


def test_no_table_holds_the_data_after_an_erasure(db, story, endpoint):
    """Payloads, ordering and idempotency keys and answers are gone wherever they were; others keep theirs."""
    assert len(tables_with(db, MARK, "ws")) >= 5
    assert value(db, BY_PATH) == 4
    assert tables_with(db, MARK, "ws") == []
    for place in ("dead", "kept", "open", "queued"):
        assert (
            value(db, "select payload from outbox.event_log where event_id = %s", story[place]) == ERASED
        ), place
    assert value(db, "select count(*) from outbox.known_attempts where event_id = %s", story["dead"]) == 16
    assert value(db, "select payload from outbox.event_log where event_id = %s", story["else"]) != ERASED
    assert tables_with(db, MARK, "other")


def test_an_answer_that_comes_after_the_erasure_is_not_kept(db, connect, story, endpoint):
    """A request under way cannot be called back, and its answer may repeat the payload; that it came is kept."""
    event, token = add_leased(db, endpoint, attempt_count=0)
    db.execute("select outbox.erase(array[%s::uuid], 'request 19')", [event])
    worker = connect("worker_login")
    for one in (event, story["else"]):  # of the other, no lease is held either
        applied = settle(
            worker, one, endpoint, token, "delivered", status=200, error=None, body=MARK.encode()
        )
        assert applied[0][1:3] == (False, False)
    late = "select status, response_body from outbox.late_results where event_id = %s"
    assert db.execute(late, [event]).fetchall() == [(200, None)]
    assert db.execute(late, [story["else"]]).fetchall() == [(200, MARK.encode())]


def test_an_erasure_is_recorded_without_what_it_erased(db, story):
    """Who, when, why and how much stay; the path, which names the customer, does not."""
    db.execute(BY_PATH)
    row = db.execute(
        "select kind, workspace_id, affected, reason, requested_by = session_user, state from"
        " outbox.operations"
    )
    assert row.fetchall() == [("erase", "ws", 4, "request 17", True, "done")]
    assert value(db, "select count(*) from outbox.operations o where o::text like %s", f"%{MARK}%") == 0


def test_nothing_of_an_erased_event_goes_out_any_more(db, story, endpoint):
    """Its open deliveries are canceled, its queue row is gone, and no replay takes it."""
    db.execute(BY_PATH)
    assert delivery(db, story["open"], endpoint)["state"] == "canceled"
    assert delivery(db, story["dead"], endpoint)["reason"] == "erased"
    assert value(db, "select count(*) from outbox.fan_out_queue where event_id = %s", story["queued"]) == 0
    with pytest.raises(psycopg.Error, match="erased"):
        db.execute("select outbox.replay(%s)", [story["dead"]])
    with pytest.raises(psycopg.Error, match="erased"):
        db.execute("update outbox.deliveries set state = 'pending' where event_id = %s", [story["dead"]])
    for one in ("null", "%(endpoint)s"):
        assert db.execute(
            f"select outbox.replay_many(array[%(dead)s, %(open)s]::uuid[], {one})",
            {**story, "endpoint": endpoint},
        ).fetchone() == (0,)
    everything = "'{dead,delivered,canceled,missing}'"
    newcomer = add_endpoint(db)
    assert "was erased" in value(db, "select outbox.explain_delivery(%s, %s)", story["queued"], newcomer), (
        "no way to send it is shown"
    )
    assert value(db, f"select outbox.replay_endpoint(%s, '-infinity', now(), {everything})", endpoint) == 1
    assert value(db, f"select outbox.replay_endpoint(%s, '-infinity', now(), {everything})", newcomer) == 1
    assert value(db, "select array_agg(distinct event_id) from outbox.open_deliveries") == [story["else"]]


def test_erasure_by_event_ids_takes_those_and_no_more(db, story):
    """The second form names the events; erasing them twice changes nothing more."""
    call = "select outbox.erase(array[%s, gen_random_uuid()], 'request 18')"
    assert value(db, call, story["open"]) == 1
    assert value(db, call, story["open"]) == 0
    assert value(db, "select payload from outbox.event_log where event_id = %s", story["dead"]) != ERASED


def test_an_event_that_had_only_answers_left_counts_as_erased(db, story):
    """The payload went before; what receivers answered was not, and may repeat it."""
    db.execute("delete from outbox.events where event_id = %s", [story["dead"]])
    call = "select outbox.erase(array[%s::uuid], 'request 20')"
    assert value(db, call, story["dead"]) == 1
    assert value(db, call, story["dead"]) == 0
    assert db.execute("select affected from outbox.operations order by operation_id").fetchall() == [
        (1,),
        (0,),
    ]


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("$.customer.name", True),
        ('strict $.customer ? (@.name == "Ada-4711")', True),
        ('strict $.customer.name == "Ada-4711"', False),
        ('exists($.customer ? (@.name == "Ada-4711"))', False),
        ('$.customer.name starts with "Ada" && $.n == 1', False),
        ('!($.customer.name == "Bob")', False),
    ],
)
def test_a_path_without_a_predicate_is_refused(db, story, path, refused):
    """It would match nothing and look like an erasure that found nothing."""
    call = "select outbox.erase('ws', %s::jsonpath, 'request 22')"
    if refused:
        with pytest.raises(psycopg.Error, match="no predicate") as error:
            db.execute(call, [path])
        assert error.value.sqlstate == "OB011"
        assert error.value.diag.message_hint
    else:
        assert value(db, call, path) == 4


def test_the_readmes_recipe_erases_one_customer(db, connect):
    """Run as it stands there, by the owner; an operator may not."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (recipe,) = re.findall(r"### Erasure.*?```sql\n(.*?)```", readme, re.DOTALL)
    theirs = add_event(db, "ws_42", payload={"customer": {"id": "c_9"}})
    add_event(db, "ws_42", payload={"customer": {"id": "c_10"}})
    statements = [one for one in recipe.split(";") if one.strip()]
    with pytest.raises(psycopg.Error, match="permission denied for function erase"):
        connect("operator_login").execute(statements[0])
    for statement in statements:
        db.execute(statement)
    assert value(
        db, "select array_agg(event_id) from outbox.known_events where payload = %s", Jsonb(ERASED)
    ) == [theirs]
    assert value(db, "select sum(affected) from outbox.operation_log") == 1


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_an_erasure_without_a_reason_is_refused(db, story, reason):
    """The record is worth nothing without the why."""
    with pytest.raises(psycopg.Error) as refused:
        db.execute("select outbox.erase(array[%s::uuid], %s)", [story["open"], reason])
    assert refused.value.sqlstate == "OB011"
    assert value(db, "select payload from outbox.event_log where event_id = %s", story["open"]) != ERASED


def test_events_stay_immutable_for_everybody(db, story):
    """Erasure needs no exception in the trigger: an UPDATE is refused for superusers as well."""
    with pytest.raises(psycopg.Error, match="immutable"):
        db.execute("update outbox.events set payload = '{\"erased\": true}'")
