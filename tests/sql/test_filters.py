"""Filters that customers type: whatever they hold, they give a verdict, or an error that is theirs alone.

Reads and writes: a clone of the template database.
Guarantee: no filter that is accepted raises into the fan-out; none compares two lists pair by pair.
If it is wrong: one customer's filter stops everybody's events.
"""

from __future__ import annotations

import itertools
import json

import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support.rows import new_endpoint, publish

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
OPERATORS = ["==", "!=", "<>", "<", "<=", ">", ">="]
PATHS = [
    "$",
    "$.a",
    "$.a[*]",
    "$.a[0 to last]",
    "$.b.c",
    "$.*",
    "$.**",
    '$."x y"',
    "$.a.size()",
    "-$.a[*]",
    "$.a[*] ? (@ > 1)",
]
LITERALS = ["1", "-2.5", "1e3", '"x"', '"$.a == $.b"', "true", "null"]
_paths, _literals = st.sampled_from(PATHS), st.sampled_from(LITERALS)
_comparisons = st.builds(" ".join, st.tuples(_paths, st.sampled_from(OPERATORS), _literals))
_predicates = st.recursive(
    _comparisons | _paths.map(lambda path: f"exists({path})") | _paths.map('{} like_regex "^a"'.format),
    lambda inner: (
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["&&", "||"]), inner)
        | inner.map("!({})".format)
    ),
    max_leaves=6,
)
_noise = st.lists(
    st.sampled_from(
        [*PATHS, *LITERALS, *OPERATORS, "(", ")", "?", "@", "&&", "!", "exists", ".datetime()", "$v", "\\"]
    ),
    max_size=8,
).map(" ".join)
_payloads = st.dictionaries(
    st.sampled_from(["a", "b", "x y"]),
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "a", "2020-01-01"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["c", "d"]), inner, max_size=2),
        max_leaves=8,
    ),
)  # fmt: skip


@pytest.fixture
def one(db):
    def ask(query, *values):
        return db.execute(f"select {query}", values).fetchone()[0]

    return ask


@SHARED
@given(_predicates | _noise, _payloads)
def test_every_filter_gives_a_verdict_on_every_payload(one, text, payload):
    """Not a filter: refused as such. A filter: t, f or the words of its own error, as PostgreSQL itself would judge."""
    try:
        one("%s::jsonpath", text)
    except (psycopg.errors.SyntaxError, psycopg.DataError):
        return
    said = one("outbox.filter_outcome(%s::jsonb, %s::jsonpath)", json.dumps(payload), text)
    try:
        expected = {True: "t", False: "f", None: "f"}[
            one("%s::jsonb @@ %s::jsonpath", json.dumps(payload), text)
        ]
    except psycopg.Error as error:
        expected = error.diag.message_primary
    assert said == expected


@SHARED
@given(_predicates)
def test_a_comparison_with_a_literal_is_accepted(one, text):
    """However many of them, joined and negated; a text that looks like a comparison is a literal too."""
    assume(len(text) < 900)
    assert one("outbox.filter_problem(%s::jsonpath)", text) is None


@SHARED
@given(_predicates, st.sampled_from(["{}", "!({})", "exists($.a[*] ? ({}))", "(({}))"]))
def test_a_comparison_of_two_paths_is_refused_wherever_it_stands(db, other, around):
    """Alone, negated, within a filter of a path, beside others: each pair of two lists would be tried uninterrupted."""
    pairs = [around.format(" ".join(three)) for three in itertools.product(PATHS, OPERATORS, PATHS)]
    texts = [text for pair in pairs for text in (pair, f"({other}) && ({pair})", f"({pair}) || ({other})")]
    passed = "select t from unnest(%s::text[]) as t where outbox.filter_problem(t::jsonpath) is null"
    assert db.execute(passed, [texts]).fetchall() == []


@SHARED
@given(
    st.text(st.sampled_from("ab_.*0A -\n\\"), max_size=12)
    | st.text(max_size=12).filter(lambda text: "\0" not in text and text.isprintable())
)
def test_a_pattern_that_is_accepted_matches_as_it_reads(one, pattern):
    """Words joined by dots, a star alone or for the last word; whatever is accepted matches its own kind only."""
    words = pattern.split(".")
    plain = [word for word in words if word and set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")]
    good = pattern == "*" or (
        len(words) > 1 and (plain == words or (plain == words[:-1] and words[-1] == "*"))
    )
    assert (one("outbox.pattern_problem(%s)", pattern) is None) is good
    if good:
        inside = pattern.removesuffix("*") + "zz" if pattern.endswith("*") else pattern
        assert one("outbox.pattern_matches(%s, %s)", pattern, inside if "." in inside else f"zz.{inside}")
        assert one("outbox.pattern_matches(%s, %s)", pattern, f"other{inside}") is (pattern == "*")


def test_explaining_a_slow_filter_ends_with_the_askers_own_timeout(db, connect):
    """The filter is tried again in the session that asks, and a cancel reaches it there."""
    slow = "exists($.a[*] ? (exists($.b[*] ? (@ == 99999))))"
    endpoint = new_endpoint(db, event_types=["message.*"], filter=slow)
    many = json.dumps({"a": list(range(15_000)), "b": [-n for n in range(1, 15_001)]})
    event = publish(db, payload=many)
    reader = connect("reader_login")
    reader.execute("set statement_timeout = '200 ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        reader.execute("select outbox.explain_delivery(%s, %s)", [event, endpoint])
