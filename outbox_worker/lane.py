"""Lane: what one worker knows of one endpoint, and how many requests it may have now.

Reads: outcomes that are counted here. Writes: nothing; every time is an argument (monotonic seconds).
Guarantee: no more in flight than the limit; an open circuit lets one probe through at a time.
If it dies: nothing is lost; a new worker starts small again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

START_LIMIT = 8.0
"""Requests at once to an endpoint that we know nothing about."""
TRIP_AFTER = 5
"""Consecutive timeouts or connection failures that open the circuit."""
PROBE_SECONDS = 5.0
PROBE_SECONDS_MOST = 60.0
"""First and longest wait before the next probe of an open circuit; doubles in between."""
SLOW_MS = 5000.0
"""An answer that takes longer holds slots almost like none: such an endpoint is a suspect until it is quicker."""
BURST_SECONDS = 0.1
"""How late a request may start and not be lost to its rate; more is not saved up."""
WEIGHTS = (1, 2, 8)
"""What a request of each priority costs of its endpoint's turns: urgent ones come eight to one of bulk."""
LATENCY_BUCKETS = 17
"""Counts of durations up to 1, 2, 4 … 32768 ms, and longer."""
MOMENTS_A_SECOND = 20
"""Due times are rounded up to this: a tick of 50 ms."""
LATER_MOST = 32
"""Moments remembered for one endpoint; what comes after them is found by the sweep."""
CLAIM_REST = 1.0
CLAIM_REST_SHARE = 10
"""An endpoint whose deliveries could not be claimed rests as long as that took, a second at least; twice as long after the
next time, ten times as long at most."""
NEVER = float("inf")
ALREADY = 0.0
"""The moment of what is due now: no clock of this process was ever there."""
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Lane:
    """What one worker knows of one endpoint."""

    endpoint_id: UUID
    workspace_id: str = ""
    host: str = ""
    shard: int = -1
    max_in_flight: int = 128
    max_per_second: float | None = None
    in_flight: int = 0
    limit: float = START_LIMIT
    failures: int = 0  # consecutive timeouts and connection failures
    open_until: float = 0.0  # next probe; 0 while the circuit is closed
    probe_seconds: float = PROBE_SECONDS
    slow: bool = False  # its last answer took too long
    rests_until: float = 0.0  # a claim for it alone ended with an error
    claim_failures: int = 0  # in a row
    tokens: float = 1.0  # a new owner begins with one request, not with a burst
    refilled_at: float = NEVER
    due_at: float = NEVER  # earliest known work
    later: list[float] = field(default_factory=list)  # a heap of the next moments after that, bounded
    keyed: bool = False  # has deliveries with an ordering key
    keys_turn: bool = False  # in this round those with an ordering key have the larger half of the room
    after_key: str = ""  # where the round of its keys stopped; empty when it came to the end
    round_began_at: float = 0.0
    told: bool = False  # of due work, since the claim that is under way was sent
    came_in: datetime | None = None  # the earliest of it that may lie behind the marks
    marks: list[datetime] = field(default_factory=lambda: [BEGINNING] * 3)  # how far each priority was read
    turns: list[int] = field(
        default_factory=lambda: [0] * 3
    )  # what each priority has used, up to a common part
    state_changed_at: datetime | None = None  # as the sweep saw it: a later one is a resumption
    attempts: int = 0
    successes: int = 0
    timeouts: int = 0
    latency_counts: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    scheduled: set[float] = field(default_factory=set)  # its moments in the heap of timers

    @property
    def suspect(self) -> bool:
        return self.failures > 0 or self.slow

    @property
    def circuit(self) -> str:
        if self.open_until:
            return "open"
        return "half_open" if self.failures >= TRIP_AFTER else "closed"

    def room(self, now: float) -> int:
        """How many more requests may start now."""
        if self.open_until > now or self.rests_until > now:
            return 0
        if self.failures >= TRIP_AFTER:  # a probe, one at a time
            return 1 if self.in_flight == 0 else 0
        room = min(int(self.limit), self.max_in_flight) - self.in_flight
        if self.max_per_second is not None:
            self.refill(now)
            room = min(room, int(self.tokens))
        return max(room, 0)

    @property
    def burst(self) -> float:
        return 1.0 + (self.max_per_second or 0.0) * BURST_SECONDS

    def refill(self, now: float) -> None:
        if self.max_per_second is not None:
            passed = max(0.0, now - self.refilled_at)
            self.tokens = min(self.burst, self.tokens + passed * self.max_per_second)
            self.refilled_at = now

    def took(self, counts: Sequence[int]) -> None:
        """Count what a claim brought of each priority; one that has nothing due saves up no more than one turn."""
        for priority, count in enumerate(counts):
            self.turns[priority] += count * WEIGHTS[priority]
        furthest = max(self.turns)
        turns = [max(turn, furthest - weight) for turn, weight in zip(self.turns, WEIGHTS, strict=True)]
        self.turns = [turn - min(turns) for turn in turns]

    def clean_slate(self) -> None:
        """A person resumed it: no circuit, nothing held against it, and a slow start."""
        self.failures = 0
        self.slow = False
        self.open_until = 0.0
        self.probe_seconds = PROBE_SECONDS
        self.limit = 1.0

    def waits_for(self, now: float) -> str | None:
        """Why due work does not start; null when nothing is due or it may."""
        if self.due_at > now or self.room(now) > 0:
            return None
        if self.rests_until > now:
            return "claim"
        if self.failures >= TRIP_AFTER:
            return "circuit"
        return "slots" if self.in_flight >= min(int(self.limit), self.max_in_flight) else "rate"

    def read_again(self, since: datetime) -> None:
        """Work came in that was due since then: behind the low-water marks, or behind those of a claim under way."""
        self.marks = [min(mark, since) for mark in self.marks]
        self.came_in = since if self.came_in is None else min(self.came_in, since)

    def asked(self) -> None:
        """A claim is sent: what is told from now on it may not see."""
        self.told, self.came_in = False, None

    def retry_at(self, now: float) -> float:
        """When room may appear without an answer arriving first."""
        if self.open_until > now or self.rests_until > now:
            return max(self.open_until, self.rests_until)
        if self.max_per_second is not None and self.tokens < 1:  # half a burst at once: fewer claims
            return now + (max(1.0, self.burst / 2) - self.tokens) / self.max_per_second
        return NEVER
