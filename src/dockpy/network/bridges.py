"""Bridges: made once for each segment, found again by the next engine, removed at the end.

With pyroute2, which is imported at the first use: nothing here is on a start's path.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from dockpy.errors import Conflict, KernelError
from dockpy.network.addresses import Segment
from dockpy.network.forwarding import keep_silent
from dockpy.network.values import LOCAL_MTU


class BridgeLink(NamedTuple):
    """A bridge that is there: its number, and the largest packet of a cable on it in bytes."""

    number: int
    mtu: int


def taken_ranges(besides: Iterable[str] = ()) -> list[ipaddress.IPv4Network]:
    """Ranges that this host's addresses and routes have; those of links in `besides` apart."""
    found = []
    with _route() as ip:
        skipped = {index for name in besides for index in ip.link_lookup(ifname=name)}
        for route in ip.get_routes(family=socket.AF_INET):
            target, link = route.get_attr("RTA_DST"), route.get_attr("RTA_OIF")
            if target and link not in skipped and not str(target).startswith("127."):
                found.append(ipaddress.IPv4Network(f"{target}/{route['dst_len']}", strict=False))
    return [one for one in found if one.prefixlen]


def has_link(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def make_bridge(segment: Segment, mtu: int = 0) -> BridgeLink:
    """The segment's bridge with its gateway's addresses, up. `mtu`: its largest packet; 0: the
    largest there is, or what links that are on it already take (a bridge makes no packet smaller,
    so a larger one would be lost there). The kernel then sees to the bridge's own.

    One that is there already is put right. Its hardware address is given, or it would change with
    the links that come and go. Conflict when a link of that name is no bridge; KernelError.
    """
    with _route() as ip:
        try:
            index = _found(ip, segment.bridge)
            if index is None:
                _told(
                    f"make bridge {segment.bridge}",
                    lambda: ip.link(
                        "add",
                        ifname=segment.bridge,
                        kind="bridge",
                        address=":".join(f"{byte:02x}" for byte in segment.hardware),
                        br_mcast_snooping=0,  # a timer for every link
                        br_stp_state=0,
                        br_forward_delay=0,
                    ),
                )
                index = ip.link_lookup(ifname=segment.bridge)[0]
            keep_silent(segment.bridge, ipv6=segment.subnet6 is not None)
            extra = {"mtu": mtu} if mtu else {}
            _told(
                f"set up bridge {segment.bridge}",
                lambda: ip.link("set", index=index, state="up", **extra),
            )
            _addressed(ip, index, segment)
            there = [int(one.get_attr("IFLA_MTU")) for one in _ports(ip, segment.bridge)]
        except BaseException:
            # Nothing is left of one that could not be finished, unless containers use it.
            if not _ports(ip, segment.bridge):
                _remove(ip, segment.bridge)
            raise
    return BridgeLink(int(index), mtu or min([LOCAL_MTU, *there]))


def remove_bridge(name: str) -> None:
    """Remove a bridge; nothing happens when there is none."""
    with _route() as ip:
        _remove(ip, name)


def links_on(names: Iterable[str]) -> dict[str, int]:
    """How many links each of those bridges has; bridges that are not there are left out."""
    with _route() as ip:
        return {name: len(_ports(ip, name)) for name in names if ip.link_lookup(ifname=name)}


def inner_bridges(names: Iterable[str]) -> set[str]:
    """Those that are bridges which connect containers or machines of this host with each other:
    none of their links leads elsewhere. One that goes meanwhile is none. KernelError."""
    found = set()
    with _route() as ip:

        def look(name: str) -> None:
            links = [ip.get_links(index)[0] for index in ip.link_lookup(ifname=name)]
            bridge = bool(links) and _kind(links[0]) == "bridge"
            if bridge and all(_kind(port) in ("veth", "tun") for port in _ports(ip, name)):
                found.add(name)

        for name in names:
            _told(f"look at the bridge {name}", partial(look, name), errno.ENODEV)
    return found


def _kind(link: Any) -> str:
    """What made the link; "" for a card."""
    info = link.get_attr("IFLA_LINKINFO")
    return "" if info is None else str(info.get_attr("IFLA_INFO_KIND"))


def _route() -> Any:
    from pyroute2.iproute.linux import IPRoute

    return IPRoute()


def _found(ip: Any, name: str) -> int | None:
    """The number of a bridge; None when there is no link of that name."""
    indexes = ip.link_lookup(ifname=name)
    if not indexes:
        return None
    link = ip.get_links(indexes[0])[0]
    if _kind(link) != "bridge":
        raise Conflict(f"{name} is a network link of another kind; choose another --bridge")
    return int(indexes[0])


def _addressed(ip: Any, index: int, segment: Segment) -> None:
    """Exactly the gateway's addresses; IPv6 without asking whether somebody else has it."""
    there = {
        (one.get_attr("IFA_ADDRESS"), one["prefixlen"])
        for one in ip.get_addr(index=index, family=socket.AF_INET)
    }
    wanted = (str(segment.gateway), segment.subnet.prefixlen)
    for address, prefix in there - {wanted}:
        _told(
            f"take {address} from bridge {segment.bridge}",
            partial(ip.addr, "del", index=index, address=address, prefixlen=prefix),
        )
    if wanted not in there:
        _told(
            f"give {segment.gateway} to bridge {segment.bridge}",
            lambda: ip.addr(
                "add",
                index=index,
                address=wanted[0],
                prefixlen=wanted[1],
                broadcast=str(segment.subnet.broadcast_address),
            ),
        )
    if segment.subnet6 is not None:
        _told(
            f"give {segment.gateway6} to bridge {segment.bridge}",
            lambda: ip.addr(
                "replace",
                index=index,
                address=str(segment.gateway6),
                prefixlen=segment.subnet6.prefixlen if segment.subnet6 else 0,
                family=socket.AF_INET6,
                flags=0x02,  # IFA_F_NODAD
            ),
        )


def _ports(ip: Any, name: str) -> list[Any]:
    indexes = ip.link_lookup(ifname=name)
    return [] if not indexes else list(ip.get_links(master=indexes[0]))


def _remove(ip: Any, name: str) -> None:
    indexes = ip.link_lookup(ifname=name)
    if indexes:
        _told(f"remove bridge {name}", lambda: ip.link("del", index=indexes[0]), errno.ENODEV)


def _told(step: str, call: Callable[[], object], *allowed: int) -> None:
    """Carry a request out; what the kernel refuses is an error of ours that names the step."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        call()
    except NetlinkError as error:
        if error.code not in allowed:
            raise KernelError(step, error.code) from error
