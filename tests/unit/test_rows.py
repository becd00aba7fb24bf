"""What goes into settle.sql comes out of PostgreSQL as it was."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox_worker.model import Delivery, Outcome, Settlement, Verdict
from outbox_worker.rows import headers_text, quoted, settle_parameters

texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.none(), texts), max_size=8))
def test_a_text_survives_the_array_literal(db, values):
    """Quotes, backslashes, braces, commas, NULL the word and null the value."""
    literal = "{" + ",".join(quoted(value) for value in values) + "}"
    assert db.execute("select %s::text[]", [literal]).fetchone()[0] == values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=50),
    texts,
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3),
)
def test_a_body_and_headers_survive(db, body, workspace, headers):
    """Bodies stay bytes; headers are JSON without NUL."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    delivery = Delivery(
        UUID(int=1), UUID(int=2), workspace, "a.b", 1, 0, 1, UUID(int=3), b"", None, 1, at, None
    )
    outcome = Outcome(200, None, "", tuple(headers), body, 1.5)
    parameters = settle_parameters([Settlement(delivery, outcome, Verdict.DELIVERED, None, at)])
    row = db.execute(
        "select (%(response_bodies)s::bytea[])[1], (%(workspace_ids)s::text[])[1], (%(started_ats)s::timestamptz[])[1],"
        " (%(response_headers)s::text[])[1], (%(response_headers)s::text[])[1]::jsonb is not null",
        parameters,
    ).fetchone()
    assert row == (body, workspace, at, headers_text(headers), True)
