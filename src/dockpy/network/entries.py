"""From networks, containers and published ports to entries of the firewall's sets. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dockpy.network import cablerules, rules
from dockpy.network.nft import INTERVAL_END, Element, Family, concatenated, interface
from dockpy.network.ports import PROTOCOLS, Published

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Entry(NamedTuple):
    """An element and the set it belongs to."""

    family: Family
    name: str
    element: Element

    @property
    def place(self) -> tuple[Family, str, bytes, int]:
        """What there can be one of."""
        return self.family, self.name, self.element.key, self.element.flags


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of the engine and the ranges of its network (`172.30.0.0/16`, "" for none).

    `internal`: no way out, and none in but from the host itself. `masquerade`: containers reach
    the outside under the host's address.
    """

    name: str
    subnet4: str = ""
    subnet6: str = ""
    internal: bool = False
    masquerade: bool = True


@dataclass(frozen=True, slots=True)
class Cable:
    """A container's cable: its host end's name, and the other end's addresses.

    `hardware` as in `02:42:ac:1e:00:02`; an IP address is "" for none of that version.
    """

    interface: str
    hardware: str
    address: str
    address6: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.address, self.address6)))


def packed(address: str) -> bytes:
    """An address as it is on the wire."""
    return ipaddress.ip_address(address).packed


def spoken(address: str) -> rules.Protocol:
    return rules.V6 if ":" in address else rules.V4


def of_bridge(bridge: Bridge) -> list[Entry]:
    """What makes a bridge one of the engine's: everything is refused there from then on but
    what a rule allows."""
    name = interface(bridge.name)
    found = [
        Entry(Family.INET, rules.BRIDGES, Element(name)),
        Entry(Family.INET, rules.TOGETHER, Element(name + name)),
    ]
    if bridge.internal:
        found.append(Entry(Family.INET, rules.INTERNAL, Element(name)))
    for text in filter(None, (bridge.subnet4, bridge.subnet6)):
        network = ipaddress.ip_network(text)
        protocol = spoken(text)
        first = concatenated(network.network_address.packed, name)
        last = concatenated(network.broadcast_address.packed, name)
        found.append(Entry(Family.INET, rules.homes(protocol), Element(first, last=last)))
        if network.prefixlen == protocol.block:  # most are; the range stands for the others
            found.append(Entry(Family.INET, rules.near(protocol), Element(first)))
        found += of_range(rules.subnets(protocol), network)
        if bridge.masquerade and not bridge.internal:
            found += of_range(rules.leaving(protocol), network)
    return found


def of_pair(first: str, second: str) -> list[Entry]:
    """Two bridges whose containers may talk, both ways."""
    one, other = interface(first), interface(second)
    return [Entry(Family.INET, rules.TOGETHER, Element(key)) for key in (one + other, other + one)]


def of_others(names: Iterable[str]) -> list[Entry]:
    """Bridges of other engines that are not to be reached."""
    return [Entry(Family.INET, rules.OTHERS, Element(interface(name))) for name in names]


def of_range(name: str, network: _Network) -> list[Entry]:
    """A range in a plain interval set: where it begins, and where the next one may."""
    found = [Entry(Family.INET, name, Element(network.network_address.packed))]
    after = int(network.broadcast_address) + 1
    length = len(network.network_address.packed)
    if after < 1 << (8 * length):
        end = after.to_bytes(length, "big")
        found.append(Entry(Family.INET, name, Element(end, flags=INTERVAL_END)))
    return found


def of_cable(cable: Cable) -> list[Entry]:
    """The host end of a container's cable, and what may come from it."""
    name = interface(cable.interface)
    card = concatenated(name, bytes.fromhex(cable.hardware.replace(":", "")))
    found = [Entry(Family.BRIDGE, cablerules.CARDS, Element(card))]
    for address in cable.addresses:
        own = concatenated(name, packed(address))
        found.append(Entry(Family.BRIDGE, cablerules.members(spoken(address)), Element(own)))
    return [*found, Entry(Family.BRIDGE, cablerules.PORTS, Element(name))]


def of_ports(published: Iterable[Published], addresses: Sequence[str]) -> list[Entry]:
    """Published ports that lead to a container with those addresses.

    A port published on an IPv6 address leads nowhere for a container without one, and the other
    way round: the kernel translates addresses, not versions.
    """
    found = []
    for one in published:
        number = bytes([PROTOCOLS[one.protocol]])
        host_port, port = one.host_port.to_bytes(2, "big"), one.port.to_bytes(2, "big")
        for address in addresses:
            protocol = spoken(address)
            if one.address and spoken(one.address) is not protocol:
                continue
            value = concatenated(packed(address), port)
            if one.address in ("", "0.0.0.0", "::"):
                element = Element(concatenated(number, host_port), value)
                found.append(Entry(Family.INET, rules.any_map(protocol), element))
                continue
            key = concatenated(packed(one.address), number, host_port)
            found.append(Entry(Family.INET, rules.at_map(protocol), Element(key, value)))
    return found


def of_fence(protocol: rules.Protocol, names: Iterable[str]) -> list[Entry]:
    """Interfaces between which nothing is to be routed."""
    return [Entry(Family.INET, rules.fenced(protocol), Element(interface(name))) for name in names]
