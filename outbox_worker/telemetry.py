"""Telemetry: the closed list of log events, each a function here, and the set-up of structlog.

Reads: what the loops report. Writes: standard output, JSON unless it is a terminal.
Guarantee: no payload, secret, header value, URL path or query reaches a log line: nothing here takes one.
If it dies: a line is lost, never a delivery.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

if TYPE_CHECKING:
    from uuid import UUID

    from outbox_worker.model import Endpoint, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def configure(level: str) -> None:
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stdout.isatty():
        # plain: a traceback with local variables would show secrets
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )


def bind(worker: str) -> None:
    structlog.contextvars.clear_contextvars()
    global log  # noqa: PLW0603  (one process is one worker)
    log = structlog.get_logger(worker=worker).bind()  # not the lazy one, which binds anew at each line


def worker_started(version: str, slots: int, *, poll_only: bool) -> None:
    log.info("worker.started", version=version, slots=slots, poll_only=poll_only)


def worker_draining(in_flight: int) -> None:
    log.info("worker.draining", in_flight=in_flight)


def readiness_untold(why: str) -> None:
    log.warning("readiness.untold", why=why, do="see that NOTIFY_SOCKET leads to who listens")


def worker_stopped() -> None:
    log.info("worker.stopped")


def presence_lost(worker_no: int) -> None:
    log.warning(
        "presence.lost",
        worker_no=worker_no,
        do="a new number is taken; check for long pauses of this process",
    )


def shards_changed(owned: int) -> None:
    log.info("shards.changed", owned=owned)


def event_fanned_out(events: int, deliveries: int, handed_over: int) -> None:
    log.debug("event.fanned_out", events=events, deliveries=deliveries, handed_over=handed_over)


def event_set_aside(event_id: UUID | None, error: str) -> None:
    log.error("event.set_aside", event_id=str(event_id), error=error, do="look at outbox.set_aside_events")


def filter_quarantined(endpoint_id: UUID) -> None:
    log.warning(
        "filter.quarantined",
        endpoint_id=str(endpoint_id),
        do="change the endpoint's filter: it ran past its deadline",
    )


def delivery_attempted(settlement: Settlement, endpoint: Endpoint) -> None:
    """The canonical line: exactly one for each attempt."""
    if not log.is_enabled_for(logging.INFO):  # before a dozen values are made for nobody
        return
    delivery, outcome = settlement.delivery, settlement.outcome
    log.info(
        "delivery.attempted",
        event_id=str(delivery.event_id),
        endpoint_id=str(delivery.endpoint_id),
        event_type=delivery.event_type,
        attempt=delivery.attempt_no,
        verdict=settlement.verdict.value,
        http_status=outcome.status,
        error_type=outcome.failure.value if outcome.failure else None,
        url_host=urlsplit(endpoint.url).hostname,
        duration_ms=round(outcome.duration_ms, 1),
        response_bytes=len(outcome.response_body),
        next_attempt_in_s=round(settlement.retry_in.total_seconds(), 1) if settlement.retry_in else None,
    )


def delivery_crashed(event_id: UUID, endpoint_id: UUID, error: Exception) -> None:
    """The error's type and place, not its words: they may hold what no log may."""
    *_, last = traceback.walk_tb(error.__traceback__)
    log.error(
        "delivery.crashed",
        event_id=str(event_id),
        endpoint_id=str(endpoint_id),
        error=type(error).__name__,
        place=f"{Path(last[0].f_code.co_filename).name}:{last[1]}",
        do="report this; the lease expires",
    )


def delivery_released(count: int, why: str) -> None:
    log.info("delivery.released", count=count, why=why)


def settlement_late(event_id: UUID, endpoint_id: UUID, attempt: int) -> None:
    log.warning(
        "lease.lost",
        event_id=str(event_id),
        endpoint_id=str(endpoint_id),
        attempt=attempt,
        kept_in="outbox.late_results",
    )


def settlement_failed(event_id: UUID, endpoint_id: UUID, error: str) -> None:
    log.error(
        "settlement.failed",
        event_id=str(event_id),
        endpoint_id=str(endpoint_id),
        error=error,
        do="report this; the lease expires",
    )


def lease_reaped(event_id: UUID, endpoint_id: UUID, lost_count: int, *, crash_loop: bool) -> None:
    log.warning(
        "lease.reaped",
        event_id=str(event_id),
        endpoint_id=str(endpoint_id),
        lost_count=lost_count,
        crash_loop=crash_loop,
    )


def endpoint_disabled(endpoint_id: UUID) -> None:
    log.warning("endpoint.disabled", endpoint_id=str(endpoint_id))


def endpoint_held(endpoint_id: UUID, why: str) -> None:
    log.error(
        "endpoint.held",
        endpoint_id=str(endpoint_id),
        why=why,
        do="rotate the secret or bring back the vault key",
    )


def previous_secret_unreadable(endpoint_id: UUID, why: str) -> None:
    log.warning("secret.unreadable", endpoint_id=str(endpoint_id), why=why, do="only the new secret signs")


def database_lost(error: str) -> None:
    log.warning("database.lost", error=error)


def database_recovered(after_seconds: float) -> None:
    log.info("database.recovered", after_s=round(after_seconds, 1))


def listener_lost(error: str) -> None:
    log.warning(
        "listener.lost",
        error=error,
        do="the worker polls meanwhile; see whether its role has a connection to spare",
    )


def listener_recovered() -> None:
    log.info("listener.recovered")


def partitions_alarm(text: str) -> None:
    log.error("partitions.alarm", text=text)


def upkeep_failed(task: str, error: str) -> None:
    log.error(
        "upkeep.failed", task=task, error=error, do="it is tried again in its turn; look at the server's log"
    )


def statement_failed(stage: str, error: str) -> None:
    log.error("statement.failed", stage=stage, error=error, do="it is tried again; look at the server's log")


def requests_cut(count: int) -> None:
    log.warning(
        "requests.cut",
        count=count,
        do="raise OUTBOX_DRAIN_SECONDS; their leases expire and they go out again",
    )


def upkeep_done(task: str, count: int) -> None:
    log.info("upkeep.done", task=task, count=count)
