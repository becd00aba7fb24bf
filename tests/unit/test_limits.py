"""Who may have how many requests: the lanes against a small model, with time as an argument."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_worker.lane import NEVER, PROBE_SECONDS, PROBE_SECONDS_MOST, START_LIMIT, TRIP_AFTER
from outbox_worker.limits import Lanes


def lanes(slots=100, share=0.2, endpoint_limit=128, host_limit=1000) -> Lanes:
    return Lanes(slots=slots, endpoint_limit=endpoint_limit, host_limit=host_limit, suspect_share=share)


def fly(all_lanes: Lanes, lane, count: int, host: str = "h") -> None:
    for _ in range(count):
        all_lanes.started(lane.endpoint_id, host)


def land(all_lanes: Lanes, lane, now: float, *, suspect: bool = False, host: str = "h") -> None:
    all_lanes.ended(lane, host, now, was_suspect=suspect)


def trip(all_lanes: Lanes, endpoint_id: UUID, now: float = 0.0):
    lane = all_lanes.lane(endpoint_id)
    for _ in range(TRIP_AFTER):
        all_lanes.unreachable(lane, 100, now)
    return lane


def test_an_endpoint_starts_small_grows_while_it_answers_and_shrinks_when_it_fails():
    """Slow start by one an answer, halved by a failure, never below one or above its maximum."""
    ours = lanes()
    lane = ours.configure(uuid4(), 20, None)
    assert lane.room(0) == START_LIMIT
    for _ in range(50):
        ours.answered(lane, 1)
    assert lane.room(0) == 20
    ours.refused(lane, 1)
    assert lane.room(0) == 10
    for _ in range(10):
        ours.refused(lane, 1)
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
        ours.unreachable(lane, 1, now)
        now = lane.open_until
    assert lane.probe_seconds == PROBE_SECONDS_MOST


def test_recovery_ramps_up_instead_of_flooding():
    """The first answer closes the circuit with a limit of two, not the one before."""
    ours = lanes()
    lane = trip(ours, uuid4())
    ours.answered(lane, 1)
    assert lane.circuit == "closed"
    assert lane.room(0) == 2
    assert lane.endpoint_id in ours.circuits_changed


def test_all_suspects_together_hold_a_bounded_share():
    """Ten hanging endpoints get 20 of 100 slots; the healthy one gets its own."""
    ours = lanes()
    for _ in range(10):
        lane = ours.lane(uuid4())
        ours.unreachable(lane, 1, 0)
        lane.limit = 50.0
        ours.work_is_due(lane.endpoint_id, 0)
    healthy = ours.lane(uuid4())
    ours.work_is_due(healthy.endpoint_id, 0)
    for _ in range(30):
        for lane, room in ours.plan(0, ours.slots - ours.in_flight):
            fly(ours, lane, room)
            ours.claimed(lane, room, room, 0)
    assert ours.suspects_in_flight == 20
    assert healthy.in_flight == START_LIMIT


def test_many_endpoints_on_one_host_share_its_limit():
    """A shared host with 500 slow endpoints holds its limit of slots and no more."""
    ours = lanes(slots=1000, host_limit=50)
    for _ in range(500):
        lane = ours.lane(uuid4())
        lane.host = "shared"
        ours.work_is_due(lane.endpoint_id, 0)
    for _ in range(100):
        for lane, room in ours.plan(0, ours.slots - ours.in_flight):
            fly(ours, lane, room, "shared")
            ours.claimed(lane, room, room, 0)
    assert ours.hosts["shared"] <= 50


def test_a_rate_limit_holds_over_any_second_but_the_first_burst():
    """max_per_second refills in time, never beyond one second's worth."""
    ours = lanes()
    lane = ours.configure(uuid4(), None, 5.0)
    started = 0
    for step in range(100):
        now = step / 10
        room = lane.room(now)
        fly(ours, lane, room)
        started += room
        for _ in range(room):
            land(ours, lane, now)
    assert started <= 5 * 10 + 5
    assert started >= 5 * 9


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


actions = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["due", "plan", "ok", "refuse", "hang", "later"])),
    max_size=200,
)


@given(actions, st.integers(1, 30), st.floats(0.05, 1))
def test_no_limit_is_exceeded_whatever_happens(steps, slots, share):
    """Per endpoint, per host, for suspects and in all: after any sequence of work, answers and failures."""
    ours = lanes(slots=slots, share=share, endpoint_limit=6, host_limit=9)
    ids = [UUID(int=n) for n in range(5)]
    flying: dict[UUID, list[bool]] = {endpoint_id: [] for endpoint_id in ids}
    now = 0.0
    for which, action in steps:
        endpoint_id = ids[which]
        lane = ours.lane(endpoint_id)
        if action == "due":
            ours.work_is_due(endpoint_id, now)
        elif action == "later":
            now += 1.7
        elif action == "plan":
            for planned, room in ours.plan(now, ours.slots - ours.in_flight):
                assert room > 0
                for _ in range(room):
                    flying[planned.endpoint_id].append(planned.suspect)
                    ours.started(planned.endpoint_id, "host")
                planned.host = "host"
                ours.claimed(planned, room, room, now)
        elif flying[endpoint_id]:
            was_suspect = flying[endpoint_id].pop()
            if action == "ok":
                ours.answered(lane, 1)
            elif action == "refuse":
                ours.refused(lane, 1)
            else:
                ours.unreachable(lane, 1, now)
            ours.ended(lane, "host", now, was_suspect=was_suspect)
        in_flight = sum(map(len, flying.values()))
        assert ours.in_flight == in_flight <= slots
        assert ours.suspects_in_flight == sum(map(sum, flying.values())) <= ours.suspect_slots
        assert ours.hosts.get("host", 0) == in_flight
        for one in ids:
            assert ours.lane(one).in_flight == len(flying[one]) <= 6
    assert ours.next_timer() <= NEVER
