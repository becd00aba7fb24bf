"""Limits: who may have how many requests, decided in memory by the one worker that owns the endpoint's shard.

Reads: outcomes and due times that the loops report. Writes: nothing; every time is an argument (monotonic seconds).
Guarantee: an endpoint never has more in flight than its limit, nor a host; all suspects together hold at most their
share of the slots; a closed circuit, free slots and due work mean a place in the next round.
If it dies: nothing is lost; a new worker starts small again.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from outbox_worker.gates import Gates
from outbox_worker.lane import (
    ALREADY,
    LATENCY_BUCKETS,
    LATER_MOST,
    MOMENTS_A_SECOND,
    NEVER,
    PROBE_SECONDS,
    PROBE_SECONDS_MOST,
    SLOW_MS,
    START_LIMIT,
    TRIP_AFTER,
    Lane,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID


class Lanes:
    """All lanes of this worker: a ring of those with due work, a heap of those that wait for a moment."""

    def __init__(
        self,
        *,
        slots: int,
        endpoint_limit: int,
        host_limit: int,
        suspect_share: float,
        owned: set[int] | None = None,
    ) -> None:
        self.owned = owned  # shards whose endpoints take turns here; None is all
        self.slots = slots
        self.endpoint_limit = endpoint_limit
        self.gates = Gates(host_limit=host_limit, suspect_slots=max(1, int(slots * suspect_share)))
        self.lanes: dict[UUID, Lane] = {}
        self.ready: OrderedDict[UUID, None] = OrderedDict()
        self.timers: list[tuple[float, UUID]] = []
        self.in_flight = 0
        self.restricted: set[UUID] = set()  # lanes that may have less room than a new one
        self.circuits_changed: set[UUID] = set()
        self.gone: list[Lane] = []  # given away with attempts that are not reported yet

    def lane(self, endpoint_id: UUID) -> Lane:
        found = self.lanes.get(endpoint_id)
        if found is None:
            found = self.lanes[endpoint_id] = Lane(endpoint_id, max_in_flight=self.endpoint_limit)
        return found

    def configure(self, endpoint_id: UUID, max_in_flight: int | None, max_per_second: float | None) -> Lane:
        lane = self.lane(endpoint_id)
        lane.max_in_flight = max_in_flight or self.endpoint_limit
        lane.max_per_second = max_per_second
        return lane

    def work_is_due(self, endpoint_id: UUID, at: float) -> None:
        """There is work for this endpoint at a moment (or since)."""
        lane = self.lane(endpoint_id)
        self.restricted.add(endpoint_id)
        lane.told = lane.told or at == ALREADY
        if at != ALREADY:  # one moment a bit later, not many
            at = math.ceil(at * MOMENTS_A_SECOND) / MOMENTS_A_SECOND
        if at < lane.due_at:
            at, lane.due_at = lane.due_at, at
            self.schedule(lane, lane.due_at)
        if at not in {NEVER, lane.due_at} and at not in lane.later and len(lane.later) < LATER_MOST:
            heapq.heappush(lane.later, at)

    def schedule(self, lane: Lane, at: float) -> None:
        """Look at this lane again at a moment; once in the heap is enough."""
        if at != NEVER and at not in lane.scheduled:
            lane.scheduled.add(at)
            heapq.heappush(self.timers, (at, lane.endpoint_id))

    def next_timer(self) -> float:
        return self.timers[0][0] if self.timers else NEVER

    def plan(self, now: float, free: int, most_endpoints: int = 128) -> list[tuple[Lane, int]]:
        """Whose turn it is and how many each may start: round the ready endpoints, one share each."""
        self.wake_due(now)
        for endpoint_id in self.gates.call(now):
            self.ready[endpoint_id] = None
        asks: list[tuple[Lane, int]] = []
        share = max(1, free // max(1, min(len(self.ready), most_endpoints)))
        for endpoint_id in list(self.ready):
            if free <= 0 or len(asks) >= most_endpoints:
                break
            lane = self.lanes[endpoint_id]
            room = min(lane.room(now), share, free)
            if room <= 0:
                self.rest(lane, now)
                continue
            gates = self.gates.of(lane, lane.host)
            for gate in gates:
                room = min(room, gate.room_in_turn(endpoint_id, now))
                if room <= 0:
                    self.ready.pop(endpoint_id)
                    self.gates.wait(gate, lane)
                    break
            else:
                for gate in gates:
                    gate.keep(endpoint_id, room)
                free -= room
                self.ready.move_to_end(endpoint_id)
                lane.asked()
                asks.append((lane, room))
        return asks

    def out_of_the_ring(self, lane: Lane) -> None:
        self.ready.pop(lane.endpoint_id, None)
        self.gates.forget(lane)

    def back_in_the_ring(self, lane: Lane) -> None:
        """What it waited for is over: it answered, or a person resumed it."""
        self.gates.leave(lane)
        if lane.due_at != NEVER:
            self.schedule(lane, ALREADY)

    def wake_due(self, now: float) -> None:
        """Whose moment has come joins the ring, if this worker still owns its shard."""
        while self.timers and self.timers[0][0] <= now:
            at, endpoint_id = heapq.heappop(self.timers)
            lane = self.lanes.get(endpoint_id)
            if lane is None:
                continue
            lane.scheduled.discard(at)
            if lane.due_at > now:
                self.schedule(lane, lane.due_at)
            elif (
                self.owned is not None and lane.shard not in self.owned
            ):  # a retry learned after the shard left
                lane.due_at = NEVER
                lane.later.clear()
            else:
                self.ready[endpoint_id] = None

    def rest(self, lane: Lane, now: float) -> None:
        """No room: out of the ring until an answer arrives or a moment comes."""
        self.out_of_the_ring(lane)
        self.schedule(lane, lane.retry_at(now))

    def claimed(self, lane: Lane, asked: int, got: int, now: float) -> None:
        """What a claim sent at `now` brought: fewer than asked means that nothing more was due then."""
        if got >= asked or lane.told:
            lane.due_at = min(lane.due_at, now)
            self.gates.forget(lane)
            return
        self.out_of_the_ring(lane)
        while lane.later and lane.later[0] <= now:
            heapq.heappop(lane.later)
        lane.due_at = heapq.heappop(lane.later) if lane.later else NEVER
        self.schedule(lane, lane.due_at)

    def handed_over_room(self, now: float) -> dict[UUID, tuple[int, int]]:
        """Room and requests in flight of each lane that has less room than a new one: the fan-out hands over no more.

        Suspects get nothing handed over: their share of the slots is kept by the claim.
        """
        rooms = {}
        for endpoint_id in list(self.restricted):
            lane = self.lanes.get(endpoint_id)
            if lane is None:
                self.restricted.discard(endpoint_id)
            elif lane.due_at <= now or lane.suspect:
                rooms[endpoint_id] = (0, lane.in_flight)
            elif (room := self.room(lane, lane.host, now)) < START_LIMIT:
                rooms[endpoint_id] = (max(room, 0), lane.in_flight)
            elif lane.due_at == NEVER and not lane.in_flight:
                self.restricted.discard(endpoint_id)
        return rooms

    def room(self, lane: Lane, host: str, now: float) -> int:
        """How many more may start now, of what its own limits and its gates leave."""
        room = lane.room(now)
        for gate in self.gates.of(lane, host):
            room = min(room, gate.room_of(lane.endpoint_id, now))
        return room

    def admits(self, lane: Lane, host: str, now: float) -> bool:
        """Whether one more may start now: since a claim or a fan-out asked for room, that may have gone."""
        return self.room(lane, host, now) > 0

    def started(self, lane: Lane, host: str) -> None:
        self.restricted.add(lane.endpoint_id)
        lane.in_flight += 1
        self.in_flight += 1
        if lane.max_per_second is not None:
            lane.tokens -= 1
        self.gates.started(lane, host)

    def ended(self, lane: Lane, host: str, now: float, *, was_suspect: bool) -> None:
        lane.in_flight -= 1
        self.in_flight -= 1
        self.gates.ended(host, was_suspect=was_suspect)
        if lane.due_at <= now:
            self.ready.setdefault(lane.endpoint_id)

    def answered(self, lane: Lane, host: str, duration_ms: float, now: float) -> None:
        """A 2xx: grow, if it was quick, and close the circuit; a recovered endpoint ramps up from one."""
        lane.successes += 1
        if lane.failures >= TRIP_AFTER:
            lane.limit = 1.0
        self.is_there(lane, host, duration_ms, now)
        lane.probe_seconds = PROBE_SECONDS
        if not lane.slow:
            lane.limit = min(lane.limit + 1, float(lane.max_in_flight))

    def refused(self, lane: Lane, host: str, duration_ms: float, now: float) -> None:
        """An answer that is not 2xx: the endpoint is there, but wants less."""
        self.is_there(lane, host, duration_ms, now)
        lane.limit = max(1.0, lane.limit / 2)
        self.restricted.add(lane.endpoint_id)

    def is_there(self, lane: Lane, host: str, duration_ms: float, now: float) -> None:
        self.count(lane, duration_ms)
        if lane.failures >= TRIP_AFTER:
            self.circuits_changed.add(lane.endpoint_id)
        was_suspect = lane.suspect
        lane.failures = 0
        lane.open_until = 0.0
        lane.slow = duration_ms > SLOW_MS
        self.gates.answered(host, now - duration_ms / 1000, now)
        if was_suspect and not lane.suspect:
            self.back_in_the_ring(lane)

    def unreachable(self, lane: Lane, host: str, duration_ms: float, now: float) -> None:
        """A timeout or connection failure: shrink; after some in a row only probes go out."""
        self.count(lane, duration_ms)
        lane.timeouts += 1
        lane.failures += 1
        lane.limit = max(1.0, lane.limit / 2)
        self.restricted.add(lane.endpoint_id)
        self.gates.unreachable(host, lane.endpoint_id, now - duration_ms / 1000, now)
        if lane.failures < TRIP_AFTER or lane.open_until > now:  # one that began before the circuit opened
            return
        if lane.failures == TRIP_AFTER:
            self.circuits_changed.add(lane.endpoint_id)
            lane.probe_seconds = PROBE_SECONDS
        else:
            lane.probe_seconds = min(lane.probe_seconds * 2, PROBE_SECONDS_MOST)
        lane.open_until = now + lane.probe_seconds
        self.schedule(lane, lane.open_until)

    def state_seen(self, lane: Lane, changed_at: datetime) -> None:
        """Whatever the change was, the endpoint is active now or will be resumed: what was held against it is past."""
        if lane.state_changed_at not in {None, changed_at}:
            self.resumed(lane)
        lane.state_changed_at = changed_at

    def resumed(self, lane: Lane) -> None:
        if lane.failures >= TRIP_AFTER:
            self.circuits_changed.add(lane.endpoint_id)
        lane.clean_slate()
        self.restricted.add(lane.endpoint_id)
        self.back_in_the_ring(lane)

    def waits_for(self, lane: Lane, now: float) -> str | None:
        """Why due work does not start: a gate's name, or a limit of its own."""
        return (self.gates.waits_at(lane) if lane.due_at <= now else None) or lane.waits_for(now)

    @staticmethod
    def count(lane: Lane, duration_ms: float) -> None:
        lane.attempts += 1
        lane.latency_counts[min(max(int(duration_ms) - 1, 0).bit_length(), LATENCY_BUCKETS - 1)] += 1

    def shards_in_flight(self) -> set[int]:
        return {lane.shard for lane in self.lanes.values() if lane.in_flight}

    def keep_only(self, shards: set[int]) -> None:
        """Other shards have or get another owner: their endpoints take no more turns here."""
        for endpoint_id, lane in list(self.lanes.items()):
            if lane.shard not in shards:
                lane.due_at = NEVER
                lane.later.clear()
                self.ready.pop(endpoint_id, None)
                self.gates.leave(lane)
                if lane.in_flight == 0:
                    self.gone += [lane] if lane.attempts else []
                    del self.lanes[endpoint_id]
