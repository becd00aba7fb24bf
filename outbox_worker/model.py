"""The nouns that travel through the pipeline: frozen values without behaviour.

What is made for each delivery is a NamedTuple: a frozen dataclass takes three times as long to make.

Endpoint and Delivery come from the database, Request goes to the wire, Outcome comes back from it,
Verdict is what we decide, Settlement is what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from uuid import UUID


class Failure(StrEnum):
    """How an exchange ended without a usable status. Stored as `error`'s first word."""

    BLOCKED_ADDRESS = "blocked_address"  # the guard refused: not one byte was sent
    DNS_ERROR = "dns_error"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_ERROR = "connect_error"
    TLS = "tls"
    TIMEOUT = "timeout"  # the total deadline passed
    AMBIGUOUS = "ambiguous"  # the connection broke after bytes went out: the receiver may have acted
    PROTOCOL = "protocol"  # the answer is not HTTP/1.1, or too large before its body
    LOCAL = "local"  # our own fault (descriptors, memory, ports): charged to nobody


class Verdict(StrEnum):
    DELIVERED = "delivered"
    RETRY = "retry"
    GIVE_UP = "give_up"  # budget used up: a dead letter
    DISABLE_ENDPOINT = "disable_endpoint"  # 410: this delivery is dead, the endpoint disabled
    NOT_ATTEMPTED = "not_attempted"  # our own fault: the lease is given back, no attempt is counted


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One consumer as one version of its row describes it, secrets opened."""

    endpoint_id: UUID
    workspace_id: str
    version: int
    url: str
    secrets: tuple[str, ...]  # `whsec_…` strings, newest first; two during a rotation
    headers: tuple[tuple[str, str], ...]  # custom headers, in stored order
    timeout_seconds: float  # the whole exchange
    retry_schedule: tuple[timedelta, ...]
    signature_header: str  # the product's own signature header, a setting of the database


class Delivery(NamedTuple):
    """One leased delivery: event times endpoint, with the body exactly as it will be sent."""

    event_id: UUID
    endpoint_id: UUID
    workspace_id: str
    event_type: str
    attempt_no: int  # number of the attempt about to be made, counted over all replays, from 1
    failed_count: int  # failed attempts since the last replay (or ever); the retry schedule's index
    endpoint_version: int
    lease_token: UUID
    body: bytes
    traceparent: str | None
    priority: int
    created_at: datetime  # of the event
    ordering_key: str | None


class Request(NamedTuple):
    """One POST, complete: nothing is added or changed after this."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout_seconds: float


class Outcome(NamedTuple):
    """What happened on the wire. Exactly one of `status` and `failure` is set."""

    status: int | None
    failure: Failure | None
    error: str  # '' or the failure in words: no URL path, no header value, no secret
    response_headers: tuple[tuple[bytes, bytes], ...]
    response_body: bytes  # at most the configured number of bytes, undecoded
    duration_ms: float


class Settlement(NamedTuple):
    """What one attempt comes to: the attempt's record and the delivery's new state."""

    delivery: Delivery
    outcome: Outcome
    verdict: Verdict
    retry_in: timedelta | None  # set exactly when the verdict is RETRY
    started_at: datetime  # database clock


class Leased(NamedTuple):
    """A delivery under our lease, and the database's clock when it was claimed."""

    delivery: Delivery
    next_attempt_at: datetime
    claimed_at: datetime


@dataclass(frozen=True, slots=True)
class FanOutAsk:
    """Which part of the queue to take: all in order, or a share of each bucket."""

    fair: bool
    mark: int
    batch: int
    shares: Sequence[tuple[int, int, int, int]] = ()  # priority, bucket, mark, quota


@dataclass(frozen=True, slots=True)
class Room:
    """What this worker can take over at once."""

    shards: Sequence[int]
    endpoints: dict[UUID, tuple[int, int]]  # room and requests in flight, where not untouched
    default: int
    total: int


@dataclass(frozen=True, slots=True)
class FannedOut:
    # Seq, bucket, priority and 1 of each event that made deliveries; of those that made none the last seq and their number:
    # in a fair round for each bucket and priority, in a plain one for all, with 0 and 0.
    taken: list[tuple[int, int, int, int]]
    handed_over: list[Leased]
    waiting: list[tuple[UUID, int, datetime]]  # endpoint, shard, due: inserted as pending
    # Of each endpoint met: shard, most in flight, most a second, when its state last changed.
    endpoints: dict[UUID, tuple[int, int, float | None, datetime]]
    found_at: datetime

    @property
    def events(self) -> int:
        return sum(events for _, _, _, events in self.taken)
