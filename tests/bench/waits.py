"""Pauses and waits of the benchmarks; each has a bound.

Reads: the clock. Writes: nothing.
Guarantee: a wait ends when the condition holds, or fails at its timeout and says what never came.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def pause(seconds: float) -> None:
    time.sleep(max(seconds, 0))


def until(check: Callable[[], T], what: str, *, seconds: float, every: float = 0.02) -> T:
    """Poll until the check gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}: still {found!r}")
        time.sleep(every)
    return found


def ticks(seconds: float, every: float) -> Iterator[float]:
    """Give the seconds that have passed, at an even pace, for so long."""
    began = time.monotonic()
    number = 0
    while (passed := time.monotonic() - began) < seconds:
        yield passed
        number += 1
        pause(began + number * every - time.monotonic())
