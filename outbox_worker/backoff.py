"""Decide when a failed delivery is due again.

Reads: its arguments. Writes: nothing.
Guarantee: never earlier than the retry schedule; a receiver's hint and the jitter only ever add, the hint up
to 24 hours, the jitter up to a tenth.
If it is wrong: an endpoint is hammered, or waits for ever.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_SCHEDULE = (
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=4),
    timedelta(hours=12),
    timedelta(hours=24),
)
LONGEST_HINT = timedelta(hours=24)
JITTER_SHARE = 0.1


def delay(
    schedule: Sequence[timedelta], failed_count: int, hint: timedelta | None, jitter: float
) -> timedelta:
    """Give the time to wait after the failed attempt number `failed_count`, counted from 1.

    `hint` is what the receiver asked for, `jitter` a random number of [0, 1). Raises ValueError outside the
    schedule: after its last entry the verdict is GIVE_UP.
    """
    if not 1 <= failed_count <= len(schedule):
        raise ValueError(f"choosing a retry delay: attempt {failed_count} of a schedule of {len(schedule)}")
    if not 0 <= jitter < 1:
        raise ValueError(f"choosing a retry delay: the jitter is {jitter}, not in [0, 1)")
    wait = schedule[failed_count - 1]
    if hint is not None:
        wait = max(wait, min(hint, LONGEST_HINT))
    return wait * (1 + JITTER_SHARE * jitter)
