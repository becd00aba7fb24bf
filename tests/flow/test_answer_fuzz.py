"""Whatever bytes a receiver answers with: an Outcome within the deadline, never an exception, a bounded body.

Reads: a receiver on loopback that says what hypothesis made up. Writes: nothing.
Guarantee: status lines, headers, chunks, bytes cut short, doubled or changed, in any pieces, end as a value.
If it is wrong: one receiver can end a worker, or hold one of its slots for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from ipaddress import ip_network

from hypothesis import example, given
from hypothesis import strategies as st

from outbox_worker.connection import MAX_HEADER_BYTES, MAX_HEADER_COUNT, Bounds
from outbox_worker.egress import EgressPolicy
from outbox_worker.model import Failure, Outcome, Request
from outbox_worker.transport import MAX_STORED_VALUE_BYTES, open_transport

DEADLINE = 0.25
BOUNDS = Bounds(connect_seconds=2, body_seconds=0.05, body_bytes=1024)
HANGS = 20  # nothing but the deadline ends an exchange that early; a busy machine may be late by seconds
# The last where this process stood still for longer than the deadline.
FAILURES = {Failure.TIMEOUT, Failure.AMBIGUOUS, Failure.PROTOCOL, Failure.CONNECT_TIMEOUT}
LINES = st.one_of(
    st.integers(100, 999).map(lambda code: b"HTTP/1.1 %d Whatever\r\n" % code),
    st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 204\r\n", b"HTTP/1.1 304 \r\n", b"HTTP/1.1 101 X\r\n"]),
    st.sampled_from([b"HTTP/0.9 200 OK\r\n", b"HTTP/2 200\r\n", b"HTTP/1.1 99999 X\r\n", b"HTTP/1.1 -1 X\r\n"]),
    st.sampled_from([b"ICY 200 OK\r\n", b"HTTP/1.1 200 OK\n", b"HTTP/1.1200\r\n", b"\r\n\r\nHTTP/1.1 200 OK\r\n", b""]),
    st.binary(max_size=40).map(lambda noise: noise + b"\r\n"),
)  # fmt: skip
NUMBERS = st.sampled_from(
    [b"0", b"5", b"-1", b"+5", b"5, 5", b"0x5", b"99999999999999999999999", b"", b" 5 ", b"5\x00"]
)
HEADERS = st.one_of(
    NUMBERS.map(lambda number: b"Content-Length: %b\r\n" % number),
    st.sampled_from([b"chunked", b"gzip, chunked", b"chunked, identity", b"Chunked\x0b", b"xchunked"]).map(
        lambda coding: b"Transfer-Encoding: %b\r\n" % coding
    ),
    st.sampled_from([b"close", b"keep-alive", b"upgrade", b"\x00"]).map(lambda way: b"Connection: %b\r\n" % way),
    st.sampled_from([b"Upgrade: h2c\r\n", b"Content-Encoding: gzip\r\n", b"Retry-After: 1e9\r\n", b"Location: //\r\n"]),
    st.sampled_from([b" folded\r\n", b": nameless\r\n", b"no colon\r\n", b"Set-Cookie: a=b\r\n", b"X: y\n", b"X\r: y\r\n"]),
    st.integers(1, 70_000).map(lambda length: b"X-Long: %b\r\n" % (b"x" * length)),
    st.integers(1, 400).map(lambda count: b"X-Many: x\r\n" * count),
    st.binary(max_size=60).map(lambda noise: noise + b"\r\n"),
)  # fmt: skip
SIZES = st.sampled_from([b"%x", b"%X", b"%x;a=b", b"%x ;x", b"-%x", b"0x%x", b"%xg", b"fffffffffffffffff%x"])
CHUNKS = st.tuples(SIZES, st.binary(max_size=30), st.sampled_from([b"\r\n", b"\n", b"", b"\r\n\r\n"])).map(
    lambda chunk: chunk[0] % len(chunk[1]) + b"\r\n" + chunk[1] + chunk[2]
)
TRAILERS = st.sampled_from(
    [b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 20_000, b"0;x\r\n", b""]
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.integers(900, 200_000).map(lambda length: b"x" * length),
    st.tuples(st.lists(CHUNKS, max_size=5).map(b"".join), TRAILERS).map(b"".join),
)
MESSAGES = st.tuples(
    LINES,
    st.lists(HEADERS, max_size=6).map(b"".join),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b""]),
    BODIES,
).map(b"".join)
GOOD = st.one_of(
    st.binary(max_size=3_000).map(lambda body: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)),
    st.lists(st.binary(min_size=1, max_size=900), max_size=5).map(
        lambda chunks: b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n"
        % b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    ),
    st.binary(max_size=3_000).map(lambda body: b"HTTP/1.0 204 None\r\nX-A: b\r\n\r\n%b" % body),
)  # fmt: skip
INTERIM = st.sampled_from(
    [b"", b"", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 50]
)


@st.composite
def answers(draw):
    """The pieces that are written, and how the connection ends."""
    said = draw(INTERIM) + b"".join(draw(st.lists(st.one_of(GOOD, MESSAGES), min_size=1, max_size=2)))
    if draw(st.booleans()):
        said = said[: draw(st.one_of(st.integers(0, min(60, len(said))), st.integers(0, len(said))))]
    if said and draw(st.booleans()):
        at = draw(st.integers(0, len(said) - 1))
        said = said[:at] + draw(st.binary(max_size=4)) + said[at + 1 :]
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=6)))
    pieces = [said[start:end] for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    return pieces, draw(st.sampled_from(["close", "reset", "stay"]))


async def says(answer, reader, writer):
    """Wait for a request's head, answer it, end; then stay until the other side has gone."""
    pieces, end = answer
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"{}")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if end == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if end == "stay":
            await reader.read()
    writer.close()


@example(answer=([b""], "stay"))
@example(answer=([b"HTTP/1.1 200 OK\r\nX-A", b": b\r\n"], "stay"))
@example(answer=([b"HTTP/1.1 103 X\r\n\r\n"], "stay"))
@example(answer=([b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 500], "stay"))
@given(answer=answers())
async def test_any_answer_is_an_outcome_within_the_deadline(answer):
    """No exception, no hanging, no more kept than the bounds say, and the transport sends the next request."""
    pieces, _ = answer
    said = b"".join(pieces)
    server = await asyncio.start_server(lambda r, w: says(answer, r, w), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    policy = EgressPolicy(frozenset({port}), True, True, (), (ip_network("127.0.0.1/32"),))
    async with server, open_transport(policy, bounds=BOUNDS) as transport, asyncio.timeout(HANGS):
        for _ in range(2):  # the second on what the first has left
            outcome = await transport.send(Request(f"http://127.0.0.1:{port}/path", (), b"{}", DEADLINE))
            assert isinstance(outcome, Outcome)
            assert (outcome.status is None) == (outcome.failure in FAILURES), outcome
            assert outcome.status is None or b"%d" % outcome.status in said
            assert len(outcome.response_body) <= BOUNDS.body_bytes
            assert len(outcome.response_headers) <= MAX_HEADER_COUNT
            assert sum(len(name) + len(value) for name, value in outcome.response_headers) <= MAX_HEADER_BYTES
            assert all(len(value) <= MAX_STORED_VALUE_BYTES for _, value in outcome.response_headers)
            assert "/path" not in outcome.error
