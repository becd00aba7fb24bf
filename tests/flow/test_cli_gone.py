"""What show and search say of an event whose payload and responses went before its facts."""

from __future__ import annotations

import pytest

from tests.support.commands import Commands
from tests.support.history import add_endpoint, add_event, add_finished, value


@pytest.fixture
def cli(dsn_of) -> Commands:
    return Commands(dsn_of("reader_login"))


@pytest.fixture
def bare(db):
    """An event of twenty days ago without its payload, refused twice without what was answered."""
    for parent in ("events", "finished_deliveries", "recorded_attempts"):
        db.execute(
            "select outbox.make_partition(%s, min(lower_bound) - interval '28 days', min(lower_bound))"
            " from outbox.partition_registry where parent = %s",
            [parent, parent],
        )
    db.execute(
        "update outbox.settings set partition_width = '1 day', payload_retention = '3 days', response_retention = '3 days'"
    )
    endpoint = add_endpoint(db)
    event = add_event(db, age="20 days")
    add_finished(db, event, endpoint, "delivered", ago="20 days", attempts=2)
    while value(db, "select outbox.strip_partitions()") > 0:
        continue
    return event


def test_show_tells_the_facts_and_since_when_the_rest_is_gone(bare, cli):
    """Type, endpoint, state, status and timing stay; nothing is shown as if it had been empty."""
    ran = cli("show", bare)
    assert ran.code == 0, ran.err
    assert "message.received" in ran.lines[0]
    assert any("payload gone since 2" in line for line in ran.lines)
    assert sum("response gone since 2" in line for line in ran.lines) == 2
    assert sum("HTTP 500 in 12 ms" in line for line in ran.lines) == 2
    assert "null" not in ran.out
    (story,) = cli("show", bare, "--json").json
    assert story["payload"] is None
    assert story["payload_gone_at"]


def test_search_says_which_time_its_text_cannot_reach(bare, cli):
    """Found by facts as ever; by content not, and not silently."""
    assert [row["event_id"] for row in cli("search", "--since", "30d", "--json").json] == [str(bare)]
    for option, looked_for in (("--text", "Ada"), ("--jsonpath", "$.n == 1")):
        ran = cli("search", "--since", "30d", option, looked_for, "--json")
        assert (ran.code, ran.out) == (0, "")
        assert "are gone" in ran.err, option
        assert "are gone" not in cli("search", "--since", "2h", option, looked_for, "--json").err


def test_a_dry_run_counts_nothing_that_cannot_be_sent(bare, dsn_of, db):
    """What is counted is what a replay then does; the refusal says since when."""
    operator = Commands(dsn_of("operator_login"))
    other = add_endpoint(db)
    for more in ([], ["--endpoint", other]):
        assert operator("replay", "--event", bare, *more, "--dry-run", "--json").json == [{"would_replay": 0}]
        ran = operator("replay", "--event", bare, *more, "--yes")
        assert ran.code == 2
        assert "payload is gone since" in ran.err
