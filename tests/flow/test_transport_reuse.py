"""Connections: kept while they are good, given up at once when they are not, never leaked.

Reads: scripted receivers on loopback. Writes: nothing.
Guarantee: a request is written once, as it was given, to a connection that was alive; a cancelled one
leaves nothing behind; every exception of the HTTP client is a failure with a name.
If it is wrong: workers go silent after timeouts, or send twice what they record once.
"""

from __future__ import annotations

import asyncio
import inspect
from ipaddress import ip_network

import httpx
import pytest
import uvloop

from outbox_worker.connection import Bounds
from outbox_worker.egress import EgressPolicy
from outbox_worker.model import Failure, Outcome, Request
from outbox_worker.pool import ConnectionPool
from outbox_worker.resolver import Dialer, Resolver
from outbox_worker.transport import GuardedTransport, Transport, failure_of, open_transport
from tests.support import receiver as act
from tests.support.receiver import Receiver
from tests.support.waiting import eventually


def policy_for(*ports):
    return EgressPolicy(frozenset(ports), True, True, (), (ip_network("127.0.0.0/8"),))


@pytest.fixture
async def receiver():
    async with Receiver() as running:
        yield running


def request_to(receiver, headers=(), body=b"{}", path="", timeout_seconds=10.0):
    return Request(receiver.url + path, headers, body, timeout_seconds)


def kept(transport):
    return list(transport._inner._pool._by_idleness)


def nothing_in_flight(transport):
    pool = transport._inner._pool
    return not pool._in_flight and set(pool._by_idleness) == pool._open


async def test_a_connection_is_used_again(receiver):
    """Ten requests one after another are ten requests on one connection."""
    async with open_transport(policy_for(receiver.port)) as transport:
        for _ in range(10):
            assert (await transport.send(request_to(receiver))).status == 200
    assert {request.connection for request in receiver.requests} == {1}


async def test_a_request_arrives_as_it_was_given(receiver):
    """Host first, the headers in their order, the length last; path, query and body byte for byte."""
    headers = (("b-second", "2"), ("A-First", "1 x"), ("empty", ""))
    body = bytes(range(256)) * 1000
    async with open_transport(policy_for(receiver.port)) as transport:
        await transport.send(request_to(receiver, headers, body, 'a/../b//"{c}"?d=%7e&e=<f>'))
    (arrived,) = receiver.requests
    assert (arrived.method, arrived.path) == ("POST", '/a/../b//"{c}"?d=%7e&e=<f>')
    host = ("host", f"127.0.0.1:{receiver.port}")
    assert arrived.headers == [host, *headers, ("content-length", str(len(body)))]
    assert arrived.body == body


async def test_an_idle_connection_that_the_receiver_closed_is_noticed_before_it_is_written_to(receiver):
    """The next request goes out on a fresh connection, even before the loop has seen the end of the old."""
    async with open_transport(policy_for(receiver.port)) as transport:
        await transport.send(request_to(receiver))
        receiver.hang_up()
        outcome = await transport.send(request_to(receiver))
    assert outcome.status == 200
    assert [request.connection for request in receiver.requests] == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        act.status(200, [("Connection", "close")]),
        act.raw(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", keep=True),
        act.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 Unasked\r\n\r\n", keep=True),
        act.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\ngarbage", keep=True),
    ],
    ids=["close", "http-1.0", "a-second-answer", "garbage-behind"],
)
async def test_a_connection_in_doubt_is_not_kept(receiver, answer):
    """What nobody asked for is never taken for the next request's answer."""
    receiver.script(None, answer)
    async with open_transport(policy_for(receiver.port)) as transport:
        assert (await transport.send(request_to(receiver))).status == 200
        assert (await transport.send(request_to(receiver))).status == 200
        assert kept(transport) == []
    assert [request.connection for request in receiver.requests] == [1, 2]


class _AnswersUnread(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.pause_reading()
        self.transport.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")


async def test_an_answer_before_the_request_was_read_ends_the_connection():
    """The rest of the request would be read as the next one."""
    unread = _AnswersUnread()
    server = await asyncio.get_running_loop().create_server(lambda: unread, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_transport(policy_for(port)) as transport:
        outcome = await transport.send(Request(f"http://127.0.0.1:{port}/", (), bytes(50_000_000), 10.0))
        assert outcome.status == 413
        assert kept(transport) == []
        unread.transport.abort()


@pytest.mark.parametrize("bounds", [Bounds(idle_seconds=0.05), Bounds(max_idle=0)], ids=["time", "number"])
async def test_idle_connections_are_bounded(receiver, bounds):
    """By time and by number, so that a change of DNS bites and descriptors come back."""
    async with open_transport(policy_for(receiver.port), bounds=bounds) as transport:
        await transport.send(request_to(receiver))
        await eventually(lambda: receiver.open_connections == 0)
        assert kept(transport) == []


async def test_an_old_connection_is_not_used_again(receiver):
    """A connection in constant use ends too."""
    async with open_transport(policy_for(receiver.port), bounds=Bounds(age_seconds=0)) as transport:
        for _ in range(3):
            await transport.send(request_to(receiver))
    assert [request.connection for request in receiver.requests] == [1, 2, 3]


@pytest.mark.parametrize("behaviour", [act.stall(), act.drip_body()], ids=["waiting", "reading"])
async def test_a_cancelled_request_leaves_nothing_behind(receiver, behaviour):
    """Its connection is closed, its place is free, and the next requests are answered."""
    receiver.script("/slow", behaviour)
    async with open_transport(policy_for(receiver.port), bounds=Bounds(max_per_host=8)) as transport:
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                slow = [
                    group.create_task(transport.send(request_to(receiver, path="slow"))) for _ in range(8)
                ]
                await eventually(lambda: receiver.open_connections >= 8)
                for task in slow:
                    task.cancel()
            assert all(task.cancelled() for task in slow)
            await eventually(lambda: nothing_in_flight(transport))
        await eventually(lambda: receiver.open_connections == 0)
        assert (await transport.send(request_to(receiver))).status == 200


async def test_a_request_cancelled_while_connecting_leaves_nothing_behind(receiver):
    """Cancelled at whatever point of a busy second, no socket and no place is lost."""
    async with open_transport(policy_for(receiver.port), bounds=Bounds(max_per_host=500)) as transport:
        for turns in range(12):
            async with asyncio.TaskGroup() as group:
                sends = [group.create_task(transport.send(request_to(receiver))) for _ in range(20)]
                for _ in range(turns):
                    await asyncio.get_running_loop().run_in_executor(None, int)
                for task in sends:
                    task.cancel()
        await eventually(lambda: nothing_in_flight(transport))
        assert (await transport.send(request_to(receiver))).status == 200


async def test_closing_the_transport_ends_what_is_in_flight(receiver):
    """An exchange that is cut off by the end of its transport is an outcome too."""
    receiver.script(None, act.stall())
    async with asyncio.TaskGroup() as group, open_transport(policy_for(receiver.port)) as transport:
        sending = group.create_task(transport.send(request_to(receiver)))
        await eventually(lambda: receiver.requests)
    assert sending.result().failure is Failure.AMBIGUOUS
    await eventually(lambda: receiver.open_connections == 0)


async def test_a_refused_connection_is_a_connect_error_without_the_path(receiver):
    """Nobody listens: a failure that names host and port and nothing of the URL's path."""
    await receiver.__aexit__(None, None, None)
    async with open_transport(policy_for(receiver.port)) as transport:
        outcome = await transport.send(request_to(receiver, path="T000/B000/token"))
    assert outcome.failure is Failure.CONNECT_ERROR
    assert f"127.0.0.1:{receiver.port}" in outcome.error
    assert "B000" not in outcome.error


@pytest.mark.parametrize(
    "header",
    [("x-a", "ü"), ("x-a", "1\r\nx-b: 2"), ("x-a", "1\n2"), ("x-a", "\0"), ("x a", "1"), ("", "1"),
     ("x-a:", "1"), ("Transfer-Encoding", "chunked"), ("Upgrade", "h2c")],
)  # fmt: skip
async def test_a_header_that_cannot_be_sent_is_refused_before_a_byte_is(receiver, header):
    """Neither a crash nor a smuggled line: nothing is connected to, and the value is not quoted."""
    async with open_transport(policy_for(receiver.port)) as transport:
        outcome = await transport.send(request_to(receiver, (header,)))
    assert outcome.failure is Failure.PROTOCOL
    assert header[1] not in outcome.error or header[1] == "1"
    assert receiver.connections == 0


_OURS = (("Host", "evil.example"), ("Content-Length", "1"), ("Connection", "close"))


async def test_no_custom_header_replaces_host_length_or_connection(receiver):
    """Ours are the only ones on the wire."""
    async with open_transport(policy_for(receiver.port)) as transport:
        await transport.send(request_to(receiver, _OURS))
    names = [name.lower() for name, _ in receiver.requests[0].headers]
    assert names == ["host", "content-length"]
    assert receiver.requests[0].headers[0][1] == f"127.0.0.1:{receiver.port}"


def every_httpx_error():
    return [
        kind
        for _, kind in inspect.getmembers(httpx, inspect.isclass)
        if issubclass(kind, Exception) and not issubclass(kind, Warning)
    ]


@pytest.mark.parametrize("kind", every_httpx_error(), ids=lambda kind: kind.__name__)
async def test_every_exception_of_the_http_client_is_a_failure(kind):
    """Whatever httpx may raise becomes an Outcome that quotes nothing of the exception's text."""

    def fail(request):
        raise _built(kind, request)

    transport = Transport(httpx.MockTransport(fail), policy_for(80))
    outcome = await transport.send(Request("http://127.0.0.1/secret", (), b"{}", 5.0))
    assert outcome.failure is failure_of(_built(kind, None))
    assert outcome.status is None
    assert "secret" not in outcome.error


def _built(kind, request):
    error = kind.__new__(kind, "secret")
    Exception.__init__(error, "secret")
    error._request = request
    return error


async def test_httpx_itself_can_send_over_the_guarded_transport(receiver):
    """The seam is httpx's own: an AsyncClient works over it, and is refused by the same policy."""
    policy = policy_for(receiver.port)
    resolver = Resolver()
    guarded = GuardedTransport(policy, ConnectionPool(Dialer(policy, resolver)), resolver)
    receiver.script(None, act.status(202, [("X-A", "1")], b"hi"))
    async with httpx.AsyncClient(transport=guarded, trust_env=False) as client:
        response = await client.post(receiver.url, content=b"{}", headers={"x-a": "1"})
        assert (response.status_code, response.text) == (202, "hi")
        with pytest.raises(httpx.ConnectError):
            await client.post("http://127.0.0.1:1/")


def test_the_same_connections_work_under_uvloop():
    """The loop that workers run on: reuse, a hang-up between, a reset, a deadline, a cancellation."""

    async def story() -> list[Outcome]:
        async with Receiver() as receiver, open_transport(policy_for(receiver.port)) as transport:
            receiver.script(None, act.status(), act.status(), act.reset(), act.stall(), act.drip_body())
            outcomes = [await transport.send(request_to(receiver))]
            receiver.hang_up()
            outcomes += [await transport.send(request_to(receiver)) for _ in range(2)]
            outcomes.append(await transport.send(request_to(receiver, timeout_seconds=0.2)))
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(transport.send(request_to(receiver)))
                await eventually(lambda: len(receiver.requests) == 5)
                sending.cancel()
            await eventually(lambda: nothing_in_flight(transport))
            return outcomes

    outcomes = uvloop.run(story())
    assert [outcome.status for outcome in outcomes] == [200, 200, None, None]
    assert [outcome.failure for outcome in outcomes[2:]] == [Failure.AMBIGUOUS, Failure.TIMEOUT]


async def test_T25_a_host_has_at_most_its_share_of_requests_in_flight(receiver):  # noqa: N802
    """500 slow requests for one host take its cap of connections; the rest are charged to nobody."""
    done = asyncio.Event()
    receiver.script(None, act.hold(done))
    bounds = Bounds(max_per_host=20)
    async with open_transport(policy_for(receiver.port), bounds=bounds) as transport, asyncio.TaskGroup() as group:  # fmt: skip
        sends = [group.create_task(transport.send(request_to(receiver))) for _ in range(500)]
        await eventually(lambda: len(receiver.requests) == 20)
        await eventually(lambda: sum(task.done() for task in sends) == 480)
        done.set()
    outcomes = [task.result() for task in sends]
    assert sum(outcome.status == 200 for outcome in outcomes) == 20
    assert sum(outcome.failure is Failure.LOCAL for outcome in outcomes) == 480
    assert receiver.connections == 20
