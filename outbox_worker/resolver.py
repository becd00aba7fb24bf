"""From a host name to an open connection: look it up, check every address, connect to one of them.

Reads: the system's name servers (or those given). Writes: a TLS handshake at most.
Guarantee: a name with one refused address is refused whole; a lookup is abandoned at its deadline, whatever
the name server does, and nobody waits for anybody else's name; search domains and host files have no say.
If it crashes: no connection can be opened; the attempts under way are recorded as failures and come back.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from contextlib import ExitStack
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, TypeVar

import aiodns
import pycares

from outbox_worker.egress import EgressPolicy, Target, address_problem
from outbox_worker.errors import EgressRefused
from outbox_worker.model import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

P = TypeVar("P", bound=asyncio.BaseProtocol)

# More than any honest name has, few enough to check one by one.
MAX_ADDRESSES: Final = 64
MAX_ADDRESSES_TRIED: Final = 4
_FAMILIES: Final = ("A", "AAAA")
# These two say that the name server did its work and there is nothing to find.
_NOTHING_THERE: Final = frozenset({pycares.errno.ARES_ENODATA, pycares.errno.ARES_ENOTFOUND})
_OUR_OWN_FAULT: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
)


class ExchangeError(Exception):
    """An exchange ended without a status. The message names host and port, nothing else of the request."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class DnsError(Exception):
    """The name has no address that could be found in time."""


class TooManyLookupsError(DnsError):
    """The worker's own limit of simultaneous lookups is reached: no fault of the name's owner."""


class Resolver:
    """Ask the name servers for A and AAAA at once, through c-ares.

    Not `getaddrinfo`, because it cannot be cancelled and holds a thread for as long as a dead name server
    likes. There are no slots to wait for: a name costs two datagrams and a table entry, so thousands of dead
    names stand in nobody's way, and above `max_lookups` a new name is refused at once instead of queueing.
    """

    def __init__(
        self,
        *,
        deadline_seconds: float = 3.0,
        max_lookups: int = 16_384,
        nameservers: Sequence[str] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline_seconds = deadline_seconds
        self._max_lookups = max_lookups
        self._lookups: dict[str, _Lookup] = {}
        self._drained: asyncio.Future[None] | None = None
        # c-ares waits for a fast name server 0.25 s at least, then doubles: five rounds outlast our deadline,
        # which three did not, and end within 10 seconds, which is how long a table entry can stay.
        self._channel = aiodns.DNSResolver(nameservers=nameservers, loop=self._loop, timeout=0.3, tries=5)

    async def resolve(self, host: str) -> list[str]:
        """Every address of the host, IPv4 and IPv6 in turn. Raises DnsError."""
        lookup = self._lookups.get(host)
        if lookup is None:
            if len(self._lookups) >= self._max_lookups or self._drained is not None:
                raise TooManyLookupsError(
                    f"looking up {host}: {len(self._lookups)} lookups are under way, this worker's limit"
                )
            lookup = self._lookups[host] = _Lookup(host, self._channel, self._deadline_seconds, self._forget)
        # Shielded, because the lookup belongs to everybody who waits for the same name.
        await asyncio.shield(lookup.done)
        if lookup.problem:
            raise DnsError(f"looking up {host}: {lookup.problem}")
        return lookup.addresses

    async def aclose(self) -> None:
        """Abandon what is under way; those who wait get a DnsError."""
        if self._drained is None:
            self._drained = self._loop.create_future()
            # The channel's own thread reports each abandoned question to the loop, which may not end before.
            await self._channel.close()
            if self._lookups:
                await self._drained

    def _forget(self, host: str) -> None:
        del self._lookups[host]
        if self._drained is not None and not self._lookups and not self._drained.done():
            self._drained.set_result(None)


class _Lookup:
    """Two questions for one name, shared by all who ask.

    It stays in the resolver's table until c-ares has let go of both, which may be a little after the
    deadline: so the table's size is the true number of open questions.
    """

    def __init__(
        self, host: str, channel: aiodns.DNSResolver, deadline_seconds: float, forget: Callable[[str], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.addresses: list[str] = []
        self.problem = ""
        self._host = host
        self._forget = forget
        self._open = len(_FAMILIES)
        self._answers: dict[str, list[str]] = {}
        self._problems: list[tuple[int, str]] = []
        self._timer = loop.call_later(deadline_seconds, self._finish)
        for family in _FAMILIES:
            channel.query_dns(host + ".", family).add_done_callback(partial(self._heard, family))

    def _heard(self, family: str, question: asyncio.Future[pycares.DNSResult]) -> None:
        error = question.exception()
        if error is None:
            self._answers[family] = _addresses(question.result())
        else:
            self._problems.append((error.args[0], str(error.args[-1])))
        self._open -= 1
        if not self._open:
            self._finish()
            self._forget(self._host)

    def _finish(self) -> None:
        """Settle with what has been heard so far: one family's answer is enough to connect to."""
        if self.done.done():
            return
        self._timer.cancel()
        by_family = [self._answers.get(family, []) for family in _FAMILIES]
        in_turn = [found for pair in zip_longest(*by_family) for found in pair if found]
        if len(in_turn) > MAX_ADDRESSES:
            self.problem = f"{len(in_turn)} addresses, more than the {MAX_ADDRESSES} that are accepted"
        elif in_turn:
            self.addresses = in_turn
        elif self._open:
            self.problem = "no answer from the name server before the deadline"
        else:
            faults = [words for code, words in self._problems if code not in _NOTHING_THERE]
            self.problem = next(iter(faults or [words for _, words in self._problems]), "no address")
        self.done.set_result(None)


def _addresses(result: pycares.DNSResult) -> list[str]:
    """The addresses at the end of whatever chain of aliases the answer holds."""
    return [
        record.data.addr
        for record in result.answer
        if isinstance(record.data, (pycares.ARecordData, pycares.AAAARecordData))
    ]


class Dialer:
    """Open connections to hosts, by name, as far as the policy goes."""

    def __init__(
        self, policy: EgressPolicy, resolver: Resolver, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._ssl_context = ssl_context or verifying_context()

    async def dial(self, target: Target, until: float, protocol: Callable[[socket.socket], P]) -> P:
        """Look up, connect and shake hands before `until`, the loop's time; then the protocol has it.

        Raises EgressRefused, ExchangeError.
        """
        where = f"connecting to {target.host}:{target.port}"
        name = target.host if target.scheme == "https" else None
        try:
            async with asyncio.timeout_at(until):
                addresses = await self._addresses(target.host, where)
                sock = await self._first_to_accept(addresses, target.port, until, where)
                with ExitStack() as undo:
                    undo.callback(sock.close)
                    _, made = await asyncio.get_running_loop().create_connection(
                        partial(protocol, sock),
                        sock=sock,
                        ssl=self._ssl_context if name else None,
                        server_hostname=name,
                    )
                    undo.pop_all()
                    return made
        except TimeoutError as error:
            raise ExchangeError(Failure.CONNECT_TIMEOUT, f"{where}: not connected in time") from error
        except ssl.SSLError as error:
            raise ExchangeError(Failure.TLS, f"{where}: TLS failed ({_tls_words(error)})") from error
        except OSError as error:
            raise ExchangeError(Failure.TLS, f"{where}: TLS handshake broken off") from error

    async def _addresses(self, host: str, where: str) -> list[str]:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            addresses = await self._looked_up(host, where)
        else:
            if not self._policy.allow_ip_literals:
                raise EgressRefused(f"{where}: refused, an address in place of a name; use a host name")
            addresses = [host]
        for address in addresses:
            if problem := address_problem(address, self._policy):
                raise EgressRefused(f"{where}: refused, {problem}")
        return addresses

    async def _looked_up(self, host: str, where: str) -> list[str]:
        try:
            return await self._resolver.resolve(host)
        except TooManyLookupsError as error:
            raise ExchangeError(Failure.LOCAL, str(error)) from error
        except DnsError as error:
            # c-ares does not say that it had no descriptor left, so that is found out here.
            try:
                socket.socket().close()
            except OSError as own:
                raise _own_fault(where, own) from error
            raise ExchangeError(Failure.DNS_ERROR, str(error)) from error

    async def _first_to_accept(
        self, addresses: list[str], port: int, until: float, where: str
    ) -> socket.socket:
        loop = asyncio.get_running_loop()
        candidates = addresses[:MAX_ADDRESSES_TRIED]
        faults: list[OSError] = []
        for left, address in zip(range(len(candidates), 0, -1), candidates, strict=True):
            now = loop.time()
            try:
                # One that swallows packets leaves the others their share of the time.
                async with asyncio.timeout_at(now + (until - now) / left):
                    return await self._connected(address, port, where)
            except OSError as error:
                faults.append(error)
        # An own fault counts only if it was never the receiver's: no IPv6 here is no excuse for its IPv4.
        found = next((fault for fault in faults if fault.errno not in _OUR_OWN_FAULT), None)
        if found is None:
            raise _own_fault(where, faults[0]) from faults[0]
        if isinstance(found, TimeoutError):
            raise found
        raise ExchangeError(Failure.CONNECT_ERROR, f"{where}: {os.strerror(found.errno or 0)}") from found

    async def _connected(self, address: str, port: int, where: str) -> socket.socket:
        with ExitStack() as undo:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            undo.callback(sock.close)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
            if problem := address_problem(sock.getpeername()[0], self._policy):
                raise EgressRefused(f"{where}: refused after connecting, {problem}")
            undo.pop_all()
            return sock


def verifying_context() -> ssl.SSLContext:
    """The system's authorities, host names checked, TLS 1.2 or newer; no ALPN, so nobody offers HTTP/2."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _tls_words(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or error.reason or type(error).__name__


def _own_fault(where: str, error: OSError) -> ExchangeError:
    return ExchangeError(Failure.LOCAL, f"{where}: {os.strerror(error.errno or 0)} here, in this worker")
