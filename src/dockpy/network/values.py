"""What a network is and what a container has of it: frozen values and their JSON. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dockpy.errors import UsageError
from dockpy.network.addresses import Segment, parse_subnet, parse_subnet6, segments
from dockpy.network.ports import Published

BRIDGE, HOST, NONE, DEFAULT = "bridge", "host", "none", "default"
RESERVED = frozenset({BRIDGE, HOST, NONE, DEFAULT, "container"})
"""Names of networks every engine has, or that mean something else behind --network."""
LOCAL_MTU = 65535
"""Largest packet between this host and its containers, in bytes: the largest there is in IPv4."""
OUTSIDE_MTU = 1500
"""Largest packet containers send elsewhere, until they learn of a smaller one on the way."""
_BRIDGE = re.compile(r"[A-Za-z0-9_-]{1,11}")  # and ".63" behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What an engine is told about its default network; "" and 0: it chooses.

    `bip` is the gateway's address and the range's length (`172.30.0.1/16`), `subnet6` a range of
    IPv6 for it, `mtu` the largest packet in bytes, wherever it goes. `firewall` names the nftables
    tables.
    """

    bridge: str = "dockpy0"
    bip: str = ""
    subnet6: str = ""
    mtu: int = 0
    firewall: str = "dockpy"

    def told(
        self,
        *,
        bridge: str | None = None,
        bip: str | None = None,
        subnet6: str | None = None,
        mtu: int | None = None,
        environment: str = "",
    ) -> NetworkSettings:
        """With what the daemon's command line says, and before that DOCKPY_BRIDGE: the bridge's
        name, or its address and range. UsageError."""
        if "/" in environment:
            bip = bip or environment
        elif environment:
            bridge = bridge or environment
        name = bridge or self.bridge
        if not _BRIDGE.fullmatch(name):
            raise UsageError(
                f"--bridge {name!r}: at most 11 letters, digits, '-' and '_' are a bridge's name"
            )
        if bip:
            parse_subnet(bip)
        if subnet6:
            parse_subnet6(subnet6)
        if mtu is not None and not 576 <= mtu <= 65535:
            raise UsageError("--mtu is between 576 and 65535")
        return replace(
            self,
            bridge=name,
            bip=bip or self.bip,
            subnet6=subnet6 or self.subnet6,
            mtu=mtu or self.mtu,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of the engine.

    `subnet` such as `172.30.0.0/16`; `gateway` "" for the range's first address. `internal`: no way
    out and none in. `bridge` names the first segment's bridge. `mtu` is the largest packet in
    bytes, wherever it goes; 0: `LOCAL_MTU` as far as this host, `OUTSIDE_MTU` beyond.
    """

    id: str
    name: str
    bridge: str
    subnet: str
    gateway: str = ""
    subnet6: str = ""
    internal: bool = False
    masquerade: bool = True
    mtu: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    created: float = 0.0

    @property
    def default(self) -> bool:
        """The one network without names."""
        return self.name == BRIDGE

    def segments(self) -> Iterator[Segment]:
        return segments(
            self.bridge,
            parse_subnet(self.subnet),
            ipaddress.IPv4Address(self.gateway) if self.gateway else None,
            parse_subnet6(self.subnet6) if self.subnet6 else None,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"labels": dict(self.labels)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Network:
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Owner:
    """A container as its networks know it."""

    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place in a network. Addresses are texts, "" for none of that version.

    `cable` names the link's host end, `inside` and `index` its end in the container.
    """

    network: str
    network_name: str
    bridge: str
    cable: str
    inside: str
    index: int
    address: str
    prefix: int
    gateway: str
    hardware: str
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Whether containers have names in that network: in all but the default one."""
        return self.network_name != BRIDGE

    @property
    def gateways(self) -> tuple[str, ...]:
        """The host's addresses as the container sees them."""
        return tuple(filter(None, (self.gateway, self.gateway6)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """All of the network that one run of a container has.

    `dns` are name servers of its own, `links` (alias, name) of containers that it alone calls so.
    `shared` is the id of the container whose network it uses, then the rest is that one's.
    """

    endpoints: tuple[Endpoint, ...] = ()
    published: tuple[Published, ...] = ()
    dns: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    shared: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the first network, which is what names and ports lead to."""
        first = self.endpoints[:1]
        return tuple(text for one in first for text in (one.address, one.address6) if text)

    @property
    def ipv6(self) -> bool:
        """Whether published ports answer by IPv6 too."""
        return any(one.address6 for one in self.endpoints[:1])

    def to_json(self) -> dict[str, Any]:
        return {
            "endpoints": [asdict(one) for one in self.endpoints],
            "published": [asdict(one) for one in self.published],
            "dns": list(self.dns),
            "links": [list(one) for one in self.links],
            "shared": self.shared,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Lease:
        """Raises KeyError, TypeError or ValueError for what is no lease."""
        return cls(
            endpoints=tuple(
                Endpoint(**(one | {"aliases": tuple(one["aliases"])}))
                for one in values["endpoints"]
            ),
            published=tuple(Published(**one) for one in values["published"]),
            dns=tuple(values["dns"]),
            links=tuple((alias, name) for alias, name in values.get("links", ())),
            shared=str(values["shared"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a container wants to be in a network; "" and empty: as it comes."""

    address: str = ""
    hardware: str = ""
    aliases: tuple[str, ...] = ()
