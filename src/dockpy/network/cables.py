"""Cables: what connects a container's namespace with a bridge, laid by one native conversation.

Facts (net/bridge/br_netfilter_hooks.c, br_forward.c): where bridged frames meet the rules for
packets (`bridge-nf-call-iptables`, as Docker has it), the frame of a container that asks for the
host's address and its own published port gets its new destination on the bridge already, and goes
on from there to the cable it came from. A bridge sends nothing back that way unless the link is
in hairpin mode. Elsewhere the packet goes through the host, and needs none.

A bridge learns from each frame where its sender is. Here it is told instead, once: a container that
sends with the hardware address of another does not get what is for that one, and no rule must look
at that for each packet. The entry needs the number of the cable's end, so that is chosen here.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import secrets
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dockpy._netlink import try_cable, try_forget_neighbours, try_remove_link
from dockpy.errors import KernelError
from dockpy.network.forwarding import bridged_through_rules
from dockpy.network.values import Endpoint

STEPS = (
    "make the cable",
    "set up the cable's end on the bridge",
    "tell the bridge who is there",
    "turn the cable on",
    "note the address",
    "note the IPv6 address",
)
KEPT = 2
"""Sockets that wait for the next conversation."""
PREFIX = "dv"
"""How the host ends of cables begin."""
NUMBERS = range(1 << 24, 1 << 30)
"""Where their numbers begin: far from those the kernel gives, which count from 1."""
TRIES = 8
"""How many ranges of numbers are tried until one is free."""


def cable_name() -> str:
    """A name for a cable's host end that nothing else has; 12 of the 15 bytes a link may have."""
    return f"{PREFIX}{secrets.token_hex(5)}"


def numbers() -> Iterator[int]:
    """Numbers for host ends, one after the other: the kernel's tree of them stays small so."""
    return itertools.count(secrets.choice(NUMBERS))


class Layer:
    """Lays cables on the bridges of the network namespace its callers are in. Thread-safe."""

    def __init__(self) -> None:
        self._sockets: deque[socket.socket] = deque()
        self._lock = threading.Lock()
        self._numbers = numbers()
        self._sockets.extend(self._socket() for _ in range(KEPT))

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def lay(
        self,
        endpoint: Endpoint,
        namespace: int,
        master: int,
        gateway_hardware: bytes,
        *,
        default_route: bool,
        mtu: int = 0,
        route_mtu: int = 0,
    ) -> None:
        """Connect a namespace (a descriptor) with the bridge of number `master`.

        `mtu` is the largest packet of the cable and `route_mtu` of the default route, in bytes.
        On an error nothing is left of the cable. KernelError names the step.
        """
        name = endpoint.cable.encode()
        with self._conversation() as host:
            for _ in range(TRIES):
                failed, err = try_cable(
                    host.fileno(),
                    namespace,
                    name,
                    next(self._numbers),
                    master,
                    endpoint.index,
                    endpoint.inside.encode(),
                    bytes.fromhex(endpoint.hardware.replace(":", "")),
                    gateway_hardware,
                    addresses_of(endpoint),
                    default_route,
                    mtu,
                    route_mtu,
                    bridged_through_rules(),
                )
                if not err:
                    return
                if (failed, err) != (1, errno.EEXIST):
                    break
                self._numbers = numbers()  # somebody else's link is among them
            if failed != 1:
                try_remove_link(host.fileno(), name)
            raise KernelError(step_name(failed), err, endpoint.cable)

    def forget(self, endpoint: Endpoint, master: int) -> None:
        """Forget the neighbour entries of a cable that goes with its namespace."""
        with self._conversation() as host:
            try_forget_neighbours(
                host.fileno(), master, [address for address, _, _ in addresses_of(endpoint)]
            )

    def cut(self, endpoint: Endpoint) -> None:
        """Remove a cable whose namespace goes on. Takes 17 ms. KernelError; none is no error."""
        with self._conversation() as host:
            err = try_remove_link(host.fileno(), endpoint.cable.encode())
        if err not in (0, errno.ENODEV):
            raise KernelError("remove the cable", err, endpoint.cable)

    @contextmanager
    def _conversation(self) -> Iterator[socket.socket]:
        """A socket that nobody else uses meanwhile; after an error it is not used again."""
        try:
            with self._lock:
                one = self._sockets.popleft()
        except IndexError:
            one = self._socket()
        try:
            yield one
        except BaseException:
            one.close()
            raise
        with self._lock:
            if len(self._sockets) < KEPT:
                self._sockets.append(one)
                return
        one.close()

    def _socket(self) -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def addresses_of(endpoint: Endpoint) -> list[tuple[bytes, int, bytes]]:
    """(address, prefix length, gateway) of each version, as on the wire."""
    wanted: Sequence[tuple[str, int, str]] = (
        (endpoint.address, endpoint.prefix, endpoint.gateway),
        (endpoint.address6, endpoint.prefix6, endpoint.gateway6),
    )
    return [
        (ipaddress.ip_address(address).packed, prefix, ipaddress.ip_address(gateway).packed)
        for address, prefix, gateway in wanted
        if address
    ]


def step_name(number: int) -> str:
    """What message `number` of a conversation was for."""
    if number > 10:
        return "set up the network inside the container"
    return STEPS[min(max(number, 1), len(STEPS)) - 1]
