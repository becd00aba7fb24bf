"""Two guards, one behind the other: what one lets through by mistake, the other refuses.

Reads: a receiver on loopback that must not be reached. Writes: nothing.
Guarantee: URL, looked-up address and connected address are each checked where they are used.
If it is wrong: one forgotten code path is enough to reach our own network.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import httpx
import pytest

from outbox_worker import resolver as resolving
from outbox_worker.egress import EgressPolicy, Target
from outbox_worker.errors import EgressRefused
from outbox_worker.model import Failure, Request
from outbox_worker.pool import ConnectionPool
from outbox_worker.resolver import Dialer, Resolver
from outbox_worker.transport import GuardedTransport, Transport
from tests.support.receiver import Receiver

LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/token", "https://hooks.example.com:22/token", "https://127.0.0.1/token"]
)
async def test_a_url_that_the_policy_refuses_reaches_no_transport(url):
    """Plain http, a port that is not allowed and an address are refused before anything else is asked."""
    sent = []
    policy = EgressPolicy(frozenset({443, 80}), allow_plain_http=False, allow_ip_literals=False)
    transport = Transport(httpx.MockTransport(sent.append), policy)
    outcome = await transport.send(Request(url, (), b"{}", 5.0))
    assert outcome.failure is Failure.BLOCKED_ADDRESS
    assert "token" not in outcome.error
    assert sent == []


async def test_httpx_itself_cannot_go_round_the_guard(receiver):
    """Used beneath any other client, the guarded transport checks the URL by itself."""
    policy = EgressPolicy(frozenset({443}), True, True, (), LOOPBACK)
    names = Resolver()
    guarded = GuardedTransport(policy, ConnectionPool(Dialer(policy, names)), names)
    async with httpx.AsyncClient(transport=guarded, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError, match="port"):
            await client.post(receiver.url)
    assert receiver.connections == 0


@pytest.mark.parametrize("checks", [[None, "moved"], ["not public"]], ids=["connected-to", "looked-up"])
async def test_the_address_is_checked_before_and_after_connecting(receiver, monkeypatch, checks):
    """An address that turns out another one once connected gets not one byte."""
    answers = iter(checks)
    monkeypatch.setattr(resolving, "address_problem", lambda *_: next(answers))
    with pytest.raises(EgressRefused, match=checks[-1]):
        await dial(EgressPolicy(frozenset(), True, allow_ip_literals=True), receiver)
    assert next(answers, "all asked") == "all asked"
    assert receiver.requests == []


async def test_an_address_in_place_of_a_name_is_refused_even_if_its_network_is_allowed(receiver):
    """Allowing a network is not allowing literals."""
    with pytest.raises(EgressRefused, match="use a host name"):
        await dial(EgressPolicy(frozenset(), True, False, (), LOOPBACK), receiver)
    assert receiver.connections == 0


async def dial(policy, receiver):
    names = Resolver()
    try:
        until = asyncio.get_running_loop().time() + 5
        target = Target("http", receiver.host, receiver.port, "/")
        await Dialer(policy, names).dial(target, until, lambda _sock: asyncio.Protocol())
    finally:
        await names.aclose()
