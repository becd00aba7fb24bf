"""What tests are made of: here, a name server that answers as it is scripted, and a want of descriptors.

Reads: UDP questions. Writes: answers with TTL 0, or none; what was asked stays in `asked`.
Guarantee: a name's replies come in turn for each record type, the last one again and again.
If it is wrong: the guard against private addresses is tested against a fiction.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

_TYPES = {1: 4, 28: 6}
NXDOMAIN, SERVFAIL = 3, 2


@dataclass
class Reply:
    addresses: tuple[str, ...] = ()
    code: int = 0
    aliases: tuple[str, ...] = ()
    silent: bool = False


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers with TTL 0, each name's replies in turn per record type, the last one again and again."""

    names: dict[str, list[Reply]] = field(default_factory=dict)
    otherwise: Reply = field(default_factory=lambda: Reply(code=NXDOMAIN))
    asked: list[tuple[str, int]] = field(default_factory=list)
    times: Counter[tuple[str, int]] = field(default_factory=Counter)

    def connection_made(self, transport):
        self.transport = transport

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.transport.get_extra_info('sockname')[1]}"

    def datagram_received(self, data, addr):
        name, end = _read_name(data)
        (kind,) = struct.unpack_from("!H", data, end)
        self.asked.append((name, kind))
        replies = self.names.get(name, [self.otherwise])
        self.times[name, kind] += 1
        reply = replies[min(self.times[name, kind], len(replies)) - 1]
        if reply.silent:
            return
        records, owner = [], name
        for alias in reply.aliases:
            records.append(_record(owner, 5, _name(alias)))
            owner = alias
        found = [ip_address(text) for text in reply.addresses]
        records += [_record(owner, kind, a.packed) for a in found if a.version == _TYPES.get(kind)]
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | reply.code, 1, len(records), 0, 0)
        self.transport.sendto(head + data[12 : end + 4] + b"".join(records), addr)


def _read_name(data: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode())
        at += 1 + data[at]
    return ".".join(labels), at + 1


def _name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _record(owner: str, kind: int, content: bytes) -> bytes:
    return _name(owner) + struct.pack("!HHIH", kind, 1, 0, len(content)) + content


@contextmanager
def no_descriptor_left():
    """This process can open nothing more, until the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        highest = taken.enter_context(socket.socket()).fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            while True:
                taken.enter_context(socket.socket())
        except OSError:
            yield
