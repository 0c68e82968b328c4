"""Which addresses a network has, and which container has which. Pure.

A bridge takes 1,023 links at most (BR_MAX_PORTS, net/bridge/br_private.h), and a link costs the
kernel the more the more there are on its bridge. So a range is cut into segments of at most 256
addresses, each with a bridge and a gateway of its own; the host routes between them, and a
container notices nothing. docs/decisions/0015-networks.md has the figures.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from dockpy.errors import Conflict, UsageError

SEGMENT_PREFIX = 24
"""256 addresses: 253 containers, the gateway, and the two that a range cannot give away."""
USER_PREFIX = 22
"""A user's network, unless told: 1,012 containers."""
SMALLEST = 29
CANDIDATES = tuple(
    IPv4Network(text)
    for text in (
        *(f"172.{n}.0.0/16" for n in (30, 31, *range(27, 19, -1))),
        *(f"10.{n}.0.0/16" for n in range(200, 216)),
        *(f"192.168.{n}.0/20" for n in range(240, 95, -16)),
    )
)
"""Ranges for the default network, best first; those Docker begins with (172.17) are left to it."""
USER_CANDIDATES = tuple(
    subnet
    for text in ("10.216.0.0/14", "172.28.0.0/15", "192.168.0.0/17")
    for subnet in IPv4Network(text).subnets(new_prefix=USER_PREFIX)
)
"""Ranges for users' networks; those Docker begins with are left to it."""


class PoolExhausted(Conflict):
    """A network has no address left."""

    def __init__(self, network: str, subnet: str) -> None:
        super().__init__(
            f"network {network}: every address of {subnet} is taken; remove containers or make "
            "a network with a larger --subnet"
        )


def parse_subnet(text: str) -> IPv4Network:
    """A range for a network. UsageError when it is none, or too small to be one."""
    try:
        found = ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a range such as 172.30.0.0/16") from error
    if not isinstance(found, IPv4Network):
        raise UsageError(f"{text!r}: the first range of a network is one of IPv4")
    if found.prefixlen > SMALLEST or found.prefixlen < 8:
        raise UsageError(f"{text!r}: a network's range is between /8 and /{SMALLEST}")
    if found.is_loopback or found.is_multicast or found.is_unspecified or found.is_link_local:
        raise UsageError(f"{text!r}: a range of addresses that are routed is needed")
    return found


def parse_subnet6(text: str) -> IPv6Network:
    try:
        found = ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a range such as fd00:1::/64") from error
    if not isinstance(found, IPv6Network) or found.prefixlen > 96:
        raise UsageError(f"{text!r}: an IPv6 range of at most /96 is needed, such as fd00:1::/64")
    if found.is_multicast or found.is_link_local:
        raise UsageError(f"{text!r}: a range of addresses that are routed is needed")
    return found


def choose_range(
    taken: Sequence[IPv4Network], candidates: Iterable[IPv4Network] = CANDIDATES
) -> IPv4Network:
    """The first range that no route of the host and no other network has. Conflict: none."""
    for one in candidates:
        if not any(one.overlaps(other) for other in taken):
            return one
    raise Conflict("no private range of addresses is free on this host; give one with --subnet")


@dataclass(frozen=True, slots=True)
class Segment:
    """One bridge of a network. `subnet6` and `gateway6` are None without IPv6."""

    number: int
    bridge: str
    subnet: IPv4Network
    gateway: IPv4Address
    subnet6: IPv6Network | None = None

    @property
    def gateway6(self) -> IPv6Address | None:
        return None if self.subnet6 is None else self.address6(self.gateway)

    def address6(self, address: IPv4Address) -> IPv6Address | None:
        """The IPv6 address that goes with an IPv4 one: as far from its range's beginning."""
        if self.subnet6 is None:
            return None
        return self.subnet6.network_address + (int(address) - int(self.subnet.network_address))

    @property
    def hardware(self) -> bytes:
        return hardware_address(self.gateway)


def hardware_address(address: IPv4Address) -> bytes:
    """A link's address: locally administered, and told by the IPv4 one."""
    return b"\x02\x42" + address.packed


def segments(
    bridge: str,
    subnet: IPv4Network,
    gateway: IPv4Address | None = None,
    subnet6: IPv6Network | None = None,
) -> Iterator[Segment]:
    """The segments of a range, in the order in which they are used."""
    extra = max(0, SEGMENT_PREFIX - subnet.prefixlen)
    if subnet6 is not None and subnet6.prefixlen + extra > 112:
        raise UsageError(f"{subnet6}: too small beside {subnet}; give a larger IPv6 range")
    sixes = iter(()) if subnet6 is None else subnet6.subnets(prefixlen_diff=extra)
    for number, part in enumerate(subnet.subnets(prefixlen_diff=extra)):
        own = gateway if gateway is not None and gateway in part else part.network_address + 1
        name = bridge if number == 0 else f"{bridge}.{number}"
        yield Segment(number, name, part, own, next(sixes, None))


class IPAllocator:
    """The addresses of one segment. Thread-safe.

    The next free one is given, round and round: an address that was given back is used again as
    late as possible, when nobody remembers who had it.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._first = int(segment.subnet.network_address)
        self._size = segment.subnet.num_addresses
        self._taken = {0, self._size - 1, int(segment.gateway) - self._first}
        self._reserved = len(self._taken)
        self._next = 1
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Addresses given out."""
        return len(self._taken) - self._reserved

    def allocate(self) -> IPv4Address | None:
        """An address; None when all are taken."""
        with self._lock:
            if len(self._taken) >= self._size:
                return None
            while self._next in self._taken:
                self._next = (self._next + 1) % self._size
            offset = self._next
            self._taken.add(offset)
            self._next = (offset + 1) % self._size
        return IPv4Address(self._first + offset)

    def take(self, address: IPv4Address) -> bool:
        """That address; False when somebody has it, or it is not one to give."""
        offset = int(address) - self._first
        with self._lock:
            if not 0 <= offset < self._size or offset in self._taken:
                return False
            self._taken.add(offset)
        return True

    def release(self, address: IPv4Address) -> None:
        """Give it back; nothing happens for one that is not taken."""
        with self._lock:
            offset = int(address) - self._first
            if offset not in (0, self._size - 1, int(self.segment.gateway) - self._first):
                self._taken.discard(offset)
