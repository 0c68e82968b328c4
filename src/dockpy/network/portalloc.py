"""Which host port belongs to which container.

The kernel decides whether a port is free (see `hostports`), this table decides among the
engine's own containers and knows their names. All ports of a container are given or none.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from dockpy.errors import Conflict, KernelError
from dockpy.network.hostports import hold, user_of
from dockpy.network.ports import ANY, HIGHEST, Binding, Published

log = logging.getLogger(__name__)
TRIES = 64
"""Free ports of the kernel's choice that may turn out taken on another address."""


class PortInUse(Conflict):
    """Somebody has the host port; the text says who."""

    def __init__(self, port: int, protocol: str, address: str, owner: str) -> None:
        self.port = port
        self.protocol = protocol
        self.address = address
        self.owner = owner
        where = f" on {address}" if address else ""
        who = f"in use by {owner}" if owner else "in use by another program"
        super().__init__(f"port {port}/{protocol}{where} is {who}; choose another or end that")


@dataclass
class Holding:
    """What one container has."""

    name: str
    published: list[Published] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        self.sockets.clear()


class PortAllocator:
    """The host ports of one engine. Thread-safe. A port costs one descriptor for each version of
    IP, in the network namespace of the thread that reserves it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holdings: dict[str, Holding] = {}
        self._taken: dict[tuple[str, int], list[tuple[str, str]]] = {}

    def reserve(
        self, owner: str, wanted: Sequence[Binding], *, name: str = "", ipv6: bool = False
    ) -> tuple[Published, ...]:
        """Host ports for all bindings, kept until `release(owner)`.

        `name` is what others are told when they ask for the same port; `ipv6`: the container has
        an address of it, so what is published on every address is on those of IPv6 too. Raises
        PortInUse, or Conflict for an address this host has not got; nothing is kept then.
        """
        made = Holding(name or owner)
        with self._lock:
            held = self._holdings.get(owner)
            if held is not None:
                raise Conflict(f"{held.name} has its ports already; release them first")
            self._holdings[owner] = made
            given: dict[int, Published] = {}
            try:
                for number in sorted(range(len(wanted)), key=lambda n: _choice(wanted[n])):
                    given[number] = self._reserve(made, wanted[number], ipv6)
                    self._note(owner, given[number])
                    made.published.append(given[number])
            except BaseException:
                self._release(owner)
                raise
        return tuple(given[number] for number in range(len(wanted)))

    def adopt(
        self, owner: str, published: Sequence[Published], *, name: str = "", ipv6: bool = False
    ) -> None:
        """Take back what a container has from an engine before this one.

        The container keeps a port even when a program took it meanwhile: the rule is there and
        comes first. That is logged.
        """
        made = Holding(name or owner)
        with self._lock:
            self._release(owner)
            self._holdings[owner] = made
            for one in published:
                self._note(owner, one)
                made.published.append(one)
                for address in _addresses(one.address, ipv6):
                    try:
                        self._hold(made, one.protocol, address, one.host_port)
                    except OSError as error:
                        log.warning(
                            "%s keeps port %d/%s, but it cannot be held: %s",
                            made.name,
                            one.host_port,
                            one.protocol,
                            error.strerror,
                        )

    def release(self, owner: str) -> tuple[Published, ...]:
        """Give up what the container has; gives what it was. Nothing happens for an unknown one."""
        with self._lock:
            return self._release(owner)

    def owned_by(self, owner: str) -> tuple[Published, ...]:
        with self._lock:
            found = self._holdings.get(owner)
            return tuple(found.published) if found else ()

    def close(self) -> None:
        """Let go of every socket; the rules of running containers are not touched."""
        with self._lock:
            for owner in list(self._holdings):
                self._release(owner)

    # -- with the lock held --------------------------------------------------------------------

    def _reserve(self, made: Holding, one: Binding, ipv6: bool) -> Published:
        if one.first == 0:
            return self._reserve_any(made, one, ipv6)
        refused: Conflict | None = None
        for port in range(one.first, max(one.first, one.last) + 1):
            try:
                return self._reserve_port(made, one, port, ipv6)
            except PortInUse as error:
                refused = refused or error
        assert refused is not None
        if one.last > one.first:
            raise Conflict(
                f"no port from {one.first} to {one.last}/{one.protocol} is free: {refused}"
            ) from refused
        raise refused

    def _reserve_any(self, made: Holding, one: Binding, ipv6: bool) -> Published:
        for _ in range(TRIES):
            first = _addresses(one.address, ipv6)[0]
            try:
                found = hold(one.protocol, first, 0)
            except OSError as error:
                raise self._refusal(one, 0, first, error) from error
            if found is None:
                # No sockets of that protocol here: any number that is not ours will do.
                port = self._unused(one)
            else:
                port = found.getsockname()[1]
                found.close()
            try:
                return self._reserve_port(made, one, port, ipv6)
            except PortInUse:
                continue
        raise Conflict(f"no host port is free for {one.key}")

    def _reserve_port(self, made: Holding, one: Binding, port: int, ipv6: bool) -> Published:
        for address, other in self._taken.get((one.protocol, port), ()):
            if _collide(address, one.address):
                raise PortInUse(port, one.protocol, one.address, self._told(other, made))
        kept = len(made.sockets)
        for address in _addresses(one.address, ipv6):
            try:
                self._hold(made, one.protocol, address, port)
            except OSError as error:
                for extra in made.sockets[kept:]:
                    extra.close()
                del made.sockets[kept:]
                raise self._refusal(one, port, address, error) from error
        return Published(one.port, one.protocol, one.address, port)

    def _hold(self, made: Holding, protocol: str, address: str, port: int) -> None:
        found = hold(protocol, address, port)
        if found is not None:
            made.sockets.append(found)

    def _refusal(self, one: Binding, port: int, address: str, error: OSError) -> Exception:
        if error.errno == errno.EADDRINUSE:
            return PortInUse(port, one.protocol, one.address, user_of(one.protocol, address, port))
        if error.errno == errno.EADDRNOTAVAIL:
            return Conflict(f"{address} is not an address of this host; nothing can be published")
        return KernelError(f"hold port {port}/{one.protocol}", error.errno or errno.EIO, address)

    def _told(self, owner: str, made: Holding) -> str:
        found = self._holdings.get(owner)
        if found is made:
            return "this container itself, for another of its ports"
        return f"container {found.name}" if found else ""

    def _note(self, owner: str, one: Published) -> None:
        self._taken.setdefault((one.protocol, one.host_port), []).append((one.address, owner))

    def _release(self, owner: str) -> tuple[Published, ...]:
        found = self._holdings.pop(owner, None)
        if found is None:
            return ()
        found.close()
        for one in found.published:
            key = (one.protocol, one.host_port)
            left = [entry for entry in self._taken.get(key, ()) if entry[1] != owner]
            if left:
                self._taken[key] = left
            else:
                self._taken.pop(key, None)
        return tuple(found.published)

    def _unused(self, one: Binding) -> int:
        for port in range(49152, 65536):
            if (one.protocol, port) not in self._taken:
                return port
        raise Conflict(f"no host port is free for {one.key}")


def _choice(one: Binding) -> int:
    """How much choice a binding leaves; those with none come first, or others take their port."""
    return HIGHEST if one.first == 0 else one.last - one.first


def _addresses(address: str, ipv6: bool) -> tuple[str, ...]:
    """The addresses to bind."""
    if address:
        return (address,)
    return ("0.0.0.0", "::") if ipv6 else ("0.0.0.0",)


def _collide(one: str, other: str) -> bool:
    """Whether two host addresses stand for a common one."""
    if one == other or "" in (one, other):
        return True
    if (":" in one) != (":" in other):
        return False
    return one in ANY or other in ANY
