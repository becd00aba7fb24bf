"""What the worker refuses before a byte leaves: URLs and custom headers, by the ids of the hostile corpus.

Guarantee: the rules, not only the listed rows: what the URL rule accepts means the same to other parsers.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import idna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_worker import egress
from outbox_worker.egress import address_problem, header_problem, origin, parse_url, url_problem
from outbox_worker.errors import EgressRefused
from tests.support.hostile_corpus import (
    ANYTHING,
    BAD_HEADER_ROWS,
    BAD_URLS,
    GOOD_HEADERS,
    GOOD_URLS,
    GOOD_WITH_SETTINGS,
    MALFORMED_URLS,
    PLAIN_HTTP,
    PRODUCTION,
)
from tests.support.url_candidates import candidate_urls

NAME_CHARACTERS = {
    chr(point)
    for kind in ("PVALID", "CONTEXTJ", "CONTEXTO")
    for packed in idna.idnadata.codepoint_classes[kind]
    for point in range(packed >> 32, packed & 0xFFFFFFFF)
    if point >= 0x80
}


@pytest.mark.parametrize(("case", "url"), [pytest.param(*row, id=row[0]) for row in BAD_URLS])
def test_a_hostile_url_is_refused(case, url):
    """Each is refused although plain http is allowed, and refused in production."""
    assert url_problem(url, PLAIN_HTTP)
    assert url_problem(url, PRODUCTION)


@pytest.mark.parametrize("case", MALFORMED_URLS)
def test_no_setting_opens_a_malformed_url(case):
    """With every port, plain http and IP literals allowed these are refused, and cannot be taken apart."""
    for url in MALFORMED_URLS[case]:
        assert url_problem(url, ANYTHING), url
        with pytest.raises(EgressRefused):
            parse_url(url)
        with pytest.raises(EgressRefused):
            origin(url)


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_good_url_is_accepted_and_means_what_it_says(url):
    """Origin and request target are those that a reader sees in the URL."""
    assert url_problem(url, PRODUCTION) is None
    assert (origin(url), parse_url(url).path) == GOOD_URLS[url]


@pytest.mark.parametrize("url", GOOD_WITH_SETTINGS)
def test_settings_open_plain_http_literals_and_ports(url):
    """What a demo needs is refused by default and accepted when the settings say so."""
    assert url_problem(url, PRODUCTION)
    assert url_problem(url, ANYTHING) is None
    assert (origin(url), parse_url(url).path) == GOOD_WITH_SETTINGS[url]


def test_each_setting_opens_only_its_own_rule():
    """Plain http, IP literals and ports are three separate permissions."""
    url = "http://127.0.0.1:9000/"
    assert "plain http" in url_problem(url, replace(ANYTHING, allow_plain_http=False))
    assert "IP address" in url_problem(url, replace(ANYTHING, allow_ip_literals=False))
    assert "port 9000" in url_problem(url, replace(ANYTHING, allowed_ports=frozenset({80, 443})))


def test_a_refusal_never_quotes_the_path_of_a_url():
    """A path or query can be a secret, and reasons end up in logs."""
    for url in (
        "https://h:22/T0KEN",
        "http://a.example/T0KEN?T0KEN",
        "https://h.example/T0KEN#T0KEN",
        "x://T0KEN",
    ):
        assert "T0KEN" not in url_problem(url, PRODUCTION)
    with pytest.raises(EgressRefused) as refused:
        parse_url("https://T0KEN@h.example/T0KEN")
    assert "T0KEN" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://a.example/x", "a.example"),
        ("https://a.example:443/x", "a.example"),
        ("https://a.example:80/x", "a.example:80"),
        ("http://a.example:80/x", "a.example"),
        ("http://[::1]:80/", "[::1]"),
        ("https://[::1]:8443/", "[::1]:8443"),
    ],
)
def test_the_host_header_names_the_port_only_where_it_is_not_the_schemes_own(url, authority):
    """An IPv6 host has its brackets there and nowhere else."""
    assert parse_url(url).authority == authority
    assert "[" not in parse_url(url).host


@given(st.lists(candidate_urls(), max_size=30))
def test_what_the_rule_accepts_means_the_same_to_other_parsers(urls):
    """No parser confusion: the target is exactly what is written, and urllib and httpx read the same host."""
    for url in urls:
        if url_problem(url, ANYTHING) is None:
            target = parse_url(url)
            paths = {target.path, target.path.removeprefix("/")}  # an empty path is sent as /
            ports = {"", f":{target.port}"}
            start = f"{target.scheme}://{target.bracketed_host}"
            assert url in {f"{start}{port}{path}" for port in ports for path in paths}
            split, other = urlsplit(url), httpx.URL(url)
            default = {"http": 80, "https": 443}[target.scheme]
            assert (split.hostname, split.port or default, split.username) == (target.host, target.port, None)
            assert (other.raw_host.decode(), other.port or default) == (target.host, target.port)


@given(st.lists(candidate_urls(), max_size=30))
def test_no_accepted_name_can_be_read_as_an_address(urls):
    """The C library's reader, which takes every historic spelling of an address, refuses accepted names."""
    for url in urls:
        if url_problem(url, replace(ANYTHING, allow_ip_literals=False)) is None:
            with pytest.raises(OSError, match="illegal IP address"):
                socket.inet_aton(parse_url(url).host)


@given(st.text(st.sampled_from(sorted(NAME_CHARACTERS)), min_size=1, max_size=12))
def test_a_valid_international_name_is_accepted(text):
    """Whatever IDNA 2008 accepts, we accept: the rule refuses only blocks where no name has a character."""
    try:
        label = idna.alabel(text).decode()
    except idna.IDNAError:
        return
    assert url_problem(f"https://{label}.example/", PRODUCTION) is None


def test_no_refused_block_holds_a_character_of_a_name():
    """Each block that international names may not use is free of the characters that IDNA 2008 allows."""
    assert not [
        hex(point)
        for point in map(ord, NAME_CHARACTERS)
        for low, high in egress._NOT_IN_NAMES
        if low <= point <= high
    ]


@given(st.text())
def test_the_rules_never_raise(text):
    """Any text gets a verdict: a URL, an address, a header's name and its value."""
    url_problem(text, ANYTHING)
    address_problem(text, ANYTHING)
    header_problem([(text, text), ("X-A", text)])


@pytest.mark.parametrize(("case", "headers"), [pytest.param(*row, id=row[0]) for row in BAD_HEADER_ROWS])
def test_a_hostile_header_is_refused(case, headers):
    """Splitting, framing, hop-by-hop, our own names, metadata keys and sizes, also hidden among good ones."""
    assert header_problem(headers)
    assert header_problem([("X-Good", "good"), *headers])


@pytest.mark.parametrize("headers", GOOD_HEADERS, ids=range(len(GOOD_HEADERS)))
def test_a_good_header_is_accepted(headers):
    """Credentials, empty values and everything up to the limits."""
    assert header_problem(headers) is None


def test_a_refusal_never_quotes_a_header_value():
    """A value is a secret, also where it was put into the name by mistake."""
    for name, value in [
        ("X-A", "S3CRET\n"),
        ("X-A", "S3CRET" * 1000),
        ("Authorization: S3CRET", "a"),
        ("Host", "S3CRET"),
    ]:
        assert "S3CRET" not in header_problem([(name, value)])


def test_the_signature_header_is_reserved_under_its_configured_name():
    """A custom header cannot stand in for the product's signature, whatever that is called."""
    assert header_problem([("X-Own-Signature", "a")]) is None
    assert header_problem([("x_own-signature", "a")], signature_header="X-Own-Signature")
