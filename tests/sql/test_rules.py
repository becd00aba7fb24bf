"""What the database refuses to store: what the worker refuses, row by row and on generated input.

Guarantee: outbox.url_problem and egress.url_problem give the same words, the header rules the same verdict;
the table's own trigger applies them to an operator's UPDATE.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from outbox_worker import egress
from outbox_worker.egress import header_problem, origin, url_problem
from tests.support.hostile_corpus import (
    ANYTHING,
    BAD_HEADER_ROWS,
    BAD_URLS,
    GOOD_HEADERS,
    GOOD_URLS,
    GOOD_WITH_SETTINGS,
    PLAIN_HTTP,
    PRODUCTION,
)
from tests.support.url_candidates import candidate_urls

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
POLICIES = {
    "production": PRODUCTION,
    "plain_http": PLAIN_HTTP,
    "literals": replace(PRODUCTION, allow_ip_literals=True),
    "anything": ANYTHING,
}


@pytest.fixture(scope="module")
def rules(cluster, template):
    """A connection to one clone for all the tests here that only ask functions."""
    name = f"outbox_rules_{os.getpid()}"
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as connection,
    ):
        yield connection


def url_verdicts(rules, urls, policy):
    query = """
        select outbox.url_problem(u, %s::int[], %s, %s), outbox.url_origin(u)
        from unnest(%s::text[]) with ordinality as t (u, n) order by n"""
    ports = sorted(policy.allowed_ports)
    arguments = [ports, policy.allow_plain_http, policy.allow_ip_literals, list(urls)]
    return rules.execute(query, arguments).fetchall()


def header_verdict(rules, headers):
    return rules.execute("select outbox.header_problem(%s)", [Jsonb(dict(headers))]).fetchone()[0]


def ask(rules, query, *arguments):
    return rules.execute(f"select {query}", arguments).fetchone()[0]


def agree_on(rules, urls, policy):
    for url, (problem, sql_origin) in zip(urls, url_verdicts(rules, urls, policy), strict=True):
        assert problem == url_problem(url, policy), url
        if problem is None:
            assert sql_origin == origin(url)


@pytest.mark.parametrize(("case", "url"), [pytest.param(*row, id=row[0]) for row in BAD_URLS])
def test_a_hostile_url_is_refused_by_the_database(rules, case, url):
    """Each is refused although plain http is allowed, and refused in production."""
    assert url_verdicts(rules, [url], PLAIN_HTTP)[0][0]
    assert url_verdicts(rules, [url], PRODUCTION)[0][0]


@pytest.mark.parametrize("policy", POLICIES)
def test_database_and_worker_give_the_same_reason_for_every_url_of_the_corpus(rules, policy):
    """Word for word, under each combination of settings, and the same origin where the URL is accepted."""
    agree_on(rules, [*(url for _, url in BAD_URLS), *GOOD_URLS, *GOOD_WITH_SETTINGS], POLICIES[policy])


@SHARED
@given(urls=st.lists(candidate_urls(), min_size=5, max_size=25), policy=st.sampled_from(list(POLICIES)))
def test_database_and_worker_agree_on_generated_urls(rules, urls, policy):
    """Built, mutated and random URLs get the same words from both."""
    agree_on(rules, urls, POLICIES[policy])


@SHARED
@given(
    st.lists(st.text("abckxyz0189-", max_size=16) | st.text("99zza", max_size=50), min_size=40, max_size=40)
)
def test_database_and_worker_agree_on_what_an_international_label_is(rules, encoded):
    """The database's decoder of RFC 3492 refuses and accepts what Python's does."""
    agree_on(rules, [f"https://a.xn--{rest}.com/" for rest in encoded], PRODUCTION)


@SHARED
@given(st.lists(st.text("aéжшงかλ漢字אع𐐨", min_size=1, max_size=15), min_size=40, max_size=40))
def test_the_database_reads_names_of_many_scripts(rules, names):
    """Long encodings, of neighbouring and of distant characters, are decoded like Python's codec does."""
    labels = [name.encode("punycode").decode() for name in names if not name.isascii()]
    hosts = [f"https://a.xn--{label}.com/" for label in labels if len(label) < 60]
    agree_on(rules, hosts, PRODUCTION)
    assert all(problem is None for problem, _ in url_verdicts(rules, hosts, PRODUCTION))


def test_database_and_worker_bar_the_same_characters_from_international_names(rules):
    """The two tables of blocks are one: tried at their edges and all over Unicode."""
    edges = {point + step for block in egress._NOT_IN_NAMES for point in block for step in (-1, 0, 1)}
    points = sorted((edges | set(range(0x80, 0x110000, 251))) & set(range(0x80, 0x110000)))
    encoded = [chr(point).encode("punycode").decode() for point in points if not 0xD800 <= point <= 0xDFFF]
    agree_on(rules, [f"https://xn--{rest}.com/" for rest in encoded], PRODUCTION)


@pytest.mark.parametrize("label", [None, "", "a", "xn--", "xn--a-", "xn---tda", "xn--A", "münchen"])
def test_a_label_that_encodes_nothing_is_not_international(rules, label):
    """Also where the function is asked by itself."""
    assert ask(rules, "outbox.is_international_label(%s)", label) is False


def test_good_urls_are_accepted_by_the_database(rules):
    """The rule lets through what customers really have."""
    assert {problem for problem, _ in url_verdicts(rules, GOOD_URLS, PRODUCTION)} == {None}
    assert {problem for problem, _ in url_verdicts(rules, GOOD_WITH_SETTINGS, ANYTHING)} == {None}


def test_a_missing_value_or_setting_refuses(rules):
    """Null never opens anything: neither a null URL nor null settings."""
    assert ask(rules, "outbox.url_problem(null, '{443}', true, true)")
    assert ask(rules, "outbox.url_problem('https://a.example/', null, true, true)")
    assert ask(rules, "outbox.url_problem('https://a.example/', '{}', true, true)")
    assert ask(rules, "outbox.url_problem('https://a.example/', '{80,null}', true, true)")
    assert ask(rules, "outbox.url_problem('http://a.example/', '{80}', null, true)")
    assert ask(rules, "outbox.url_problem('https://127.0.0.1/', '{443}', true, null)")
    assert ask(rules, "outbox.header_problem(null)")
    assert ask(rules, "outbox.header_names_problem(null)")
    assert ask(rules, "outbox.header_names_problem(array['X-A', null])")
    assert ask(rules, "outbox.pattern_problem(null)")
    assert ask(rules, "outbox.event_type_problem(null)")


@pytest.mark.parametrize(("case", "headers"), [pytest.param(*row, id=row[0]) for row in BAD_HEADER_ROWS])
def test_a_hostile_header_is_refused_by_the_database(rules, case, headers):
    """By jsonb itself where the text holds a NUL, by the rule for everything else."""
    if any("\x00" in value for _, value in headers):
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            header_verdict(rules, headers)
    else:
        assert header_verdict(rules, headers)
        if len(headers) == 1:
            assert header_verdict(rules, headers) == header_problem(headers)


def test_good_headers_are_accepted_by_the_database(rules):
    """Credentials, empty values and everything up to the limits."""
    for headers in GOOD_HEADERS:
        assert header_verdict(rules, headers) is None, headers


_STEMS = "x|te|host|webhook|x-amz|metadata|proxy|cookie2?|content|trailers?"
_NAMES = st.from_regex(rf"(?i:{_STEMS})[-_a-zA-Z0-9]{{0,6}}", fullmatch=True) | st.text(
    "xX-_:é \n~!(", max_size=5
)
_VALUES = st.text("aZ ~é\n\t\x7f", max_size=6) | st.sampled_from(["Bearer Oracle", "a" * 4096, "a" * 4097])


@SHARED
@given(st.dictionaries(_NAMES, _VALUES, max_size=6))
def test_database_and_worker_agree_on_generated_headers(rules, headers):
    """The verdict is the same; the words may name another of several, since jsonb orders its keys."""
    ours, theirs = header_problem(list(headers.items())), header_verdict(rules, headers)
    assert (ours is None) == (theirs is None), (ours, theirs)
    if len(headers) == 1:
        assert ours == theirs


@pytest.mark.parametrize(
    "headers", ["[]", "null", '"a"', "1", '{"X-A": 1}', '{"X-A": null}', '{"X-A": ["a"]}', '{"X-A": {}}']
)
def test_headers_are_an_object_of_texts(rules, headers):
    """Any other JSON is refused, not converted."""
    assert ask(rules, "outbox.header_problem(%s::jsonb)", headers)


def test_header_names_alone_are_held_to_the_same_rule(rules):
    """The readable column of names cannot hold what the sealed headers may not."""
    for _, headers in BAD_HEADER_ROWS:
        names = [name for name, _ in headers]
        if header_problem([(name, "a") for name in names]):
            assert ask(rules, "outbox.header_names_problem(%s::text[])", names), names
    for headers in GOOD_HEADERS:
        assert ask(rules, "outbox.header_names_problem(%s::text[])", [name for name, _ in headers]) is None


def test_the_signature_header_is_reserved_under_its_configured_name_in_the_database(rules):
    """A custom header cannot stand in for the product's signature, whatever that is called."""
    assert ask(rules, "outbox.header_names_problem('{X-Own}')") is None
    assert ask(rules, "outbox.header_names_problem('{x_own}', 'X-Own')")
    assert ask(rules, "outbox.header_problem('{\"x-own\": \"a\"}', 'X-Own')")


def test_a_refusal_never_quotes_a_value_or_a_path(rules):
    """Reasons end up in logs; header values, and URLs' paths, are secrets."""
    for headers in (
        {"X-A": "S3CRET\n"},
        {"X-A": "S3CRET" * 1000},
        {"Host": "S3CRET"},
        {"Authorization: S3CRET": "a"},
    ):
        assert "S3CRET" not in header_verdict(rules, headers)
    for url in ("https://h:22/S3CRET", "http://a.example/S3CRET", "https://h.example/#S3CRET", "x://S3CRET"):
        assert "S3CRET" not in url_verdicts(rules, [url], PRODUCTION)[0][0]


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://a.example", "https://a.example"),
        ("https://a.example/", "https://a.example/"),
        ("https://a.example:8443/", "https://a.example:8443/"),
        ("https://a.example/services/T0/B0/x", "https://a.example/…"),
        ("https://a.example?token=x", "https://a.example/…"),
        ("https://a.example/?token=x", "https://a.example/…"),
        ("http://[::1]:80/x\ny", "http://[::1]:80/…"),
        ("https://user:pw@a.example/", "…"),
        ("https://user:p/w@a.example/", "…"),
        ("https://a.example\\x", "…"),
        ("x", "…"),
        ("", "…"),
        (None, None),
    ],
)
def test_a_masked_url_shows_the_origin_and_nothing_more(rules, url, masked):
    """Paths, queries and user information can be secrets; what cannot be read is hidden whole."""
    assert ask(rules, "outbox.mask_url(%s)", url) == masked


def test_a_url_without_a_readable_origin_has_none(rules):
    """Nothing can be sealed for an origin that the rule does not know."""
    for url in (None, "", "x", "ftp://a.example/", "https://u@a.example/", "https:///x", "https://a\\@b/"):
        assert ask(rules, "outbox.url_origin(%s)", url) is None


def test_the_rules_do_not_depend_on_the_callers_search_path(rules):
    """A caller that puts a schema of its own first cannot replace what the rules are made of."""
    with rules.transaction(force_rollback=True):
        rules.execute("create schema evil")
        rules.execute("create function evil.length(text) returns int language sql immutable as 'select 1'")
        rules.execute(
            "create function evil.strpos(text, text) returns int language sql immutable as 'select 0'"
        )
        rules.execute("create function evil.lower(text) returns text language sql immutable as 'select $1'")
        rules.execute("set local search_path = evil, pg_catalog")
        assert ask(rules, "outbox.url_problem(%s, '{443}', false, false)", "https://a.example/" + "a" * 3000)
        assert ask(rules, "outbox.url_problem(%s, '{443}', false, false)", "https://a.example\\x")
        assert ask(rules, "outbox.header_names_problem('{HOST}')")
        assert ask(rules, "outbox.event_type_problem(%s)", "a." + "a" * 300)
