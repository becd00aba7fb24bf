"""The mutants of the fault campaign can be grown: what each replaces is still in the code."""

from __future__ import annotations

import pytest

from tests.campaign.mutants import FLYING, MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_what_a_mutant_replaces_is_there(mutant):
    """A text that a change took away would be found only when the mutants are run again, which takes half an hour."""
    assert mutant.old in (ROOT / mutant.file).read_text()


def test_what_keeps_the_flying_deliveries_is_there():
    file, old, _ = FLYING
    assert old in (ROOT / file).read_text()
