"""Rows: what the statements return and take, turned into nouns and back.

Reads: rows of sql/queries by position. Writes: parameters of claim.sql and settle.sql.
Guarantee: text that PostgreSQL cannot store (NUL) never reaches a parameter; bodies stay bytes.
If it is wrong: a batch is refused by the database, and settle finds the one at fault.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as json_text
from typing import TYPE_CHECKING, Any

from outbox_worker.lane import WEIGHTS
from outbox_worker.model import Delivery, FannedOut, Leased, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from psycopg import AsyncCursor

    from outbox_worker.lane import Lane
    from outbox_worker.model import FanOutAsk, Room

Row = tuple[Any, ...]
NULL = "NULL"


def has_rows(cursor: AsyncCursor[Row]) -> bool:
    """Whether the statement returned a table. `cursor.description` would make an object of each of its columns."""
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0


def fan_out_parameters(ask: FanOutAsk, room: Room) -> dict[str, str]:
    """All as text: psycopg gives a number the least type that holds it, and each other type is another statement to plan."""
    return {
        "fair": str(ask.fair),
        "mark": str(ask.mark),
        "batch": str(ask.batch),
        "priorities": array([str(priority) for priority, _, _, _ in ask.shares]),
        "buckets": array([str(bucket) for _, bucket, _, _ in ask.shares]),
        "marks": array([str(mark) for _, _, mark, _ in ask.shares]),
        "quotas": array([str(quota) for _, _, _, quota in ask.shares]),
        "shards": array([str(shard) for shard in room.shards]),
        "rooms": json.dumps({str(endpoint_id): known for endpoint_id, known in room.endpoints.items()}),
        "default_room": str(room.default),
        "room": str(room.total),
    }


def rows_to_fanned_out(rows: Sequence[Row], token: UUID) -> FannedOut:
    result = FannedOut([], [], [], {}, rows[0][15] if rows else datetime.now(UTC))
    bodies = {row[0]: row[12] for row in rows if row[12] is not None}  # told once an event
    seen = set()
    for row in rows:
        (seq, bucket, queued_priority, events, endpoint_id, shard, handed_over, due, event_id) = row[:9]
        (workspace_id, event_type, version, _body, traceparent, created_at) = row[9:15]
        (claimed_at, cap, per_second, changed) = row[15:]
        if seq not in seen:
            seen.add(seq)
            result.taken.append((seq, bucket, queued_priority, events))
        if endpoint_id is None:
            continue
        result.endpoints[endpoint_id] = (shard, cap, per_second, changed)
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
            body=bodies[seq],
            traceparent=traceparent,
            priority=queued_priority,
            created_at=created_at,
            ordering_key=None,
        )
        result.handed_over.append(Leased(delivery, due, claimed_at))
    return result


def claim_parameters(asks: Sequence[tuple[Lane, int]]) -> dict[str, str]:
    """Whom a claim asks for, and where it goes on, as arrays in PostgreSQL's own literals (see settle_parameters)."""
    lanes = [lane for lane, _ in asks]
    parameters = {
        "endpoint_ids": array([lane.endpoint_id.hex for lane in lanes]),
        "rooms": array([str(room) for _, room in asks]),
        "busy": array([str(lane.in_flight) for lane in lanes]),
    }
    for priority in range(len(WEIGHTS)):
        parameters[f"marks{priority}"] = array([f'"{lane.marks[priority].isoformat()}"' for lane in lanes])
        parameters[f"turns{priority}"] = array([str(lane.turns[priority]) for lane in lanes])
    return parameters


def settle_parameters(settlements: Sequence[Settlement]) -> dict[str, str]:
    """Arrays as PostgreSQL's own literals: a sixth of the worker's time went into dumping them one value at a time."""
    items = [(s, s.delivery, s.outcome) for s in settlements]
    return {
        "event_ids": array([d.event_id.hex for _, d, _ in items]),
        "endpoint_ids": array([d.endpoint_id.hex for _, d, _ in items]),
        "workspace_ids": array([quoted(d.workspace_id) for _, d, _ in items]),
        "lease_tokens": array([d.lease_token.hex for _, d, _ in items]),
        "attempt_nos": array([str(d.attempt_no) for _, d, _ in items]),
        "versions": array([str(d.endpoint_version) for _, d, _ in items]),
        "event_types": array([quoted(d.event_type) for _, d, _ in items]),
        "verdicts": array([s.verdict for s, _, _ in items]),
        "retry_seconds": array(
            [NULL if s.retry_in is None else repr(s.retry_in.total_seconds()) for s, _, _ in items]
        ),
        "started_ats": array([f'"{s.started_at.isoformat()}"' for s, _, _ in items]),
        "durations": array([str(round(o.duration_ms)) for _, _, o in items]),
        "statuses": array([NULL if o.status is None else str(o.status) for _, _, o in items]),
        "errors": array([quoted(error_text(s)) for s, _, _ in items]),
        "response_headers": array([quoted(headers_text(o.response_headers)) for _, _, o in items]),
        "response_bodies": array([f'"\\\\x{o.response_body.hex()}"' for _, _, o in items]),
    }


def array(elements: Iterable[str]) -> str:
    return "{" + ",".join(elements) + "}"


def quoted(text: str | None) -> str:
    """A text as an element of an array literal (PostgreSQL manual, 8.15.6)."""
    if text is None:
        return NULL
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if "\0" in key or "\0" in text:
            key, text = key.replace("\0", ""), text.replace("\0", "")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return "{" + ", ".join([f"{json_text(key)}: {json_text(text)}" for key, text in joined.items()]) + "}"
