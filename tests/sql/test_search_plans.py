"""What outbox-worker search sends has an indexed plan on a history of 45 weeks, also for a value that every event holds.

Reads and writes: a database of its own, filled once for the file.
Guarantee: a search for an indexed value opens only the partitions of what it shows and reads no more rows than that
takes, on both server versions.
If it fails: support staff wait, and the history is read through each time they ask.
"""

from __future__ import annotations

from uuid import UUID

import pytest

from outbox_worker.cli import condition as searching
from outbox_worker.cli.condition import Condition, found
from tests.support.plans import HISTORY, long_history, nodes_of, partitions_touched, rows_read, scans


@pytest.fixture(scope="module")
def history(cluster, template):
    with long_history(cluster, template) as connection:
        yield connection


def search_for(path: str, value: str, **more) -> Condition:
    searched = Condition({"limit": 50, "path": f"$.{path}[*]", "values": f'["{value}"]'})
    for name, one in {"jsonpath": f'$.{path}[*] == "{value}"', **more}.items():
        searched.add(name, one)
    return searched


def asked(history, monkeypatch, searched):
    """Search; give what was found and the plans of the statements that it took."""
    plans = []
    rows = searching.rows

    def explained(connection, query, values):
        plans.append(nodes_of(connection, query, values))
        return rows(connection, query, values)

    with monkeypatch.context() as patched:
        patched.setattr(searching, "rows", explained)
        return list(found(history, searched)), plans


@pytest.mark.parametrize("more", [{}, {"workspace": "ws_17"}, {"states": ["delivered"]}], ids=str)
def test_the_search_for_an_order_number_opens_the_partitions_of_its_event(history, monkeypatch, more):
    """The index names the event; its deliveries are read from the one partition of each table that holds them."""
    matching, (page, *rest) = asked(history, monkeypatch, search_for("order.id", "A-77", **more))
    assert {row["event_id"] for row in matching} == {matching[0]["event_id"]}
    assert scans(page) == []
    for nodes in rest:
        assert scans(nodes) == []
        assert {parent: n for parent, n in partitions_touched(nodes).items() if n > 1} == {}


def test_a_value_that_every_event_holds_costs_what_is_shown(history, monkeypatch):
    """The newest come first, by their id; the others are not read, let alone sorted."""
    matching, plans = asked(history, monkeypatch, search_for("tags", "all"))
    assert len(matching) == 50
    ids = [row["event_id"] for row in matching]
    assert ids == sorted(ids, reverse=True)
    assert [scans(nodes) for nodes in plans] == [[]] * len(plans)
    assert sum(rows_read(nodes, HISTORY) for nodes in plans) < 2000


def test_pages_go_on_until_the_limit_or_the_end(history, monkeypatch):
    """What the other conditions reject does not hide what is older; nothing is found twice."""
    monkeypatch.setattr(searching, "_PAGES", (10, 10))
    matching, plans = asked(history, monkeypatch, search_for("tags", "of 0", states=["dead"]))
    assert len({(row["event_id"], row["endpoint_id"]) for row in matching}) == len(matching) == 50
    assert len(plans) == 5
    none, plans = asked(
        history, monkeypatch, search_for("tags", "all", states=["held"], endpoint=str(UUID(int=0)))
    )
    assert (none, len(plans)) == ([], 5)
