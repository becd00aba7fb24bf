"""Flights: the deliveries between their claim and their settlement, one task each, all owned here.

Reads: leased deliveries from fan-out and claim. Writes: requests (through deliver), settlements into a bounded queue.
Guarantee: no request starts with less lease or less presence left than its deadline and the time to record it;
a started request is never given back; no limit is exceeded, whatever a claim brings; slots are held until the result is recorded.
If it dies: what was in flight or unsettled is delivered again with the same webhook-id after its lease.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from outbox_worker import telemetry
from outbox_worker.deliver import Send, deliver
from outbox_worker.model import Delivery, Endpoint, Failure, Outcome, Settlement, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from outbox_worker.endpoint_book import EndpointBook
    from outbox_worker.lane import Lane
    from outbox_worker.limits import Lanes
    from outbox_worker.model import Leased

UNREACHABLE = frozenset(
    {
        Failure.CONNECT_TIMEOUT,
        Failure.CONNECT_ERROR,
        Failure.TIMEOUT,
        Failure.DNS_ERROR,
        Failure.TLS,
        Failure.AMBIGUOUS,
    }
)

host_of = lru_cache(4096)(lambda url: urlsplit(url).netloc)
"""Whom a limit per host counts: the standard library remembers 128 URLs only."""


class Flights:
    def __init__(
        self,
        *,
        lanes: Lanes,
        book: EndpointBook,
        send: Send,
        lease_seconds: float,
        margin_seconds: float,
        presence_until: Callable[[], float],
        holds: Callable[[int], bool] = lambda _shard: True,
        on_point: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self.lanes = lanes
        self.book = book
        self.send = send
        self.lease_seconds = lease_seconds
        self.margin_seconds = margin_seconds
        self.presence_until = presence_until
        self.holds = holds
        self.on_point = on_point
        self.unsettled: deque[Settlement] = deque()
        self.unstarted: deque[Delivery] = deque()  # to be given back
        self.settle_wanted = asyncio.Event()
        self.room_changed = asyncio.Event()  # for the claim
        self.room_wanted = asyncio.Event()  # for the fan-out
        self.recording = 0  # taken by the settle loop, not yet recorded
        self.draining = False
        self.claiming = 0  # slots that a claim under way may bring something for
        self.handing_over = 0  # and a fan-out
        self.tasks: asyncio.TaskGroup | None = None

    @property
    def free(self) -> int:
        """Slots for new work: one is held from the claim until the result is recorded."""
        if self.draining:
            return 0
        return self.lanes.slots - self.lanes.in_flight - len(self.unsettled) - self.recording

    @property
    def idle(self) -> bool:
        return not (self.lanes.in_flight or self.unsettled or self.unstarted or self.recording)

    def start(self, leases: list[Leased], claimed_before: float) -> None:
        """Begin what was claimed by a call sent at `claimed_before` (monotonic)."""
        if self.tasks is None:
            raise RuntimeError("deliveries were started outside of fly(): open it first")
        self.on_point("claimed")
        now = time.monotonic()
        for leased in leases:
            lane = self.lanes.lane(leased.delivery.endpoint_id)
            lane.workspace_id = leased.delivery.workspace_id
            endpoint = self.book.known(leased.delivery.endpoint_id, leased.delivery.endpoint_version)
            host = host_of(endpoint.url) if endpoint is not None else ""
            # A claim and a fan-out under way at once, a circuit that opened, a shard that left or a stop meanwhile:
            # more came than may start.
            if self.free <= 0 or not self.holds(lane.shard) or not self.lanes.admits(lane, host, now):
                self.unstarted.append(leased.delivery)
                self.settle_wanted.set()
                continue
            was_suspect = lane.suspect
            self.lanes.started(lane, host)
            self.tasks.create_task(
                self.fly_one(
                    leased, lane, host, endpoint, was_suspect=was_suspect, claimed_before=claimed_before
                )
            )

    async def fly_one(
        self,
        leased: Leased,
        lane: Lane,
        host: str,
        endpoint: Endpoint | None,
        *,
        was_suspect: bool,
        claimed_before: float,
    ) -> None:
        received = time.monotonic()
        delivery = leased.delivery
        settlement = None
        try:
            if endpoint is None:
                endpoint = await self.book.endpoint(delivery.endpoint_id, delivery.endpoint_version)
            now = time.monotonic()
            if endpoint is not None and not host and self.lanes.gates.found(lane, host_of(endpoint.url), now):
                host = host_of(endpoint.url)
            if (
                endpoint is not None
                and host
                and self.holds(lane.shard)
                and self.may_start(endpoint, now, claimed_before)
            ):
                started_at = leased.claimed_at + timedelta(seconds=now - received)
                settlement = await deliver(
                    delivery,
                    endpoint,
                    send=self.send,
                    started_at=started_at,
                    jitter=random.random(),  # noqa: S311  (spreads retries, guards nothing)
                )
        except Exception as error:  # noqa: BLE001  (one delivery's bug must not end the others; its lease expires)
            telemetry.delivery_crashed(delivery.event_id, delivery.endpoint_id, error)
        else:
            if settlement is None:
                self.unstarted.append(delivery)
            else:
                self.on_point("sent")
                self.learn(lane, host, settlement.outcome, settlement.verdict, time.monotonic())
                self.unsettled.append(settlement)
                if endpoint is not None:
                    telemetry.delivery_attempted(settlement, endpoint)
        finally:
            self.lanes.ended(lane, host, time.monotonic(), was_suspect=was_suspect)
            self.settle_wanted.set()

    def may_start(self, endpoint: Endpoint, now: float, claimed_before: float) -> bool:
        needed = endpoint.timeout_seconds + self.margin_seconds
        return (
            not self.draining
            and claimed_before + self.lease_seconds - now >= needed
            and self.presence_until() - now >= needed
        )

    def learn(self, lane: Lane, host: str, outcome: Outcome, verdict: Verdict, now: float) -> None:
        """What an outcome says of the endpoint and of the host that it was sent to, which may not be its host any more."""
        if verdict is Verdict.DELIVERED:
            self.lanes.answered(lane, host, outcome.duration_ms, now)
        elif outcome.failure in UNREACHABLE:
            self.lanes.unreachable(lane, host, outcome.duration_ms, now)
        elif outcome.failure is not Failure.LOCAL:
            self.lanes.refused(lane, host, outcome.duration_ms, now)

    async def fly(self, stopped: asyncio.Event) -> None:
        """Own every delivery in flight until stopped; leaving waits for the last of them."""
        async with asyncio.TaskGroup() as tasks:
            self.tasks = tasks
            await stopped.wait()
