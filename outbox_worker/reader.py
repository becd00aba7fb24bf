"""Reader: how far one worker has read the queue of the fan-out, and who gets which share of the next look.

Reads: what the looks brought. Writes: nothing; every time is an argument (monotonic seconds).
Guarantee: while more waits than one look takes, every workspace that waits gets its turn in each round of them, urgent
events first; what lies dead below a mark is not walked again.
If it dies: nothing is lost; a new worker reads from the start.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from outbox_worker.model import FannedOut, FanOutAsk

if TYPE_CHECKING:
    from collections.abc import Sequence

Place = tuple[int, int]
"""A priority and a bucket: the events of one priority of (but for a chance of 1 in 65,536) one workspace."""

BATCH = 400
SMALLEST = 16
"""Events taken however little room there is: what nobody here has room for may be another worker's."""
LOOKS = 256
"""Places taken from in one fair round for one event each, at the beginning and where the last round stopped."""
FAIR_BATCH = 32
"""Events of a fair round beyond these, for places that hold more: a round must be short, since a lone event waits for it."""
BULK = 2
BEGINNING: Place = (-1, 0)
"""Before all places."""
SWEEP_PAUSE_MOST = 5.0
"""Longest wait, in seconds, between two looks from the start of the queue, also after an outage of the database."""
LOOK_SHARE = 4
"""A look for places that took long, past dead entries that somebody's old snapshot keeps, is not repeated before so
many times its own length."""


class Reader:
    """Marks above which nothing is dead, and who is known to wait."""

    def __init__(self) -> None:
        self.batch = BATCH  # most events at once; less after a batch that ran too long
        self.per_event = 1.0  # deliveries an event makes, lately
        self.mark = 0
        self.marks: dict[Place, int] = {}
        self.fair = False
        self.found: list[Place] = []  # where something waited at the last look
        self.all_found = False
        self.cursor = BEGINNING  # where that look stopped
        self.look_at = 0.0
        self.full: deque[Place] = deque()  # gave all that was asked of them
        self.swept_at = 0.0
        self.sweep_pause = 0.25

    def from_the_start(self) -> None:
        self.fair = False
        self.mark = 0

    def starts(self, now: float) -> list[Place]:
        """Where to look for places now: none in a plain round, or when the last look took too long."""
        return [BEGINNING, self.cursor] if self.fair and now >= self.look_at else []

    def looked(self, places: Sequence[Sequence[Place]], now: float, seconds: float) -> None:
        """Learn what waits behind each of the starts, at most LOOKS places each."""
        first, behind = places
        self.found = sorted({*first, *behind})
        self.all_found = len(first) < LOOKS
        self.cursor = behind[-1] if len(behind) >= LOOKS else BEGINNING
        self.look_at = now + LOOK_SHARE * seconds if seconds > 0.01 else now

    def ask(self, now: float, free: int) -> FanOutAsk:
        """What to take next. From time to time from the start: sequences commit out of order."""
        if now - self.swept_at >= self.sweep_pause:
            self.mark = 0
            self.marks.clear()
            self.swept_at = now
        batch = self.batch
        if batch > SMALLEST:
            batch = min(batch, max(int(free / self.per_event), SMALLEST))
        if not self.fair:
            return FanOutAsk(fair=False, mark=self.mark, batch=batch)
        # However little room there is, everybody's turn comes: what has none is inserted as pending.
        looks = self.found if self.batch > SMALLEST else self.found[:batch]
        shares = dict.fromkeys(looks, 1)
        left = min(batch, FAIR_BATCH)
        quota = max(1, left // max(1, len(self.full)))
        for place in list(self.full)[:left]:
            shares[place] = quota if place[0] < BULK else max(1, quota // 2)
        self.full.rotate(-left)  # with more of them than events to take they take turns
        return FanOutAsk(
            fair=True,
            mark=0,
            batch=sum(shares.values()),
            shares=[(*place, self.marks.get(place, 0), share) for place, share in sorted(shares.items())],
        )

    def learn(self, ask: FanOutAsk, result: FannedOut, seconds: float) -> None:
        """Move the marks; turn to fair rounds while more waits than one batch holds."""
        self.batch = min(self.batch + 10, BATCH)
        if result.taken:
            made = len(result.handed_over) + len(result.waiting)
            self.per_event += (max(made / len(result.taken), 1.0) - self.per_event) / 8
        if ask.fair:
            self.learn_fair(ask, result)
            return
        self.mark = max([self.mark, *(seq for seq, _, _ in result.taken)])
        if ask.mark == 0:
            self.sweep_pause = min(max(0.25, 20 * seconds), SWEEP_PAUSE_MOST)
        if len(result.taken) >= ask.batch:
            self.fair = True
            self.look_at = 0.0

    def learn_fair(self, ask: FanOutAsk, result: FannedOut) -> None:
        counts: dict[Place, int] = {}
        for seq, bucket, priority in result.taken:
            place = (priority, bucket)
            counts[place] = counts.get(place, 0) + 1
            self.marks[place] = max(self.marks.get(place, 0), seq)
        known = set(self.full)
        for priority, bucket, _, quota in ask.shares:
            place = (priority, bucket)
            if counts.get(place, 0) < quota:
                known.discard(place)
            elif place not in known:
                self.full.append(place)
                known.add(place)
        self.full = deque(place for place in self.full if place in known)
        # Nobody gave all that was asked and nobody was left out, or nothing came: a plain look finds the rest at once.
        if not result.taken or (self.all_found and not self.full):
            self.fair = False
