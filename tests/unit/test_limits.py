"""Who may have how many requests: the lanes against a small model, with time as an argument."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from outbox_worker.claim import note_marks
from outbox_worker.lane import (
    ALREADY,
    PROBE_SECONDS,
    PROBE_SECONDS_MOST,
    SLOW_MS,
    START_LIMIT,
    WEIGHTS,
)
from tests.support.lanes import fly, land, lanes, trip


def test_an_endpoint_starts_small_grows_while_it_answers_and_shrinks_when_it_fails():
    """Slow start by one an answer, halved by a failure, never below one or above its maximum."""
    ours = lanes()
    lane = ours.configure(uuid4(), 20, None)
    assert lane.room(0) == START_LIMIT
    for _ in range(50):
        ours.answered(lane, lane.host, 1, 0)
    assert lane.room(0) == 20
    ours.refused(lane, lane.host, 1, 0)
    assert lane.room(0) == 10
    for _ in range(10):
        ours.refused(lane, lane.host, 1, 0)
    assert lane.room(0) == 1


def test_after_consecutive_timeouts_only_one_probe_at_a_time_goes_out():
    """Open: nothing until the probe's time; then one request; each failed probe doubles the wait up to a minute."""
    ours = lanes()
    lane = trip(ours, uuid4())
    assert (lane.circuit, lane.room(PROBE_SECONDS - 0.1)) == ("open", 0)
    assert lane.room(PROBE_SECONDS) == 1
    fly(ours, lane, 1)
    assert lane.room(PROBE_SECONDS) == 0
    now = PROBE_SECONDS
    for _ in range(10):
        ours.unreachable(lane, lane.host, 1, now)
        now = lane.open_until
    assert lane.probe_seconds == PROBE_SECONDS_MOST


def test_recovery_ramps_up_instead_of_flooding():
    """The first answer closes the circuit with a limit of two, not the one before."""
    ours = lanes()
    lane = trip(ours, uuid4())
    ours.answered(lane, lane.host, 1, 0)
    assert lane.circuit == "closed"
    assert lane.room(0) == 2
    assert lane.endpoint_id in ours.circuits_changed


@pytest.mark.parametrize("rate", [0.5, 5.0, 40.0])
def test_a_rate_limit_holds_over_any_stretch_of_time(rate):
    """In t seconds at most t times the rate, a tenth of a second's worth and one; no idle time is saved up."""
    ours = lanes()
    lane = ours.configure(uuid4(), None, rate)
    started = []
    for step in range(600):
        now = 1000 + step / 20
        if 200 < step < 400:
            continue  # idle
        for _ in range(lane.room(now)):
            fly(ours, lane, 1)
            land(ours, lane, now)
            started.append(now)
    burst = 1 + rate / 10
    for i, first in enumerate(started):
        for j in range(i, len(started)):
            assert j - i + 1 <= rate * (started[j] - first) + burst + 1e-6
    assert len(started) >= rate * 20 * 0.9 - 1


def test_a_rate_limit_survives_a_change_of_the_shards_owner():
    """Each new owner starts with one request and no saved burst: one more than the rate for each change."""
    rate, started, endpoint_id = 20.0, 0, uuid4()
    for owner in range(5):
        ours = lanes()
        lane = ours.configure(endpoint_id, None, rate)
        for step in range(20):
            now = 5000 + owner + step / 20
            for _ in range(lane.room(now)):
                fly(ours, lane, 1)
                land(ours, lane, now)
                started += 1
    assert rate * 5 * 0.9 <= started <= rate * 5 + rate / 10 + 1 + 4


def test_claims_that_come_late_do_not_bunch_requests():
    """What was asked for counts when it starts: a slow claim's time is not saved up for the next."""
    ours = lanes()
    lane = ours.configure(uuid4(), None, 10.0)
    assert lane.room(0) == 1
    for _ in range(2):  # the claim took three seconds
        assert ours.admits(lane, "h", 3.0)
        fly(ours, lane, 1)
    assert not ours.admits(lane, "h", 3.05)
    assert ours.admits(lane, "h", 3.1)


def test_waiting_for_a_limit_is_a_visible_reason():
    """slots, rate or circuit; nothing while it may go."""
    ours = lanes()
    lane = ours.configure(uuid4(), 1, None)
    ours.work_is_due(lane.endpoint_id, 0)
    assert lane.waits_for(0) is None
    fly(ours, lane, 1)
    assert lane.waits_for(0) == "slots"
    rated = ours.configure(uuid4(), None, 1.0)
    rated.tokens = 0.0
    ours.work_is_due(rated.endpoint_id, 0)
    assert rated.waits_for(0) == "rate"
    broken = trip(ours, uuid4())
    ours.work_is_due(broken.endpoint_id, 0)
    assert broken.waits_for(0) == "circuit"


def test_the_round_gives_every_ready_endpoint_its_turn():
    """One with a million waiting and one with three get the same share of a round."""
    ours = lanes(slots=40)
    ids = [uuid4() for _ in range(10)]
    for endpoint_id in ids:
        ours.work_is_due(endpoint_id, 0)
    asks = ours.plan(0, 40)
    assert {lane.endpoint_id for lane, _ in asks} == set(ids)
    assert {room for _, room in asks} == {4}


def test_each_retrys_moment_is_remembered():
    """A claim that finds nothing more leaves the later moments standing; each wakes its endpoint."""
    ours = lanes()
    lane = ours.lane(uuid4())
    for at in (5.0, 1.0, 3.0):
        ours.work_is_due(lane.endpoint_id, at)
    woken = []
    for now in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        for one, room in ours.plan(now, 10):
            woken.append(now)
            ours.claimed(one, room, room - 1, now)
    assert woken == [1.0, 3.0, 5.0]


def test_work_that_comes_in_while_a_claim_is_under_way_is_asked_for_next():
    """The claim cannot have seen it: that it brought less than asked says nothing of what came since."""
    ours = lanes()
    endpoint_id = uuid4()
    ours.work_is_due(endpoint_id, ALREADY)
    ((lane, room),) = ours.plan(10.0, 100)
    ours.work_is_due(endpoint_id, ALREADY)
    ours.claimed(lane, room, 1, 10.0)
    assert ours.plan(10.1, 100) == [(lane, room)]
    ours.claimed(lane, room, 1, 10.1)
    assert ours.plan(10.2, 100) == []


def test_a_claim_under_way_does_not_move_its_marks_past_what_comes_in_meanwhile():
    """Inserted before what the claim brought was due, committed after it began: only the start would find it again."""
    ours = lanes()
    endpoint_id, before = uuid4(), datetime(2026, 1, 1, tzinfo=UTC)
    ours.work_is_due(endpoint_id, ALREADY)
    ((lane, _),) = ours.plan(10.0, 100)
    lane.read_again(before)
    note_marks(ours, [brought(endpoint_id, before + timedelta(seconds=1))])
    assert lane.marks[1] == before
    ours.plan(10.1, 100)
    note_marks(ours, [brought(endpoint_id, before + timedelta(seconds=2))])
    assert lane.marks[1] == before + timedelta(seconds=2)


def brought(endpoint_id, due):
    delivery = SimpleNamespace(endpoint_id=endpoint_id, priority=1)
    return SimpleNamespace(delivery=delivery, next_attempt_at=due)


def test_the_fan_out_is_told_of_lanes_with_less_room_than_a_new_one():
    """Others are left to the default room; where work waits already, nothing is handed over."""
    ours = lanes()
    ours.lane(uuid4())
    assert ours.handed_over_room(0) == {}
    busy = ours.lane(uuid4())
    fly(ours, busy, 3)
    assert ours.handed_over_room(0) == {busy.endpoint_id: (5, 3)}
    ours.work_is_due(busy.endpoint_id, 0)
    assert ours.handed_over_room(0) == {busy.endpoint_id: (0, 3)}


@pytest.mark.parametrize(
    ("duration", "bucket"),
    [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32768, 15), (32769, 16), (10**9, 16)],
)
def test_latencies_are_counted_by_powers_of_two(duration, bucket):
    """Bucket n counts durations above 2^(n-1) up to 2^n milliseconds."""
    ours = lanes()
    lane = ours.lane(uuid4())
    ours.count(lane, duration)
    assert lane.latency_counts.index(1) == bucket


def test_requests_that_began_before_the_circuit_opened_do_not_delay_its_first_probe():
    """Fifty that hang at once open it for five seconds, not for a minute."""
    ours = lanes()
    lane = ours.lane(uuid4())
    for i in range(50):
        ours.unreachable(lane, lane.host, 100, i / 100)
    assert lane.open_until <= 0.5 + PROBE_SECONDS
    assert lane.probe_seconds == PROBE_SECONDS


def test_resuming_gives_a_clean_slate_and_a_slow_start():
    """The circuit is closed, the next request goes at once and alone; each answer lets one more."""
    ours = lanes()
    lane = trip(ours, uuid4())
    ours.work_is_due(lane.endpoint_id, 0)
    assert ours.plan(1, 10) == []
    ours.resumed(lane)
    assert (lane.circuit, lane.suspect) == ("closed", False)
    assert ours.plan(1, 10) == [(lane, 1)]
    assert lane.endpoint_id in ours.handed_over_room(1)
    ours.answered(lane, lane.host, 1, 1)
    assert lane.room(1) == 2


def test_an_endpoint_that_answers_slowly_is_a_suspect_and_does_not_grow():
    """Fourteen seconds an answer hold a slot almost like a timeout: they share the suspects' slots until they are quick."""
    ours = lanes()
    lane = ours.lane(uuid4())
    ours.answered(lane, lane.host, SLOW_MS + 1, 0)
    assert lane.suspect
    assert lane.limit == START_LIMIT
    assert ours.handed_over_room(0) == {} or ours.handed_over_room(0)[lane.endpoint_id][0] == 0
    ours.answered(lane, lane.host, SLOW_MS, 0)
    assert not lane.suspect
    assert lane.limit == START_LIMIT + 1


def test_urgent_goes_before_bulk_without_starving_it():
    """By turns over many claims, however little room each has: of thirteen places eight, four and one."""
    lane = lanes().lane(uuid4())
    served = [0, 0, 0]
    for _ in range(1300):
        places = [turn + weight for turn, weight in zip(lane.turns, WEIGHTS, strict=True)]
        first = places.index(min(places))
        served[first] += 1
        lane.took([int(priority == first) for priority in range(3)])
    assert served == [800, 400, 100]


def test_an_alert_passes_a_campaign_that_has_had_every_turn_so_far():
    """Nobody saves up turns, nobody runs into debt: after a million of bulk the next urgent one is first."""
    lane = lanes().lane(uuid4())
    for _ in range(1000):
        lane.took([0, 0, 8])
    assert lane.turns[0] + WEIGHTS[0] < lane.turns[2] + WEIGHTS[2]
    lane.took([8, 0, 0])
    assert max(lane.turns) <= max(WEIGHTS) + 8
