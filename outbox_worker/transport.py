"""Send one request, get one Outcome: the only module that knows an HTTP client, and httpx is its vocabulary.

Reads: model.Request. Writes: one POST on the wire, or none.
Guarantee: whatever the receiver does is a value, never an exception; a URL or address that the policy refuses
gets not one byte; an error's text names host and port at most, no path, no query, no header.
If it crashes: the request may have arrived; its lease expires and the receiver may get it again.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import httpx

from outbox_worker.connection import Answer, Bounds
from outbox_worker.egress import EgressPolicy, Target, parse_url, url_problem
from outbox_worker.errors import EgressRefused
from outbox_worker.model import Failure, Outcome, Request
from outbox_worker.pool import ConnectionPool
from outbox_worker.resolver import Dialer, ExchangeError, Resolver

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

MAX_STORED_VALUE_BYTES: Final = 4096
_URLS_REMEMBERED: Final = 4096
_OURS_TO_WRITE: Final = frozenset({"host", "content-length", "connection"})
_WRITTEN_BY_US: Final = frozenset({name.encode() for name in _OURS_TO_WRITE})
# Every header line of a request, checked in one pass before its first byte goes out.
_HEADER_LINES: Final = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~]*\r\n)+")
_SECOND_FRAMING: Final = re.compile(r"\r\n(?:transfer-encoding|upgrade|te|trailer):", re.IGNORECASE)


class BlockedError(httpx.ConnectError):
    """The guard refused; not one byte was sent."""


class DnsFailedError(httpx.ConnectError): ...


class TlsFailedError(httpx.ConnectError): ...


class OwnFaultError(httpx.TransportError):
    """Descriptors, memory, ports or a limit of this worker: not the receiver's fault."""


_RAISED: Final[dict[Failure, type[httpx.TransportError]]] = {
    Failure.BLOCKED_ADDRESS: BlockedError,
    Failure.DNS_ERROR: DnsFailedError,
    Failure.CONNECT_TIMEOUT: httpx.ConnectTimeout,
    Failure.CONNECT_ERROR: httpx.ConnectError,
    Failure.TLS: TlsFailedError,
    Failure.TIMEOUT: httpx.ReadTimeout,
    Failure.AMBIGUOUS: httpx.ReadError,
    Failure.PROTOCOL: httpx.RemoteProtocolError,
    Failure.LOCAL: OwnFaultError,
}

# The nearest ancestor decides, so a class that httpx adds gets its parent's failure.
_FAILURES: Final[dict[type[BaseException], Failure]] = {
    **{raised: failure for failure, raised in _RAISED.items()},
    httpx.WriteTimeout: Failure.TIMEOUT,
    httpx.TimeoutException: Failure.TIMEOUT,
    httpx.PoolTimeout: Failure.LOCAL,
    httpx.NetworkError: Failure.AMBIGUOUS,
    httpx.ProxyError: Failure.LOCAL,
    httpx.UnsupportedProtocol: Failure.BLOCKED_ADDRESS,
    httpx.InvalidURL: Failure.BLOCKED_ADDRESS,
    httpx.HTTPError: Failure.PROTOCOL,
    httpx.StreamError: Failure.PROTOCOL,
    httpx.CookieConflict: Failure.PROTOCOL,
    UnicodeEncodeError: Failure.PROTOCOL,
}
_EXPECTED: Final = (
    httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict, UnicodeEncodeError,
)  # fmt: skip


def failure_of(error: BaseException) -> Failure:
    return next(_FAILURES[kind] for kind in type(error).__mro__ if kind in _FAILURES)


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's interface to our own connections. The request's extensions may carry `total_seconds`."""

    def __init__(self, policy: EgressPolicy, pool: ConnectionPool, resolver: Resolver) -> None:
        self._policy = policy
        self._pool = pool
        self._resolver = resolver

    async def post(self, target: Target, fields: Sequence[str], body: bytes, seconds: float) -> Answer:
        """Send one POST with these header lines. Raises httpx's exceptions, and builds nothing else of httpx's."""
        message = _head(target, fields, len(body)) + body
        try:
            return await self._pool.exchange(target, message, timeout_seconds=seconds)
        except ExchangeError as error:
            raise _RAISED[error.failure](str(error)) from error
        except EgressRefused as error:
            raise BlockedError(str(error)) from error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "POST":  # an answer to HEAD has no body whatever its headers say
            raise httpx.LocalProtocolError("sending: only POST is sent to endpoints", request=request)
        target = _checked(str(request.url), self._policy, request)
        body = await request.aread()
        fields = [
            f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n"
            for name, value in request.headers.raw
            if name.lower() not in _WRITTEN_BY_US
        ]
        seconds = request.extensions.get("total_seconds", 15.0)
        answer = await self.post(target, fields, body, seconds)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=Received(answer.body),
            request=request,
            extensions={"complete": answer.complete},
        )

    def in_flight(self, host: str) -> int:
        return self._pool.in_flight(host)

    async def aclose(self) -> None:
        await self._pool.aclose()
        await self._resolver.aclose()


class Received(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body


def _checked(url: str, policy: EgressPolicy, request: httpx.Request) -> Target:
    if problem := url_problem(url, policy):
        raise BlockedError(f"sending to an endpoint's URL: {problem}", request=request)
    return parse_url(url)


def _head(target: Target, fields: Sequence[str], length: int) -> bytes:
    """The request up to its body. Raises httpx.LocalProtocolError before a byte is sent."""
    lines = f"host: {target.authority}\r\n{''.join(fields)}content-length: {length}\r\n"
    if (
        _HEADER_LINES.fullmatch(lines) is None
        or lines.count("\r\n") != len(fields) + 2  # a value with a line of its own in it
        or _SECOND_FRAMING.search(lines)
    ):
        where = f"{target.host}:{target.port}"
        raise httpx.LocalProtocolError(
            f"sending to {where}: these are not valid headers of a request; check the endpoint's headers"
        )
    return f"POST {target.path} HTTP/1.1\r\n{lines}\r\n".encode()


class Transport:
    """Turn requests into outcomes, over GuardedTransport or, in tests, over any other of httpx's kind."""

    def __init__(
        self, inner: httpx.AsyncBaseTransport, policy: EgressPolicy, *, max_response_bytes: int = 16 * 1024
    ) -> None:
        self._inner = inner
        self._max_response_bytes = max_response_bytes
        self._loop = asyncio.get_running_loop()
        self._post = inner.post if isinstance(inner, GuardedTransport) else self._post_over_httpx
        self._destination = lru_cache(_URLS_REMEMBERED)(lambda url: _destination(url, policy))

    async def send(self, request: Request) -> Outcome:
        """Send once. Every fault of the receiver, the network or the name server is in the Outcome."""
        started = self._loop.time()
        target = self._destination(request.url)
        if isinstance(target, str):
            return self._failed(started, Failure.BLOCKED_ADDRESS, target)
        try:
            fields = [
                f"{name}: {value}\r\n"
                for name, value in request.headers
                if name.lower() not in _OURS_TO_WRITE
            ]
            answer = await self._post(target, fields, request.body, request.timeout_seconds)
        except _EXPECTED as error:
            return self._failed(started, failure_of(error), _words(error, target))
        return Outcome(
            status=answer.status,
            failure=None,
            error="",
            response_headers=tuple(
                [(name, value[:MAX_STORED_VALUE_BYTES]) for name, value in answer.headers]
            ),
            response_body=answer.body,
            duration_ms=(self._loop.time() - started) * 1000,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _post_over_httpx(
        self, target: Target, fields: Sequence[str], body: bytes, seconds: float
    ) -> Answer:
        """The same over another transport. The body as it arrived: `aread()` would decode a content encoding."""
        pairs = [(name, value) for name, _, value in (f.removesuffix("\r\n").partition(": ") for f in fields)]
        response = await self._inner.handle_async_request(
            httpx.Request(
                "POST",
                f"{target.scheme}://{target.authority}{target.path}",
                headers=pairs,
                content=body,
                extensions={"total_seconds": seconds},
            )
        )
        kept = b""
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]  # async, since its transport is
                kept += chunk[: self._max_response_bytes - len(kept)]
                if len(kept) >= self._max_response_bytes:
                    break
            await response.aclose()
        except _EXPECTED:
            pass  # the status is known, and it decides
        return Answer(response.status_code, response.headers.raw, kept, complete=True)

    def _failed(self, started: float, failure: Failure, error: str) -> Outcome:
        return Outcome(None, failure, error, (), b"", (self._loop.time() - started) * 1000)


def _destination(url: str, policy: EgressPolicy) -> Target | str:
    """Where the URL leads, or why nothing may be sent there."""
    if problem := url_problem(url, policy):
        return f"sending to an endpoint's URL: {problem}"
    return parse_url(url)


def _words(error: BaseException, target: Target) -> str:
    """Our own words if they are ours; of anybody else's error only its name, since it may quote anything."""
    if isinstance(error.__cause__, (ExchangeError, EgressRefused)):
        return str(error.__cause__)
    return f"sending to {target.host}:{target.port}: {type(error).__name__}"


@asynccontextmanager
async def open_transport(
    policy: EgressPolicy,
    *,
    bounds: Bounds | None = None,
    dns_seconds: float = 3.0,
    nameservers: Sequence[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Transport]:
    """Everything that is needed to send, closed at the end."""
    bounds = bounds or Bounds()
    resolver = Resolver(deadline_seconds=dns_seconds, nameservers=nameservers)
    pool = ConnectionPool(Dialer(policy, resolver, ssl_context), bounds)
    guarded = GuardedTransport(policy, pool, resolver)
    transport = Transport(guarded, policy, max_response_bytes=bounds.body_bytes)
    try:
        yield transport
    finally:
        await transport.aclose()
