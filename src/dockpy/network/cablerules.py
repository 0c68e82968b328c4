"""The engine's table for frames on bridges: what may come over a container's cable. Pure.

Facts (net/bridge/br_input.c): the chain is asked before the bridge learns from a frame where its
sender is, so a frame that is dropped teaches nothing; otherwise a container that sends with
another's hardware address would get what is meant for that one. What the host itself sends does
not come here.
"""

from __future__ import annotations

from dockpy.network.expressions import (
    ACCEPT,
    DROP,
    QUARTER,
    Base,
    Meta,
    counter,
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
from dockpy.network.rules import RAW, V4, V6, Protocol, Rule, from_link_local

ARP, ICMPV6 = 0x0806, 58
ROUTER_ADVERTISEMENT, NEIGHBOUR_ADVERTISEMENT, REDIRECT = 134, 136, 137

PORTS = "ports"
"""Host ends of containers' cables."""
CARDS = "cards"
"""Host end of a cable . hardware address that may come from it."""


def members(protocol: Protocol) -> str:
    """Host end of a cable . address that may come from it; for IPv4 the hardware address stands
    between them, so that one look-up answers for nearly every frame."""
    return f"members{protocol.suffix}"


def bridge_sets() -> tuple[Set, ...]:
    return (
        Set(PORTS, (Type.INTERFACE,)),
        Set(CARDS, (Type.INTERFACE, Type.HARDWARE)),
        Set(members(V4), (Type.INTERFACE, Type.HARDWARE, V4.kind)),
        Set(members(V6), (Type.INTERFACE, V6.kind)),
    )


def cable_guard() -> tuple[Rule, ...]:
    """What a container may put on its cable: frames from its own hardware address, IPv4 and ARP
    with its own addresses but nothing to the host's loopback, IPv6 with its own or a link-local
    one; neighbour discovery while it has none, and for itself alone; never the part of a router.

    ICMPv6 is found behind extension headers too. In fragments it is not: the kernel itself takes
    no neighbour discovery out of those (RFC 6980).
    """

    def spoken(ether_type: int) -> tuple[bytes, ...]:
        return meta(Meta.PROTOCOL), equal(ether_type.to_bytes(2, "big"))

    name = meta(Meta.IIFNAME)

    def own4(ether_type: int, hardware: bytes, address: int, *but: bytes) -> Rule:
        """The hardware address and the one at that offset belong to the cable."""
        there = payload(Base.NETWORK, address, V4.length, QUARTER + 6)
        belongs = (name, hardware, there, within(members(V4)))
        return (*spoken(ether_type), *belongs, *but, verdict(ACCEPT))

    sender = payload(Base.LINK, 6, 6, QUARTER + 4)
    arp_sender = payload(Base.NETWORK, 8, 6, QUARTER + 4)
    icmp = (*spoken(V6.ether_type), meta(Meta.L4PROTO), equal(bytes([ICMPV6])))

    def message(kind: int) -> tuple[bytes, ...]:
        return (*icmp, payload(Base.TRANSPORT, 0, 1), equal(bytes([kind])))

    first = payload(Base.NETWORK, V4.destination, 1)
    not_to_loopback = (first, different(b"\x7f"))
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
        own4(V4.ether_type, sender, V4.source, *not_to_loopback),
        (name, outside(PORTS), verdict(ACCEPT)),
        (name, sender, outside(CARDS), counter(), verdict(DROP)),
        own4(ARP, arp_sender, 14),
        (*message(ROUTER_ADVERTISEMENT), counter(), verdict(DROP)),
        (*message(REDIRECT), counter(), verdict(DROP)),
        (*message(NEIGHBOUR_ADVERTISEMENT), *claimed, counter(), verdict(DROP)),
        (
            *spoken(V6.ether_type),
            name,
            payload(Base.NETWORK, V6.source, V6.length, QUARTER + 4),
            within(members(V6)),
            verdict(ACCEPT),
        ),
        (*spoken(V6.ether_type), *from_link_local(), verdict(ACCEPT)),
        # Looking for an address that is free, and telling which groups are listened to.
        (*icmp, V6.load_source(), equal(bytes(16)), verdict(ACCEPT)),
        (counter(), verdict(DROP)),
    )


def bridge_table(name: str) -> Table:
    """The engine's table for frames on bridges."""
    chains = (Chain("guard", cable_guard(), "filter", Hook.PREROUTING, RAW),)
    return Table(Family.BRIDGE, name, bridge_sets(), chains)
