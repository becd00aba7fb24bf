"""The meter: what the workers hold and how fast receivers hear, before, during and after the faults.

Reads: /proc of the workers, pg_stat_activity, the journal. Writes: nothing.
Guarantee: a peak is the highest of looks at least once a second at every worker that lives.
If it is wrong: a leak within a fault passes unseen; what is left at the end is judged by `leftovers`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from tests.campaign.evidence import Evidence
    from tests.campaign.stage import Stage

IDLE_SECONDS = 20
"""Connections to receivers are kept for 15 s of idleness."""
FD_SLACK, RSS_SLACK_KB, CONNECTIONS_EACH = 25, 30_000, 6
LOOK_SECONDS = 0.5
COUNT = (  # of a process: its pool's and the one that listens
    "select substring(application_name from '[^ ]+$'), count(*) from pg_stat_activity where usename = 'worker_login' group by 1"
)


@dataclass
class Peaks:
    """The most that one worker ever held; `connections_all` is of all workers together."""

    memory_mb: float = 0.0
    descriptors: int = 0
    connections: int = 0
    connections_all: int = 0

    async def watch(self, stage: Stage) -> None:
        """Look until cancelled. The connections cannot be counted while the database is away."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(stage)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    counts = [count for _, count in await stage.database.rows(COUNT)]
            except (psycopg.Error, TimeoutError, OSError):
                continue
            self.connections = max(self.connections, *counts, 0)
            self.connections_all = max(self.connections_all, sum(counts))

    def look(self, stage: Stage) -> None:
        for place in stage.fleet.places:
            try:
                descriptors, memory = footprint(place.pid) if place.pid else (0, 0)
            except (OSError, StopIteration):
                continue  # it has just ended
            self.descriptors = max(self.descriptors, descriptors)
            self.memory_mb = max(self.memory_mb, round(memory / 1024, 1))


def throughput(e: Evidence, publishing_ended: float) -> dict[str, float]:
    """Requests answered 2xx a second: before the first fault, from its beginning until the last one's
    recovery, after that.
    """
    heard = [r["at"] for r in e.journal if 200 <= r["status"] < 300]
    faults = [one for one in e.played if one.name != "calm"] or e.played
    first, last = min(one.began for one in faults), max(one.ended + (one.recovery or 0) for one in faults)
    spans = {
        "before": (min(heard, default=first), first),
        "during": (first, last),
        "after": (last, publishing_ended),
    }
    return {
        name: round(sum(a <= at < b for at in heard) / (b - a), 1) if b > a else 0.0
        for name, (a, b) in spans.items()
    }


def footprint(pid: int) -> tuple[int, int]:
    """Open descriptors and resident memory (kB)."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), rss


async def leftovers(stage: Stage, baseline: dict[str, tuple[int, int]]) -> list[str]:
    """What a worker holds at the end beyond what the first ones held when they had just begun."""
    for _ in range(IDLE_SECONDS):
        if not (found := await held_beyond(stage, baseline)):
            break
        await asyncio.sleep(1)
    return found


async def held_beyond(stage: Stage, baseline: dict[str, tuple[int, int]]) -> list[str]:
    found = []
    fds, rss = (max(values) for values in zip(*baseline.values(), strict=True))
    for place in stage.fleet.places:
        if place.pid:
            now = footprint(place.pid)
            if now[0] > fds + FD_SLACK:
                found.append(f"{place.name} has {now[0]} descriptors, {fds} at the beginning")
            if now[1] > rss + RSS_SLACK_KB:
                found.append(f"{place.name} has {now[1]} kB, {rss} at the beginning")
    rows = await stage.database.rows(
        "select split_part(application_name, ':', 1), count(*), count(*) filter (where state = 'idle in transaction' "
        "and state_change < now() - interval '1 s') from pg_stat_activity where usename = 'worker_login' group by 1"
    )
    for name, count, idle in rows:
        if count > CONNECTIONS_EACH:
            found.append(f"{name} has {count} connections")
        if idle:
            found.append(f"{name} idles in {idle} transactions")
    return found
