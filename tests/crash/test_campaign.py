"""The fault campaign in its short form: one seed, the faults that say the most in a minute."""

from __future__ import annotations

from tests.campaign.__main__ import campaign

SHORT = (
    "sigkill_all",
    "dies at: sent",
    "database_killed",
    "sigterm_while_receivers_are_late",
    "backends_terminated",
    "sigstop_past_presence",
)


async def test_every_invariant_holds_through_the_short_campaign(server_folder):
    """Workers, database and receivers break in turn: nothing lost, nothing made up, every request accounted for."""
    told = await campaign(11, 1, faults=list(SHORT), folder=server_folder.parent, rate=10)
    # How fast workers recover is the campaign's own question: a test does not assert on wall-clock speed.
    found = {name: what for name, what in told["violations"].items() if name != "workers_recover"}
    assert found == {}
    assert told["events"] > 100
    assert told["kills"] >= 4
