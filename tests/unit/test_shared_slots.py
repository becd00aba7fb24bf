"""Slots that endpoints share, those of a host and those of all suspects: who gets them, who waits, for how long."""

from __future__ import annotations

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from outbox_worker.lane import START_LIMIT, TRIP_AFTER
from tests.support.lanes import fly, land, lanes, trip


def test_all_suspects_together_hold_a_bounded_share():
    """Ten hanging endpoints get 20 of 100 slots; the healthy one gets its own."""
    ours = lanes()
    for _ in range(10):
        lane = ours.lane(uuid4())
        ours.unreachable(lane, lane.host, 1, 0)
        lane.limit = 50.0
        ours.work_is_due(lane.endpoint_id, 0)
    healthy = ours.lane(uuid4())
    ours.work_is_due(healthy.endpoint_id, 0)
    for _ in range(30):
        for lane, room in ours.plan(0, ours.slots - ours.in_flight):
            fly(ours, lane, room)
            ours.claimed(lane, room, room, 0)
    assert ours.gates.suspects.in_flight == 20
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
    assert ours.gates.hosts["shared"].in_flight == 50


def on_dead_host(count):
    """Endpoints of one host that never answers, all with due work, and the number of requests in each 20 seconds."""
    ours = lanes(slots=1000, host_limit=50)
    for n in range(count):
        lane = ours.lane(UUID(int=n))
        lane.host = "dead"
        ours.work_is_due(lane.endpoint_id, 0)
    ends: list[tuple[float, object, bool]] = []
    started = []
    for tick in range(200):
        now = float(tick)
        for _, lane, was_suspect in [end for end in ends if end[0] <= now]:
            ours.unreachable(lane, lane.host, 15_000, now)
            ours.ended(lane, "dead", now, was_suspect=was_suspect)
        ends = [end for end in ends if end[0] > now]
        for lane, room in ours.plan(now, ours.slots - ours.in_flight):
            for _ in range(room):
                ends.append((now + 15, lane, lane.suspect))
                fly(ours, lane, 1, "dead")
                started.append(now)
            ours.claimed(lane, room, room, now)
    return ours, [sum(20 * n <= at < 20 * (n + 1) for at in started) for n in range(10)]


def test_many_endpoints_on_one_dead_host_cost_no_more_than_one():
    """Five hundred on a black hole: the host's slots once, then one probe at a time, whichever endpoint's it is."""
    ours, counts = on_dead_host(500)
    assert counts[0] == 50
    assert all(1 <= count <= 2 for count in counts[1:])
    assert ours.gates.hosts["dead"].tripped
    waiting = [lane for lane in ours.lanes.values() if ours.waits_for(lane, 200) == "host"]
    assert len(waiting) > 400


def test_a_host_that_answers_again_ramps_up_for_all_its_endpoints():
    """The first answer closes the host's circuit with two slots; each further answer adds one."""
    ours, _ = on_dead_host(20)
    host = ours.gates.hosts["dead"]
    for lane in list(ours.lanes.values()):
        while lane.in_flight:
            ours.ended(lane, "dead", 200, was_suspect=True)
    ours.answered(lane, lane.host, 1, 200)
    assert (host.tripped, host.room(200)) == (False, 2)
    for _ in range(100):
        ours.answered(lane, lane.host, 1, 200)
    assert host.room(200) == 50


def test_one_broken_endpoint_never_closes_its_host_to_others():
    """A customer's dead path on a shared host opens its own circuit and no more."""
    ours = lanes()
    lane = ours.lane(uuid4())
    lane.host = "shared"
    for _ in range(50):
        ours.unreachable(lane, lane.host, 1, 0)
    other = ours.lane(uuid4())
    assert not ours.gates.host("shared").tripped
    assert ours.admits(other, "shared", 0)


def on_shared_host(count):
    """Endpoints of one host, each with one request in flight since 0."""
    ours = lanes()
    ours_there = [ours.lane(UUID(int=n)) for n in range(count)]
    for lane in ours_there:
        lane.host = "shared"
        fly(ours, lane, 1, "shared")
    return ours, ours_there


def test_endpoints_that_hang_while_their_host_answers_others_do_not_close_it():
    """Ten time out that were under way when the host answered another: they are slow, the host is there."""
    ours, (quick, *hanging) = on_shared_host(11)
    ours.answered(quick, quick.host, 5, 0.005)
    for lane in hanging:
        ours.unreachable(lane, lane.host, 500, 0.5)
    assert not ours.gates.host("shared").tripped
    assert ours.admits(quick, "shared", 0.5)
    for lane in hanging:  # begun after that answer, and none since
        ours.unreachable(lane, lane.host, 400, 0.5)
    assert ours.gates.host("shared").tripped


def test_an_answer_that_was_under_way_when_the_hosts_circuit_opened_is_no_recovery():
    """The quick failures of some came before the first answer of another: what is in flight goes on, and grows."""
    ours, (quick, *broken) = on_shared_host(11)
    for lane in broken:
        ours.unreachable(lane, lane.host, 5, 0.005)
    assert not ours.admits(quick, "shared", 0.006)
    ours.answered(quick, quick.host, 20, 0.02)
    assert ours.gates.host("shared").room(0.02) == 1
    assert ours.admits(quick, "shared", 0.02)
    ours.answered(quick, quick.host, 20, 0.03)
    assert ours.gates.host("shared").room(0.03) == 2


def test_an_outcome_counts_at_the_host_that_the_request_went_to():
    """The URLs of some changed while they hung: the host that they left is the one that answers nobody."""
    ours, moved = on_shared_host(11)
    for lane in moved:
        ours.gates.lives_at(lane, "new")
        ours.unreachable(lane, "shared", 500, 0.5)
    assert (ours.gates.host("shared").tripped, ours.gates.host("new").tripped) == (True, False)
    ours.answered(moved[0], "shared", 500, 0.5)
    assert not ours.gates.host("shared").tripped


def test_no_event_starts_at_a_circuit_that_opened_while_it_was_claimed():
    """Neither its own nor its host's: what a claim or a fan-out brings late is given back."""
    ours = lanes()
    lane = ours.lane(uuid4())
    assert ours.admits(lane, "h", 0)
    trip(ours, lane.endpoint_id)
    assert not ours.admits(lane, "h", 0)
    for _ in range(3):
        failed = ours.lane(uuid4())
        failed.host = "h"
        for _ in range(TRIP_AFTER):
            ours.unreachable(failed, failed.host, 1, 0)
    assert not ours.admits(ours.lane(uuid4()), "h", 0)


def test_what_waits_for_others_slots_says_so():
    """Its host and the suspects are reasons beside the endpoint's own limits."""
    ours = lanes(slots=10, share=0.1, host_limit=1)
    ids = [uuid4() for _ in range(2)]
    for endpoint_id in ids:
        ours.lane(endpoint_id).host = "h"
        ours.work_is_due(endpoint_id, 0)
    ((lane, room),) = ours.plan(0, 10)
    fly(ours, lane, room)
    (other,) = [ours.lane(endpoint_id) for endpoint_id in ids if endpoint_id != lane.endpoint_id]
    ours.plan(0, 9)
    assert ours.waits_for(other, 0) == "host"
    hanging = [ours.lane(uuid4()) for _ in range(2)]
    for one in hanging:
        ours.unreachable(one, one.host, 1, 0)
        ours.work_is_due(one.endpoint_id, 0)
    ours.plan(0, 9)
    assert [ours.waits_for(one, 0) for one in hanging].count("suspects") == 1


def test_a_slot_is_not_kept_for_one_that_waits_elsewhere_meanwhile():
    """Its host calls a suspect, but the suspects' slots are taken: the host's slot is free for whoever comes next."""
    ours = lanes(slots=10, share=0.1, host_limit=1)
    on_host, hanging, suspect, healthy = (ours.lane(UUID(int=n)) for n in range(4))
    on_host.host = suspect.host = healthy.host = "h"
    hanging.slow = suspect.slow = True
    fly(ours, on_host, 1)
    ours.work_is_due(suspect.endpoint_id, 0)
    assert ours.plan(0, 9) == []
    assert ours.waits_for(suspect, 0) == "host"
    fly(ours, hanging, 1, "other")
    land(ours, on_host, 1)
    assert ours.plan(1, 9) == []
    assert ours.waits_for(suspect, 1) == "suspects"
    ours.work_is_due(healthy.endpoint_id, 2)
    assert ours.plan(2, 9) == [(healthy, 1)]


@given(
    st.integers(1, 30), st.integers(1, 8), st.integers(1, 6), st.sampled_from(["healthy", "suspects", "host"])
)
def test_no_endpoint_with_due_work_waits_longer_than_the_stated_bound(endpoints, slots, lasts, kind):
    """The README's bound: the time of one request, times the endpoints before it by slot, and one more."""
    ours = lanes(
        slots=slots if kind == "healthy" else 1000,
        share=slots / 1000,
        host_limit=slots if kind == "host" else 1000,
    )
    last = {UUID(int=n): 0 for n in range(endpoints)}
    for endpoint_id in last:
        lane = ours.lane(endpoint_id)
        lane.host = "h"
        lane.slow = kind == "suspects"
        ours.work_is_due(endpoint_id, 0)
    bound = (-(-endpoints // slots) + 1) * lasts * (2 if kind == "host" else 1)
    ends: list[tuple[int, object]] = []
    for now in range(1, 8 * bound):
        for at, lane in list(ends):
            if at <= now:
                ends.remove((at, lane))
                ours.ended(lane, "h", now, was_suspect=lane.suspect)
        for lane, room in ours.plan(now, ours.slots - ours.in_flight):
            for _ in range(room):
                fly(ours, lane, 1)
                ends.append((now + lasts, lane))
            last[lane.endpoint_id] = now
            ours.claimed(lane, room, room, now)
        for endpoint_id, at in last.items():
            assert now - at <= bound or ours.lane(endpoint_id).in_flight
