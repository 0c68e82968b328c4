"""The engine's table for frames on bridges: what may come over a container's cable. Pure.

The bridge learns nothing from cables (`cables`), so the hardware address an IPv4 packet is sent
from matters to nobody. It is not looked at: that alone costs a packet as much as all other rules
(nft_payload.c copies what stands before a packet by a slower way). What the host itself sends does
not come here.
"""

from __future__ import annotations

from dockpy.network.expressions import (
    ACCEPT,
    QUARTER,
    Base,
    Meta,
    different,
    equal,
    masked,
    meta,
    outside,
    payload,
    verdict,
    within,
)
from dockpy.network.nft import Chain, Family, Hook, Set, Table, Type
from dockpy.network.rules import DROPPED, PROTOCOLS, RAW, V4, V6, Protocol, Rule, from_link_local

ARP, ICMPV6 = 0x0806, 58
ROUTER_ADVERTISEMENT, NEIGHBOUR_ADVERTISEMENT, REDIRECT = 134, 136, 137

PORTS = "ports"
"""Host ends of containers' cables."""
CARDS = "cards"
"""Host end of a cable . hardware address that may come from it."""


def members(protocol: Protocol) -> str:
    """Host end of a cable . address that may come from it."""
    return f"members{protocol.suffix}"


def bridge_sets() -> tuple[Set, ...]:
    return (
        Set(PORTS, (Type.INTERFACE,)),
        Set(CARDS, (Type.INTERFACE, Type.HARDWARE)),
        *(Set(members(one), (Type.INTERFACE, one.kind)) for one in PROTOCOLS),
    )


def cable_guard() -> tuple[Rule, ...]:
    """What a container may put on its cable: IPv4 from its own address but not to the host's
    loopback; and from its own hardware address ARP with its own addresses, IPv6 from its own or a
    link-local one; neighbour discovery while it has none, and for itself alone; never the part of a
    router.

    ICMPv6 is found behind extension headers too. In fragments it is not: the kernel itself takes
    no neighbour discovery out of those (RFC 6980).
    """

    def spoken(ether_type: int) -> tuple[bytes, ...]:
        return meta(Meta.PROTOCOL), equal(ether_type.to_bytes(2, "big"))

    name = meta(Meta.IIFNAME)

    def own(protocol: Protocol, address: int) -> tuple[bytes, ...]:
        """The address at that offset belongs to the cable."""
        there = payload(Base.NETWORK, address, protocol.length, QUARTER + 4)
        return name, there, within(members(protocol))

    not_to_loopback = (payload(Base.NETWORK, V4.destination, 1), different(b"\x7f"))
    sender = payload(Base.LINK, 6, 6, QUARTER + 4)
    arp_sender = payload(Base.NETWORK, 8, 6, QUARTER + 4)
    icmp = (*spoken(V6.ether_type), meta(Meta.L4PROTO), equal(bytes([ICMPV6])))

    def message(kind: int) -> tuple[bytes, ...]:
        return (*icmp, payload(Base.TRANSPORT, 0, 1), equal(bytes([kind])))

    # Whose hardware address is told is at 8; link-local ones are nobody's in particular.
    claimed = (
        payload(Base.TRANSPORT, 8, 2),
        masked(b"\xff\xc0"),
        different(b"\xfe\x80"),
        name,
        payload(Base.TRANSPORT, 8, 16, QUARTER + 4),
        outside(members(V6)),
    )
    return (
        # Nearly every frame: a port of ours is not looked for first.
        (*spoken(V4.ether_type), *own(V4, V4.source), *not_to_loopback, verdict(ACCEPT)),
        (name, outside(PORTS), verdict(ACCEPT)),
        (name, sender, outside(CARDS), *DROPPED),
        (*spoken(ARP), name, arp_sender, outside(CARDS), *DROPPED),
        (*spoken(ARP), *own(V4, 14), verdict(ACCEPT)),
        (*message(ROUTER_ADVERTISEMENT), *DROPPED),
        (*message(REDIRECT), *DROPPED),
        (*message(NEIGHBOUR_ADVERTISEMENT), *claimed, *DROPPED),
        (*spoken(V6.ether_type), *own(V6, V6.source), verdict(ACCEPT)),
        (*spoken(V6.ether_type), *from_link_local(), verdict(ACCEPT)),
        # Looking for an address that is free, and telling which groups are listened to.
        (*icmp, V6.load_source(), equal(bytes(16)), verdict(ACCEPT)),
        DROPPED,
    )


def bridge_table(name: str) -> Table:
    """The engine's table for frames on bridges."""
    chains = (Chain("guard", cable_guard(), "filter", Hook.PREROUTING, RAW),)
    return Table(Family.BRIDGE, name, bridge_sets(), chains)
