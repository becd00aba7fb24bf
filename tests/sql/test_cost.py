"""What a delivery costs the database does not grow unseen.

Reads: tests/bench/baseline.json. Writes: a server and a database of its own.
Guarantee: counts alone, on single steps with fixed batches and no full-page images; nothing is timed.
If it fails: something costs more. Make it cheaper, or accept it: `python -m tests.bench.cost`, with the reason in the commit.
"""

from __future__ import annotations

import json

import pytest

from tests.bench import cost
from tests.bench.figures import Plan

GROWTH = 1.1


@pytest.fixture(scope="module")
def measured(pg_bin):
    return {name: vars(found) for name, found in cost.measure(Plan(short=True), bin_dir=pg_bin).items()}


@pytest.fixture(scope="module")
def baseline():
    return json.loads(cost.BASELINE.read_text())


@pytest.mark.parametrize("count", ["statements", "wal_bytes"])
def test_no_step_costs_a_tenth_more_than_the_committed_baseline(measured, baseline, count):
    """Publishing, fan-out, claim and settle each keep their statements and WAL bytes a delivery."""
    grown = {
        step: f"{was[count]} became {measured[step][count]}"
        for step, was in baseline.items()
        if measured[step][count] > was[count] * GROWTH
    }
    assert not grown, f"{count} a delivery: {grown}"


def test_the_baseline_is_of_the_steps_that_are_measured(measured, baseline):
    """A step that is renamed or added is compared too."""
    assert measured.keys() == baseline.keys()
