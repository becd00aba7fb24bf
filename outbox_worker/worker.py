"""Worker: open what is needed, run the loops in one TaskGroup, turn signals into an orderly end.

Reads: Settings. Writes: nothing of its own.
Guarantee: SIGTERM ends readiness, then claiming, gives back what has not started, lets what has started end within its deadline,
records it, leaves; a second signal leaves at once. Every task has its owner here.
If it dies: leases and presence expire; another worker goes on.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import ssl
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from outbox_worker import __version__, telemetry
from outbox_worker.claim import claim_loop
from outbox_worker.connection import Bounds
from outbox_worker.database import AWAY, open_pool, while_database_returns
from outbox_worker.egress import EgressPolicy
from outbox_worker.endpoint_book import EndpointBook
from outbox_worker.errors import ConfigError
from outbox_worker.fan_out import fan_out_loop
from outbox_worker.flights import Flights
from outbox_worker.limits import Lanes
from outbox_worker.presence import Presence, presence_loop, renew_and_balance
from outbox_worker.readiness import Readiness
from outbox_worker.settle import settle_loop
from outbox_worker.store import Store
from outbox_worker.transport import open_transport
from outbox_worker.upkeep import report_once, sweep_loop, upkeep_loop
from outbox_worker.vault import load_keyring
from outbox_worker.wakeup import WakeUp, open_wakeups

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from outbox_worker.deliver import Send
    from outbox_worker.settings import Settings

LAST_SECONDS = 2.0
"""What is left of the loops after the drain: a database that is away must not keep the process."""


async def run(
    settings: Settings,
    *,
    name: str | None = None,
    on_point: Callable[[str], None] = lambda _point: None,
    send: Send | None = None,
    stopping: asyncio.Event | None = None,
    readiness: Readiness | None = None,
) -> None:
    """Deliver until a signal, or `stopping`, says stop. `send` and `on_point` let a test stand at the edge."""
    readiness = readiness or Readiness(file=settings.ready_file)
    name = name or f"{socket.gethostname()}:{os.getpid()}"
    telemetry.bind(name)
    keyring = load_keyring(settings)
    check_open_files(settings.max_in_flight)
    stopping = stopping or asyncio.Event()  # somebody asks to stop
    closing = asyncio.Event()  # no longer ready: nothing more is taken
    stopped = asyncio.Event()
    conninfo = settings.database_url.get_secret_value()
    deadline = settings.database_timeout_seconds
    async with AsyncExitStack() as resources:
        pool = await resources.enter_async_context(
            open_pool(conninfo, poll_only=settings.poll_only, deadline=deadline, name=name)
        )
        store = Store(pool, lease_seconds=settings.lease_seconds, deadline=deadline)
        wakeups = await resources.enter_async_context(
            open_wakeups(conninfo, poll_only=settings.poll_only, name=name, deadline=deadline)
        )
        send = send or await sender(settings, store, resources)
        presence = Presence(name=name, version=__version__, seconds=settings.lease_seconds / 2)
        lanes = Lanes(
            slots=settings.max_in_flight,
            endpoint_limit=settings.endpoint_max_in_flight,
            host_limit=settings.host_max_in_flight,
            suspect_share=settings.suspect_share,
            owned=presence.shards,
        )
        book = EndpointBook(store, keyring, settings.request_timeout_seconds)
        flights = Flights(
            lanes=lanes,
            book=book,
            send=send,
            lease_seconds=settings.lease_seconds,
            margin_seconds=settings.settle_margin_seconds,
            presence_until=lambda: presence.until,
            holds=lambda shard: shard in presence.held,
            on_point=on_point,
        )
        wanted: asyncio.Queue[WakeUp] = asyncio.Queue(100)
        poll = settings.poll_ms / 1000
        with signals(stopping):
            if (
                await present_or_stopping(
                    lambda: renew_and_balance(store, presence, flights, lanes), stopping
                )
                and not presence.refused
            ):
                telemetry.worker_started(__version__, settings.max_in_flight, poll_only=settings.poll_only)
                loops = {
                    "fly": flights.fly(stopped),
                    "load": book.load_forever(),
                    "settle": settle_loop(store, flights, lanes, stopped),
                    "presence": presence_loop(store, presence, flights, lanes, stopped, stopping),
                    "fan_out": fan_out_loop(
                        store, flights, lanes, presence.shards, wakeups, wanted, poll, closing
                    ),
                    "claim": claim_loop(store, flights, lanes, poll, closing),
                    "sweep": sweep_loop(store, flights, lanes, presence, wanted, closing),
                    "upkeep": upkeep_loop(store, lanes, closing),
                }
                async with asyncio.TaskGroup() as group:
                    tasks = {name: group.create_task(loop, name=name) for name, loop in loops.items()}
                    await ready_until(stopping, readiness)
                    closing.set()
                    if not wanted.full():
                        wanted.put_nowait(
                            WakeUp()
                        )  # the sweeps pause for long; a stop does not wait for them
                    await drain(flights, settings.drain_seconds, on_point)
                    # What a call under way still brings is given back by the settle loop.
                    await asyncio.wait([tasks["fan_out"], tasks["claim"]], timeout=LAST_SECONDS)
                    stopped.set()
                    flights.settle_wanted.set()
                    presence.wanted.set()
                    tasks["load"].cancel()  # waits for requests that nobody makes any more
                    _, late = await asyncio.wait(tasks.values(), timeout=LAST_SECONDS)
                    if cut := lanes.in_flight + flights.recording + len(flights.unsettled):
                        telemetry.requests_cut(cut)
                    for task in late:
                        task.cancel()
        await leave(store, lanes)
    if presence.refused:
        raise presence.refused
    telemetry.worker_stopped()


async def leave(store: Store, lanes: Lanes) -> None:
    """Report the counts since the last minute and end the presence, if the database is at hand."""
    try:
        await report_once(store, lanes, everything=True)
        await store.stop_worker()
    except AWAY as error:  # its presence expires by itself
        telemetry.database_lost(f"{type(error).__name__} while leaving")


async def present_or_stopping(begin: Callable[[], Awaitable[None]], stopping: asyncio.Event) -> bool:
    """Wait until the database has taken us in, or somebody asks to stop before that. True: present."""
    async with asyncio.TaskGroup() as group:
        beginning = group.create_task(while_database_returns(begin))
        asked = group.create_task(stopping.wait())
        await asyncio.wait([beginning, asked], return_when=asyncio.FIRST_COMPLETED)
        present = beginning.done()
        beginning.cancel()
        asked.cancel()
    return present


async def ready_until(stopping: asyncio.Event, readiness: Readiness) -> None:
    readiness.announce()
    try:
        await stopping.wait()
    finally:
        readiness.withdraw()


async def drain(flights: Flights, seconds: float, on_point: Callable[[str], None]) -> None:
    """Start nothing more; wait for what has started, no longer than `seconds`."""
    flights.draining = True
    telemetry.worker_draining(flights.lanes.in_flight)
    on_point("draining")
    end = time.monotonic() + seconds
    while not flights.idle and time.monotonic() < end:
        flights.room_changed.clear()
        try:
            async with asyncio.timeout(min(0.2, max(end - time.monotonic(), 0.01))):
                await flights.room_changed.wait()
        except TimeoutError:
            continue


class signals:  # noqa: N801  (reads as a statement: with signals(stopping))
    """SIGTERM and SIGINT ask for an orderly end; the second one leaves at once."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self.stopping = stopping

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.received, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def received(self, number: int) -> None:
        if self.stopping.is_set():
            os._exit(128 + number)
        self.stopping.set()


async def sender(settings: Settings, store: Store, resources: AsyncExitStack) -> Send:
    policy = await egress_policy(settings, store)
    bounds = Bounds(
        connect_seconds=settings.connect_timeout_seconds,
        body_bytes=settings.max_response_bytes,
        max_per_host=settings.max_in_flight,  # the lanes hold the limit per host
    )
    transport = open_transport(policy, bounds=bounds, ssl_context=certificates(settings))
    return (await resources.enter_async_context(transport)).send


async def egress_policy(settings: Settings, store: Store) -> EgressPolicy:
    """What the database allows an endpoint to be, and the networks that this worker's environment names."""
    ports, plain_http, ip_literals = (await store.rows("egress_settings"))[0]
    return EgressPolicy(
        allowed_ports=frozenset(ports),
        allow_plain_http=plain_http,
        allow_ip_literals=ip_literals,
        deny_networks=settings.deny_networks,
        allow_networks=settings.allow_networks,
    )


def certificates(settings: Settings) -> ssl.SSLContext | None:
    if settings.ca_file is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"loading OUTBOX_CA_FILE: {settings.ca_file}: {error}. Give a readable PEM file."
        ) from None
    return context


def check_open_files(slots: int) -> None:
    """Raise the soft limit as far as it goes; refuse more slots than there can be sockets."""
    needed = slots + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"checking open files: OUTBOX_MAX_IN_FLIGHT is {slots}, which needs {needed} descriptors; the limit is {hard}. "
            "Raise the limit (ulimit -n) or lower the setting."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
