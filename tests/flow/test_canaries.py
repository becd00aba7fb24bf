"""Canaries on loopback: whatever a customer types or a name server answers, nobody connects to one.

Reads: listeners on several loopback addresses and ports, a name server. Writes: nothing.
Guarantee: with the guard on, no refused URL, name, redirect or proxy variable leads to a single connection.
If it is wrong: a stranger's URL reaches what stands beside the workers.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network

import pytest

from outbox_worker.connection import Bounds
from outbox_worker.egress import EgressPolicy
from outbox_worker.model import Failure, Request
from outbox_worker.resolver import Dialer
from outbox_worker.transport import open_transport
from tests.support import NXDOMAIN, SERVFAIL, NameServer, Reply
from tests.support import receiver as act
from tests.support.hostile_corpus import BAD_URLS
from tests.support.receiver import Receiver

PUBLIC = ("8.8.8.8", "2606:4700")  # in the corpus for being literals: not called where literals are allowed
AUTHORITY = re.compile(r"^(https?:[/\\]*)([^/?#\\]*)(.*)$", re.DOTALL | re.IGNORECASE)
SPELLINGS = (
    "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0", "0.0.0.0",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]", "127.0.0.1.", "localhost.",
    "example.com@127.0.0.1", "127.0.0.1%00.example.com", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021",
    "127.255.255.254", "127.0.0.2", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1%25lo]", "[::1%lo]",
)  # fmt: skip
ANSWERS = {
    "N01": [Reply(("127.0.0.1",)), Reply(("127.0.0.2",)), Reply(("127.255.255.254",)), Reply(("::1",))],
    "N02": [Reply(("169.254.169.254",)), Reply(("168.63.129.16",)), Reply(("100.100.100.200",))],
    "N04": [Reply(("fd00:ec2::254",)), Reply(("fd20:ce::254",)), Reply(("fe80::1",))],
    "N05": [Reply(("8.8.8.8", "127.0.0.1")), Reply(("2606:4700::1111", "::1")), Reply(("8.8.8.8", "fd00::5"))],
    "N08": [Reply(code=NXDOMAIN), Reply(("127.0.0.1",)), Reply(("169.254.169.254",))],
    "N09": [Reply(("127.0.0.1",), aliases=("a.example.net", "db.internal.example"))],
    "N10": [Reply(("64:ff9b::7f00:1",)), Reply(("64:ff9b::a9fe:a9fe",)), Reply(("64:ff9b:1::a00:1",))],
    "N14": [Reply(("0.0.0.0",)), Reply(("::",)), Reply(("::ffff:127.0.0.1",)), Reply(("::127.0.0.1",))],
    "N15": [Reply(("224.0.0.1",)), Reply(("ff02::1",)), Reply(("255.255.255.255",))],
    "N17": [Reply(("100.64.0.1",)), Reply(("10.0.0.5",)), Reply(("172.16.0.1",)), Reply(("192.168.0.1",))],
    "N22": [Reply(code=NXDOMAIN), Reply(code=SERVFAIL), Reply()],
    "6to4": [Reply(("2002:7f00:1::",)), Reply(("2001:0:7f00:1::",)), Reply(("2001:db8::1",))],
}  # fmt: skip


def of_this_machine(host):
    """Some have one loopback address only, or no IPv6."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


WHERE = [host for host in ("127.0.0.1", "127.0.0.2", "127.255.255.254", "::1") if of_this_machine(host)]


class Canaries:
    def __init__(self, listeners):
        self.listeners = listeners
        self.ports = frozenset(listener.port for listener in listeners)

    @property
    def seen(self):
        return sum(listener.connections for listener in self.listeners)

    def policy(self, *allow, literals=False):
        allowed = tuple(ip_network(network) for network in allow)
        return EgressPolicy(self.ports | {80, 443, 8080, 8443}, True, literals, (), allowed)


@pytest.fixture
async def canaries():
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(Receiver(host=host)) for host in (*WHERE, *WHERE)]
        yield Canaries(listeners)


@pytest.fixture
def dialled(monkeypatch):
    """Every address that a connection was begun to: nothing may be begun outside this machine either."""
    whole, begun = Dialer._connected, Counter()

    async def counting(self, address, port, where):
        begun[address] += 1
        return await whole(self, address, port, where)

    monkeypatch.setattr(Dialer, "_connected", counting)
    return begun


@asynccontextmanager
async def sending(policy, names=None):
    """The transport as the worker opens it, but for the name server."""
    server = names or NameServer()
    endpoint, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", 0)
    )
    bounds = Bounds(connect_seconds=2, body_seconds=0.2)
    try:
        async with open_transport(policy, bounds=bounds, nameservers=[server.at]) as transport:
            yield lambda url: transport.send(Request(url, (), b"{}", 3.0))
    finally:
        endpoint.close()


def aimed(url, port):
    """The same URL with a canary's port in it, where it has none."""
    match = AUTHORITY.match(url)
    if match is None or re.search(r":\d+$", match[2]):
        return url
    return f"{match[1]}{match[2]}:{port}{match[3]}"


async def test_a_canary_sees_what_is_allowed(canaries):
    """The others' silence is the guard's doing: with their networks allowed, each canary is reached."""
    names = NameServer({f"{n}.example.com": [Reply((one.host,))] for n, one in enumerate(canaries.listeners)})
    async with sending(canaries.policy("127.0.0.0/8", "::1/128"), names) as send:
        for number, one in enumerate(canaries.listeners):
            outcome = await send(f"http://{number}.example.com:{one.port}/")
            assert outcome.status == 200, outcome
    assert [one.connections for one in canaries.listeners] == [1] * len(canaries.listeners)


@pytest.mark.parametrize("literals", [False, True], ids=["as-in-production", "literals-allowed"])
async def test_U_rows_no_spelling_of_an_address_reaches_a_canary(canaries, dialled, literals):
    """The whole corpus of bad URLs, and every spelling of loopback, on the canaries' own ports."""
    urls = {url for _, url in BAD_URLS if not (literals and any(place in url for place in PUBLIC))}
    urls |= {f"{scheme}://{spelling}/" for scheme in ("http", "https") for spelling in SPELLINGS}
    names = NameServer(otherwise=Reply(("127.0.0.1",)))  # what is taken for a name leads to a canary too
    async with sending(canaries.policy(literals=literals), names) as send:
        for url in urls:
            for aim in {url, *(aimed(url, one.port) for one in canaries.listeners)}:
                outcome = await send(aim)
                assert outcome.failure is Failure.BLOCKED_ADDRESS, (aim, outcome)
    assert canaries.seen == 0
    assert dialled == {}


@pytest.mark.parametrize("case", ANSWERS)
async def test_N_rows_no_answer_of_a_name_server_leads_to_a_canary(canaries, dialled, case):
    """Each answer for a name of its own, and all of them in turn for one that changes its mind."""
    replies = ANSWERS[case]
    names = NameServer({f"n{number}.example.com": [reply] for number, reply in enumerate(replies)})
    names.names["turns.example.com"] = replies
    async with sending(canaries.policy(literals=True), names) as send:
        for host in [*names.names, *["turns.example.com"] * len(replies)]:
            for one in canaries.listeners:
                for scheme in ("http", "https"):
                    outcome = await send(f"{scheme}://{host}:{one.port}/")
                    assert outcome.failure in {Failure.BLOCKED_ADDRESS, Failure.DNS_ERROR}, (host, outcome)
    assert canaries.seen == 0
    assert dialled == {}


async def test_T01_T02_no_redirect_leads_to_a_canary(canaries, dialled):
    """What an allowed receiver answers sends nobody elsewhere."""
    async with Receiver() as allowed:
        policy = EgressPolicy(canaries.ports | {allowed.port}, True, True, (), (ip_network("127.0.0.1/32"),))
        async with sending(policy) as send:
            for one in canaries.listeners:
                place = f"[{one.host}]" if ":" in one.host else one.host
                for code in (301, 302, 303, 307, 308):
                    allowed.script(None, act.redirect(code, f"http://{place}:{one.port}/"))
                    assert (await send(allowed.url)).status == code
    assert canaries.seen == 0
    assert set(dialled) == {"127.0.0.1"}


async def test_no_proxy_of_the_environment_is_used(canaries, monkeypatch):
    """Every variable that clients look at names a canary; the request goes straight to its receiver."""
    one = canaries.listeners[0]
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, f"http://127.0.0.1:{one.port}")
    async with Receiver() as allowed:
        policy = EgressPolicy(frozenset({allowed.port}), True, True, (), (ip_network("127.0.0.1/32"),))
        async with sending(policy) as send:
            assert (await send(allowed.url)).status == 200
    assert canaries.seen == 0
