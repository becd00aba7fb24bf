"""The fault campaign in its short form: two minutes, one seed, the faults that say the most."""

from __future__ import annotations

import random
import sys

from tests.campaign import report
from tests.campaign.__main__ import campaign

SEED = 11
SHORT = (
    "sigkill_all",
    "dies at: sent",
    "killed_while_draining",
    "sigterm_while_receivers_are_late",
    "sigstop_past_presence",
    "database_killed",
    "standby_promoted",
    "backends_terminated",
    "table_locked",
    "database half-open",
    "receivers_lying",
    "names silent",
)


async def test_every_invariant_holds_through_the_short_campaign(server_folder, capsys):
    """Workers, database and receivers break in turn: nothing lost, nothing made up, every request accounted for."""
    order = random.Random(SEED).sample(SHORT, len(SHORT))
    told = await campaign(SEED, 2, faults=order, folder=server_folder.parent, rate=10)
    with capsys.disabled():
        sys.stdout.write(f"\n{report.text(told)}\n")
    # How fast workers recover is the campaign's own question: a test does not assert on wall-clock speed.
    found = {name: what for name, what in told["violations"].items() if name != "workers_recover"}
    assert found == {}
    assert told["events"] > 100
    assert told["kills"] >= 4
    assert told["attempts"] > told["events"]
