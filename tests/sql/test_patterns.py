"""Event types and subscription patterns: their one form, and which pattern matches which type.

Guarantee: outbox.patterns_of and outbox.pattern_matches are two sides of one rule.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def ask(db, query, *arguments):
    return db.execute(f"select {query}", arguments).fetchone()[0]


GOOD_TYPES = ["message.received", "a.b", "a_1.b_2.c_3", "0.1", f"a.{'b' * 198}"]
BAD_TYPES = [
    "", "message", "message.", ".received", "a..b", "A.b", "a.b ", " a.b", "a.b\n", "a-b.c", "a.*", "*",
    "a.é", "a.b\\", f"a.{'b' * 199}",
]  # fmt: skip
GOOD_PATTERNS = [*GOOD_TYPES, "*", "message.*", "message.status.*", "a_1.*", f"{'a' * 198}.*"]
BAD_PATTERNS = [
    "", "message", "**", "*.*", "*.received", "message*", "message.*.x", "message.**", ".*", "a..*", "a. *",
    "A.*", "a.*\n", "*\n", "%", "a.%", "a.(b)", f"{'a' * 199}.*",
]  # fmt: skip


def test_event_types_and_patterns_have_one_form(db):
    """Dotted lower-case words; a star stands only at the end, alone or after a dot."""
    for name in GOOD_TYPES:
        assert ask(db, "outbox.event_type_problem(%s)", name) is None, name
    for name in BAD_TYPES:
        assert ask(db, "outbox.event_type_problem(%s)", name), name
    for pattern in GOOD_PATTERNS:
        assert ask(db, "outbox.pattern_problem(%s)", pattern) is None, pattern
    for pattern in BAD_PATTERNS:
        assert ask(db, "outbox.pattern_problem(%s)", pattern), pattern


def test_patterns_of_a_type_run_from_its_name_to_the_star(db):
    """Each prefix once; an operational type is matched by its own name only."""
    assert ask(db, "outbox.patterns_of('a.b.c', false)") == ["a.b.c", "a.b.*", "a.*", "*"]
    assert ask(db, "outbox.patterns_of('a.b.c', true)") == ["a.b.c"]
    assert ask(db, "outbox.patterns_of('a_.b', false)") == ["a_.b", "a_.*", "*"]


_TYPES = st.lists(st.sampled_from(["a", "b", "ab", "a_b"]), min_size=2, max_size=4).map(".".join)
_PATTERNS = _TYPES.flatmap(
    lambda name: st.sampled_from([name, f"{name}.*", name.rpartition(".")[0] + ".*", "*"])
)


@SHARED
@given(_TYPES, _PATTERNS)
def test_a_pattern_matches_exactly_the_types_that_list_it(db, event_type, pattern):
    """The two functions are two sides of one rule, and every listed pattern may be subscribed to."""
    patterns = ask(db, "outbox.patterns_of(%s, false)", event_type)
    assert ask(db, "outbox.pattern_matches(%s, %s)", pattern, event_type) is (pattern in patterns)
    assert all(ask(db, "outbox.pattern_problem(%s)", listed) is None for listed in patterns)
