"""A worker in the test's own event loop, as role outbox_worker, and a receiver on loopback."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from outbox_worker import worker
from tests.support import factories
from tests.support import watched as watching
from tests.support.receiver import Receiver


@pytest.fixture(scope="session")
def vault_key():
    return factories.new_key()


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


@pytest.fixture
def shop(db, receiver, vault_key):
    """The test's database, ready for endpoints on the receiver."""
    factories.allow_loopback(db, receiver.port)
    factories.install_key(db, vault_key)
    return db


@pytest.fixture
def working(dsn_of, vault_key):
    """Run a worker for the time of a `async with working():` block; leaving it drains."""

    @asynccontextmanager
    async def run(send=None, on_point=lambda _point: None, name="test", **changes):
        stopping = asyncio.Event()
        settings = factories.worker_settings(dsn_of("worker_login"), vault_key, **changes)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(
                worker.run(settings, name=name, send=send, on_point=on_point, stopping=stopping)
            )
            try:
                yield task
            finally:
                stopping.set()

    return run


@pytest.fixture
def watched(make_server, vault_key):
    """A database whose server logs everything."""
    return watching.watch(make_server(options=watching.LOGS_EVERYTHING), vault_key)
