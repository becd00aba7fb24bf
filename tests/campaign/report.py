"""Evidence and report: what is read when everything has ended, and how a campaign is told.

Reads: the database, the journal, the meter. Writes: standard output.
Guarantee: the numbers come from the same evidence that the invariants judge.
If it is wrong: the README's table is.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from outbox_worker import __version__
from tests.campaign.evidence import Evidence, duplicates
from tests.campaign.meter import throughput
from tests.campaign.receiver import read_journal

if TYPE_CHECKING:
    from tests.campaign.stage import Stage

QUESTIONS = {
    "deliveries": "select event_id::text, endpoint_id::text, state, reason, attempt_count, failed_count, lost_count from outbox.deliveries",
    "attempts": "select event_id::text, endpoint_id::text, attempt_no, status, extract(epoch from started_at)::float8 as started_at, "
    "duration_ms from outbox.recorded_attempts",
    "late": "select event_id::text, endpoint_id::text, attempt_no, status, extract(epoch from started_at)::float8 as started_at from outbox.late_results",
    "lost": "select event_id::text, endpoint_id::text, attempt_no, extract(epoch from expired_at)::float8 as expired_at, worker_no from outbox.lost_leases",
    "leases": "select event_id::text, endpoint_id::text, what, attempt_no, extract(epoch from at)::float8 as at from campaign.leases order by no",
}
NUMBERS = (
    "events", "rolled_back", "unknown_commits", "deliveries", "requests", "attempts", "lost_leases", "late_results", "dead",
    "kills", "worker_starts", "operators", "duplicates", "lost", "phantom", "unaccounted", "throughput", "peaks",
)  # fmt: skip


def gather(stage: Stage, *, drained: bool, left: list[str]) -> Evidence:
    rows: dict[str, list[dict[str, Any]]] = {}
    with psycopg.connect(stage.database.server.dsn(), row_factory=psycopg.rows.dict_row) as connection:
        for name, question in QUESTIONS.items():
            rows[name] = connection.execute(question.encode()).fetchall()
        numbers = connection.execute(
            "select (payload ->> 'n')::int as n, event_id::text as id from outbox.events"
        ).fetchall()
    ids = {row["n"]: row["id"] for row in numbers}
    for event in stage.publisher.ledger:
        if event["state"] == "committed":
            event["id"] = ids.get(event["n"], f"missing {event['n']}")
    return Evidence(
        ledger=stage.publisher.ledger, journal=read_journal(stage.folder), consumers=stage.consumers,
        people=stage.operators, played=stage.played, drained=drained, unasked=stage.fleet.unasked, leftovers=left, **rows,
    )  # fmt: skip


def commit() -> str:
    if shutil.which("git") is None:  # a bare machine has no git, and the sources may be no checkout
        return "unknown"
    words = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def report(stage: Stage, e: Evidence, violations: dict[str, list[str]], seconds: float) -> dict[str, Any]:
    extra = duplicates(e)
    recovery: dict[str, list[float]] = {}
    for one in stage.played:
        recovery.setdefault(one.name, []).append(one.recovery or 0.0)
    return {
        "seed": stage.seed,
        "commit": commit(),
        "versions": {
            "outbox-worker": __version__, "python": platform.python_version(), "psycopg": psycopg.__version__,
            "postgresql": stage.database.server.version,
        },
        "seconds": round(seconds, 1),
        "events": len(e.committed),
        "rolled_back": sum(x["state"] == "gone" for x in e.ledger),
        "unknown_commits": stage.publisher.unknown,
        "deliveries": len(e.deliveries),
        "requests": len(e.journal),
        "attempts": len(e.attempts),
        "lost_leases": len(e.lost),
        "late_results": len(e.late),
        "dead": {r: n for r, n in count_of(e.deliveries, "reason").items() if r},
        "lost": len(violations["nothing_lost"]),
        "phantom": len(violations["nothing_else"]),
        "unaccounted": len(violations["every_request_is_accounted_for"]),
        "duplicates": {"total": extra.total(), "most": max(extra.values(), default=0),
                       "per_kill": round(extra.total() / stage.fleet.kills, 2) if stage.fleet.kills else 0},
        "throughput": throughput(e, stage.publishing_until),
        "peaks": vars(stage.peaks),
        "kills": stage.fleet.kills,
        "worker_starts": stage.fleet.starts,
        "operators": stage.operators.acts,
        "faults": {
            name: {"times": len(values), "recovery_median": statistics.median(values), "recovery_most": max(values)}
            for name, values in recovery.items()
        },
        "notes": [f"{one.name}: {one.note}" for one in stage.played if one.note],
        "violations": {name: found[:20] for name, found in violations.items() if found},
        "invariants_held": sum(not found for found in violations.values()),
    }  # fmt: skip


def count_of(rows: list[dict[str, Any]], key: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row[key]] = found.get(row[key], 0) + 1
    return found


def text(told: dict[str, Any]) -> str:
    lines = [f"seed {told['seed']}, commit {told['commit']}, {told['seconds']} s, {told['versions']}"]
    lines += [f"  {name:<16} {told[name]}" for name in NUMBERS]
    lines.append(
        f"  {'fault':<40} {'times':>5} {'median':>7} {'most':>7}  (seconds until every healthy endpoint heard again)"
    )
    for name, one in told["faults"].items():
        lines.append(
            f"  {name:<40} {one['times']:>5} {one['recovery_median']:>7.2f} {one['recovery_most']:>7.2f}"
        )
    lines += [f"  {note}" for note in told["notes"]]
    for name, found in told["violations"].items():
        lines.append(f"VIOLATED {name} ({len(found)} shown)")
        lines += [f"    {one}" for one in found[:8]]
    lines.append(f"{told['invariants_held']} invariants held, {len(told['violations'])} violated")
    return "\n".join(lines)
