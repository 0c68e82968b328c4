"""The engine's table for packets as values: what is published, who may talk to whom, and what not.

Pure. All that varies is in sets and maps, so a start changes elements and never a rule, and a
packet meets the same few rules whether one port is published or a thousand.

The inet table, by the order in which a packet meets it:

    guard      prerouting, raw      before connections are tracked; needs no state to be right
    inside     from guard           the same for what comes from a bridge of the engine
    publish    prerouting, dstnat   published ports: traffic from elsewhere and from containers
    local      output, dstnat       published ports: this host's own traffic, localhost too
    forward    forward, filter      who may reach whom
    leave      postrouting, srcnat  masquerade where an answer could not find back

The bridges' table is in `cablerules`. Docker's and iptables' rules are in tables of their own; all
tables judge every packet, and each may drop it.

Why each part is as it is: docs/network.md and docs/decisions/0012-firewall.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from dockpy.network.expressions import (
    ACCEPT,
    DNAT_STATUS,
    DROP,
    ESTABLISHED,
    INVALID,
    QUARTER,
    REGISTER,
    RELATED,
    Base,
    Ct,
    Meta,
    connection,
    counter,
    different,
    dnat,
    equal,
    goto,
    mapped,
    masked,
    masquerade,
    meta,
    outside,
    payload,
    to_this_host,
    verdict,
    within,
)
from dockpy.network.nft import Chain, Family, Hook, Set, Table, Type, interface

Rule = tuple[bytes, ...]

RAW, FILTER, DSTNAT, SRCNAT = -300, 0, -100, 100
IPV4, IPV6 = Family.IPV4, Family.IPV6


@dataclass(frozen=True, slots=True)
class Protocol:
    """Where one version of IP keeps its addresses."""

    family: Family
    ether_type: int
    source: int
    destination: int
    length: int
    kind: Type
    suffix: str

    @property
    def quarters(self) -> int:
        return self.length // 4

    def load_source(self) -> bytes:
        return payload(Base.NETWORK, self.source, self.length)

    def load_destination(self) -> bytes:
        return payload(Base.NETWORK, self.destination, self.length)

    def spoken(self) -> tuple[bytes, ...]:
        """The packet is of this version."""
        return meta(Meta.NFPROTO), equal(bytes([self.family]))

    def after(self) -> int:
        """The register behind an address at the start of NFT_REG_1."""
        return QUARTER + self.quarters


V4 = Protocol(Family.IPV4, 0x0800, 12, 16, 4, Type.ADDRESS4, "4")
V6 = Protocol(Family.IPV6, 0x86DD, 8, 24, 16, Type.ADDRESS6, "6")
PROTOCOLS = (V4, V6)

# -- the sets' names ---------------------------------------------------------------------------

BRIDGES = "bridges"
"""Names of the engine's bridges."""
INTERNAL = "internal"
"""Bridges of networks without a way out."""
TOGETHER = "together"
"""Pairs of bridges whose containers may talk: a bridge and itself."""
OTHERS = "others"
"""Bridges of other engines that only a chain's default keeps from being reached."""
INSIDE = "inside"
"""The chain for what comes from a bridge."""
LOOPBACK = "loopback4"
"""The keys of `at4` with an address of 127.0.0.0/8."""


def any_map(protocol: Protocol) -> str:
    """Ports published on every address: protocol . port -> container address . port."""
    return f"any{protocol.suffix}"


def at_map(protocol: Protocol) -> str:
    """Ports published on one address: address . protocol . port -> container address . port."""
    return f"at{protocol.suffix}"


def subnets(protocol: Protocol) -> str:
    """Ranges of the engine's networks."""
    return f"subnets{protocol.suffix}"


def leaving(protocol: Protocol) -> str:
    """Ranges whose containers reach the outside under the host's address."""
    return f"leaving{protocol.suffix}"


def fenced(protocol: Protocol) -> str:
    """Interfaces between which the host did not route before the engine turned routing on."""
    return f"fenced{protocol.suffix}"


def homes(protocol: Protocol) -> str:
    """Range . bridge of every network."""
    return f"homes{protocol.suffix}"


def inet_sets() -> tuple[Set, ...]:
    made = [
        Set(BRIDGES, (Type.INTERFACE,)),
        Set(INTERNAL, (Type.INTERFACE,)),
        Set(OTHERS, (Type.INTERFACE,)),
        Set(TOGETHER, (Type.INTERFACE, Type.INTERFACE)),
        Set(LOOPBACK, (Type.ADDRESS4, Type.PROTOCOL, Type.SERVICE)),
    ]
    for one in PROTOCOLS:
        value = (one.kind, Type.SERVICE)
        made += [
            Set(fenced(one), (Type.INTERFACE,)),
            Set(subnets(one), (one.kind,), interval=True),
            Set(leaving(one), (one.kind,), interval=True),
            Set(homes(one), (one.kind, Type.INTERFACE), interval=True),
            Set(any_map(one), (Type.PROTOCOL, Type.SERVICE), value),
            Set(at_map(one), (one.kind, Type.PROTOCOL, Type.SERVICE), value),
        ]
    return tuple(made)


# -- rules -------------------------------------------------------------------------------------


def from_bridge() -> tuple[bytes, ...]:
    return meta(Meta.IIFNAME), within(BRIDGES)


def to_bridge() -> tuple[bytes, ...]:
    return meta(Meta.OIFNAME), within(BRIDGES)


def to_loopback() -> tuple[bytes, ...]:
    """The destination is an address of 127.0.0.0/8."""
    return (*V4.spoken(), payload(Base.NETWORK, V4.destination, 1), equal(b"\x7f"))


def _at_key(protocol: Protocol) -> tuple[bytes, ...]:
    after = protocol.after()
    return (
        protocol.load_destination(),
        meta(Meta.L4PROTO, after),
        payload(Base.TRANSPORT, 2, 2, after + 1),
    )


def guard() -> tuple[Rule, ...]:
    """What is refused without looking at connections: it holds for their packets too.

    From elsewhere than a bridge, the loopback interface apart: no container's address at either
    end (a neighbour who routes to it, or pretends to be it), and no loopback address that a
    port is published on. Every packet the host gets comes here, so a bridge is looked for once.
    """
    from_elsewhere = tuple(
        (*one.spoken(), load, within(subnets(one)), verdict(DROP))
        for one in PROTOCOLS
        for load in (one.load_destination(), one.load_source())
    )
    return (
        (*from_bridge(), goto(INSIDE)),
        (meta(Meta.IIFNAME), equal(interface("lo")), verdict(ACCEPT)),
        *from_elsewhere,
        (*to_loopback(), *_at_key(V4), within(LOOPBACK), verdict(DROP)),
    )


def inside() -> tuple[Rule, ...]:
    """What a bridge may send: from addresses of its own network, or without an address, and never
    to the host's loopback."""
    link_local = (
        *V6.spoken(),
        payload(Base.NETWORK, V6.source, 2),
        masked(b"\xff\xc0"),
        equal(b"\xfe\x80"),
        verdict(ACCEPT),
    )
    unspecified = (*V6.spoken(), V6.load_source(), equal(bytes(16)), verdict(ACCEPT))
    return (
        (*to_loopback(), verdict(DROP)),
        *(
            (
                *one.spoken(),
                one.load_source(),
                meta(Meta.IIFNAME, one.after()),
                within(homes(one)),
                verdict(ACCEPT),
            )
            for one in PROTOCOLS
        ),
        link_local,
        unspecified,
        (counter(), verdict(DROP)),
    )


def published(loopback6: bool) -> tuple[Rule, ...]:
    """Where a published port leads. One look-up for each map, whatever is in it.

    Without `loopback6` nothing is done for ::1: its answers would be lost, and a client that is
    refused there at once goes on to 127.0.0.1 by itself.
    """
    made: list[Rule] = []
    for one in PROTOCOLS:
        lead = dnat(one.family, REGISTER, one.after())
        made.append((*one.spoken(), *_at_key(one), mapped(at_map(one)), lead))
        not_loopback: Rule = ()
        if one is V6 and not loopback6:
            not_loopback = (one.load_destination(), different(bytes(15) + b"\1"))
        made.append(
            (
                *one.spoken(),
                *not_loopback,
                meta(Meta.L4PROTO),
                payload(Base.TRANSPORT, 2, 2, QUARTER + 1),
                mapped(any_map(one)),
                # Asked last: most packets are not in the map, and this searches routing tables.
                *to_this_host(one.after() + 1),
                lead,
            )
        )
    return tuple(made)


def forward() -> tuple[Rule, ...]:
    """Who may reach whom: containers the outside, everybody what is published, containers of
    one network each other. What does not concern a bridge of the engine is left alone."""
    return (
        (*connection(Ct.STATE, ESTABLISHED | RELATED), verdict(ACCEPT)),
        # Would leave without the masquerade its connection has.
        (*from_bridge(), *connection(Ct.STATE, INVALID), counter(), verdict(DROP)),
        (*to_bridge(), *connection(Ct.STATUS, DNAT_STATUS), verdict(ACCEPT)),
        (
            meta(Meta.IIFNAME),
            meta(Meta.OIFNAME, QUARTER + 4),
            within(TOGETHER),
            verdict(ACCEPT),
        ),
        (*to_bridge(), counter(), verdict(DROP)),
        (
            *from_bridge(),
            meta(Meta.OIFNAME),
            within(OTHERS),
            *connection(Ct.STATUS, DNAT_STATUS, any_of=False),
            counter(),
            verdict(DROP),
        ),
        (meta(Meta.IIFNAME), within(INTERNAL), counter(), verdict(DROP)),
        *(
            (
                *one.spoken(),
                meta(Meta.IIFNAME),
                within(fenced(one)),
                meta(Meta.OIFNAME),
                within(fenced(one)),
                counter(),
                verdict(DROP),
            )
            for one in PROTOCOLS
        ),
    )


def leave(loopback6: bool) -> tuple[Rule, ...]:
    """Masquerade where an answer could not find back, and nowhere else.

    A client of a published port keeps its address unless it is a loopback one, or a container of
    the same network (whose answer would go straight to it, past this host).
    """
    led = connection(Ct.STATUS, DNAT_STATUS)
    made: list[Rule] = [
        (
            *led,
            *to_bridge(),
            *V4.spoken(),
            payload(Base.NETWORK, V4.source, 1),
            equal(b"\x7f"),
            masquerade(),
        )
    ]
    if loopback6:
        loopback = (V6.load_source(), equal(bytes(15) + b"\1"))
        made.append((*led, *to_bridge(), *V6.spoken(), *loopback, masquerade()))
    for one in PROTOCOLS:
        same_network = (
            one.load_source(),
            meta(Meta.OIFNAME, one.after()),
            within(homes(one)),
        )
        made.append((*led, *one.spoken(), *same_network, masquerade()))
    for one in PROTOCOLS:
        made.append(
            (
                *one.spoken(),
                one.load_source(),
                within(leaving(one)),
                meta(Meta.OIFNAME),
                outside(BRIDGES),
                masquerade(),
            )
        )
    return tuple(made)


# -- the tables --------------------------------------------------------------------------------


def inet_table(name: str, *, loopback6: bool) -> Table:
    """The engine's table for packets."""
    leads = published(loopback6)
    chains = (
        Chain("guard", guard(), "filter", Hook.PREROUTING, RAW),
        Chain(INSIDE, inside()),
        Chain("publish", leads, "nat", Hook.PREROUTING, DSTNAT),
        Chain("local", leads, "nat", Hook.OUTPUT, DSTNAT),
        Chain("forward", forward(), "filter", Hook.FORWARD, FILTER),
        Chain("leave", leave(loopback6), "nat", Hook.POSTROUTING, SRCNAT),
    )
    return Table(Family.INET, name, inet_sets(), chains)
