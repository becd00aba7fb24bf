"""The endpoint book: what becomes of those who wait for an endpoint when loading it fails.

Reads and writes: nothing; the database is a stand-in for the errors that it may answer with.
Guarantee: an endpoint that cannot be loaded or held stops no other; who waits for it is told, and gives its delivery back.
If it is wrong: deliveries wait in their slots for a lock or an error that is none of their business.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest

from outbox_worker import endpoint_book
from outbox_worker.endpoint_book import EndpointBook

MOST = 15.0


@pytest.fixture
async def opened():
    """A book over this store, loading."""
    async with asyncio.TaskGroup() as tasks:
        books = []

        def book(store):
            made = EndpointBook(store, None, 15.0)
            books.append(tasks.create_task(made.load_forever()))
            return made

        yield book
        for task in books:
            task.cancel()


async def test_an_endpoint_that_somebody_holds_locked_is_given_back_and_stops_no_other(opened):
    """Its secret cannot be opened, and to hold it waits for an operator's open transaction until the deadline."""
    held = []

    async def load_endpoints(ids):
        return [
            (one, "ws_1", 1, "https://example.com", None, None, None, None, None, None, "x") for one in ids
        ]

    async def call(_function, endpoint_id, _version):
        held.append(endpoint_id)
        raise psycopg.errors.QueryCanceled

    book, ids = opened(SimpleNamespace(load_endpoints=load_endpoints, call=call)), [uuid4(), uuid4()]
    async with asyncio.timeout(MOST):
        assert [await book.endpoint(one, 1) for one in ids] == [None, None]
    assert held == ids


async def test_who_waits_for_an_endpoint_is_told_that_loading_it_failed(opened, monkeypatch):
    monkeypatch.setattr(endpoint_book, "FAILED_PAUSE", 0.0)

    async def load_endpoints(_ids):
        raise psycopg.errors.InsufficientPrivilege

    book = opened(SimpleNamespace(load_endpoints=load_endpoints))
    async with asyncio.timeout(MOST):
        assert await book.endpoint(uuid4(), 1) is None
        assert await book.endpoint(uuid4(), 1) is None


async def test_an_endpoint_that_cannot_be_loaded_stops_none_of_those_asked_for_with_it(opened, monkeypatch):
    """A damaged row fails the whole statement: then each is loaded alone."""
    monkeypatch.setattr(endpoint_book, "FAILED_PAUSE", 0.0)
    bad, *good = (uuid4() for _ in range(5))
    alone = []

    async def load_endpoints(ids):
        if bad in ids:
            raise psycopg.errors.DataCorrupted
        alone.extend(ids)
        return []  # deleted meanwhile: that is an answer too

    book = opened(SimpleNamespace(load_endpoints=load_endpoints))
    async with asyncio.timeout(MOST):
        assert await asyncio.gather(*(book.endpoint(one, 1) for one in (bad, *good))) == [None] * 5
    assert sorted(alone) == sorted(good)
