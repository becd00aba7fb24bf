"""Names: what a name server may answer, and what may then be connected to.

Reads: a real UDP name server on loopback, scripted per test. Writes: nothing.
Guarantee: the N rows of the catalogue of hostile input, by their ids; a canary on loopback counts every
connection that must not happen.
If it is wrong: a customer's name leads into our own network, or their dead name server stops everybody.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_network

import pytest

from outbox_worker.connection import Bounds
from outbox_worker.egress import EgressPolicy
from outbox_worker.model import Failure, Request
from outbox_worker.resolver import DnsError, Resolver, TooManyLookupsError
from outbox_worker.transport import open_transport
from tests.support import NXDOMAIN, SERVFAIL, NameServer, Reply, no_descriptor_left
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

HOST = "hooks.example.com"


@pytest.fixture
async def names():
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    yield server
    transport.close()


@pytest.fixture
async def canary():
    async with Receiver() as receiver:
        yield receiver


@contextlib.asynccontextmanager
async def sender(names, canary, *, allow=(), deny=(), dns_seconds=3.0, bounds=None):
    policy = EgressPolicy(
        allowed_ports=frozenset({canary.port}),
        allow_plain_http=True,
        allow_ip_literals=False,
        deny_networks=tuple(map(ip_network, deny)),
        allow_networks=tuple(map(ip_network, allow)),
    )
    async with open_transport(
        policy, bounds=bounds, dns_seconds=dns_seconds, nameservers=[names.at]
    ) as transport:

        async def send(host=HOST, timeout_seconds=15.0):
            url = f"http://{host}:{canary.port}/secret-path?token=x"
            return await transport.send(Request(url, (), b"{}", timeout_seconds))

        yield send


async def refuse(names, canary, *addresses, allow=(), deny=(), aliases=()):
    names.names[HOST] = [Reply(addresses, aliases=aliases)]
    async with sender(names, canary, allow=allow, deny=deny) as send:
        outcome = await send()
    assert outcome.failure is Failure.BLOCKED_ADDRESS
    assert outcome.status is None
    assert "secret-path" not in outcome.error
    assert canary.connections == 0


async def test_a_name_that_leads_to_an_allowed_address_is_delivered(names, canary):
    """The other tests' refusals are the policy's doing: the same path delivers when it allows."""
    names.names[HOST] = [Reply(("127.0.0.1",))]
    async with sender(names, canary, allow=["127.0.0.1/32"]) as send:
        outcome = await send()
    assert outcome.status == 200
    assert ("host", f"{HOST}:{canary.port}") == canary.requests[0].headers[0]


async def test_N01_a_name_for_loopback_is_refused(names, canary):
    """A public name that means 127.0.0.1 gets no connection."""
    await refuse(names, canary, "127.0.0.1")


async def test_N02_a_name_for_the_metadata_service_is_refused(names, canary):
    """169.254.169.254 is refused, even where link-local is allowed by mistake."""
    await refuse(names, canary, "169.254.169.254", allow=["169.254.0.0/16", "0.0.0.0/0"])


@pytest.mark.parametrize("address", ["fd00:ec2::254", "fd20:ce::254"])
async def test_N04_the_metadata_services_ipv6_addresses_are_refused(names, canary, address):
    """The IPv6 spellings of the metadata services are refused too."""
    await refuse(names, canary, address, allow=["fd00::/8"])


@pytest.mark.parametrize("bad", ["10.0.0.5", "fd00::5"])
async def test_N05_one_bad_answer_refuses_the_whole_name(names, canary, bad):
    """An allowed address beside a private one is not connected to either."""
    await refuse(names, canary, "127.0.0.1", bad, allow=["127.0.0.1/32"])


async def test_N06_a_rebinding_name_is_looked_up_once_a_connection_and_checked_each_time(names, canary):
    """What was checked is what is connected to: no second lookup follows the check."""
    names.names[HOST] = [Reply(("127.0.0.1",)), Reply(("127.0.0.2",))]
    async with sender(
        names, canary, allow=["127.0.0.1/32"], bounds=Bounds(idle_seconds=0, age_seconds=0)
    ) as send:
        first = await send()
        assert names.asked.count((HOST, 1)) == 1
        second = await send()
    assert first.status == 200
    assert second.failure is Failure.BLOCKED_ADDRESS
    assert names.asked.count((HOST, 1)) == 2
    assert canary.connections == 1


async def test_N08_a_name_that_failed_once_is_checked_when_it_resolves(names, canary):
    """A failure at first is no free pass for what the name leads to later."""
    names.names[HOST] = [Reply(code=NXDOMAIN), Reply(("169.254.169.254",))]
    async with sender(names, canary) as send:
        first, second = await send(), await send()
    assert first.failure is Failure.DNS_ERROR
    assert second.failure is Failure.BLOCKED_ADDRESS


async def test_N09_a_chain_of_aliases_to_an_internal_name_is_refused(names, canary):
    """The addresses at the end of a CNAME chain are the ones that are checked."""
    await refuse(names, canary, "127.0.0.1", aliases=("a.example.net", "db.internal.example"))


@pytest.mark.parametrize("address", ["64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"])
async def test_N10_translated_ipv4_addresses_are_refused(names, canary, address):
    """NAT64 does not carry a request to a private IPv4 address."""
    await refuse(names, canary, address)


@pytest.mark.parametrize("address", ["::", "0.0.0.0", "::ffff:127.0.0.1"])
async def test_N14_the_unspecified_addresses_are_refused(names, canary, address):
    """0.0.0.0 and :: reach this machine, so they are refused."""
    await refuse(names, canary, address)


@pytest.mark.parametrize("address", ["224.0.0.1", "ff02::1", "255.255.255.255"])
async def test_N15_multicast_and_broadcast_are_refused(names, canary, address):
    """Nothing is sent to many."""
    await refuse(names, canary, address)


async def test_N17_carrier_grade_nat_is_refused(names, canary):
    """100.64.0.0/10 is not public."""
    await refuse(names, canary, "100.64.0.1")


async def test_N18_our_own_public_addresses_are_refused_when_they_are_listed(names, canary):
    """A denied network is refused although it is public, or allowed elsewhere."""
    await refuse(names, canary, "8.8.8.8", deny=["8.8.8.0/24"])
    await refuse(names, canary, "127.0.0.1", deny=["127.0.0.1/32"], allow=["127.0.0.0/8"])


async def test_N20_a_name_server_that_never_answers_costs_the_lookups_deadline(names, canary):
    """A silent name server is a recorded failure at the lookup's deadline, long before the exchange's."""
    names.names[HOST] = [Reply(silent=True)]
    async with sender(names, canary, dns_seconds=0.2) as send, asyncio.timeout(10):
        outcome = await send(timeout_seconds=600)
    assert outcome.failure is Failure.DNS_ERROR
    assert "secret-path" not in outcome.error


async def test_N21_ten_thousand_slow_names_leave_other_endpoints_alone(names, canary):
    """A healthy name is delivered to while 10,000 names wait for a name server that never answers."""
    names.otherwise = Reply(silent=True)
    names.names[HOST] = [Reply(("127.0.0.1",))]
    async with (
        sender(
            names, canary, allow=["127.0.0.1/32"], dns_seconds=600, bounds=Bounds(connect_seconds=600)
        ) as send,
        asyncio.TaskGroup() as group,
    ):
        slow = []
        for number in range(10_000):
            slow.append(group.create_task(send(f"h{number}.example.org", timeout_seconds=600)))
            if number % 100 == 99:  # as many as a socket's buffer holds
                await eventually(lambda count=number: len(names.asked) > count)
        outcome = await send()
        waiting = {task for task in slow if task.cancel()}
    assert outcome.status == 200
    assert len(waiting) > 1_000  # c-ares gives a name up after a few rounds, while the last are still asked
    assert {task.result().failure for task in set(slow) - waiting} <= {Failure.DNS_ERROR}


@pytest.mark.parametrize("code", [NXDOMAIN, SERVFAIL])
async def test_N22_a_name_that_does_not_resolve_is_a_dns_error(names, canary, code):
    """NXDOMAIN and SERVFAIL are recorded failures with the host in their text."""
    names.names[HOST] = [Reply(code=code)]
    async with sender(names, canary) as send:
        outcome = await send()
    assert outcome.failure is Failure.DNS_ERROR
    assert HOST in outcome.error


async def test_T23_a_lookup_without_a_descriptor_is_our_own_fault(names, canary):
    """The name server could not be asked, so the name is not to blame."""
    names.names[HOST] = [Reply(("127.0.0.1",))]
    async with sender(names, canary, allow=["127.0.0.1/32"]) as send:
        with no_descriptor_left():
            outcome = await send()
        assert outcome.failure is Failure.LOCAL, outcome
        assert (await send()).status == 200


async def test_simultaneous_lookups_of_a_name_are_one(names):
    """A burst of deliveries to one host asks its name server once per address family."""
    names.names[HOST] = [Reply(("192.0.2.1", "2001:db8::1", "192.0.2.2"))]
    resolver = Resolver(nameservers=[names.at])
    async with asyncio.TaskGroup() as group:
        lookups = [group.create_task(resolver.resolve(HOST)) for _ in range(50)]
    await resolver.aclose()
    assert sorted(names.asked) == [(HOST, 1), (HOST, 28)]
    assert {tuple(lookup.result()) for lookup in lookups} == {("192.0.2.1", "2001:db8::1", "192.0.2.2")}


async def test_a_cancelled_lookup_does_not_take_the_others_with_it(names):
    """Who waits for the same name still gets its addresses."""
    names.names[HOST] = [Reply(silent=True), Reply(("192.0.2.1",))]
    resolver = Resolver(nameservers=[names.at])
    async with asyncio.TaskGroup() as group:
        first, second = (group.create_task(resolver.resolve(HOST)) for _ in range(2))
        await eventually(lambda: resolver._lookups)
        first.cancel()
    await resolver.aclose()
    assert second.result() == ["192.0.2.1"]


async def test_a_family_without_an_answer_does_not_hide_the_other(names):
    """A name server that fails for AAAA only is no reason not to deliver."""
    names.names[HOST] = [Reply(("192.0.2.1",))]
    resolver = Resolver(nameservers=[names.at])
    assert await resolver.resolve(HOST) == ["192.0.2.1"]
    await resolver.aclose()


async def test_a_slow_name_server_has_the_whole_deadline(names):
    """c-ares expects a name server to stay as fast as it was; three lost rounds are not the end."""
    names.otherwise = Reply(("192.0.2.1",))
    names.names[HOST] = [Reply(silent=True)] * 3 + [Reply(("192.0.2.2",))]
    resolver = Resolver(nameservers=[names.at])
    for number in range(20):
        await resolver.resolve(f"h{number}.example.org")
    assert await resolver.resolve(HOST) == ["192.0.2.2"]
    await resolver.aclose()


async def test_search_domains_are_never_used(names):
    """The name is asked for as it stands, whatever resolv.conf would append to it."""
    resolver = Resolver(nameservers=[names.at])
    with pytest.raises(DnsError):
        await resolver.resolve("db.internal")
    await resolver.aclose()
    assert {name for name, _ in names.asked} == {"db.internal"}


async def test_a_name_with_too_many_addresses_is_an_error(names):
    """An answer of hundreds of addresses is not checked one by one."""
    names.names[HOST] = [Reply(tuple(f"192.0.2.{n}" for n in range(1, 80)))]
    resolver = Resolver(nameservers=[names.at])
    with pytest.raises(DnsError, match="79 addresses"):
        await resolver.resolve(HOST)
    await resolver.aclose()


async def test_lookups_above_the_limit_are_refused_at_once(names, canary):
    """The table of open lookups is bounded; one more is this worker's own fault, charged to nobody."""
    names.otherwise = Reply(silent=True)
    resolver = Resolver(nameservers=[names.at], max_lookups=2, deadline_seconds=0.1)
    for host in ("a.example.com", "b.example.com"):
        with pytest.raises(DnsError, match="no answer"):
            await resolver.resolve(host)
    with pytest.raises(TooManyLookupsError):
        await resolver.resolve("c.example.com")
    await resolver.aclose()
