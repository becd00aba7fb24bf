"""Rows: what the statements return and take, turned into nouns and back.

Reads: rows of sql/queries by position. Writes: parameters of settle.sql.
Guarantee: text that PostgreSQL cannot store (NUL) never reaches a parameter; bodies stay bytes.
If it is wrong: a batch is refused by the database, and settle finds the one at fault.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from outbox_worker.model import Delivery, FannedOut, Leased, Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

Row = tuple[Any, ...]


def rows_to_fanned_out(rows: Sequence[Row], token: UUID) -> FannedOut:
    result = FannedOut([], [], [], {}, rows[0][14] if rows else datetime.now(UTC))
    seen = set()
    for row in rows:
        (seq, bucket, queued_priority, endpoint_id, shard, handed_over, due, event_id, workspace_id) = row[:9]
        (event_type, version, body, traceparent, created_at, claimed_at, cap) = row[9:]
        if seq not in seen:
            seen.add(seq)
            result.taken.append((seq, bucket, queued_priority))
        if endpoint_id is None:
            continue
        result.endpoints[endpoint_id] = (shard, cap)
        if not handed_over:
            result.waiting.append((endpoint_id, shard, due))
            continue
        delivery = Delivery(
            event_id=event_id,
            endpoint_id=endpoint_id,
            workspace_id=workspace_id,
            event_type=event_type,
            attempt_no=1,
            failed_count=0,
            endpoint_version=version,
            lease_token=token,
            body=body,
            traceparent=traceparent,
            priority=queued_priority,
            created_at=created_at,
            ordering_key=None,
        )
        result.handed_over.append(Leased(delivery, due, claimed_at))
    return result


def settle_parameters(settlements: Sequence[Settlement]) -> dict[str, object]:
    items = [(s, s.delivery, s.outcome) for s in settlements]
    return {
        "event_ids": [d.event_id for _, d, _ in items],
        "endpoint_ids": [d.endpoint_id for _, d, _ in items],
        "workspace_ids": [d.workspace_id for _, d, _ in items],
        "lease_tokens": [d.lease_token for _, d, _ in items],
        "attempt_nos": [d.attempt_no for _, d, _ in items],
        "versions": [d.endpoint_version for _, d, _ in items],
        "event_types": [d.event_type for _, d, _ in items],
        "verdicts": [s.verdict.value for s, _, _ in items],
        "retry_seconds": [
            s.retry_in.total_seconds() if s.retry_in is not None else None for s, _, _ in items
        ],
        "started_ats": [s.started_at for s, _, _ in items],
        "durations": [round(o.duration_ms) for _, _, o in items],
        "statuses": [o.status for _, _, o in items],
        "errors": [error_text(s) for s, _, _ in items],
        "response_headers": [headers_text(o.response_headers) for _, _, o in items],
        "response_bodies": [o.response_body for _, _, o in items],
    }


def leased(row: Row, token: UUID) -> Leased:
    (event_id, endpoint_id, workspace_id, priority, due, attempt_count, failed_count, version) = row[:8]
    (event_type, body, traceparent, created_at, ordering_key, claimed_at) = row[8:]
    delivery = Delivery(
        event_id=event_id,
        endpoint_id=endpoint_id,
        workspace_id=workspace_id,
        event_type=event_type,
        attempt_no=attempt_count + 1,
        failed_count=failed_count,
        endpoint_version=version,
        lease_token=token,
        body=body,
        traceparent=traceparent,
        priority=priority,
        created_at=created_at,
        ordering_key=ordering_key,
    )
    return Leased(delivery, due, claimed_at)


def error_text(settlement: Settlement) -> str | None:
    outcome = settlement.outcome
    if outcome.failure is not None:
        text = f"{outcome.failure.value}: {outcome.error}" if outcome.error else outcome.failure.value
        return text.replace("\0", "")[:500]
    return None if outcome.status is not None and 200 <= outcome.status < 300 else f"status {outcome.status}"


def headers_text(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Headers as a JSON object; one name twice is joined by a comma (RFC 9110, 5.3)."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key, text = (
            name.decode("latin-1").lower().replace("\0", ""),
            value.decode("latin-1").replace("\0", ""),
        )
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return json.dumps(joined)
