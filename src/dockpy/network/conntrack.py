"""Tracked connections that outlive what they lead to: found and taken away.

A UDP flow is bound to the container that had the port when its first datagram came, for as long
as datagrams keep coming. So its entry goes when the port is withdrawn, and one that was made
while nobody had the port goes when it is published.

Facts (net/netfilter/nf_conntrack_netlink.c): a dump takes a filter on single fields of either
direction (CTA_FILTER, Linux 5.8); an older kernel lists everything, so answers are compared
here as well. An entry is removed by the tuple of either direction, and by its number where one is
given (which its successor may have too, if that got its memory).
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dockpy.errors import KernelError
from dockpy.network.nfnetlink import Netfilter, attributes
from dockpy.network.nft import NESTED, Family, attribute, nested

SUBSYSTEM = 1
GET, DELETE = 1, 2
TUPLE_ORIGINAL, TUPLE_REPLY, NUMBER, ZONE, FILTER = 1, 2, 12, 18, 25
UDP = 17
PROTOCOL_NUMBER, DESTINATION_PORT = 1 << 3, 1 << 5
STEP = "list tracked connections"


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection; ports are 0 where the protocol has none."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection: how it came, how its answers come, and what it is removed by.

    Which of the two is to be removed by matters: the kernel may have made another connection since
    it was listed. Who calls from the same port again has the original tuple of a connection that is
    done, and another container's address in the reply.
    """

    original: Tuple
    reply: Tuple
    by_original: bytes
    by_reply: bytes

    @property
    def translated(self) -> bool:
        """Whether an address or port of it is changed on the way."""
        there, back = self.original, self.reply
        return (there.source, there.destination, there.source_port, there.destination_port) != (
            back.destination,
            back.source,
            back.destination_port,
            back.source_port,
        )


def parse_tuple(data: bytes) -> Tuple:
    """A CTA_TUPLE attribute."""
    parts = attributes(data)
    addresses = attributes(parts.get(1, b""))
    ports = attributes(parts.get(2, b""))
    return Tuple(
        addresses.get(1) or addresses.get(3, b""),
        addresses.get(2) or addresses.get(4, b""),
        ports.get(1, b"\0")[0],
        int.from_bytes(ports.get(2, b""), "big"),
        int.from_bytes(ports.get(3, b""), "big"),
    )


def parse_entry(data: bytes) -> Entry:
    found = attributes(data)
    original, reply = (found.get(one, b"") for one in (TUPLE_ORIGINAL, TUPLE_REPLY))
    exact = b"".join(attribute(one, found[one]) for one in (NUMBER, ZONE) if one in found)
    return Entry(
        parse_tuple(original),
        parse_tuple(reply),
        attribute(TUPLE_ORIGINAL | NESTED, original) + exact,
        attribute(TUPLE_REPLY | NESTED, reply) + exact,
    )


def udp_to(port: int) -> bytes:
    """A filter on UDP to that host port."""
    protocol = attribute(1, bytes([UDP])) + attribute(3, port.to_bytes(2, "big"))
    flags = struct.pack("=I", PROTOCOL_NUMBER | DESTINATION_PORT)
    return nested(TUPLE_ORIGINAL, nested(2, protocol)) + nested(FILTER, attribute(1, flags))


def forget_where(
    netfilter: Netfilter, family: Family, wanted: Callable[[Entry], bytes], narrowed: bytes = b""
) -> int:
    """Remove the connections of a version of IP that `wanted` picks; gives their number.

    `wanted` gives what one is removed by, or nothing. `narrowed`: a filter for the kernel. A kernel
    without tracking has none to remove.
    """
    try:
        bodies = netfilter.dump(GET, family, narrowed, STEP, SUBSYSTEM)
    except KernelError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) and not narrowed:
            return 0
        raise
    count = 0
    for name in filter(None, map(wanted, map(parse_entry, bodies))):
        with contextlib.suppress(KernelError):  # ENOENT: it ended by itself
            netfilter.request(SUBSYSTEM, DELETE, family, name, "forget a connection")
            count += 1
    return count


def forget_udp(netfilter: Netfilter, family: Family, port: int, container: bytes) -> int:
    """Remove UDP flows to that host port that lead to the container address, or nowhere else
    than where they were sent; flows to other containers or other hosts stay."""

    def wanted(entry: Entry) -> bytes:
        there = entry.original.protocol == UDP and entry.original.destination_port == port
        leads = entry.reply.source == container or not entry.translated
        return entry.by_reply if there and leads else b""

    return forget_where(netfilter, family, wanted, udp_to(port))


def forget_addresses(netfilter: Netfilter, family: Family, gone: Collection[bytes]) -> int:
    """Remove all connections from or to containers that are no more."""

    def wanted(entry: Entry) -> bytes:
        if entry.original.source in gone:
            return entry.by_original
        return entry.by_reply if entry.reply.source in gone else b""

    return forget_where(netfilter, family, wanted)
