"""Which addresses the worker may connect to: the whole registries, both ends of each block, and just outside.

Guarantee: an address that is not public is refused however it is written, and no setting opens a metadata
address.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_worker.egress import address_problem
from tests.support.hostile_corpus import PRODUCTION

# The IANA registries of special-purpose addresses, whole; multicast; and Azure's host.
SPECIAL_IPV4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32", "224.0.0.0/4",
    "168.63.129.16/32",
]  # fmt: skip
SPECIAL_IPV6 = [
    "::1/128", "::/128", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64",
    "2001::/23",
    "2001::/32", "2001:1::1/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48", "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10",
    "fec0::/10", "ff00::/8", "::/96", "4000::/2", "8000::/1",
]  # fmt: skip
NOT_IN_PUBLIC_IPV6 = ["2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"]
BAD_ADDRESSES = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.5", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192", "198.19.0.1", "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "192.88.99.1", "::", "::1", "::2", "::127.0.0.1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "2001:db8::1", "2001:20::1", "fc00::1",
    "fd00::1", "fd00:ec2::254",
    "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fe80::1", "fe80::a9fe:a9fe", "fec0::1", "ff02::1", "ff0e::1",
    "3fff::1", "5f00::1",
    "100::1", "4000::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1",
    "2606:4700:1:2:300:5efe:a9fe:a9fe",
]  # fmt: skip
NOT_ADDRESSES = [
    "", "localhost", "127.1", "0177.0.0.1", "0x7f000001", "2130706433", "1.1.1.1.", " 1.1.1.1", "1.1.1.1\n",
    "[2606:4700::1]",
    "2606:4700::1%eth0", "fe80::1%1", "1.1.1.1/32", "\uff11.1.1.1", "1.1.1.1%0",
]  # fmt: skip
GOOD_ADDRESSES = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.32.0.0", "223.255.255.255",
    "::ffff:8.8.8.8",
    "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2001:4860:4860::8888", "2001:200::1", "2003::1",
    "3ffe:ffff::1",
    "2606:4700::5eff:7f00:1",
]  # fmt: skip
METADATA = [
    "169.254.169.254", "169.254.170.2", "169.254.0.23", "168.63.129.16", "100.100.100.200", "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fe80::a9fe:a9fe",
]  # fmt: skip
CARRIERS = [
    "::ffff:{0}", "::{0}", "::ffff:0:{0}", "64:ff9b::{0}", "64:ff9b:1::{0}", "2606:4700::5efe:{0}",
    "fd00::5efe:{0}",
    "fd00::200:5efe:{0}",
]  # fmt: skip


@pytest.mark.parametrize("block", [*SPECIAL_IPV4, *SPECIAL_IPV6])
def test_a_special_purpose_block_is_refused_from_its_first_to_its_last_address(block):
    """The whole registries, globally reachable blocks included, and everything outside 2000::/3."""
    network = ip_network(block)
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        assert address_problem(str(address), PRODUCTION), address


@pytest.mark.parametrize("block", [*SPECIAL_IPV4, *NOT_IN_PUBLIC_IPV6])
def test_a_special_purpose_block_ends_where_the_registry_says(block):
    """The neighbours on both sides are public, unless they lie in another block."""
    network = ip_network(block)
    blocks = [ip_network(other) for other in SPECIAL_IPV4 + SPECIAL_IPV6]
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= number < 2**network.max_prefixlen:
            neighbour = type(network[0])(number)
            expected = any(neighbour in other for other in blocks)
            assert bool(address_problem(str(neighbour), PRODUCTION)) is expected, neighbour


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_an_address_that_is_not_public_is_refused(address):
    """Loopback, private, link-local, metadata, multicast, reserved, and IPv4 addresses inside IPv6 ones."""
    assert address_problem(address, PRODUCTION)


@pytest.mark.parametrize("text", NOT_ADDRESSES)
def test_what_is_not_an_address_is_refused_whatever_the_settings(text):
    """Zones, names and historic spellings are no addresses; failing to read one never lets it through."""
    everything = replace(PRODUCTION, allow_networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert address_problem(text, everything)


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_a_public_address_is_accepted(address):
    """The guard does not refuse what customers really have."""
    assert address_problem(address, PRODUCTION) is None


@pytest.mark.parametrize("address", METADATA)
def test_no_setting_opens_a_metadata_address(address):
    """Neither written plainly nor inside any IPv6 form that carries an IPv4 address."""
    everything = replace(PRODUCTION, allow_networks=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    exactly = replace(PRODUCTION, allow_networks=(ip_network(address),))
    assert address_problem(address, everything)
    assert address_problem(address, exactly)
    if "." in address:
        for carrier in CARRIERS:
            assert address_problem(carrier.format(address), everything), carrier
        high, low = int(ip_address(address)) >> 16, int(ip_address(address)) & 0xFFFF
        assert address_problem(f"2002:{high:x}:{low:x}::1", everything)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("::1", "::1/128"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("fd12:3456::1", "fd12:3456::/32"),
        ("100.64.0.7", "100.64.0.0/10"),
    ],
)
def test_allow_networks_opens_loopback_and_private_networks_only_as_far_as_it_says(address, network):
    """A private set-up can reach its own networks, and nothing else changes."""
    policy = replace(PRODUCTION, allow_networks=(ip_network(network),))
    assert address_problem(address, PRODUCTION)
    assert address_problem(address, policy) is None
    assert address_problem("192.168.7.7", policy)
    assert address_problem("fd99::1", policy)


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1"])
def test_deny_networks_closes_public_addresses_and_wins_over_allow_networks(address):
    """The own database and network are refused, however the address is written."""
    networks = (ip_network("8.8.8.0/24"), ip_network("2606:4700::/32"))
    assert address_problem(address, PRODUCTION) is None
    assert "denied" in address_problem(address, replace(PRODUCTION, deny_networks=networks))
    both = replace(PRODUCTION, deny_networks=networks, allow_networks=networks)
    assert "denied" in address_problem(address, both)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{0}", "::ffff:{0}"]))
def test_a_v4_address_gets_one_verdict_however_it_is_written(number, form):
    """A v4-mapped address is the IPv4 address, and the verdict is that of the blocks in the registry."""
    address = ip_address(number)
    expected = any(address in ip_network(block) for block in SPECIAL_IPV4)
    assert bool(address_problem(form.format(address), PRODUCTION)) is expected
