"""Reader: how far one worker has read the queue of the fan-out, and who gets which share of the next look.

Reads: what the looks brought. Writes: nothing; every time is an argument (monotonic seconds).
Guarantee: while more waits than one look takes, the workspaces that wait take turns, one event each; one that did not
wait before comes first, urgent ones come in every round; what lies dead below a mark is not walked again, but for what
was taken in the last tenths of a second.
If it dies: nothing is lost; a new worker reads from the start.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
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
"""Places found by one look, at the beginning and where the last look stopped."""
FAIR_BATCH = 32
"""Events of a fair round beyond one each, for few places that hold more: a round must be short, since a lone event
waits for it."""
URGENT = 0
BULK = 2
Turns = OrderedDict[Place, None]
BEGINNING: Place = (-1, 0)
"""Before all places."""
SWEEP_PAUSE = 0.25
SWEEP_PAUSE_MOST = 5.0
"""Least and longest wait, in seconds, between two looks from the start of the queue while more comes; the latter also
after an outage of the database."""
SWEEP_SHARE = 20
"""While more comes, a look from the start is not repeated before so many times its own length."""
LATE_SECONDS = 0.1
"""A plain look begins where the mark was so long ago, at least: sequences commit out of order, and most transactions end
by then."""
LOOK_SHARE = 4
"""A look for places that took long, past dead entries that somebody's old snapshot keeps, is not repeated before so
many times its own length."""
BLIND_SECONDS = 5.0
"""After a look for places that ended with an error the rounds are plain for so long, at least, and after a look from the
start that did, the looks are from the marks."""


class Reader:
    """Marks above which nothing is dead, and who is known to wait."""

    def __init__(self) -> None:
        self.batch = BATCH  # most events at once; less after a batch that ran too long
        self.per_event = 1.0  # deliveries an event makes, lately
        self.mark = 0
        self.next_mark = self.late_mark = 0  # what it was when it was last noted, and the time before that
        self.noted_at = 0.0
        self.marks: dict[Place, int] = {}
        self.fair = False
        # Who waits, each in its order of coming: urgent ones, those not served yet, those that gave all they were asked.
        self.urgent: Turns = OrderedDict()
        self.fresh: Turns = OrderedDict()
        self.full: Turns = OrderedDict()
        self.all_found = False
        self.cursor = BEGINNING  # where the last look stopped
        self.look_at = 0.0
        self.blind_until = 0.0
        self.asked_at = 0.0
        self.swept_at = self.sweep_from = 0.0
        self.unswept: dict[
            Place, int
        ] = {}  # the marks of fair rounds, before looks from the start took them away
        self.sweep_pause = SWEEP_PAUSE

    def from_the_start(self) -> None:
        self.fair = False
        self.mark = self.next_mark = self.late_mark = 0

    def sweep_soon(self) -> None:
        """The next look is from the start, unless that was too slow: before anybody sleeps it is to see what committed late.

        Whoever published while nobody slept rings no bell, and a bell does not say what it rang for.
        """
        self.sweep_pause = 0.0

    @property
    def knows_places(self) -> bool:
        return bool(self.urgent or self.fresh or self.full)

    def starts(self, now: float) -> list[Place]:
        """Where to look for places now: nowhere in a plain round, nor so soon that looking took most of the time."""
        due = now >= self.look_at or not self.knows_places
        return [BEGINNING, self.cursor] if self.fair and due else []

    def looked(self, places: Sequence[Sequence[Place]], now: float, seconds: float) -> None:
        """Learn what waits behind each of the starts, at most LOOKS places each."""
        first, behind = places
        for place in sorted({*first, *behind}):
            if place[0] == URGENT:
                self.urgent.setdefault(place)
            elif place not in self.full:
                self.fresh.setdefault(place)
        self.all_found = len(first) < LOOKS
        self.cursor = behind[-1] if len(behind) >= LOOKS else BEGINNING
        self.look_at = now + LOOK_SHARE * seconds

    def not_found(self, now: float, seconds: float) -> None:
        """That look ended with an error: serve whom it knows; nobody is left to take turns if it knows none."""
        self.look_at = self.blind_until = now + max(BLIND_SECONDS, LOOK_SHARE * seconds)
        self.fair = self.knows_places

    def ask(self, now: float, free: int) -> FanOutAsk:
        """What to take next; in a plain look, of what committed late too, and now and then of what committed very late."""
        self.asked_at = now
        if now - self.noted_at >= LATE_SECONDS:
            self.late_mark, self.next_mark, self.noted_at = self.next_mark, self.mark, now
        start = self.late_mark
        if now - self.swept_at >= self.sweep_pause and now >= self.sweep_from:
            start = 0
            self.unswept.update(self.marks)
            self.marks = {}
            self.swept_at = now
        batch = self.batch
        if batch > SMALLEST:
            batch = min(batch, max(int(free / self.per_event), SMALLEST))
        if not self.fair:
            return FanOutAsk(fair=False, mark=start, batch=batch)
        places = self.in_turn(batch)
        shares = dict.fromkeys(places, 1)
        more = [place for place in places if place not in self.fresh]
        quota = max(1, min(batch - len(places), FAIR_BATCH) // max(1, len(more)))
        for place in more:
            shares[place] = quota if place[0] < BULK else max(1, quota // 2)
        return FanOutAsk(
            fair=True,
            mark=0,
            batch=sum(shares.values()),
            shares=[(*place, self.marks.get(place, 0), share) for place, share in sorted(shares.items())],
        )

    def too_slow(self, ask: FanOutAsk, now: float, seconds: float) -> bool:
        """What was asked ran into its deadline. True: it began below a mark, among all that is dead; go on at the marks."""
        known = {**self.unswept, **self.marks}
        if ask.fair:
            below = any(mark < known.get((priority, bucket), 0) for priority, bucket, mark, _ in ask.shares)
        else:
            below = ask.mark == 0 < self.mark
        if below:
            self.marks = known
            self.late_mark, self.next_mark = self.late_mark or self.mark, self.next_mark or self.mark
            self.sweep_from = now + max(BLIND_SECONDS, LOOK_SHARE * seconds)
        return below

    def in_turn(self, most: int) -> list[Place]:
        """Whose turn it is: half for urgent ones, a quarter at least for those that hold more, if so many wait."""
        others = len(self.fresh) + len(self.full)
        places = first_of(self.urgent, most - min(others, most // 2))
        places += first_of(self.fresh, most - len(places) - min(len(self.full), most // 4))
        return places + first_of(self.full, most - len(places))

    def learn(self, ask: FanOutAsk, result: FannedOut, seconds: float) -> None:
        """Move the marks; turn to fair rounds while more waits than one batch holds."""
        self.batch = min(self.batch + 10, BATCH)
        if result.taken:
            made = len(result.handed_over) + len(result.waiting)
            self.per_event += (max(made / result.events, 1.0) - self.per_event) / 8
        if ask.fair:
            self.learn_fair(ask, result)
            return
        read = max((seq for seq, _, _, _ in result.taken), default=0)
        full = result.events >= ask.batch
        if full and read < self.mark:  # there is more of what committed late: on from where this look ended
            self.mark = read
            self.next_mark, self.late_mark = min(self.next_mark, read), min(self.late_mark, read)
        self.mark = max(self.mark, read)
        if ask.mark == 0:
            self.sweep_pause = min(max(SWEEP_PAUSE, SWEEP_SHARE * seconds), SWEEP_PAUSE_MOST)
        if full and self.asked_at >= self.blind_until:
            self.fair = True
            self.look_at = 0.0
            for turns in (self.urgent, self.fresh, self.full):  # of an earlier time
                turns.clear()

    def learn_fair(self, ask: FanOutAsk, result: FannedOut) -> None:
        counts: dict[Place, int] = {}
        for seq, bucket, priority, events in result.taken:
            place = (priority, bucket)
            counts[place] = counts.get(place, 0) + events
            self.marks[place] = max(self.marks.get(place, 0), seq)
        quotas = {(priority, bucket): quota for priority, bucket, _, quota in ask.shares}
        for turns in (self.urgent, self.full, self.fresh):
            for place in [place for place in islice(turns, len(quotas)) if place in quotas]:
                del turns[place]
                if counts.get(place, 0) >= quotas[place]:  # there may be more: behind the others
                    (self.urgent if place[0] == URGENT else self.full)[place] = None
        # Nobody gave all that was asked and nobody was left out, or nothing came: a plain look finds the rest at once.
        if not result.taken or (
            (self.all_found or self.asked_at < self.blind_until) and not self.knows_places
        ):
            self.fair = False
            self.unswept.clear()


def first_of(turns: Turns, most: int) -> list[Place]:
    return list(islice(turns, max(most, 0)))
