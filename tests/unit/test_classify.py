"""What an outcome means: the whole table, and a Retry-After that may be anything.

Guarantee: every status and every failure has one verdict, and nothing in a response raises.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_worker.classify import classify, retry_after
from outbox_worker.model import Failure, Outcome, Verdict

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(hours=24)
FAILURES = {
    Failure.BLOCKED_ADDRESS: Verdict.RETRY,
    Failure.DNS_ERROR: Verdict.RETRY,
    Failure.CONNECT_TIMEOUT: Verdict.RETRY,
    Failure.CONNECT_ERROR: Verdict.RETRY,
    Failure.TLS: Verdict.RETRY,
    Failure.TIMEOUT: Verdict.RETRY,
    Failure.AMBIGUOUS: Verdict.RETRY,
    Failure.PROTOCOL: Verdict.RETRY,
    Failure.LOCAL: Verdict.NOT_ATTEMPTED,
}


def answered(status, *headers, failure=None):
    return Outcome(status, failure, "", tuple(headers), b"", 1.0)


def failed(failure):
    return Outcome(None, failure, "", (), b"", 1.0)


def hint(value, *, status=503, name=b"Retry-After"):
    return retry_after(answered(status, (name, value)), NOW)


@pytest.mark.parametrize("status", [*range(100, 600), 0, -1, 600, 999, 2000, 20])
def test_every_status_has_one_verdict(status):
    """T01, T17, T21: 2xx is delivered, 410 disables, everything else, redirects included, is a retry."""
    table = {410: Verdict.DISABLE_ENDPOINT} | dict.fromkeys(range(200, 300), Verdict.DELIVERED)
    assert classify(answered(status), 1, 7) is table.get(status, Verdict.RETRY)


def test_every_failure_has_one_verdict():
    """Every fault of the network is a retry; our own is charged to nobody."""
    assert set(FAILURES) == set(Failure)
    assert {failure: classify(failed(failure), 1, 7) for failure in Failure} == FAILURES


@pytest.mark.parametrize(
    "outcome", [answered(500), answered(302), *map(failed, set(Failure) - {Failure.LOCAL})]
)
def test_the_budget_is_the_schedule_and_one_attempt_more(outcome):
    """Eight failed attempts of a schedule of seven: the eighth makes a dead letter, the seventh does not."""
    assert classify(outcome, 7, 7) is Verdict.RETRY
    assert classify(outcome, 8, 7) is Verdict.GIVE_UP
    assert classify(outcome, 9, 7) is Verdict.GIVE_UP  # the schedule was shortened meanwhile
    assert classify(outcome, 1, 0) is Verdict.GIVE_UP


def test_success_disabling_and_our_own_fault_do_not_depend_on_the_budget():
    """T23: the last attempt may succeed, disable, or not have been one."""
    assert classify(answered(204), 8, 7) is Verdict.DELIVERED
    assert classify(answered(410), 8, 7) is Verdict.DISABLE_ENDPOINT
    assert classify(failed(Failure.LOCAL), 8, 7) is Verdict.NOT_ATTEMPTED


def test_the_status_alone_decides():
    """A 200 whose body broke off was delivered: a second request would be a duplicate."""
    assert classify(answered(200, failure=Failure.AMBIGUOUS), 1, 7) is Verdict.DELIVERED
    assert classify(answered(410, failure=Failure.TIMEOUT), 1, 7) is Verdict.DISABLE_ENDPOINT


def test_an_outcome_of_nothing_is_a_bug():
    """Neither status nor failure cannot be classified silently."""
    with pytest.raises(ValueError, match="neither"):
        classify(failed(None), 1, 7)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_T22_a_hint_in_seconds_or_as_a_date_is_read(status):
    """The four statuses that mean "later", in any letter case, the first header counting."""
    date = format_datetime(NOW + timedelta(hours=2), usegmt=True).encode()
    assert hint(b"120", status=status) == timedelta(seconds=120)
    assert hint(b" 0 \t", status=status, name=b"RETRY-AFTER") == timedelta(0)
    assert hint(date, status=status, name=b"retry-after") == timedelta(hours=2)
    both = answered(status, (b"x", b"1"), (b"Retry-After", b"7"), (b"Retry-After", b"9"))
    assert retry_after(both, NOW) == timedelta(seconds=7)


@pytest.mark.parametrize(
    "value",
    [b"Sunday, 01-Mar-26 14:00:00 GMT", b"Sun Mar  1 14:00:00 2026", b"Sun, 01 Mar 2026 15:00:00 +0100"],
)
def test_the_obsolete_forms_of_a_date_are_read(value):
    """RFC 9110 asks recipients for all three forms; one without a zone is UTC."""
    assert hint(value) == timedelta(hours=2)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 404, 408, 410, 500, 501, 505])
def test_other_statuses_give_no_hint(status):
    """A redirect's Retry-After, or that of a plain error, is not a request to slow down."""
    assert hint(b"120", status=status) is None


def test_a_failure_without_an_answer_gives_no_hint():
    """No status, no hint."""
    assert retry_after(failed(Failure.TIMEOUT), NOW) is None
    assert retry_after(answered(503), NOW) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"99999999999", DAY),
        (b"9" * 64, DAY),
        (b"9" * 65, None),
        (b"9" * 1_000_000, None),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", DAY),
        (b"Fri, 31 Dec 9999 23:59:59 -2359", DAY),
        (b"Mon, 01 Jan 0001 00:00:00 +2359", timedelta(0)),
        (b"Sun, 01 Mar 2026 11:00:00 GMT", timedelta(0)),
        (b"-1", None),
        (b"+1", None),
        (b"1.5", None),
        (b"1e3", None),
        (b"0x10", None),
        (b"NaN", None),
        (b"inf", None),
        (b"", None),
        (b" ", None),
        (b"soon", None),
        (b"1_000", None),
        ("\uff11\uff12".encode(), None),
        (b"\xff\x00", None),
        (b"12\x00", None),
        (b"Sun, 99 Xxx 2026 99:99:99 GMT", None),
        (b"Sun, 01 Mar 2026 25:00:00 GMT", None),
        (b"Sun, 01 Mar 99999999999 00:00:00 GMT", None),
        (b"Sun, 01 Mar 2026 11:00:00 +9999", None),
    ],
)
def test_T20_a_hostile_hint_is_ignored_or_clamped(value, expected):
    """Never below nothing, never above 24 hours, never a crash."""
    assert hint(value) == expected


_DATE_PARTS = st.sampled_from(
    [
        b"Sun",
        b",",
        b" ",
        b"01",
        b"99",
        b"Mar",
        b"-",
        b":",
        b"2026",
        b"0",
        b"GMT",
        b"+0100",
        b"-9999",
        b"(",
        b")",
        b'"',
    ]
)


@given(
    st.binary(max_size=80)
    | st.lists(_DATE_PARTS, max_size=12).map(b"".join)
    | st.text(max_size=40).map(str.encode)
)
def test_no_hint_raises_or_leaves_its_bounds(value):
    """Whatever the bytes are."""
    found = hint(value)
    assert found is None or timedelta(0) <= found <= DAY


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_any_date_against_any_clock_gives_a_bounded_hint(now, date):
    """Also at both ends of the calendar."""
    outcome = answered(429, (b"retry-after", format_datetime(date, usegmt=True).encode()))
    assert timedelta(0) <= retry_after(outcome, now) <= DAY
