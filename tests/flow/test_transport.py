"""Receivers: whatever one does costs a bounded time and memory, and is a value.

Reads: scripted receivers on loopback. Writes: nothing.
Guarantee: the T rows of the catalogue of hostile input, by their ids, against the real connections.
If it is wrong: one receiver can stop, fill or crash a worker, or be told a lie about its deliveries.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio
import errno
import tracemalloc
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_network

import pytest

from outbox_worker.connection import Bounds
from outbox_worker.egress import EgressPolicy
from outbox_worker.model import Failure, Request
from outbox_worker.transport import open_transport
from tests.support import no_descriptor_left
from tests.support import receiver as act
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

FAST = Bounds(connect_seconds=5, body_seconds=0.1)
MiB = 1024**2


def policy_for(*ports):
    return EgressPolicy(
        allowed_ports=frozenset(ports),
        allow_plain_http=True,
        allow_ip_literals=True,
        allow_networks=(ip_network("127.0.0.0/8"),),
    )


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


@asynccontextmanager
async def sender(receiver, *, bounds=FAST):
    async with open_transport(policy_for(receiver.port), bounds=bounds) as transport:

        async def send(path="secret-path?token=x", timeout_seconds=10.0, headers=(), body=b"{}"):
            return await transport.send(Request(receiver.url + path, headers, body, timeout_seconds))

        send.transport = transport
        yield send


async def outcome_of(receiver, *behaviours, timeout_seconds=10.0, bounds=FAST):
    receiver.script(None, *behaviours)
    async with sender(receiver, bounds=bounds) as send:
        return await send(timeout_seconds=timeout_seconds)


def assert_failed(outcome, failure):
    assert outcome.failure is failure, outcome
    assert outcome.status is None
    assert outcome.error
    assert "secret-path" not in outcome.error
    assert "token" not in outcome.error


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


async def test_T01_a_redirect_to_the_metadata_service_is_not_followed(receiver):
    """A 302 is a status like any other, and the only request is the one that was asked for."""
    outcome = await outcome_of(receiver, act.redirect(302, "http://169.254.169.254/"))
    assert outcome.status == 302
    assert (b"Location", b"http://169.254.169.254/") in outcome.response_headers
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://[", "\x80//", "/" * 20_000])
async def test_T02_no_redirect_is_followed_and_its_location_is_kept_short(receiver, code, location):
    """Neither another scheme, nor a malformed or an endless Location does anything."""
    outcome = await outcome_of(receiver, act.redirect(code, location))
    assert outcome.status == code
    assert dict(outcome.response_headers)[b"Location"] == location.encode("latin-1")[:4096]
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "behaviour",
    [act.stall(), act.stall(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n"), act.drip_headers(), act.informational()],
    ids=["T05-silence", "T05-half-a-head", "T06-dripped-headers", "T06-endless-103"],
)
async def test_T05_T06_an_answer_that_never_comes_ends_at_the_total_deadline(receiver, behaviour):
    """Neither silence nor a receiver that keeps sending a little outlasts the deadline."""
    async with asyncio.timeout(10):
        outcome = await outcome_of(receiver, behaviour, timeout_seconds=0.3)
    assert_failed(outcome, Failure.TIMEOUT)
    await eventually(lambda: receiver.open_connections == 0)


async def test_T08_a_dripped_body_after_200_is_delivered(receiver):
    """The status decides; the body is read for a while, then left, and its connection with it."""
    async with asyncio.timeout(10):
        outcome = await outcome_of(receiver, act.drip_body(), timeout_seconds=600)
    assert outcome.status == 200
    assert outcome.response_body
    assert set(outcome.response_body) == set(b"x")
    await eventually(lambda: receiver.open_connections == 0)


@pytest.mark.parametrize("behaviour", [act.endless_body(), act.huge_body()], ids=["endless", "10-GB"])
async def test_T09_a_huge_body_is_cut_and_its_connection_closed(receiver, behaviour):
    """The first 16 KiB are kept and the rest is not read."""
    bounds = Bounds(body_seconds=600)
    with memory_below(4 * MiB):
        async with asyncio.timeout(10):
            outcome = await outcome_of(receiver, behaviour, timeout_seconds=600, bounds=bounds)
    assert outcome.status == 200
    assert outcome.response_body == b"x" * 16384
    await eventually(lambda: receiver.open_connections == 0)


async def test_T10_a_gzip_bomb_is_not_decoded(receiver):
    """The bytes are kept as they came, and memory does not grow."""
    bomb = act.gzip_bomb()
    with memory_below(MiB):
        outcome = await outcome_of(receiver, bomb)
    assert outcome.status == 200
    assert outcome.response_body.startswith(b"\x1f\x8b")
    assert len(outcome.response_body) == 16384


async def test_a_small_encoded_body_is_kept_as_it_came(receiver):
    """No content encoding is decoded, not even a valid small one, and an invalid one is no error."""
    encoded = act.status(200, [("Content-Encoding", "gzip")], b"not gzip at all")
    assert (await outcome_of(receiver, encoded)).response_body == b"not gzip at all"


@pytest.mark.parametrize(
    "behaviour",
    [act.reset(), act.close(), act.reset(b"HTTP/1.1 20"), act.close(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n")],
    ids=["reset", "closed", "reset-in-the-status", "closed-in-the-headers"],
)
async def test_T13_a_connection_that_breaks_without_an_answer_is_ambiguous(receiver, behaviour):
    """The request went out, so the receiver may have acted on it; it is not sent again."""
    assert_failed(await outcome_of(receiver, behaviour), Failure.AMBIGUOUS)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("ending", [act.reset, act.close])
async def test_T14_a_kept_connection_that_breaks_under_a_request_is_recorded_not_resent(receiver, ending):
    """On a reused connection too, what was sent once is sent once."""
    receiver.script(None, act.status(), ending(), act.status())
    async with sender(receiver) as send:
        assert (await send()).status == 200
        assert_failed(await send(), Failure.AMBIGUOUS)
    assert [request.connection for request in receiver.requests] == [1, 1]


LONG_BLOCK = (
    b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 1000) for n in range(110)) + b"\r\n"
)
MANY = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: v\r\n" % n for n in range(10_000)) + b"\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        act.raw(LONG_BLOCK),
        act.raw(MANY),
        act.raw(b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 257 + b"\r\n"),
        act.raw(b"HTTP/1.1 200 OK\r\nX: " + b"v" * 110_000 + b"\r\n\r\n"),
        act.endless_body(b"HTTP/1.1 200 OK\r\nX: "),
        act.endless_body(b"", b"HTTP/1.1 103 Early\r\n\r\n" * 1000),
    ],
    ids=[
        "110-KB",
        "10,000-headers",
        "257-headers",
        "one-header-of-110-KB",
        "an-endless-header",
        "a-flood-of-103",
    ],
)
async def test_T15_too_much_before_the_body_is_a_protocol_failure(receiver, behaviour):
    """A header block has a limit, however it is made up, and memory stays flat."""
    with memory_below(6 * MiB):
        assert_failed(await outcome_of(receiver, behaviour), Failure.PROTOCOL)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x01\x02garbage\r\n\r\n",
        b"<html>hello</html>\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
    ],
)
async def test_T16_an_answer_that_is_not_http_is_a_protocol_failure(receiver, answer):
    """Garbage, ancient versions and contradictory framing never count as an answer."""
    assert_failed(await outcome_of(receiver, act.raw(answer)), Failure.PROTOCOL)


@pytest.mark.parametrize("code", [200, 204, 299, 304, 404, 410, 500, 599, 600, 999])
async def test_T17_a_final_status_is_passed_on_whatever_its_number(receiver, code):
    """What a status means is not decided here."""
    assert (await outcome_of(receiver, act.status(code))).status == code


@pytest.mark.parametrize(("code", "failure"), [(100, Failure.TIMEOUT), (101, Failure.PROTOCOL)])
async def test_T17_an_interim_status_alone_is_no_answer(receiver, code, failure):
    """100 promises an answer that never comes; nobody asked for the upgrade of a 101."""
    behaviour = act.stall(b"HTTP/1.1 %d Interim\r\n\r\n" % code)
    assert_failed(await outcome_of(receiver, behaviour, timeout_seconds=0.3), failure)


async def test_interim_answers_before_the_final_one_are_skipped(receiver):
    """A few 1xx answers, then the real one with its own headers only."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n"
    answer = act.raw(interim + b"HTTP/1.1 202 OK\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nhi", keep=True)
    outcome = await outcome_of(receiver, answer)
    assert (outcome.status, outcome.response_body) == (202, b"hi")
    assert outcome.response_headers == ((b"Content-Length", b"2"), (b"X-A", b"1"))


BROKEN_BODIES = {
    "closed-early": act.close(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
    "reset": act.reset(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
    "bad-chunk": act.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n"),
    "endless-trailer": act.endless_body(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: "
    ),
    "endless-chunk-extension": act.endless_body(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;"
    ),
}


@pytest.mark.parametrize("behaviour", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
async def test_a_body_that_breaks_off_does_not_undo_the_status(receiver, behaviour):
    """An answer of 200 whose body lies about itself was delivered, at a bounded cost."""
    with memory_below(8 * MiB):
        async with asyncio.timeout(10):
            outcome = await outcome_of(receiver, behaviour, bounds=Bounds(body_seconds=600))
    assert (outcome.status, outcome.failure) == (200, None)
    assert outcome.response_body in {b"abc", b""}  # a reset may overtake what was sent before it


async def test_T23_running_out_of_descriptors_is_our_own_fault(receiver):
    """With no descriptor left the failure is local, and the next request succeeds."""
    async with sender(receiver) as send:
        with no_descriptor_left():
            outcome = await send()
        assert_failed(outcome, Failure.LOCAL)
        assert (await send()).status == 200


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOBUFS, errno.ENFILE, errno.EADDRNOTAVAIL])
async def test_T23_other_shortages_of_this_machine_are_our_own_fault(receiver, monkeypatch, code):
    """No memory, buffers or ports here is no failure of the receiver's."""

    async def refuse(*_):
        raise OSError(code, "scripted")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse, raising=False)
    assert_failed(await outcome_of(receiver), Failure.LOCAL)
