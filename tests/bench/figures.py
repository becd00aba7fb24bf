"""Figures: what a benchmark hands back, and how people and machines read it.

Reads: samples. Writes: standard output.
Guarantee: the table of the README is this module's, so that no figure in it was typed by hand.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    minutes: float | None = None
    full: bool = False
    short: bool = False
    seed: int = 1
    statements: bool = False
    workspaces: int = 500  # of two endpoints each

    def seconds(self, default: float, short: float) -> float:
        """Give the time that a benchmark may measure, all its parts together."""
        if self.minutes is not None:
            return self.minutes * 60
        return short if self.short else default


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    reach: str = ""  # as DESIGN.md states it
    note: str = ""


@dataclass(frozen=True)
class Report:
    benchmark: str
    seed: int
    figures: list[Figure]
    detail: dict[str, Any] = field(default_factory=dict)


def percentile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def p50_p99(
    name: str, samples: Sequence[float], *, reach: tuple[str, str] = ("", ""), note: str = ""
) -> list[Figure]:
    note = f"{note + '; ' if note else ''}{len(samples)} samples"
    return [
        Figure(f"{name}, p50", percentile(samples, 0.5), "ms", reach[0], note),
        Figure(f"{name}, p99", percentile(samples, 0.99), "ms", reach[1], note),
    ]


def spread(values: Sequence[float]) -> str:
    return f"median of {len(values)}, {shown(min(values))} to {shown(max(values))}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def shown(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def table(reports: Sequence[Report]) -> str:
    lines = ["| benchmark | figure | measured | to reach | note |", "|---|---|---|---|---|"]
    for report in reports:
        lines += [
            f"| {report.benchmark} | {one.name} | {shown(one.value)} {one.unit} | {one.reach} | {one.note} |".replace(
                "|  |", "| |"
            )
            for one in report.figures
        ]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": _processors(),
    }
    return json.dumps({**asdict(report), "machine": machine})


def _processors() -> int:
    import os  # noqa: PLC0415  (one use)

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(text: str) -> None:
    """Tell the person who waits; standard output is for the figures."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
