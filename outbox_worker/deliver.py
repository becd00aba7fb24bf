"""Deliver: one delivery from prepared request to settlement; no database, no clock of its own.

Reads: a leased Delivery and its Endpoint. Writes: one POST, through `send`.
Guarantee: the body is the bytes the database gave; every outcome becomes exactly one Settlement.
If it dies: the receiver may have the request; the lease expires and it gets the same webhook-id again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from outbox_worker import backoff, classify, signing
from outbox_worker.model import Delivery, Endpoint, Outcome, Request, Settlement, Verdict

Send = Callable[[Request], Awaitable[Outcome]]
USER_AGENT: Final = "outbox-worker/1 (+https://www.standardwebhooks.com)"
LOCAL_PAUSE: Final = timedelta(seconds=1)
"""How long a delivery rests after a fault of our own; no attempt is counted."""


async def deliver(
    delivery: Delivery, endpoint: Endpoint, *, send: Send, started_at: datetime, jitter: float
) -> Settlement:
    request = prepare(delivery, endpoint, started_at)
    outcome = await send(request)
    return settlement(delivery, endpoint, outcome, started_at, jitter)


def prepare(delivery: Delivery, endpoint: Endpoint, at: datetime) -> Request:
    event_id = str(delivery.event_id)
    headers = [
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
        *signing.signature_headers(
            event_id, int(at.timestamp()), delivery.body, endpoint.secrets, endpoint.signature_header
        ),
        ("webhook-attempt", str(delivery.attempt_no)),
    ]
    if delivery.traceparent is not None:
        headers.append(("traceparent", delivery.traceparent))
    return Request(endpoint.url, (*headers, *endpoint.headers), delivery.body, endpoint.timeout_seconds)


def settlement(
    delivery: Delivery, endpoint: Endpoint, outcome: Outcome, started_at: datetime, jitter: float
) -> Settlement:
    verdict = classify.classify(outcome, delivery.failed_count + 1, len(endpoint.retry_schedule))
    retry_in = None
    if verdict is Verdict.RETRY:
        hint = classify.retry_after(outcome, started_at)
        retry_in = backoff.delay(endpoint.retry_schedule, delivery.failed_count + 1, hint, jitter)
    elif verdict is Verdict.NOT_ATTEMPTED:
        retry_in = LOCAL_PAUSE
    return Settlement(delivery, outcome, verdict, retry_in, started_at)
