"""Gates: slots that several endpoints share, first come, first served: those of one host, those of all suspects.

Reads: outcomes that are counted here. Writes: nothing; every time is an argument (monotonic seconds).
Guarantee: never more than its slots in flight; who waits at a gate is called in turn, and what it is called for is
kept for it; a host whose endpoints time out one after the other, and that answers none meanwhile, gets one probe at a
time.
If it dies: nothing is lost; a new worker counts from nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from outbox_worker.lane import NEVER, PROBE_SECONDS, TRIP_AFTER

if TYPE_CHECKING:
    from uuid import UUID

    from outbox_worker.lane import Lane

HOST_ENDPOINTS = 3
"""So many endpoints of a host must have failed, and none answered since, before all of them wait for a probe."""


class Gate:
    def __init__(self, name: str, most: int) -> None:
        self.name = name  # why who waits here waits
        self.most = most
        self.in_flight = 0
        # Endpoints that answer and suspects take turns, so that neither waits for all of the others.
        self.queues: tuple[OrderedDict[UUID, None], ...] = (OrderedDict(), OrderedDict())
        self.turn = 0
        self.kept: dict[UUID, int] = {}  # slots promised to who was called or asked for
        self.promised = 0

    def room(self, now: float) -> int:  # noqa: ARG002  (a host's depends on it)
        return self.most - self.in_flight

    def room_of(self, endpoint_id: UUID, now: float) -> int:
        """What this endpoint may have: all but what is kept for others."""
        room = self.room(now)
        return room - self.promised + self.kept.get(endpoint_id, 0) if self.kept else room

    def room_in_turn(self, endpoint_id: UUID, now: float) -> int:
        """The same for one whose turn it is in the ring: nothing while others wait that came before."""
        return 0 if self.crowded and endpoint_id not in self.kept else self.room_of(endpoint_id, now)

    @property
    def crowded(self) -> bool:
        return any(self.queues)

    @property
    def at_rest(self) -> bool:
        """Nothing is known here that a new gate would not know."""
        return not (self.in_flight or self.kept or self.crowded)

    def wait(self, endpoint_id: UUID, *, suspect: bool) -> None:
        """Behind those that wait; who waits already keeps its place."""
        if not self.waits(endpoint_id):
            self.queues[suspect][endpoint_id] = None

    def waits(self, endpoint_id: UUID) -> bool:
        return any(endpoint_id in queue for queue in self.queues)

    def leave(self, endpoint_id: UUID) -> None:
        self.forget(endpoint_id)
        for queue in self.queues:
            queue.pop(endpoint_id, None)

    def call(self, now: float) -> list[UUID]:
        """Those for whom there is room now, one slot each."""
        called = []
        while self.crowded and self.room(now) > self.promised:
            queue = self.queues[self.turn] or self.queues[1 - self.turn]
            self.turn = 1 - self.turn
            endpoint_id, _ = queue.popitem(last=False)
            self.keep(endpoint_id, 1)
            called.append(endpoint_id)
        return called

    def keep(self, endpoint_id: UUID, count: int) -> None:
        self.promised += count - self.kept.get(endpoint_id, 0)
        self.kept[endpoint_id] = count

    def forget(self, endpoint_id: UUID) -> None:
        self.promised -= self.kept.pop(endpoint_id, 0)

    def started(self, endpoint_id: UUID) -> None:
        self.in_flight += 1
        if self.kept and self.kept.get(endpoint_id, 0):
            self.kept[endpoint_id] -= 1
            self.promised -= 1

    def ended(self) -> None:
        self.in_flight -= 1


class Host(Gate):
    """The slots of one host, and its circuit: many endpoints on a dead host cost no more than one."""

    def __init__(self, most: int) -> None:
        super().__init__("host", most)
        self.limit = float(most)  # less only while it recovers
        self.failing: set[UUID] = set()  # endpoints that failed since anything here answered, the first few
        self.failures = 0  # in a row, of all its endpoints
        self.open_until = 0.0
        self.tripped_at = NEVER
        self.answered_at = -NEVER  # when it last answered anything

    @property
    def tripped(self) -> bool:
        return self.failures >= TRIP_AFTER and len(self.failing) >= HOST_ENDPOINTS

    @property
    def at_rest(self) -> bool:
        return super().at_rest and not self.failures and self.limit >= self.most

    def room(self, now: float) -> int:
        if self.tripped:  # a probe, one at a time, of whichever endpoint comes next
            return 1 if self.open_until <= now and self.in_flight == 0 else 0
        return min(int(self.limit), self.most) - self.in_flight

    def unreachable(self, endpoint_id: UUID, began: float, now: float) -> None:
        """A pause that does not double: a probe of a dead host costs a slot, a pause costs its live endpoints time.

        A request that was under way while the host answered another says nothing of the host.
        """
        if began < self.answered_at:
            return
        self.failures += 1
        if len(self.failing) < HOST_ENDPOINTS:
            self.failing.add(endpoint_id)
        if self.tripped and self.open_until <= now:
            self.open_until = now + PROBE_SECONDS
            self.tripped_at = min(self.tripped_at, now)

    def answered(self, began: float, now: float) -> None:
        """Any answer, whatever its status: the host is there. One to a probe is a recovery, which ramps up from one.

        One that was under way when the circuit opened says no more than that: what is in flight may go on, and grows.
        """
        if began >= self.tripped_at:
            self.limit = 1.0
        elif self.tripped:
            self.limit = min(self.limit, float(max(self.in_flight, 1)))
        self.tripped_at, self.answered_at = NEVER, now
        self.failing.clear()
        self.failures = 0
        self.open_until = 0.0
        self.limit = min(self.limit + 1, float(self.most))


class Gates:
    """All gates of this worker."""

    def __init__(self, *, host_limit: int, suspect_slots: int) -> None:
        self.host_limit = host_limit
        self.suspects = Gate("suspects", suspect_slots)
        self.hosts: dict[str, Host] = {}
        self.crowded: set[Gate] = set()  # where endpoints wait

    def host(self, name: str) -> Host:
        return self.hosts.get(name) or self.hosts.setdefault(name, Host(self.host_limit))

    def of(self, lane: Lane, host: str) -> tuple[Gate, ...]:
        """What it shares slots with: those of its host, once that is known, and of all suspects, if it is one."""
        found: tuple[Gate, ...] = (self.host(host),) if host else ()
        return (*found, self.suspects) if lane.suspect else found

    def wait(self, gate: Gate, lane: Lane) -> None:
        self.forget(lane)
        gate.wait(lane.endpoint_id, suspect=lane.suspect)
        self.crowded.add(gate)

    def waits_at(self, lane: Lane) -> str | None:
        names = [gate.name for gate in self.of(lane, lane.host) if gate.waits(lane.endpoint_id)]
        return names[0] if names else None

    def call(self, now: float) -> list[UUID]:
        called = []
        for gate in list(self.crowded):
            called += gate.call(now)
            if not gate.crowded:
                self.crowded.discard(gate)
        return called

    def forget(self, lane: Lane) -> None:
        """It takes none of what is kept for it, wherever that is."""
        for gate in (self.suspects, self.hosts.get(lane.host)):
            if gate is not None:
                gate.forget(lane.endpoint_id)

    def leave(self, lane: Lane) -> None:
        for gate in (self.suspects, self.hosts.get(lane.host)):
            if gate is not None:
                gate.leave(lane.endpoint_id)

    def started(self, lane: Lane, host: str) -> None:
        """Before its host is known, which the first request of an endpoint has to find out, it is ''."""
        if host:
            self.lives_at(lane, host)
        for gate in self.of(lane, host):
            gate.started(lane.endpoint_id)

    def lives_at(self, lane: Lane, host: str) -> None:
        if lane.host not in {"", host}:
            self.leave(lane)
        lane.host = host

    def found(self, lane: Lane, host: str, now: float) -> bool:
        """The host of a request that was started without it; False if there is no room for it there."""
        self.lives_at(lane, host)
        gate = self.host(host)
        if gate.room_of(lane.endpoint_id, now) <= 0:
            return False
        gate.started(lane.endpoint_id)
        return True

    def ended(self, host: str, *, was_suspect: bool) -> None:
        if was_suspect:
            self.suspects.ended()
        if host:
            gate = self.hosts[host]
            gate.ended()
            if not gate.in_flight and gate.at_rest:
                del self.hosts[host]

    def answered(self, host: str, began: float, now: float) -> None:
        if host in self.hosts:
            self.hosts[host].answered(began, now)

    def unreachable(self, host: str, endpoint_id: UUID, began: float, now: float) -> None:
        if host:
            self.host(host).unreachable(endpoint_id, began, now)
