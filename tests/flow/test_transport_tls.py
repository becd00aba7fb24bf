"""TLS: who is spoken to, and what happens when the handshake says otherwise.

Reads: certificates that the openssl command makes for the session. Writes: nothing.
Guarantee: rows T03 and T04 of the catalogue of hostile input; the certificate is checked against the
endpoint's host, and a request's bytes go out only after that.
If it is wrong: signed events and custom headers can be read by whoever stands in between.
"""

# ruff: noqa: N802  (the ids are the catalogue's)

from __future__ import annotations

import asyncio
import ssl
import subprocess
import warnings
from ipaddress import ip_network
from shutil import which

import pytest

from outbox_worker.connection import Bounds
from outbox_worker.egress import EgressPolicy
from outbox_worker.model import Failure, Request
from outbox_worker.resolver import verifying_context
from outbox_worker.transport import open_transport
from tests.support import NameServer, Reply
from tests.support.receiver import Receiver

HOST = "hooks.example.com"
_CONFIG = """
[req]
distinguished_name = subject
[subject]
[ca]
default_ca = authority
[authority]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = anything
[anything]
commonName = supplied
[extensions]
subjectAltName = DNS:{host}
basicConstraints = critical, CA:true
"""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    if which("openssl") is None:
        pytest.fail("making a certificate: no openssl command in PATH; install it")

    def make(host=HOST, start="20200101000000Z", end="20990101000000Z"):
        folder = tmp_path_factory.mktemp("certificate")
        dates = f"-in request.pem -out cert.pem -startdate {start} -enddate {end}"
        (folder / "index.txt").touch()
        (folder / "config").write_text(_CONFIG.format(folder=folder, host=host))
        key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem"
        for command in (
            f"req -new -config config {key} -subj /CN={host} -out request.pem",
            f"ca -batch -notext -selfsign -config config -extensions extensions -keyfile key.pem {dates}",
        ):
            subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
        return folder

    return make


@pytest.fixture(scope="session")
def good(certificate):
    return certificate()


def server_context(folder) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def client_context(*trusted) -> ssl.SSLContext:
    context = verifying_context()
    for folder in trusted:
        context.load_verify_locations(folder / "cert.pem")
    return context


async def exchange(receiver, trusting, *, times=1, timeout_seconds=10.0, bounds=None):
    """Outcomes of requests to https://hooks.example.com, a name for the receiver."""
    transport, names = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    names.names[HOST] = [Reply((receiver.host,))]
    policy = EgressPolicy(
        frozenset({receiver.port}),
        allow_plain_http=False,
        allow_ip_literals=False,
        allow_networks=(ip_network("127.0.0.0/8"),),
    )
    try:
        async with open_transport(
            policy, bounds=bounds, nameservers=[names.at], ssl_context=trusting
        ) as sender:
            request = Request(f"https://{HOST}:{receiver.port}/", (), b"{}", timeout_seconds)
            return [await sender.send(request) for _ in range(times)]
    finally:
        transport.close()


async def test_a_trusted_certificate_for_the_name_delivers_over_one_connection(good):
    """The name decides: SNI and the certificate's name are the host's, though an address is connected to."""
    asked_for = []
    context = server_context(good)
    context.sni_callback = lambda _sock, name, _context: asked_for.append(name)
    async with Receiver(tls=context) as receiver:
        outcomes = await exchange(receiver, client_context(good), times=3)
    assert [outcome.status for outcome in outcomes] == [200, 200, 200]
    assert receiver.connections == 1
    assert asked_for == [HOST]


async def test_T03_a_certificate_that_does_not_hold_is_a_tls_failure(certificate, good):
    """Another name, an expired or an unknown issuer: no request goes out."""
    other = certificate("other.example.com")
    expired = certificate(end="20200102000000Z")
    for presented, trusted in ((other, [other]), (expired, [expired]), (good, [])):
        async with Receiver(tls=server_context(presented)) as receiver:
            (outcome,) = await exchange(receiver, client_context(*trusted))
        assert outcome.failure is Failure.TLS, outcome
        assert "certificate" in outcome.error.lower()
        assert receiver.requests == []


async def test_T03_the_default_context_trusts_no_self_signed_certificate(good):
    """Nothing needs to be configured for certificates to be verified."""
    async with Receiver(tls=server_context(good)) as receiver:
        (outcome,) = await exchange(receiver, None)
    assert outcome.failure is Failure.TLS
    assert receiver.requests == []


async def test_T04_a_receiver_with_tls_1_0_only_is_a_tls_failure(good):
    """TLS 1.2 is the oldest that is spoken."""
    context = server_context(good)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with Receiver(tls=context) as receiver:
        (outcome,) = await exchange(receiver, client_context(good))
    assert outcome.failure is Failure.TLS
    assert receiver.requests == []


async def test_T04_a_handshake_that_never_finishes_ends_at_the_connect_deadline(good):
    """A port that accepts and says nothing costs the connect deadline, not the whole exchange's."""
    async with Receiver(tls=server_context(good), greets=False) as receiver, asyncio.timeout(10):
        (outcome,) = await exchange(
            receiver, client_context(good), timeout_seconds=600, bounds=Bounds(connect_seconds=0.2)
        )
    assert outcome.failure is Failure.CONNECT_TIMEOUT


async def test_plain_http_behind_an_https_url_is_a_tls_failure(good):
    """A receiver that does not speak TLS gets nothing to read but a handshake."""
    async with Receiver() as receiver:
        (outcome,) = await exchange(receiver, client_context(good), timeout_seconds=1)
    assert outcome.failure in {Failure.TLS, Failure.CONNECT_TIMEOUT}
    assert receiver.requests == []
