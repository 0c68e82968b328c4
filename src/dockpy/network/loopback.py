"""A route that lets answers to ::1 come in over a bridge; IPv6 has no route_localnet.

The kernel takes packets to ::1 from an interface only when a local route for it names that
interface (net/ipv6/route.c: loopback destinations are looked up strictly). Packets that arrive
with ::1 at either end are dropped before any rule (ip6_rcv_core), so the route opens nothing:
only what the rules translate back gets that far.
"""

from __future__ import annotations

import errno
import socket
import struct

from dockpy.errors import KernelError

RTM_NEWROUTE, REQUEST_ACK_CREATE = 24, 0x1 | 0x4 | 0x400
RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL = 255, 4, 254, 2
RTA_DST, RTA_OIF, RTA_PRIORITY = 1, 4, 6
METRIC = 4096
"""Behind the loopback interface's own route, which has 0."""


def accept_loopback6(bridge: str) -> None:
    """Add the route for the bridge, which must be there. The route goes with the bridge.

    KernelError when it is refused; a route that is there already is none.
    """
    step = f"route ::1 back from {bridge}"
    try:
        index = socket.if_nametoindex(bridge)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as made:
            made.send(route_message(index))
            answer = made.recv(1 << 12)
    except OSError as error:
        raise KernelError(step, error.errno or errno.EIO, bridge) from error
    (code,) = struct.unpack_from("=i", answer, 16)
    if -code not in (0, errno.EEXIST):
        raise KernelError(step, -code, bridge)


def route_message(index: int) -> bytes:
    """The request for interface number `index` (rtnetlink(7))."""
    route = struct.pack(
        "=BBBBBBBBI",
        *(socket.AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0),
    )
    route += struct.pack("=HH16s", 20, RTA_DST, bytes(15) + b"\1")
    route += struct.pack("=HHI", 8, RTA_OIF, index) + struct.pack("=HHI", 8, RTA_PRIORITY, METRIC)
    return struct.pack("=IHHII", 16 + len(route), RTM_NEWROUTE, REQUEST_ACK_CREATE, 1, 0) + route
