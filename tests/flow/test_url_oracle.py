"""What the guard accepts, the database accepts, and the transport sends to exactly this host, port and path.

Reads: generated URLs; a name server and two receivers on loopback that stand for every host. Writes: nothing.
Guarantee: no parser between the URL that was stored and the bytes on the wire reads it in another way.
If it is wrong: what was checked is not what is connected to.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from contextlib import asynccontextmanager, closing
from ipaddress import ip_address, ip_network

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox_worker.connection import Bounds
from outbox_worker.egress import EgressPolicy, address_problem, url_problem
from outbox_worker.model import Failure, Request
from outbox_worker.pool import ConnectionPool
from outbox_worker.resolver import Dialer, Resolver
from outbox_worker.transport import GuardedTransport, Transport
from tests.support import NameServer, Reply
from tests.support.receiver import Receiver
from tests.support.url_candidates import candidate_urls

# Every network is allowed, so that literals are dialled too; what no setting opens stays shut.
POLICY = EgressPolicy(
    frozenset(range(1, 65536)), True, True, (), (ip_network("0.0.0.0/0"), ip_network("::/0"))
)  # fmt: skip
HERE = "127.0.0.1"
DEFAULT_PORTS = {"http": 80, "https": 443}


class Diverted(Dialer):
    """Connects to the receiver of the scheme, whatever was asked for, and remembers what that was."""

    def __init__(self, resolver, ssl_context, receivers):
        super().__init__(POLICY, resolver, ssl_context)
        self.receivers = receivers
        self.dialled = []

    async def dial(self, target, until, protocol):
        self.scheme = target.scheme
        return await super().dial(target, until, protocol)

    async def _connected(self, address, port, where):
        self.dialled.append((address, port))
        return await super()._connected(HERE, self.receivers[self.scheme].port, where)


@pytest.fixture(scope="session")
def contexts(tmp_path_factory):
    """A server's TLS context that remembers the names it was asked for, and a client's that checks no certificate."""
    folder = tmp_path_factory.mktemp("any")
    making = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=any -keyout key.pem -out cert.pem"
    subprocess.run(["openssl", *making.split()], cwd=folder, check=True, capture_output=True)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.names = []
    server.sni_callback = lambda _socket, name, _context: server.names.append(name)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return server, client


@pytest.fixture(scope="module")
def rules(cluster, template):
    name = f"outbox_oracle_{os.getpid()}"
    with (
        cluster.database(name, template=template),
        closing(psycopg.connect(cluster.dsn(name), autocommit=True)) as connection,
    ):
        yield connection


@asynccontextmanager
async def everywhere(contexts):
    """A transport for which all names and addresses lead to the two receivers."""
    server, client = contexts
    endpoint, names = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(otherwise=Reply((HERE,))), local_addr=(HERE, 0)
    )
    async with Receiver() as plain, Receiver(tls=server) as secured:
        resolver = Resolver(nameservers=[names.at])
        dialer = Diverted(resolver, client, {"http": plain, "https": secured})
        pool = ConnectionPool(dialer, Bounds(max_idle=0))
        transport = Transport(GuardedTransport(POLICY, pool, resolver), POLICY)
        try:
            yield transport, dialer, names
        finally:
            await transport.aclose()
            endpoint.close()


def written(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path, cut out of an accepted URL without any parser of URLs."""
    scheme, _, rest = url.partition("://")
    end = min((rest.index(mark) for mark in "/?" if mark in rest), default=len(rest))
    place, path = rest[:end], rest[end:]
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host = place
    return (
        scheme,
        host,
        int(port) if colon else DEFAULT_PORTS[scheme],
        path if path[:1] == "/" else f"/{path}",
    )


async def check(url, transport, dialer, names, tls_names):
    scheme, host, port, path = written(url)
    bare = host.strip("[]")
    dialer.dialled.clear()
    names.asked.clear()
    tls_names.clear()
    receiver = dialer.receivers[scheme]
    receiver.requests.clear()
    outcome = await transport.send(Request(url, (), b"{}", 10.0))
    try:
        literal = ip_address(bare)
    except ValueError:
        literal = None
    if literal and address_problem(bare, POLICY):
        assert outcome.failure is Failure.BLOCKED_ADDRESS
        assert dialer.dialled == []
        return
    assert outcome.status == 200, outcome
    assert dialer.dialled == [(bare if literal else HERE, port)]
    assert {name for name, _ in names.asked} == (set() if literal else {host})
    assert tls_names == ([] if scheme == "http" else [None if literal else host])
    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", path)
    authorities = [value for name, value in request.headers if name.lower() == "host"]
    assert authorities == [host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(urls=st.lists(candidate_urls(), min_size=10, max_size=40))
async def test_what_the_guard_accepts_is_what_the_transport_sends_to(rules, contexts, urls):
    """Question to the name server, address, port, TLS name, Host header and path: each as it is written in the URL."""
    accepted = [url for url in urls if url_problem(url, POLICY) is None]
    said = rules.execute(
        "select outbox.url_problem(u, array(select generate_series(1, 65535)), true, true), outbox.url_origin(u)"
        " from unnest(%s::text[]) with ordinality as t (u, n) order by n",
        [accepted],
    ).fetchall()
    for url, (problem, origin) in zip(accepted, said, strict=True):
        scheme, host, port, _ = written(url)
        assert (problem, origin) == (None, f"{scheme}://{host}:{port}")
    async with everywhere(contexts) as (transport, dialer, names):
        for url in accepted:
            await check(url, transport, dialer, names, contexts[0].names)
        dialer.dialled.clear()
        for url in set(urls) - set(accepted):
            outcome = await transport.send(Request(url, (), b"{}", 10.0))
            assert outcome.failure is Failure.BLOCKED_ADDRESS
        assert dialer.dialled == []
