"""Network namespaces that come back: those through which nothing went serve the next container.

To make a namespace with its cable and to take both apart costs 2 to 2.5 ms of processor time, a
fifth of a start; many programs that run for a moment never use it. One that no packet entered or
left is as it was made, for nothing else that an unprivileged program does there outlasts it:
its sockets end with it, and settings, addresses and routes are not its to change.

A loan is what the engine keeps of a running container's namespace to find that out: a descriptor,
and the sysfs that shows the links' counters. The child gets a clone of that mount, which was never
attached anywhere: possible since Linux 6.15 (open_tree(2)), before that nothing comes back.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass

from dockpy._look import read_small
from dockpy.errors import KernelError
from dockpy.mounts import clone_tree
from dockpy.namespaces import drop_network
from dockpy.network.values import Endpoint
from dockpy.spawn import Network as Namespace

MOST = 64
"""Loans at once; the oldest is forgotten for a new one, since who runs for long seldom comes back
unused."""
STATISTICS = "devices/virtual/net/{}/statistics/"
LOOPBACK = (f"{STATISTICS.format('lo')}tx_packets".encode(),)
CABLE = ("rx_packets", "tx_packets", "tx_dropped")
"""What arrived, left, or was to leave. What leaves `lo` arrives there."""
DIGITS = 32
"""Bytes of a counter's file, at most."""

Traffic = list[bytes | int]
"""Counters, as texts; errno of one that cannot be read."""


@dataclass(frozen=True, slots=True)
class Loan:
    """A namespace and, if it has a cable, its place in the default network."""

    namespace: Namespace
    endpoint: Endpoint | None
    seen: Traffic

    @property
    def unused(self) -> bool:
        """Whether nothing went through it since it was lent. Asked when its processes are gone."""
        sysfs = self.namespace.sysfs
        return sysfs is not None and traffic(sysfs, self.endpoint) == self.seen


class Lending:
    """Loans of one engine, by container. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loans: dict[str, Loan] = {}
        self._clones = True
        """Whether this kernel clones a mount that is nowhere attached, as far as is known."""

    def lend(
        self, container: str, namespace: Namespace, endpoint: Endpoint | None = None
    ) -> Namespace | None:
        """What a start gets of a namespace, the caller's to close; the namespace itself is kept.

        None: it cannot come back and stays the caller's. KernelError: likewise.
        """
        if namespace.sysfs is None or not self._clones:
            return None
        seen = traffic(namespace.sysfs, endpoint)
        if any(isinstance(one, int) for one in seen):
            return None
        try:
            sysfs = clone_tree(namespace.sysfs, recursive=False)
        except KernelError as refusal:
            if refusal.errno != errno.EINVAL:
                raise
            self._clones = False
            return None
        theirs = Namespace(os.dup(namespace.namespace), sysfs)
        with self._lock:
            self._loans[container] = Loan(namespace, endpoint, seen)
            oldest = next(iter(self._loans)) if len(self._loans) > MOST else None
        if oldest is not None:
            self.forget(oldest)
        return theirs

    def back(self, container: str) -> Loan | None:
        """What was lent to a container, the caller's from now on; None: nothing, or no more."""
        with self._lock:
            return self._loans.pop(container, None)

    def forget(self, container: str) -> None:
        """It does not come back: the namespace ends with the container's processes."""
        loan = self.back(container)
        if loan is not None:
            drop_network(loan.namespace)

    def close(self) -> None:
        """Forget all; containers that run keep what they have."""
        for container in list(self._loans):
            self.forget(container)


def traffic(sysfs: int, endpoint: Endpoint | None) -> Traffic:
    """The counters of the links in a sysfs (a descriptor): the loopback's and the cable's.

    Source: Documentation/ABI/testing/sysfs-class-net-statistics.
    """
    paths = [*LOOPBACK]
    if endpoint is not None:
        statistics = STATISTICS.format(endpoint.inside)
        paths += [f"{statistics}{counter}".encode() for counter in CABLE]
    return read_small(sysfs, paths, DIGITS)
