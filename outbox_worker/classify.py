"""Decide what an outcome means for its delivery, and what the receiver asked for.

Reads: its arguments. Writes: nothing.
Guarantee: every outcome has exactly one verdict; a status decides alone, whatever became of the body; nothing
that a receiver sends raises.
If it is wrong: deliveries are lost, or repeated without need.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import assert_never

from outbox_worker.model import Failure, Outcome, Verdict

LONGEST_HINT = timedelta(hours=24)
STATUSES_WITH_HINT = frozenset({429, 502, 503, 504})
_MAX_HINT_BYTES = 64  # the longest date is 33


def classify(outcome: Outcome, failed_count: int, schedule_length: int) -> Verdict:
    """Give the verdict. `failed_count` counts this attempt too, as failed, since the last replay."""
    retry = Verdict.RETRY if failed_count <= schedule_length else Verdict.GIVE_UP
    if outcome.status is not None:
        return _of_status(outcome.status, retry)
    match outcome.failure:
        case Failure.LOCAL:
            return Verdict.NOT_ATTEMPTED
        case (
            Failure.BLOCKED_ADDRESS
            | Failure.DNS_ERROR
            | Failure.CONNECT_TIMEOUT
            | Failure.CONNECT_ERROR
            | Failure.TLS
            | Failure.TIMEOUT
            | Failure.AMBIGUOUS
            | Failure.PROTOCOL
        ):
            return retry
        case None:
            raise ValueError("classifying an outcome: it has neither a status nor a failure")
        case _:
            assert_never(outcome.failure)


def _of_status(status: int, retry: Verdict) -> Verdict:
    if 200 <= status <= 299:
        return Verdict.DELIVERED
    return Verdict.DISABLE_ENDPOINT if status == 410 else retry


def retry_after(outcome: Outcome, now: datetime) -> timedelta | None:
    """Give the wait that the receiver asked for, from nothing to 24 hours; None without a readable one."""
    if outcome.status not in STATUSES_WITH_HINT:
        return None
    values = [
        value.strip(b" \t") for name, value in outcome.response_headers if name.lower() == b"retry-after"
    ]
    if not values or len(values[0]) > _MAX_HINT_BYTES:
        return None
    if re.fullmatch(rb"[0-9]+", values[0]):
        return timedelta(seconds=min(int(values[0]), LONGEST_HINT.total_seconds()))
    try:
        until = parsedate_to_datetime(values[0].decode("ascii"))
        wait = (until if until.tzinfo else until.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser raises, and the arithmetic
        return None
    return max(timedelta(0), min(wait, LONGEST_HINT))
