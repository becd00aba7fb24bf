"""When a failed delivery is due again: the promised schedule, and nothing ever earlier.

Guarantee: the hint and the jitter only add, each within its bound.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_worker import classify
from outbox_worker.backoff import DEFAULT_SCHEDULE, LONGEST_HINT, delay

SCHEDULES = st.lists(st.timedeltas(timedelta(seconds=1), timedelta(days=30)), min_size=1, max_size=50)
HINTS = st.none() | st.timedeltas(timedelta(days=-1), timedelta(days=400))
JITTERS = st.floats(0, 1, exclude_max=True)


def test_the_default_schedule_is_the_promised_one():
    """Seven retries: 30 s, 2 min, 10 min, 1 h, 4 h, 12 h, 24 h."""
    found = [delay(DEFAULT_SCHEDULE, failed, None, 0) for failed in range(1, 8)]
    assert [wait.total_seconds() for wait in found] == [30, 120, 600, 3600, 14400, 43200, 86400]


@given(SCHEDULES, st.data(), HINTS, JITTERS)
def test_hint_and_jitter_only_ever_add(schedule, data, hint, jitter):
    """Between the longer of schedule and bounded hint, and a tenth more."""
    failed = data.draw(st.integers(1, len(schedule)))
    wait = delay(schedule, failed, hint, jitter)
    least = max(schedule[failed - 1], min(hint, timedelta(hours=24)) if hint is not None else timedelta(0))
    assert least <= wait <= least * 1.1 + timedelta(microseconds=1)


def test_jitter_spreads_over_a_tenth():
    """Half of the range of jitter is half a tenth."""
    assert delay(DEFAULT_SCHEDULE, 3, None, 0.5) == timedelta(minutes=10.5)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (timedelta(seconds=-5), timedelta(minutes=2)),
        (timedelta(0), timedelta(minutes=2)),
        (timedelta(seconds=119), timedelta(minutes=2)),
        (timedelta(hours=3), timedelta(hours=3)),
        (timedelta(days=3650), timedelta(hours=24)),
        (timedelta.max, timedelta(hours=24)),
    ],
)
def test_T22_a_hint_counts_between_the_schedule_and_24_hours(hint, expected):
    """A receiver may ask for more time, never for less, and for a day at most."""
    assert delay(DEFAULT_SCHEDULE, 2, hint, 0) == expected


def test_a_hint_never_shortens_a_schedule_longer_than_a_day():
    """An endpoint's own schedule may wait for days."""
    assert delay([timedelta(days=3)], 1, timedelta(days=10), 0) == timedelta(days=3)


@pytest.mark.parametrize("failed", [-1, 0, 8])
def test_there_is_no_delay_outside_the_schedule(failed):
    """After the last retry comes a dead letter, and index 0 must not mean the last entry."""
    with pytest.raises(ValueError, match="of a schedule of 7"):
        delay(DEFAULT_SCHEDULE, failed, None, 0)


@pytest.mark.parametrize("jitter", [-0.1, 1.0, float("nan")])
def test_jitter_outside_its_range_is_refused(jitter):
    """A negative one would retry early."""
    with pytest.raises(ValueError, match="jitter"):
        delay(DEFAULT_SCHEDULE, 1, None, jitter)


def test_the_two_readers_of_a_hint_bound_it_alike():
    """What the parser clamps to is what the delay takes at most."""
    assert classify.LONGEST_HINT == LONGEST_HINT
