"""Room for our bridges in other firewalls that drop what they do not know.

Every table of the kernel judges every packet, and each may drop it. Docker, and many hosts, let the
FORWARD chain of iptables drop by default; what our tables accept would end there. So two rules for
each bridge, from it and to it, stand in that chain; what they let pass is judged by our own tables.
The rules are made of the expressions that iptables itself uses (nft variant), or it could no longer
read its chain, and carry a comment by which they are found again.

Facts (net/netfilter/nf_tables_api.c): attribute 4 of a chain nests its hook's number (1), 5 is its
policy. Comments: libnftnl's user data, type 0, length, text with its zero byte.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dockpy.errors import KernelError
from dockpy.network.expressions import ACCEPT, DROP, Meta, counter, equal, meta, verdict
from dockpy.network.nfnetlink import Netfilter, attributes
from dockpy.network.nft import Family, Hook, Kind, delete_rule, insert_rule, text

log = logging.getLogger(__name__)
FAMILIES = (Family.IPV4, Family.IPV6)
TABLE = "filter"
DIRECTIONS = {"from": Meta.IIFNAME, "to": Meta.OIFNAME}


@dataclass(frozen=True, slots=True)
class Place:
    """A chain that drops forwarded packets by default."""

    family: Family
    chain: str


class Room:
    """The rules of one engine in chains of others. Not thread-safe: the firewall has the lock."""

    def __init__(self, netfilter: Netfilter, name: str) -> None:
        """`name`: of the engine's tables; its rules are marked with it."""
        self._netfilter = netfilter
        self._name = name

    def make(self, bridges: Iterable[str]) -> int:
        """Have rules for exactly these bridges; gives how many had to be added or taken away.

        KernelError when the kernel refuses one.
        """
        wanted = {
            self._comment(direction, bridge): rule(direction, bridge)
            for bridge in bridges
            for direction in DIRECTIONS
        }
        changed = 0
        dropping = list(self._dropping())
        for place in self._places():
            there = self._rules(place)
            needed = wanted if place in dropping else {}
            messages = [
                delete_rule(place.family, TABLE, place.chain, handle)
                for comment, handle in there.items()
                if comment not in needed
            ]
            messages += [
                insert_rule(place.family, TABLE, place.chain, expressions, comment)
                for comment, expressions in needed.items()
                if comment not in there
            ]
            if messages:
                self._netfilter.commit(messages, f"let bridges through {TABLE} {place.chain}")
                changed += len(messages)
        return changed

    def remove(self) -> None:
        """Take all of them away."""
        with contextlib.suppress(KernelError):
            self.make(())

    def _comment(self, direction: str, bridge: str) -> bytes:
        said = f"{self._name}: {direction} {bridge}".encode() + b"\0"
        return bytes([0, len(said)]) + said

    def _places(self) -> Iterator[Place]:
        """Chains of that table on the forward hook, whatever they do by default."""
        for place, _ in self._chains():
            yield place

    def _dropping(self) -> Iterator[Place]:
        for place, policy in self._chains():
            if policy == DROP:
                yield place

    def _chains(self) -> Iterator[tuple[Place, int]]:
        for family in FAMILIES:
            for body in self._netfilter.dump(Kind.GET_CHAIN, family, b"", "list chains"):
                parts = attributes(body)
                hook = attributes(parts.get(4, b"")).get(1, b"")
                ours = parts.get(1) == TABLE.encode() + b"\0"
                if ours and hook and int.from_bytes(hook, "big") == Hook.FORWARD:
                    chain = parts[3].rstrip(b"\0").decode()
                    yield Place(family, chain), int.from_bytes(parts.get(5, b"\1"), "big")

    def _rules(self, place: Place) -> dict[bytes, int]:
        """Our rules in a chain, by their marks."""
        body = text(1, TABLE) + text(2, place.chain)
        mark = f"{self._name}: ".encode()
        found = {}
        for one in self._netfilter.dump(Kind.GET_RULE, place.family, body, "list rules"):
            parts = attributes(one)
            data = parts.get(7, b"")
            # An older kernel lists all rules of the family.
            here = parts.get(2) == place.chain.encode() + b"\0"
            if here and data[2:].startswith(mark):
                found[data] = int.from_bytes(parts[3], "big")
        return found


def rule(direction: str, bridge: str) -> tuple[bytes, ...]:
    """`-i BRIDGE -j ACCEPT` or `-o BRIDGE -j ACCEPT`, as iptables writes them."""
    name = bridge.encode() + b"\0"
    return meta(DIRECTIONS[direction]), equal(name), counter(), verdict(ACCEPT)
