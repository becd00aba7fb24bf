"""Partitions: made ahead, without gaps, by whoever comes first; an alarm when they are not.

Reads: outbox.partitions, outbox.partition_registry. Writes: a clone of the schema.
Guarantee: publishing never lacks a partition.
If it crashes: the clone is dropped.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.history import (
    add_event,
    in_background,
    value,
    wait_for_lock,
)
from tests.support.waiting import eventually

PARENTS = ("events", "finished_deliveries", "recorded_attempts")


def test_partitions_reach_from_one_width_back_to_four_weeks_ahead_without_gaps(db):
    """After migrate each parent has adjoining weeks that begin on Mondays; a second call makes none."""
    assert value(db, "select outbox.create_partitions()") == 0
    for parent in PARENTS:
        bounds = db.execute(
            "select lower_bound, upper_bound from outbox.partitions where parent = %s order by 1", [parent]
        ).fetchall()
        assert all(upper == lower for (_, upper), (lower, _) in pairwise(bounds))
        assert all(
            value(db, "select extract(isodow from %s at time zone 'UTC')", lower) == 1 for lower, _ in bounds
        )
        assert value(db, "select %s >= now() + interval '28 days'", bounds[-1][1])
        assert value(db, "select %s < date_trunc('week', now(), 'UTC')", bounds[0][0])
    assert value(db, "select outbox.partition_alarm()") is None


def test_a_published_event_lies_in_the_partition_of_its_time(db):
    """The bounds are those of the ids that the database makes now."""
    db.execute(
        "insert into outbox.events (workspace_id, event_type, payload) values ('ws', 'message.received',"
        " '{}')"
    )
    name = value(db, "select tableoid::regclass::text from outbox.events")
    assert (
        value(db, "select state from outbox.partitions where name = %s", name.removeprefix("outbox."))
        == "current"
    )


@pytest.mark.parametrize("width", ["1 hour", "36 hours", "90 minutes", "1 day", "31 days"])
def test_another_width_goes_on_from_the_highest_bound(db, width):
    """After a change of the width nothing overlaps, nothing is left out, and names stay unique."""
    ahead = "(select max(upper_bound) from outbox.partition_registry) - now() + interval"
    db.execute(
        f"update outbox.settings set partition_width = %s, partitions_ahead = {ahead} '31 hours'", [width]
    )
    assert value(db, "select outbox.create_partitions()") > 0
    db.execute(f"update outbox.settings set partition_width = '7 days', partitions_ahead = {ahead} '8 days'")
    assert value(db, "select outbox.create_partitions()") > 0
    gaps = value(
        db,
        "select count(*) from (select lower_bound, lag(upper_bound) over (partition by parent order by"
        " lower_bound) as before"
        " from outbox.partitions) p where before <> lower_bound",
    )
    assert gaps == 0


def test_after_a_long_standstill_only_what_is_needed_is_made(db):
    """Months in which nothing ran get no partitions."""
    db.execute(
        "update outbox.partition_registry set lower_bound = lower_bound - interval '1 year', upper_bound"
        " = upper_bound - interval '1 year'"
    )
    for (name,) in db.execute("select name from outbox.partition_registry").fetchall():
        db.execute(f"drop table outbox.{name}")
    assert value(db, "select outbox.create_partitions()") == 18


async def test_two_sessions_making_partitions_at_once_make_them_once(db, connect):
    """The second waits for the first and finds nothing to do."""
    db.execute("update outbox.settings set partitions_ahead = '60 days'")
    first, second = connect("worker_login"), connect("worker_login")
    first.autocommit = False
    assert value(first, "select outbox.create_partitions()") > 0
    with in_background(lambda: value(second, "select outbox.create_partitions()")) as outcome:
        await wait_for_lock(db, second, eventually)
        first.commit()
        assert outcome() == 0


def test_the_alarm_rings_when_fewer_than_three_days_are_ahead(db):
    """The text names the table and what to do."""
    db.execute("delete from outbox.partition_registry where parent = 'events' and lower_bound > now()")
    db.execute(
        "update outbox.partition_registry set upper_bound = now() + interval '2 days' where parent = 'events'"
    )
    alarm = value(db, "select outbox.partition_alarm()")
    assert "outbox.events" in alarm
    assert "outbox.create_partitions()" in alarm
    assert "finished_deliveries" not in alarm


def test_the_history_floor_is_above_all_that_was_dropped(db):
    """What is settled below the floor goes to the kept tables, even if an older partition is held."""
    floor = "select outbox.event_id_time(outbox.history_floor())"
    lowest = value(db, "select min(lower_bound) from outbox.partition_registry")
    assert value(db, floor) == lowest
    db.execute(
        "update outbox.partition_registry set dropped_at = now() where parent = 'recorded_attempts' and"
        " lower_bound = %s",
        [lowest],
    )
    assert value(db, floor) == value(db, "select %s::timestamptz + interval '7 days'", lowest)


def test_definitions_can_be_applied_again_over_existing_partitions(db, dsn_of):
    """A second migrate replaces views and triggers although partitions carry clones of them."""
    from outbox_worker.migrate import migrate  # noqa: PLC0415

    db.execute("update outbox.schema_definitions set sha256 = 'another'")
    assert len(migrate(dsn_of())) > 10
    add_event(db)
