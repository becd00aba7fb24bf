"""Decide what may leave: which URLs, which addresses, which custom headers.

Reads: its arguments. Writes: nothing.
Guarantee: no spelling of a numeric address passes as a host name; an address passes only if our own table
calls it public, and a metadata address never does; sql/definitions/20_url_rules.sql decides the same about URLs
and headers.
If it is wrong: a customer reaches our own network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from outbox_worker.errors import EgressRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048
MAX_HEADERS = 32
MAX_HEADER_NAME_BYTES = 256
MAX_HEADER_VALUE_BYTES = 4096
MAX_HEADERS_BYTES = 16384


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    allowed_ports: frozenset[int]
    allow_plain_http: bool
    allow_ip_literals: bool
    deny_networks: tuple[Network, ...] = ()  # wins over allow_networks
    allow_networks: tuple[Network, ...] = ()  # opens private and loopback networks, a metadata address never


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. `host` has no brackets; `path` includes the query and is never empty."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Give the value of the Host header."""
        host = self.bracketed_host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


_DEFAULT_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"(https?)://(\[[^\[\]/?]*\]|[^\[\]:/?]*)(?::([^/?]*))?([/?].*)?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")

# Blocks without one code point that a domain name may hold (RFC 5892), so no valid name is refused.
# Not the whole RFC: its tables have 1,273 ranges, and the database must decide the same.
_NOT_IN_NAMES = (
    (0x80, 0xB6), (0xB8, 0xDE), (0xF7, 0xF7), (0x1100, 0x11FF), (0x2000, 0x200B), (0x200E, 0x208E),
    (0x20A0, 0x20CF), (0x2100, 0x214D), (0x2150, 0x2183), (0x2185, 0x218B), (0x2190, 0x2BFF), (0x2E80, 0x3004), (0x3200, 0x33FF),
    (0xD800, 0xFA0D), (0xFE10, 0xFE19), (0xFE30, 0xFE6F), (0xFE74, 0xFFFF), (0x1D400, 0x1D7FF), (0x1F000, 0x1FFFF),
    (0xE0000, 0x10FFFF),
)  # fmt: skip


def url_problem(url: str, policy: EgressPolicy) -> str | None:
    """Say why an endpoint may not have this URL, or None. Never quotes its path, which can be a secret."""
    return next(_url_problems(url, policy), None)


def parse_url(url: str) -> Target:
    """Take a URL apart. Raises EgressRefused for one that no policy accepts."""
    problem = next(_syntax_problems(url), None)
    parts = _URL.fullmatch(url)
    if problem is not None or parts is None:
        raise EgressRefused(f"reading an endpoint's URL: {problem}; give the endpoint another")
    scheme, host, port, path = parts.groups(default="")
    return Target(
        scheme=scheme,
        host=host.strip("[]"),
        port=int(port) if port else _DEFAULT_PORTS[scheme],
        path=path if path.startswith("/") else f"/{path}",
    )


def origin(url: str) -> str:
    """Give scheme, host and port, the port always written out. Raises EgressRefused."""
    target = parse_url(url)
    return f"{target.scheme}://{target.bracketed_host}:{target.port}"


def _url_problems(url: str, policy: EgressPolicy) -> Iterator[str]:
    if problem := next(_syntax_problems(url), None):
        yield problem
        return
    target = parse_url(url)
    if target.scheme == "http" and not policy.allow_plain_http:
        yield "it is plain http, which is not allowed here; use https"
    if (":" in target.host or _IPV4.fullmatch(target.host)) and not policy.allow_ip_literals:
        yield "its host is an IP address, which is not allowed here; use a host name"
    if target.port not in policy.allowed_ports:
        allowed = ", ".join(map(str, sorted(policy.allowed_ports)))
        yield f"port {target.port} is not among the allowed ports ({allowed})"


def _syntax_problems(url: str) -> Iterator[str]:
    if not url:
        yield "it is empty"
    if len(url) > MAX_URL_LENGTH:
        yield f"it is {len(url)} characters long; at most {MAX_URL_LENGTH} are allowed"
    if re.search(r"[^!-~]", url):
        yield "it contains a blank, a control character or a character outside ASCII"
    if "\\" in url:
        yield "it contains a backslash"
    if "#" in url:
        yield "it contains a fragment"
    if not re.match(r"https?://", url):
        yield "it does not begin with https:// in lower case"
    if re.match(r"https?://[^/?]*@", url):
        yield "it contains user information"
    parts = _URL.fullmatch(url)
    if parts is None:
        yield "its host and port cannot be told apart"
        return
    yield from _host_problems(parts[2])
    if parts[3] is not None and (not re.fullmatch(r"[1-9][0-9]{0,4}", parts[3]) or int(parts[3]) > 65535):
        yield "its port is not a number from 1 to 65535"


def _host_problems(host: str) -> Iterator[str]:
    if host.startswith("["):
        if not _is_ipv6(host[1:-1]):
            yield "its host is not an IPv6 address in lower case without a zone"
        return
    if _IPV4.fullmatch(host):
        return
    if not host:
        yield "it has no host"
    if len(host) > 253:
        yield f"its host is {len(host)} characters long; at most 253 are allowed"
    labels = host.split(".")
    if not all(map(_LABEL.fullmatch, labels)):
        yield "its host is not labels of 1 to 63 lower-case letters, digits and inner hyphens, joined by dots"
    if len(labels) < 2:
        yield "its host has only one label; use a full public name"
    if labels[-1].startswith("0x") or not re.search(r"[a-z]", labels[-1]):
        yield "its host ends like a number; use a host name"
    if not all(_is_international(label) for label in labels if label.startswith("xn--")):
        yield "its host has an xn-- label that is not the form of an international name"


def _is_ipv6(text: str) -> bool:
    groups = text.split(":")
    if not re.fullmatch(r"[0-9a-f:]{2,39}", text) or any(len(group) > 4 for group in groups):
        return False
    if "::" not in text:
        return len(groups) == 8 and all(groups)
    left, right = text.split("::", 1)
    known = [group for side in (left, right) if side for group in side.split(":")]
    return len(known) <= 7 and all(known)


def _is_international(label: str) -> bool:
    encoded = label.removeprefix("xn--")
    if encoded.rfind("-") == 0:
        return False  # Python's codec takes a lone leading delimiter, RFC 3492 does not
    try:
        points = [ord(character) for character in encoded.encode("ascii").decode("punycode")]
    except UnicodeError:
        return False
    return not any(low <= point <= high for point in points for low, high in _NOT_IN_NAMES)


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


# Metadata services, link-local, multicast, and every form with an IPv4 address inside: no setting opens them.
_NEVER = _networks(
    "0.0.0.0/8", "100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32", "224.0.0.0/4",
    "255.255.255.255/32", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
    "2002::/16", "fd00:42::42/128", "fd00:c1::a9fe:a9fe/128", "fd00:ec2::/32", "fd20:ce::/32", "fe80::/10",
    "ff00::/8",
)  # fmt: skip
# The whole IANA registry of special purposes, globally reachable blocks included, and Azure's host address.
_DENIED_IPV4 = _networks(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
    "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4",
)  # fmt: skip
_PUBLIC_IPV6 = IPv6Network("2000::/3")
_DENIED_IPV6 = _networks("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
_LOOPBACK_IPV6 = IPv6Address("::1")


def address_problem(address: str, policy: EgressPolicy) -> str | None:
    """Say why this worker may not connect to the address, or None."""
    if "%" in address:
        return "the address has a zone"
    try:
        written = ip_address(address)
    except ValueError:
        return "what was found is not an IP address"
    found = written.ipv4_mapped if isinstance(written, IPv6Address) and written.ipv4_mapped else written
    if problem := _never_opened(found):
        return problem
    if network := _containing(written, policy.deny_networks) or _containing(found, policy.deny_networks):
        return f"{found} is in {network}, a denied network"
    opened = _containing(written, policy.allow_networks) or _containing(found, policy.allow_networks)
    return None if opened else _not_public(found)


def _never_opened(found: IPv4Address | IPv6Address) -> str | None:
    if found != _LOOPBACK_IPV6 and (network := _containing(found, _NEVER)):
        return f"{found} is in {network}, which no setting opens"
    if isinstance(found, IPv6Address) and (int(found) >> 32 & 0xFCFFFFFF) == 0x5EFE:
        return f"{found} carries an IPv4 address (ISATAP), which no setting opens"
    return None


def _not_public(found: IPv4Address | IPv6Address) -> str | None:
    denied = _DENIED_IPV4 if isinstance(found, IPv4Address) else _DENIED_IPV6
    if network := _containing(found, denied):
        return f"{found} is in {network}, which is not public"
    if isinstance(found, IPv6Address) and found not in _PUBLIC_IPV6:
        return f"{found} is not in {_PUBLIC_IPV6}, so not public"
    return None


def _containing(address: IPv4Address | IPv6Address, networks: tuple[Network, ...]) -> Network | None:
    return next((network for network in networks if address in network), None)


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESERVED = re.compile(
    r"webhook-.*|user-agent|content-.*|traceparent|tracestate|accept-encoding|cookie2?|set-cookie2?"
    r"|host|connection|keep-alive|te|trailers?|transfer-encoding|upgrade|expect|proxy-.*|http2-settings"
    r"|metadata|metadata-.*|x-metadata-.*|x-amz-.*|x-aws-.*|x-goog-.*|x-google-.*|x-aliyun-.*|.*-metadata-(?:token|flavor|request).*"
    r"|x-ms-version|x-ms-agent-name|x-identity-header"
)


def header_problem(
    headers: Sequence[tuple[str, str]], signature_header: str = "Edesy-Signature"
) -> str | None:
    """Say why an endpoint may not have these custom headers, or None. Never quotes a value."""
    return next(_header_problems(headers, signature_header), None)


def _header_problems(headers: Sequence[tuple[str, str]], signature_header: str) -> Iterator[str]:
    yield from _name_problems([name for name, _ in headers], signature_header)
    for name, value in headers:
        if len(value) > MAX_HEADER_VALUE_BYTES:
            size = f"{len(value)} characters long; at most {MAX_HEADER_VALUE_BYTES} are allowed"
            yield f"the value of {name} is {size}"
        if not re.fullmatch(r"(?:[!-~](?:[ -~]*[!-~])?)?", value):
            yield f"the value of {name} is not visible ASCII characters without blanks at the ends"
        if name.lower() == "authorization" and re.fullmatch(r"bearer +oracle", value, re.IGNORECASE):
            yield f"the value of {name} opens a cloud's metadata service"
    total = sum(len(name) + len(value) for name, value in headers)
    if total > MAX_HEADERS_BYTES:
        yield f"the headers are {total} bytes long; at most {MAX_HEADERS_BYTES} are allowed"


def _name_problems(names: Sequence[str], signature_header: str) -> Iterator[str]:
    if len(names) > MAX_HEADERS:
        yield f"there are {len(names)} headers; at most {MAX_HEADERS} are allowed"
    # Receivers behind CGI or WSGI read an underscore as a hyphen: webhook_signature would stand in for ours.
    keys = [name.lower().replace("_", "-") for name in names]
    reserved_key = signature_header.lower().replace("_", "-")
    for name, key in zip(names, keys, strict=True):
        if len(name) > MAX_HEADER_NAME_BYTES:
            yield f"a name is {len(name)} characters long; at most {MAX_HEADER_NAME_BYTES} are allowed"
        if not _TOKEN.fullmatch(name):
            yield "a name is not one or more letters, digits and !#$%&'*+-.^_`|~ only"
        if _RESERVED.fullmatch(key) or key == reserved_key:
            yield f"{name} is reserved; leave it out"
        if keys.count(key) > 1:
            yield f"{name} is given twice, letter case and _ for - aside"
