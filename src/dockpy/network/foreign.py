"""Room for our bridges in other firewalls that drop what they do not know.

Every table of the kernel judges every packet, and each may drop it. Docker, and many hosts, let the
FORWARD chain of iptables drop by default; what our tables accept would end there. So two rules for
each bridge, from it and to it, stand at that chain's end; what they let pass is judged by our own
tables. At its end, so that what others refuse by a rule stays refused: an address that is banned,
or what an administrator wrote into DOCKER-USER. And bridges that such a chain keeps from others by
its default alone, as Docker did before version 27, our own tables keep from our containers.
The rules are made of the expressions that iptables itself uses (nft variant), or it could no longer
read its chain, and carry a comment by which they are found again.

Facts (net/netfilter/nf_tables_api.c): attribute 4 of a chain nests its hook's number (1), 5 is its
policy. Comments: libnftnl's user data, type 0, length, text with its zero byte.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from dockpy.errors import KernelError
from dockpy.network import obstacles
from dockpy.network.expressions import ACCEPT, DROP, Meta, counter, equal, meta, verdict
from dockpy.network.nfnetlink import Netfilter, attributes
from dockpy.network.nft import Family, Hook, Kind, delete_rule, new_rule, text

log = logging.getLogger(__name__)
FAMILIES = (Family.IPV4, Family.IPV6)
TABLE = "filter"
FAMILY_NAMES = {Family.IPV4: "ip", Family.IPV6: "ip6", Family.INET: "inet"}
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
                new_rule(place.family, TABLE, place.chain, expressions, comment)
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

    def kept(self, candidates: Iterable[str]) -> set[str]:
        """Those of the interfaces that rules of a table speak of whose chain drops by default."""
        wanted = [(name, name.encode() + b"\0") for name in candidates]
        found: set[str] = set()
        for family in {place.family for place in self._dropping()}:
            body = text(1, TABLE)
            for one in self._netfilter.dump(Kind.GET_RULE, family, body, "list rules"):
                parts = attributes(one)
                if parts.get(1) == TABLE.encode() + b"\0":
                    said = parts.get(4, b"")
                    found.update(name for name, mark in wanted if mark in said)
        return found

    def obstacles(self, bridges: Collection[str]) -> list[str]:
        """What in nftables keeps packets from containers and is left alone, a line each."""
        found: list[str] = []
        for family, table, chain, policy in self._forward_chains((*FAMILIES, Family.INET)):
            iptables = table == TABLE and family in FAMILIES
            if table == obstacles.FIREWALLD:
                homeless = self._unnamed(family, table, bridges)
                found += [obstacles.without_zone(homeless)] if homeless else []
            elif policy == DROP and not iptables and table != self._name:
                found.append(
                    obstacles.by_default(f"{FAMILY_NAMES[family]} {table} {chain}", bridges)
                )
        return list(dict.fromkeys(found))

    def _unnamed(self, family: Family, table: str, bridges: Iterable[str]) -> list[str]:
        """Those of the bridges that no rule of a table speaks of."""
        dumped = self._netfilter.dump(Kind.GET_RULE, family, text(1, table), "list rules")
        said = b"".join(
            parts.get(4, b"")
            for parts in map(attributes, dumped)
            if parts.get(1) == table.encode() + b"\0"
        )
        return [one for one in bridges if one.encode() + b"\0" not in said]

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
        for family, table, chain, policy in self._forward_chains(FAMILIES):
            if table == TABLE:
                yield Place(family, chain), policy

    def _forward_chains(self, families: Iterable[Family]) -> Iterator[tuple[Family, str, str, int]]:
        """(family, table, chain, policy) of everybody's chains on the forward hook."""
        for family in families:
            for body in self._netfilter.dump(Kind.GET_CHAIN, family, b"", "list chains"):
                parts = attributes(body)
                hook = attributes(parts.get(4, b"")).get(1, b"")
                if hook and int.from_bytes(hook, "big") == Hook.FORWARD:
                    table, chain = (parts[one].rstrip(b"\0").decode() for one in (1, 3))
                    yield family, table, chain, int.from_bytes(parts.get(5, b"\1"), "big")

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
