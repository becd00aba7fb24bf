"""The reader of the queue bounds each look, and passes nobody over.

Reads and writes: nothing; the queue is a dictionary.
Guarantee: however many workspaces wait, a fair round is bounded, and every place gets its turn.
If it fails: one statement of the fan-out grows with the number of workspaces, or somebody waits for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

import pytest

from outbox_worker.model import FannedOut
from outbox_worker.reader import (
    BATCH,
    BEGINNING,
    FAIR_BATCH,
    LATE_SECONDS,
    LOOKS,
    SMALLEST,
    Reader,
)

MANY = 10**6
ROOM = [0, SMALLEST, 10**6]
"""Free slots: none, few, more than anybody needs."""


def fair_reader() -> Reader:
    reader = Reader()
    reader.fair = True
    return reader


def behind(queue, start):
    """What sql/queries/find_places.sql finds."""
    return sorted(place for place, waiting in queue.items() if waiting and place > start)[:LOOKS]


def one_round(reader, queue, seqs, free=10**6):
    """Look for places, once that is due again; ask, and take what waits in `queue` (place to number of events)."""
    now = reader.look_at + 0.01
    if starts := reader.starts(now):
        reader.looked([behind(queue, start) for start in starts], now, 0.001)
    ask = reader.ask(now, free)
    taken = []
    for priority, bucket, _, quota in ask.shares:
        got = min(quota, queue.get((priority, bucket), 0))
        queue[priority, bucket] = queue.get((priority, bucket), 0) - got
        taken += [(next(seqs), bucket, priority, 1) for _ in range(got)]
    reader.learn(ask, FannedOut(taken, [], [], {}, None), 0.01)
    return ask, taken


@pytest.mark.parametrize("waiting", [1, 20, 3 * LOOKS])
@pytest.mark.parametrize("free", ROOM)
def test_a_fair_round_is_bounded_however_many_wait(waiting, free):
    """No more events than the slots have room for, but a few: those would be inserted, and then claimed."""
    reader, seqs = fair_reader(), count(1)
    queue = {(1, bucket): MANY for bucket in range(waiting)}
    for _ in range(50):
        ask, taken = one_round(reader, queue, seqs, free)
        assert ask.fair
        assert len(taken) <= ask.batch <= min(max(free, SMALLEST), BATCH)


def test_with_little_room_the_workspaces_that_wait_take_turns():
    """A round of sixteen events of a hundred workspaces: after a hundred turns each had one."""
    reader, seqs = fair_reader(), count(1)
    queue = {(1 + bucket % 2, bucket): MANY for bucket in range(100)}
    while len(reader.full) < 100:
        one_round(reader, queue, seqs, SMALLEST)
    before, rounds = dict(queue), 100
    for _ in range(rounds):
        one_round(reader, queue, seqs, SMALLEST)
    turns = [before[place] - queue[place] for place in queue]
    assert sum(turns) == rounds * SMALLEST
    assert max(turns) - min(turns) <= 1


@pytest.mark.parametrize("free", ROOM)
def test_urgent_events_that_never_end_leave_half_of_each_round(free):
    """An alert passes a campaign, a flood of alerts does not stop it."""
    reader, seqs = fair_reader(), count(1)
    queue = {(priority, bucket): MANY for priority in range(3) for bucket in range(300)}
    while len(reader.fresh) + len(reader.full) < 600:
        one_round(reader, queue, seqs, free)
    for _ in range(20):
        ask, taken = one_round(reader, queue, seqs, free)
        urgent = sum(priority == 0 for _, _, priority, _ in taken)
        assert urgent == ask.batch // 2


@pytest.mark.parametrize("free", ROOM)
@pytest.mark.parametrize("full", [1, 20, LOOKS - 1])
def test_a_lone_event_is_taken_in_the_next_round_whoever_fills_the_queue(full, free):
    """The places that hold events are looked for all the while; one that was not served yet comes before the others."""
    reader, seqs = fair_reader(), count(1)
    queue = {(1, bucket): MANY for bucket in range(full)}
    while len(reader.full) < full:
        one_round(reader, queue, seqs, free)
    for number in range(50):
        lone = (number % 3, 1000 + number)
        queue[lone] = 1
        one_round(reader, queue, seqs, free)
        assert queue[lone] == 0


def test_with_more_places_than_looks_everyone_has_its_turn_in_a_cycle():
    """A round goes on where the last one stopped, and takes from the beginning, where urgent ones are, beside that."""
    reader, seqs = fair_reader(), count(1)
    places = 5 * LOOKS
    queue = {(1, bucket): MANY for bucket in range(places)}
    queue[2, 7] = MANY
    one_round(reader, queue, seqs)
    before = dict(queue)
    for _ in range(2 * (places // LOOKS + 2)):
        one_round(reader, queue, seqs)
    assert all(queue[place] < before[place] for place in queue)


def test_urgent_events_are_in_every_round():
    """An urgent event waits for no cycle, however many places of lower priority hold events."""
    reader, seqs = fair_reader(), count(1)
    queue = {(1, bucket): MANY for bucket in range(5 * LOOKS)}
    for number in range(20):
        queue[0, number] = 1
        one_round(reader, queue, seqs)
        assert queue[0, number] == 0


def test_what_is_left_of_a_round_goes_to_places_that_hold_more():
    """They share it, bulk half as much as normal ones."""
    reader, seqs = fair_reader(), count(1)
    queue = {(1, 3): MANY, (1, 7): MANY, (2, 9): MANY}
    for _ in range(20):
        ask, _ = one_round(reader, queue, seqs)
    shares = {(priority, bucket): quota for priority, bucket, _, quota in ask.shares}
    assert shares[1, 3] == shares[1, 7] == FAIR_BATCH // 3
    assert shares[2, 9] == shares[1, 3] // 2


def test_a_full_plain_look_begins_the_fair_rounds_and_an_empty_queue_ends_them():
    """When all that waited was taken, the next look is at the whole queue: a lone event waits for no cycle."""
    reader, seqs = Reader(), count(1)
    ask = reader.ask(0.1, 10**6)
    reader.learn(ask, FannedOut([(next(seqs), 5, 1, 1) for _ in range(BATCH)], [], [], {}, None), 0.01)
    assert reader.fair
    queue = {(1, 5): 2 * FAIR_BATCH, (1, 6): 1}
    for _ in range(6):
        one_round(reader, queue, seqs)
    assert not reader.fair
    assert not any(queue.values())


def test_who_waited_an_earlier_time_is_not_asked_again():
    """Fair rounds that begin anew know nobody: each place that holds nothing would cost a probe for nothing."""
    reader, seqs = fair_reader(), count(1)
    one_round(reader, {(priority, bucket): MANY for priority in range(3) for bucket in range(20)}, seqs)
    reader.from_the_start()
    ask = reader.ask(1.0, 10**6)
    reader.learn(ask, FannedOut([(next(seqs), 50, 1, 1) for _ in range(BATCH)], [], [], {}, None), 0.01)
    ask, _ = one_round(reader, {(1, 50): MANY}, seqs)
    assert [share[:2] for share in ask.shares] == [(1, 50)]


def test_a_look_that_took_long_is_not_repeated_at_once():
    """Looking, also past dead entries that an old snapshot keeps, has a bounded share of the time."""
    reader = fair_reader()
    reader.looked([[(1, 1)], [(1, 1)]], 10.0, 0.5)
    assert reader.starts(11.9) == []  # somebody is known to wait
    assert reader.starts(12.1) == [BEGINNING, BEGINNING]


def test_after_a_batch_that_failed_no_round_is_larger_than_the_next_try():
    """The halves by which a bad event or a slow filter is found stay halves."""
    reader, seqs = fair_reader(), count(1)
    queue = {(1, bucket): MANY for bucket in range(100)}
    reader.batch = 4
    ask, taken = one_round(reader, queue, seqs)
    assert len(taken) <= ask.batch <= 8


def looked(reader, now, *taken):
    """One plain look: give where it began."""
    asked = reader.ask(now, 10**6)
    reader.learn(asked, FannedOut([(seq, 0, 0, 1) for seq in taken], [], [], {}, None), 0.01)
    reader.sweep_pause = 60.0
    return asked.mark


def test_what_commits_late_is_found_by_the_next_looks_not_by_a_sweep_alone():
    """A look begins where the mark was one or two tenths of a second ago: behind that, nothing is walked again."""
    reader = Reader()
    looked(reader, 100.0, *range(1, 11))  # from the start, as the first one is
    assert looked(reader, 100.0 + 1.1 * LATE_SECONDS, *range(11, 21)) == 0
    begun = [looked(reader, 100.0 + LATE_SECONDS * n) for n in (2.0, 2.3, 3.2, 3.5, 4.4)]
    assert begun == [0, 10, 10, 20, 20]


def test_a_sweep_that_finds_nothing_leaves_the_marks_where_they_were():
    """What lies dead below them is walked by sweeps alone, however long nothing is published."""
    reader = Reader()
    looked(reader, 100.0, *range(1, 11))
    for n in range(4):
        looked(reader, 100.0 + LATE_SECONDS * n)
    reader.sweep_pause = 0.0
    assert [looked(reader, 101.0), looked(reader, 101.01)] == [0, 10]


def test_a_full_look_from_the_start_is_followed_by_one_from_where_it_ended():
    """A large transaction that committed below the mark is read to its end, not to the next sweep."""
    reader = Reader()
    looked(reader, 100.0, 5_000)
    reader.sweep_pause = 0.0
    looked(reader, 101.0, *range(1, BATCH + 1))
    assert reader.mark == BATCH
    reader.fair = False
    reader.sweep_pause = 60.0
    assert looked(reader, 101.5) == BATCH


def test_before_a_sleep_a_look_from_the_start_is_due_at_once_and_once():
    """However short a time ago the last one was."""
    reader = Reader()
    for now in (100.0, 100.2, 100.4):
        looked(reader, now, 7)
    assert reader.ask(100.42, 10**6).mark == 7
    reader.sweep_soon()
    assert (looked(reader, 100.43), looked(reader, 100.44)) == (0, 7)


def test_events_that_make_no_delivery_count_like_others():
    """They come as one row with their number: a look that they filled is a full one."""
    reader = Reader()
    asked = reader.ask(100.0, 10**6)
    reader.learn(asked, FannedOut([(7, 0, 0, 1), (BATCH, 0, 0, asked.batch - 1)], [], [], {}, None), 0.01)
    assert (reader.mark, reader.fair) == (BATCH, True)
    reader.looked([[(1, 3)], []], 100.1, 0.01)
    asked = reader.ask(100.2, 10**6)
    reader.learn(asked, FannedOut([(9, 3, 1, 1)], [], [], {}, None), 0.01)
    assert list(reader.full) == [(1, 3)]
    asked = reader.ask(100.3, 10**6)
    ((_, _, _, quota),) = asked.shares
    reader.learn(asked, FannedOut([(11, 3, 1, 1), (20, 3, 1, quota - 1)], [], [], {}, None), 0.01)
    assert (quota > 2, list(reader.full), reader.marks) == (True, [(1, 3)], {(1, 3): 20})


@pytest.mark.parametrize("fair", [False, True])
def test_a_look_from_the_start_that_is_too_slow_is_not_repeated_at_once(fair):
    """What an old snapshot keeps is walked from the start only: from the mark on, the queue is read as before."""
    reader, now, from_the_start = Reader(), 1000.0, []
    reader.mark = reader.next_mark = reader.late_mark = 10**7
    reader.fair, reader.swept_at, reader.marks = fair, now, {(1, 5): 10**7}
    for _ in range(100):
        now += 0.1
        if fair:
            reader.full[1, 5] = None
        reader.sweep_soon()
        ask = reader.ask(now, 1000)
        start = ask.shares[0][2] if fair else ask.mark
        if start == 0:
            now += 5.0
            assert reader.too_slow(ask, now, 5.0)
            from_the_start.append(now)
        else:
            reader.learn(ask, FannedOut([(start + 1, 5, 1, 1)], [], [], {}, None), 0.001)
    assert len(from_the_start) == 1


def test_a_place_that_is_asked_in_a_round_after_the_look_from_the_start_keeps_its_mark_if_that_is_too_slow():
    """Many wait, and a round asks few: the one with most that is dead comes up later, with its mark gone."""
    reader, now = fair_reader(), 1000.0
    places = [(1, bucket) for bucket in range(40)]
    reader.marks = dict.fromkeys(places, 10**7)
    reader.swept_at = now - 10
    reader.full = OrderedDict.fromkeys(places)
    heavy, failures = places[-1], 0
    for _ in range(60):
        now += 0.1
        ask = reader.ask(now, 0)
        if any((priority, bucket) == heavy and mark == 0 for priority, bucket, mark, _ in ask.shares):
            failures += 1
            now += 5.0
            assert reader.too_slow(ask, now, 5.0)
        else:
            taken = [(mark + 1, bucket, priority, share) for priority, bucket, mark, share in ask.shares]
            reader.learn(ask, FannedOut(taken, [], [], {}, None), 0.001)
    assert failures == 1


def test_a_look_from_a_mark_that_is_too_slow_is_somebodys_fault():
    reader = Reader()
    reader.mark = reader.next_mark = reader.late_mark = 10**7
    reader.swept_at = 1000.0
    ask = reader.ask(1000.1, 1000)
    assert ask.mark == 10**7
    assert not reader.too_slow(ask, 1005.1, 5.0)


def test_a_first_look_that_is_too_slow_is_somebodys_fault():
    """There is no mark to go on from."""
    reader = Reader()
    ask = reader.ask(1000.0, 1000)
    assert ask.mark == 0
    assert not reader.too_slow(ask, 1005.0, 5.0)
