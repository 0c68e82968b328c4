"""The engine's table for packets as values: what is published, who may talk to whom, and what not.

Pure. All that varies is in sets and maps, so a start changes elements and never a rule, and a
packet meets the same few rules whether one port is published or a thousand.

The inet table, by the order in which a packet meets it:

    inside     prerouting, raw      only without a bridges' table: what a bridge may send
    publish    prerouting, dstnat   published ports: traffic from elsewhere and from containers
    local      output, dstnat       published ports: this host's own traffic, localhost too
    input      input, filter        what is for this host itself
    claimed    from input           the few of them with an address that is the engine's alone
    answers    from input           what a bridge sends to this host's loopback addresses
    forward    forward, filter      what is for others: nobody has a container's address but it
    home       from forward         the source is a container's address
    reach      from forward, home   who may reach whom
    leave      postrouting, srcnat  masquerade where an answer could not find back

A name that ends in 6 is the part of a chain for IPv6. The bridges' table is in `cablerules`: that
is where a container's source addresses are checked. Docker's and iptables' rules are in tables of
their own; all tables judge every packet, and each may drop it.

Every packet between a container and others pays for `forward`, and a container's for `home`. So
nothing is looked for before connections are tracked (any rule there costs more than all of these),
the name of an interface, which must be copied and hashed, only behind an address of the engine's,
and a look-up by hash stands before the one among ranges: that one (nft_set_pipapo_avx2.c) saves
the processor's vector registers first, and costs more than all the other rules together.

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
    MULTICAST,
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

DROPPED: Rule = (counter(), verdict(DROP))
KNOWN: Rule = (*connection(Ct.STATE, ESTABLISHED | RELATED), verdict(ACCEPT))
"""A packet of a connection that was allowed when it began."""
RAW, FILTER, DSTNAT, SRCNAT = -300, 0, -100, 100
IPV4, IPV6 = Family.IPV4, Family.IPV6


@dataclass(frozen=True, slots=True)
class Protocol:
    """Where one version of IP keeps its addresses; `block`: how long networks' prefixes usually
    are."""

    family: Family
    ether_type: int
    source: int
    destination: int
    length: int
    kind: Type
    suffix: str
    block: int

    @property
    def block_mask(self) -> bytes:
        """The network's part of an address, where networks have their usual size."""
        ones = (1 << self.block) - 1
        return (ones << (8 * self.length - self.block)).to_bytes(self.length, "big")

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


V4 = Protocol(Family.IPV4, 0x0800, 12, 16, 4, Type.ADDRESS4, "4", 24)
V6 = Protocol(Family.IPV6, 0x86DD, 8, 24, 16, Type.ADDRESS6, "6", 64)
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
INSIDE, PUBLISH, INPUT, CLAIMED = "inside", "publish", "input", "claimed"
FORWARD, HOME, LEAVE = "forward", "home", "leave"
"""Chains with a part for IPv6 of its own, whose name ends in 6."""
ANSWERS, REACH = "answers", "reach"


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


def near(protocol: Protocol) -> str:
    """Block . bridge: the same for networks of just that size, found by hash."""
    return f"near{protocol.suffix}"


def inet_sets() -> tuple[Set, ...]:
    made = [
        Set(BRIDGES, (Type.INTERFACE,)),
        Set(INTERNAL, (Type.INTERFACE,)),
        Set(OTHERS, (Type.INTERFACE,)),
        Set(TOGETHER, (Type.INTERFACE, Type.INTERFACE)),
    ]
    for one in PROTOCOLS:
        value = (one.kind, Type.SERVICE)
        made += [
            Set(fenced(one), (Type.INTERFACE,)),
            Set(subnets(one), (one.kind,), interval=True),
            Set(leaving(one), (one.kind,), interval=True),
            Set(homes(one), (one.kind, Type.INTERFACE), interval=True),
            Set(near(one), (one.kind, Type.INTERFACE)),
            Set(any_map(one), (Type.PROTOCOL, Type.SERVICE), value),
            Set(at_map(one), (one.kind, Type.PROTOCOL, Type.SERVICE), value),
        ]
    return tuple(made)


# -- rules -------------------------------------------------------------------------------------


def from_bridge() -> tuple[bytes, ...]:
    return meta(Meta.IIFNAME), within(BRIDGES)


def to_bridge() -> tuple[bytes, ...]:
    return meta(Meta.OIFNAME), within(BRIDGES)


def part(chain: str, protocol: Protocol) -> str:
    """The chain for that version."""
    return f"{chain}6" if protocol is V6 else chain


def to_part6(chain: str) -> Rule:
    return (*V6.spoken(), goto(part(chain, V6)))


def to_loopback() -> tuple[bytes, ...]:
    """The destination of an IPv4 packet is an address of 127.0.0.0/8."""
    return payload(Base.NETWORK, V4.destination, 1), equal(b"\x7f")


def past_the_bridge() -> tuple[bytes, ...]:
    """To a group of bridges themselves, 01:80:c2:00:00:0X (802.1Q, 8.6.3). Most of those the host
    gets from the cable and not from the bridge (br_handle_frame), whose rules never see them. IP is
    nothing that belongs there, so it does not matter who sends it."""
    return (
        meta(Meta.PACKET_TYPE),
        equal(bytes([MULTICAST])),
        payload(Base.LINK, 0, 6),
        masked(b"\xff\xff\xff\xff\xff\xf0"),
        equal(b"\x01\x80\xc2\0\0\0"),
    )


def from_link_local() -> tuple[bytes, ...]:
    """The source of an IPv6 packet is an address of fe80::/10."""
    return payload(Base.NETWORK, V6.source, 2), masked(b"\xff\xc0"), equal(b"\xfe\x80")


def _at_key(protocol: Protocol) -> tuple[bytes, ...]:
    after = protocol.after()
    return (
        protocol.load_destination(),
        meta(Meta.L4PROTO, after),
        payload(Base.TRANSPORT, 2, 2, after + 1),
    )


def inside() -> tuple[Rule, ...]:
    """What a bridge may send: from addresses of its own network, or without an address, and never
    to the host's loopback. For kernels where it cannot be said at the bridge."""
    return (
        (meta(Meta.IIFNAME), outside(BRIDGES), verdict(ACCEPT)),
        to_part6(INSIDE),
        (*to_loopback(), *DROPPED),
        *_at_home(V4, verdict(ACCEPT)),
        DROPPED,
    )


def inside6() -> tuple[Rule, ...]:
    """The same for IPv6, where a link-local address is right too."""
    return (*_at_home(V6, verdict(ACCEPT)), *_without_network(), DROPPED)


def arriving(protocol: Protocol) -> tuple[Rule, ...]:
    """What this host gets for itself. A container's address at either end, or the bridge's, means
    a container; what a bridge sends from another address begins no connection. To ::1 the kernel
    itself lets nothing in."""
    claim = goto(part(CLAIMED, protocol))
    first = (
        (*past_the_bridge(), *DROPPED),
        to_part6(INPUT),
        (*to_loopback(), *from_bridge(), goto(ANSWERS)),
    )
    return (
        *(first if protocol is V4 else ()),
        (protocol.load_destination(), within(subnets(protocol)), claim),
        (protocol.load_source(), within(subnets(protocol)), claim),
        KNOWN,
        *(_without_network() if protocol is V6 else ()),
        (*from_bridge(), *DROPPED),
    )


def claimed(protocol: Protocol) -> tuple[Rule, ...]:
    """Who uses such an address: the host itself, a container of that network, or somebody who
    may not (a neighbour who routes to it, or pretends to be it)."""
    link_local = (*from_link_local(), *from_bridge(), verdict(ACCEPT))
    return (
        (meta(Meta.IIFNAME), equal(interface("lo")), verdict(ACCEPT)),
        *_at_home(protocol, verdict(ACCEPT)),
        *((link_local,) if protocol is V6 else ()),
        DROPPED,
    )


def answers() -> tuple[Rule, ...]:
    """A bridge sends to loopback addresses (which `route_localnet` allows there) what answers a
    client of a published port, and nothing else."""
    return ((*connection(Ct.STATUS, DNAT_STATUS), verdict(ACCEPT)), DROPPED)


def _at_home(protocol: Protocol, then: bytes) -> tuple[Rule, ...]:
    """The source belongs to the bridge's network."""
    bridge = meta(Meta.IIFNAME, protocol.after())
    source = protocol.load_source()
    return (
        (source, masked(protocol.block_mask), bridge, within(near(protocol)), then),
        (source, bridge, within(homes(protocol)), then),
    )


def _without_network() -> tuple[Rule, ...]:
    """What IPv6 needs on a link before and beside addresses of the network's range."""
    return (
        (*from_link_local(), verdict(ACCEPT)),
        (V6.load_source(), equal(bytes(16)), verdict(ACCEPT)),
    )


def published(*first: Rule) -> tuple[Rule, ...]:
    """Where a published port leads. One look-up for each map, whatever is in it."""
    return (to_part6(PUBLISH), *first, *_leads(V4))


def published6(loopback6: bool) -> tuple[Rule, ...]:
    """The same for IPv6. Without `loopback6` nothing is done for ::1: its answers would be lost,
    and a client that is refused there at once goes on to 127.0.0.1 by itself."""
    not_loopback = () if loopback6 else (V6.load_destination(), different(bytes(15) + b"\1"))
    return _leads(V6, not_loopback)


def _leads(protocol: Protocol, to_any: Rule = ()) -> tuple[Rule, ...]:
    """`to_any`: what must be so before a port published on every address counts."""
    lead = dnat(protocol.family, REGISTER, protocol.after())
    return (
        (*_at_key(protocol), mapped(at_map(protocol)), lead),
        (
            *to_any,
            meta(Meta.L4PROTO),
            payload(Base.TRANSPORT, 2, 2, QUARTER + 1),
            mapped(any_map(protocol)),
            # Asked last: most packets are not in the map, and this searches routing tables.
            *to_this_host(protocol.after() + 1),
            lead,
        ),
    )


def forward(protocol: Protocol) -> tuple[Rule, ...]:
    """What passes through this host. A container's address is the container's alone; what a
    bridge sends from another one begins no connection (from a cable nothing of that comes)."""
    return (
        *((to_part6(FORWARD),) if protocol is V4 else ()),
        (protocol.load_source(), within(subnets(protocol)), goto(part(HOME, protocol))),
        KNOWN,
        (*from_bridge(), *DROPPED),
        (goto(REACH),),
    )


def home(protocol: Protocol) -> tuple[Rule, ...]:
    """The source is an address of the engine's networks: it comes from that network's bridge."""
    return (*_at_home(protocol, goto(REACH)), DROPPED)


def reach() -> tuple[Rule, ...]:
    """Who may reach whom: containers the outside, everybody what is published, containers of
    one network each other. What does not concern a bridge of the engine is left alone."""
    return (
        KNOWN,
        (*to_bridge(), *connection(Ct.STATUS, DNAT_STATUS), verdict(ACCEPT)),
        # Would leave without the masquerade its connection has.
        (*from_bridge(), *connection(Ct.STATE, INVALID), *DROPPED),
        (
            meta(Meta.IIFNAME),
            meta(Meta.OIFNAME, QUARTER + 4),
            within(TOGETHER),
            verdict(ACCEPT),
        ),
        (*to_bridge(), *DROPPED),
        (
            *from_bridge(),
            meta(Meta.OIFNAME),
            within(OTHERS),
            *connection(Ct.STATUS, DNAT_STATUS, any_of=False),
            counter(),
            verdict(DROP),
        ),
        (meta(Meta.IIFNAME), within(INTERNAL), *DROPPED),
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


def leave() -> tuple[Rule, ...]:
    """Masquerade where an answer could not find back, and nowhere else.

    A client of a published port keeps its address unless it is a loopback one, or a container of
    the same network (whose answer would go straight to it, past this host).
    """
    loopback = (payload(Base.NETWORK, V4.source, 1), equal(b"\x7f"))
    return (to_part6(LEAVE), (*loopback, *_led_to_bridge()), *_answered(V4))


def leave6(loopback6: bool) -> tuple[Rule, ...]:
    """The same for IPv6."""
    loopback = (V6.load_source(), equal(bytes(15) + b"\1"))
    from_here = ((*loopback, *_led_to_bridge()),) if loopback6 else ()
    return (*from_here, *_answered(V6))


def _led_to_bridge() -> Rule:
    return (*connection(Ct.STATUS, DNAT_STATUS), *to_bridge(), masquerade())


def _answered(protocol: Protocol) -> tuple[Rule, ...]:
    """What containers send; a client from elsewhere is done with at once."""
    source = protocol.load_source()
    same_network = (source, meta(Meta.OIFNAME, protocol.after()), within(homes(protocol)))
    to_outside = (meta(Meta.OIFNAME), outside(BRIDGES))
    return (
        (source, outside(subnets(protocol)), verdict(ACCEPT)),
        (*connection(Ct.STATUS, DNAT_STATUS), *same_network, masquerade()),
        (source, within(leaving(protocol)), *to_outside, masquerade()),
    )


# -- the tables --------------------------------------------------------------------------------


def inet_table(name: str, *, loopback6: bool, guarded: bool = True) -> Table:
    """The engine's table for packets. `guarded`: the bridges' table is there too."""
    unguarded = (
        Chain(INSIDE, inside(), "filter", Hook.PREROUTING, RAW),
        Chain(part(INSIDE, V6), inside6()),
    )
    # A loopback address is reached from this host alone, which `local` sees.
    not_to_loopback = (*to_loopback(), verdict(ACCEPT))
    chains = (
        *(() if guarded else unguarded),
        Chain(PUBLISH, published(not_to_loopback), "nat", Hook.PREROUTING, DSTNAT),
        Chain("local", published(), "nat", Hook.OUTPUT, DSTNAT),
        Chain(part(PUBLISH, V6), published6(loopback6)),
        Chain(INPUT, arriving(V4), "filter", Hook.INPUT, FILTER),
        Chain(part(INPUT, V6), arriving(V6)),
        Chain(ANSWERS, answers()),
        Chain(FORWARD, forward(V4), "filter", Hook.FORWARD, FILTER),
        Chain(part(FORWARD, V6), forward(V6)),
        Chain(REACH, reach()),
        *(Chain(part(CLAIMED, one), claimed(one)) for one in PROTOCOLS),
        *(Chain(part(HOME, one), home(one)) for one in PROTOCOLS),
        Chain(LEAVE, leave(), "nat", Hook.POSTROUTING, SRCNAT),
        Chain(part(LEAVE, V6), leave6(loopback6)),
    )
    return Table(Family.INET, name, inet_sets(), chains)
