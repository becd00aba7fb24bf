"""Random endpoints, limits and failures against a model that knows the rules and nothing of how they are kept.

Reads: nothing. Writes: nothing; every time is an argument.
Guarantee: whatever happens, no limit is exceeded, no circuit is passed, no share outgrown, and nobody is forgotten.
If it is wrong: the limits hold in the cases that somebody thought of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from outbox_worker.gates import HOST_ENDPOINTS
from outbox_worker.lane import PROBE_SECONDS, PROBE_SECONDS_MOST, SLOW_MS, TRIP_AFTER
from outbox_worker.limits import Lanes


@dataclass
class Circuit:
    """Open after so many failures in a row, of so many different endpoints; probed at a moment, one at a time.

    Where it is of several endpoints, a request that began before the last answer to another proves nothing.
    """

    endpoints: int
    longest: float
    answered_at: float = 0.0
    failures: int = 0
    failed: set[int] = field(default_factory=set)
    pause: float = 0.0
    probe_at: float = 0.0

    @property
    def broken(self) -> bool:
        return self.failures >= TRIP_AFTER and len(self.failed) >= self.endpoints

    def fails(self, number: int, began: float, now: float) -> None:
        if self.endpoints > 1 and began < self.answered_at:
            return
        self.failures += 1
        self.failed.add(number)
        if self.broken and now >= self.probe_at:  # one that began before it opened says nothing new
            self.pause = min(self.pause * 2, self.longest) if self.pause else PROBE_SECONDS
            self.probe_at = now + self.pause

    def answers(self, now: float) -> None:
        self.failures, self.failed, self.pause, self.probe_at, self.answered_at = 0, set(), 0.0, 0.0, now


@dataclass
class Model:
    """What is in the air, by the receivers' count, and what may be."""

    slots: int
    share: float
    host_limit: int
    endpoints: list[tuple[str, int, float | None]]  # host, most in flight, rate
    now: float = 100.0

    def __post_init__(self) -> None:
        self.flying: list[list[tuple[bool, float]]] = [[] for _ in self.endpoints]  # a suspect's, began
        self.starts: list[list[float]] = [[] for _ in self.endpoints]
        self.circuits = [Circuit(1, PROBE_SECONDS_MOST) for _ in self.endpoints]
        self.hosts = {host: Circuit(HOST_ENDPOINTS, PROBE_SECONDS) for host, _, _ in self.endpoints}
        self.slow = [False for _ in self.endpoints]

    def of_host(self, host: str) -> int:
        return sum(len(self.flying[n]) for n, (one, _, _) in enumerate(self.endpoints) if one == host)

    def suspect(self, number: int) -> bool:
        return self.circuits[number].failures > 0 or self.slow[number]

    def starts_now(self, number: int) -> None:
        host, _, _ = self.endpoints[number]
        for circuit, in_the_air in (
            (self.circuits[number], len(self.flying[number])),
            (self.hosts[host], self.of_host(host)),
        ):
            assert not circuit.broken or (in_the_air == 0 and self.now >= circuit.probe_at)
        self.flying[number].append((self.suspect(number), self.now))
        self.starts[number].append(self.now)

    def ends(self, number: int, how: str) -> tuple[bool, float]:
        host, _, _ = self.endpoints[number]
        was_suspect, began = self.flying[number].pop()
        for circuit in (self.circuits[number], self.hosts[host]):
            if how == "hang":
                circuit.fails(number, began, self.now)
            else:
                circuit.answers(self.now)
                self.slow[number] = how == "slow"
        return was_suspect, began

    def suspects(self) -> int:
        return sum(was_suspect for flying in self.flying for was_suspect, _ in flying)

    def check(self) -> None:
        assert sum(map(len, self.flying)) <= self.slots
        assert self.suspects() <= max(1, int(self.slots * self.share))
        for host in self.hosts:
            assert self.of_host(host) <= self.host_limit
        for number, (_, most, rate) in enumerate(self.endpoints):
            assert len(self.flying[number]) <= most
            times = self.starts[number]
            for i, first in enumerate(times) if rate else ():
                assert len(times) - i <= rate * (times[-1] - first) + 1 + rate / 10 + 1e-6


ACTIONS = ["due", "plan", "plan", "hand over", "ok", "slow", "refuse", *["hang"] * 4, "later", "resume"]
endpoints = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.sampled_from([None, None, 0.5, 2.0, 30.0])),
    min_size=2,
    max_size=7,
)
actions = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(ACTIONS)), min_size=40, max_size=200)
LATER = (0.1, 0.6, 3.0, 6.0, 60.0)
ALIKE = [("a", 6, None)] * 4
PROBES = [  # not at once, not two, and after a second failure not after the first pause
    (0, "plan"),
    *[(0, "hang")] * 6,
    (0, "plan"),
    *[(3, "later"), (0, "plan"), (0, "hand over"), (0, "hang")] * 3,
]
FEW = [("a", 2, None)] * 4
DEAD_HOST = [  # no endpoint's own circuit is open
    (0, "plan"),
    *[(number, "hang") for number in range(4)] * 2,
    *[(0, "plan"), (3, "later"), (0, "plan"), (0, "plan"), (1, "hand over")],
]
RATED = [(0, "plan"), *[(0, "later"), (0, "plan"), (0, "ok")] * 60]


@given(endpoints, actions, st.integers(1, 60), st.floats(0.02, 0.5), st.integers(1, 20))
@example(ALIKE, PROBES, 60, 0.5, 20)
@example(FEW, DEAD_HOST, 60, 0.5, 20)
@example([("a", 9, 2.0)], RATED, 60, 0.5, 20)
def test_no_limit_is_exceeded_whatever_happens(endpoints, steps, slots, share, host_limit):
    """Per endpoint and second, per host, for suspects and in all; no circuit is passed but by its probe."""
    model = Model(slots, share, host_limit, endpoints)
    ours = Lanes(slots=slots, endpoint_limit=128, host_limit=host_limit, suspect_share=share)
    lanes = []
    for number, (_, most, rate) in enumerate(endpoints):
        lanes.append(ours.configure(UUID(int=number), most, rate))
        lanes[-1].limit = 100.0  # as if it had grown: five halvings leave three
        ours.work_is_due(UUID(int=number), 0)

    def start(number: int) -> bool:
        host = endpoints[number][0]
        if ours.in_flight >= slots or not ours.admits(lanes[number], host, model.now):
            return False
        model.starts_now(number)
        ours.started(ours.lane(UUID(int=number)), host)
        return True

    def end(number: int, how: str) -> None:
        lane, (was_suspect, began) = lanes[number], model.ends(number, how)
        if how == "hang":
            ours.unreachable(
                lane, lane.host, (model.now - began) * 1000 - 1, model.now
            )  # begun after what ended then
        elif how == "refuse":
            ours.refused(lane, lane.host, 1, model.now)
        else:
            ours.answered(lane, lane.host, SLOW_MS + 1 if how == "slow" else 1, model.now)
        ours.ended(lane, endpoints[number][0], model.now, was_suspect=was_suspect)

    def plan() -> None:
        for lane, room, known in [
            (*ask, ask[0].host) for ask in ours.plan(model.now, slots - ours.in_flight)
        ]:
            assert room > 0
            for _ in range(room):  # at its first request nobody knows the host
                assert start(lane.endpoint_id.int) or not known
            ours.claimed(lane, room, room, model.now)

    for which, action in steps:
        number = which % len(endpoints)
        if action == "due":
            ours.work_is_due(UUID(int=number), model.now)
        elif action == "later":
            model.now += LATER[which % len(LATER)]
        elif action == "hand over":
            for _ in range(3):
                start(number)
        elif action == "resume":
            ours.resumed(lanes[number])
            model.circuits[number].answers(model.now)
            model.slow[number] = False
        elif action == "plan":
            plan()
        elif model.flying[number]:
            end(number, action)
        model.check()
        seen(ours, lanes, model)
    nobody_is_forgotten(ours, lanes, model.now)


def seen(ours, lanes, model) -> None:
    """Its own counts are the model's, and what is kept is for somebody who comes."""
    assert [lane.in_flight for lane in lanes] == list(map(len, model.flying))
    assert ours.in_flight == sum(map(len, model.flying))
    assert ours.gates.suspects.in_flight == model.suspects()
    for gate in (ours.gates.suspects, *ours.gates.hosts.values()):
        assert gate.promised == sum(gate.kept.values()) >= 0
        assert gate.kept.keys() <= ours.ready.keys()


def nobody_is_forgotten(ours, lanes, now) -> None:
    """What is due is in the ring, at a gate, in the air, or has its moment."""
    for lane in lanes:
        if lane.due_at <= now:
            waits = (
                lane.endpoint_id in ours.ready
                or ours.gates.waits_at(lane)
                or lane.in_flight
                or lane.scheduled
            )
            assert waits or any(gate.waits(lane.endpoint_id) for gate in ours.gates.hosts.values())
