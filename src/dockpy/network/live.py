"""A network whose bridges are there: hands out addresses and builds the places of containers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from dockpy.errors import Conflict, UsageError
from dockpy.network.addresses import (
    SEGMENT_PREFIX,
    IPAllocator,
    PoolExhausted,
    Segment,
    hardware_address,
)
from dockpy.network.bridges import BridgeLink
from dockpy.network.cables import cable_name
from dockpy.network.values import Endpoint, Network, Wish


class LiveNetwork:
    """Thread-safe. `open_segment` makes a segment's bridge."""

    def __init__(self, network: Network, open_segment: Callable[[Segment], BridgeLink]) -> None:
        self.network = network
        self._open_segment = open_segment
        self._rest = network.segments()
        self._open: list[tuple[IPAllocator, BridgeLink]] = []
        self._lock = threading.Lock()
        self._of_bridge: dict[str, tuple[IPAllocator, BridgeLink]] = {}
        self.grow()

    @property
    def open_segments(self) -> list[Segment]:
        """Those that have a bridge."""
        return [allocator.segment for allocator, _ in self._open]

    @property
    def used(self) -> int:
        """Addresses that containers have, those laid ahead included."""
        return sum(allocator.used for allocator, _ in self._open)

    @property
    def capacity(self) -> int:
        """Addresses it has for containers in all."""
        subnet = IPv4Network(self.network.subnet)
        bridges = max(1, subnet.num_addresses >> (32 - SEGMENT_PREFIX))
        return subnet.num_addresses - 3 * bridges

    def grow(self, beyond: int = -1) -> bool:
        """Open one more segment; False when the range has no more.

        `beyond`: unless more than so many are open meanwhile: starts may find all full at once.
        """
        with self._lock:
            if 0 <= beyond < len(self._open):
                return True
            segment = next(self._rest, None)
            if segment is None:
                return False
            entry = IPAllocator(segment), self._open_segment(segment)
            self._open.append(entry)
            self._of_bridge[segment.bridge] = entry
        return True

    def place(self, wish: Wish, inside: str, index: int) -> Endpoint:
        """An address and all that goes with it. PoolExhausted; Conflict or UsageError for a wish
        that cannot be."""
        if wish.address:
            allocator, address = self._wanted(wish.address)
        else:
            allocator, address = self._any()
        return self._endpoint(allocator.segment, address, wish, inside, index)

    def adopt(self, endpoint: Endpoint) -> None:
        """Take the address of a container that runs already."""
        address = IPv4Address(endpoint.address)
        while endpoint.bridge not in self._of_bridge and self.grow():
            pass
        entry = self._of_bridge.get(endpoint.bridge)
        if entry is None or not entry[0].take(address):
            raise Conflict(
                f"network {self.network.name}: {endpoint.address} of a running container is not "
                "to be had; remove and create that container"
            )

    def release(self, endpoint: Endpoint) -> None:
        """Give the address back."""
        entry = self._of_bridge.get(endpoint.bridge)
        if entry is not None:
            entry[0].release(IPv4Address(endpoint.address))

    def link(self, endpoint: Endpoint) -> BridgeLink:
        """Its bridge."""
        return self._of_bridge[endpoint.bridge][1]

    def gateway_hardware(self, endpoint: Endpoint) -> bytes:
        return self._of_bridge[endpoint.bridge][0].segment.hardware

    def _any(self) -> tuple[IPAllocator, IPv4Address]:
        tried = 0
        while True:
            for allocator, _ in self._open[tried:]:
                address = allocator.allocate()
                if address is not None:
                    return allocator, address
            tried = len(self._open)
            if not self.grow(tried):
                raise PoolExhausted(self.network.name, self.network.subnet)

    def _wanted(self, text: str) -> tuple[IPAllocator, IPv4Address]:
        try:
            address = IPv4Address(text)
        except ValueError as error:
            raise UsageError(f"{text!r} is not an IPv4 address") from error
        while True:
            for allocator, _ in self._open:
                if address in allocator.segment.subnet:
                    if allocator.take(address):
                        return allocator, address
                    raise Conflict(f"network {self.network.name}: {address} is in use or reserved")
            if address not in IPv4Network(self.network.subnet) or not self.grow():
                raise Conflict(
                    f"network {self.network.name}: {address} is not in {self.network.subnet}"
                )

    def _endpoint(
        self, segment: Segment, address: IPv4Address, wish: Wish, inside: str, index: int
    ) -> Endpoint:
        six = segment.address6(address)
        hardware = wish.hardware or ":".join(f"{byte:02x}" for byte in hardware_address(address))
        return Endpoint(
            network=self.network.id,
            network_name=self.network.name,
            bridge=segment.bridge,
            cable=cable_name(),
            inside=inside,
            index=index,
            address=str(address),
            prefix=segment.subnet.prefixlen,
            gateway=str(segment.gateway),
            hardware=hardware,
            address6="" if six is None else str(six),
            prefix6=0 if segment.subnet6 is None else segment.subnet6.prefixlen,
            gateway6="" if segment.gateway6 is None else str(segment.gateway6),
            aliases=wish.aliases,
        )
