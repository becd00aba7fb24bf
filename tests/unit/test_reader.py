"""The reader of the queue bounds each look, and passes nobody over.

Reads and writes: nothing; the queue is a dictionary.
Guarantee: however many workspaces wait, a fair round asks for one batch, and every place gets its turn.
If it fails: one statement of the fan-out grows with the number of workspaces, or somebody waits for ever.
"""

from __future__ import annotations

from itertools import count

import pytest

from outbox_worker.fan_out import BATCH, BUCKETS, PRIORITIES, RING, SMALLEST, Reader
from outbox_worker.model import FannedOut

PLACES = {(priority, bucket) for priority in range(PRIORITIES) for bucket in range(BUCKETS)}


def fair_reader(batch: int) -> Reader:
    reader = Reader()
    reader.batch = batch
    reader.fair = True
    reader.looks_left = len(RING)
    return reader


def one_round(reader, queue, seqs):
    """Ask, and take what waits in `queue` (place to number of events)."""
    reader.fair = True  # plain rounds between only add to what is seen
    ask = reader.ask(1.0, 10**6)
    taken = []
    for priority, bucket, _, quota in ask.shares:
        got = min(quota, queue.get((priority, bucket), 0))
        queue[priority, bucket] = queue.get((priority, bucket), 0) - got
        taken += [(next(seqs), bucket, priority) for _ in range(got)]
    batch = reader.batch
    reader.learn(ask, FannedOut(taken, [], [], {}, None), 0.01)
    reader.batch = batch
    return ask, taken


BATCHES = [1, 10, SMALLEST, 100, BATCH]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_fair_round_asks_for_no_more_than_a_batch(batch):
    """The quotas of all places together are one batch, also when every bucket is full."""
    reader, queue, seqs = fair_reader(batch), dict.fromkeys(PLACES, 10**6), count(1)
    for _ in range(300):
        ask, taken = one_round(reader, queue, seqs)
        assert ask.fair
        assert len(taken) <= sum(quota for *_, quota in ask.shares) <= ask.batch <= batch


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("full", [1, 20, BUCKETS])
def test_every_bucket_is_looked_into_within_a_cycle(batch, full):
    """An event of any workspace and priority is taken within one cycle, whoever else fills the queue."""
    reader, seqs = fair_reader(batch), count(1)
    queue = {(1, bucket): 10**6 for bucket in range(full)}
    cycle = -(-len(RING) // max(batch // 2, 1))
    for _ in range(50):  # the full ones are known by now
        one_round(reader, queue, seqs)
    looked = set()
    for _ in range(cycle):
        ask, _ = one_round(reader, queue, seqs)
        looked |= {(priority, bucket) for priority, bucket, *_ in ask.shares}
    assert looked == PLACES


@pytest.mark.parametrize("batch", BATCHES)
def test_urgent_events_of_any_bucket_are_found_twice_as_soon(batch):
    """Half a cycle and a round look into every urgent place."""
    reader, seqs, queue = fair_reader(batch), count(1), dict.fromkeys(PLACES, 10**6)
    half = -(-(len(RING) // 2 + 4) // max(batch // 2, 1)) + 1
    looked = set()
    for _ in range(half):
        ask, _ = one_round(reader, queue, seqs)
        assert [share[0] for share in ask.shares] == sorted(share[0] for share in ask.shares)
        looked |= {(priority, bucket) for priority, bucket, *_ in ask.shares if priority == 0}
    assert looked == {place for place in PLACES if place[0] == 0}


def test_a_full_bucket_gets_its_share_beside_others():
    """Places known to be full share what the looks leave, bulk half as much as normal ones."""
    reader, seqs = fair_reader(BATCH), count(1)
    queue = {(1, 3): 10**6, (1, 7): 10**6, (2, 9): 10**6}
    for _ in range(20):
        ask, _ = one_round(reader, queue, seqs)
    shares = {(priority, bucket): quota for priority, bucket, _, quota in ask.shares}
    assert shares[1, 3] == shares[1, 7] == (BATCH - BATCH // 2) // 3
    assert shares[2, 9] == shares[1, 3] // 2


def test_an_empty_fair_round_ends_the_fair_rounds():
    """When nothing was found, the next look is at the whole queue: a lone event waits for no cycle."""
    reader = fair_reader(BATCH)
    one_round(reader, {}, count(1))
    assert not reader.fair
