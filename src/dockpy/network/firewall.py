"""The engine's firewall: what containers may send, who may reach them, which ports are published.

Everything is refused before it is allowed: a network's rules are there before its bridge, a
container's entries before its cable, and a port before anybody is told of it. A rule that cannot
be installed is an error for the one who asked, so that the start fails.

    firewall = Firewall("dockpy")
    firewall.open()                        at the engine's start
    firewall.attach(Bridge("dockpy0", "172.30.0.0/16"))        then make the bridge
    firewall.accept_loopback("dockpy0")                        then this
    firewall.allow(cable := Cable("veth1", "02:42:ac:1e:00:02", "172.30.0.2"))
    firewall.publish("172.30.0.2", ports, owner)
    firewall.settle()                      once all that survived was allowed and published again
    firewall.withdraw(owner); firewall.forget(cable)

The tables outlive the engine: a killed daemon's published ports go on, and the next one adopts
them. One thread waits for changes somebody else makes and puts back what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dockpy.errors import Conflict, KernelError
from dockpy.network import conntrack, entries, forwarding, obstacles, rules
from dockpy.network.bridges import inner_bridges
from dockpy.network.entries import Bridge, Cable, Entry
from dockpy.network.foreign import Room
from dockpy.network.loopback import accept_loopback6
from dockpy.network.nfnetlink import Monitor, Netfilter, News
from dockpy.network.nft import Family
from dockpy.network.ports import Published
from dockpy.network.tables import UNGUARDED, Tables

log = logging.getLogger(__name__)
SWEEP_DELAY = 1.0
"""Seconds for which ended containers are gathered before their connections are forgotten."""
RETRY = 2.0
"""Seconds until tables that could not be put back are tried again."""
PAUSE = 0.02
"""Seconds between two comparisons: others may change their tables without end."""


class NoFirewall(KernelError):
    """The kernel's nftables cannot be used; containers with a network cannot start."""

    def __str__(self) -> str:
        return (
            f"no firewall: {super().__str__()}; containers need nftables in the kernel "
            "(nf_tables, nft_nat, nft_fib_inet, nft_masq, nf_conntrack), or --network none or host"
        )


@dataclass(frozen=True, slots=True)
class _Publication:
    entries: tuple[Entry, ...]
    ports: tuple[Published, ...]
    addresses: tuple[str, ...]


class Firewall:
    """One engine's tables, in the network namespace of the thread that opens it. Thread-safe."""

    def __init__(self, name: str = "dockpy", *, settings: Path = forwarding.SETTINGS) -> None:
        """`name`: of both tables; each engine has its own."""
        self.name = name
        self._settings = settings
        self._lock = threading.RLock()
        self._netfilter: Netfilter | None = None
        self._tables: Tables | None = None
        self._room: Room | None = None
        self._monitor: Monitor | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._loopback6 = False
        self._obstacles: set[str] = set()
        self._publications: dict[str, _Publication] = {}
        self._ended: set[bytes] = set()
        self._sweep_at = 0.0
        self.restored = 0
        """How often the tables were put back after somebody changed them."""

    # -- life ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the tables in one transaction, keeping what an engine before this one had in them.

        Opening an open one does nothing. Turns IPv4 routing on where it is off; interfaces
        that were there then are fenced, so the host routes for containers and for nobody else.
        Raises NoFirewall where the kernel cannot; KernelError for a setting that is refused.
        """
        with self._lock:
            if self._netfilter is not None:
                return
            top = self._settings
            self._loopback6 = forwarding.has_ipv6(top) and not forwarding.bridged_through_rules(
                top, ipv6=True
            )
            try:
                self._netfilter = Netfilter()
                self._tables = Tables(self._netfilter, self.name, loopback6=self._loopback6)
                self._tables.adopt()
                self._tables.claim(rules.fenced(one) for one in rules.PROTOCOLS)
                self._tables.install()
                self._room = Room(self._netfilter, self.name)
                if not forwarding.routes4(top):
                    self._fence(rules.V4)
                    forwarding.start_routing4(top)
                self._monitor = Monitor(self._netfilter.port)
            except KernelError as error:
                self._let_go()
                raise NoFirewall(error.step, error.errno or errno.EIO) from error
            self._closing = False
            self._thread = threading.Thread(target=self._watch, name="firewall", daemon=True)
            self._thread.start()

    def obstacles(self) -> list[str]:
        """What firewalls of others keep from containers, and what ours cannot do: a line each, with
        what to do about it.

        Asks the kernel anew, and iptables-legacy where it has tables, which may block for seconds.
        """
        with self._lock:
            if self._room is None or not (ours := self._bridges()):
                return []
            found = [] if Family.BRIDGE in self._open_tables().families else [UNGUARDED]
            found += self._room.obstacles(ours)
        return [*found, *obstacles.legacy(ours)]

    def close(self, *, remove: bool = False) -> None:
        """End the watch; `remove`: take the tables away too. Running containers need them."""
        with self._lock:
            self._closing = True
            monitor, thread = self._monitor, self._thread
        if monitor is not None:
            monitor.wake()
        if thread is not None:
            thread.join()
        with self._lock:
            if remove and self._tables is not None:
                if self._room is not None:
                    self._room.remove()
                self._tables.remove_all()
            self._let_go()

    def check(self) -> bool:
        """Whether the tables in the kernel are exactly as they are wanted."""
        with self._lock:
            return self._open_tables().intact()

    def restore(self) -> bool:
        """Put the tables back if somebody changed them; whether that was needed.

        Also our rules in other firewalls, which may have come after us.
        """
        with self._lock:
            tables = self._open_tables()
            self._make_room()
            if tables.intact():
                return False
            log.warning("the firewall's tables were changed by somebody: putting them back")
            tables.install()
            self.restored += 1
            return True

    def settle(self) -> int:
        """Take away what an engine before this one left and nothing running claimed."""
        with self._lock:
            return self._open_tables().settle()

    # -- networks ------------------------------------------------------------------------------

    def attach(self, bridge: Bridge) -> None:
        """Guard a bridge, best before it is made. Repeating it does nothing."""
        with self._lock:
            tables = self._open_tables()
            tables.add(entries.of_bridge(bridge), f"guard the bridge {bridge.name}")
            for protocol in rules.PROTOCOLS:  # one that was there before routing was turned on
                tables.remove(entries.of_fence(protocol, [bridge.name]))
            self._make_room()
            if bridge.subnet6 and not forwarding.routes6(self._settings):
                self._fence(rules.V6)
                forwarding.start_routing6(self._settings)

    def accept_loopback(self, bridge: str) -> None:
        """Let this host's loopback clients reach what is published; the bridge must be there."""
        forwarding.accept_loopback(bridge, self._settings)
        if self._loopback6 and forwarding.has_ipv6(self._settings, bridge):
            accept_loopback6(bridge)

    def detach(self, bridge: Bridge) -> None:
        """Forget a bridge that is no more."""
        with self._lock:
            self._open_tables().remove(entries.of_bridge(bridge))
            with contextlib.suppress(KernelError):
                self._make_room()

    def let_talk(self, first: str, second: str) -> None:
        """Containers behind two bridges of one network reach each other."""
        with self._lock:
            self._open_tables().add(
                entries.of_pair(first, second), f"connect the bridges {first} and {second}"
            )

    def keep_apart(self, first: str, second: str) -> None:
        """Take that back."""
        with self._lock:
            self._open_tables().remove(entries.of_pair(first, second))

    @property
    def loopback6(self) -> bool:
        """Whether [::1] can be published: not where bridged frames go through ip6tables."""
        return self._loopback6

    # -- containers ----------------------------------------------------------------------------

    def allow(self, *cables: Cable) -> None:
        """From now on those cables may carry their addresses and no others: one transaction."""
        with self._lock:
            for one in cables:
                self._ended.difference_update(map(entries.packed, one.addresses))
            wanted = [entry for one in cables for entry in entries.of_cable(one)]
            names = ", ".join(one.interface for one in cables)
            self._open_tables().add(wanted, f"guard the cable {names}")

    def forget(self, *cables: Cable) -> None:
        """Take that back, once the cables are gone. Connections of the addresses are forgotten
        soon after."""
        with self._lock:
            gone = [entry for one in cables for entry in entries.of_cable(one)]
            self._open_tables().remove(gone)
            if not self._ended and self._monitor is not None:
                self._sweep_at = time.monotonic() + SWEEP_DELAY
                self._monitor.wake()
            for one in cables:
                self._ended.update(map(entries.packed, one.addresses))

    def publish(
        self, address: str, mappings: Sequence[Published], owner: str, address6: str = ""
    ) -> None:
        """Let the host ports lead to the container, all or none, with one transaction.

        Conflict when one leads elsewhere, or when none of the container's addresses is of its
        version; KernelError when the kernel refuses.
        """
        addresses = _addresses(address, address6)
        for one in mappings:
            self._publishable(one, addresses)
        wanted = tuple(entries.of_ports(mappings, addresses))
        with self._lock:
            tables = self._open_tables()
            step = "publish " + ", ".join(
                f"port {one.host_port}/{one.protocol}" for one in mappings
            )
            tables.add(wanted, step)
            before = self._publications.get(owner)
            kept = tuple(mappings) + (before.ports if before else ())
            self._publications[owner] = _Publication(
                wanted + (before.entries if before else ()), kept, addresses
            )
        self._forget_flows(mappings, addresses)

    def withdraw(self, owner: str) -> tuple[Published, ...]:
        """Let the owner's host ports lead nowhere; gives what they were."""
        with self._lock:
            found = self._publications.pop(owner, None)
            if found is None:
                return ()
            self._open_tables().remove(found.entries)
        self._forget_flows(found.ports, found.addresses)
        return found.ports

    # -- inside --------------------------------------------------------------------------------

    def _open_tables(self) -> Tables:
        if self._tables is None:
            raise NoFirewall("use the firewall before it is open", errno.ENOTCONN)
        return self._tables

    def _bridges(self) -> set[str]:
        """Names of the engine's bridges."""
        return self._names(rules.BRIDGES)

    def _names(self, where: str) -> set[str]:
        """Interfaces in a set of interfaces."""
        return {
            entry.element.key.rstrip(b"\0").decode()
            for entry in self._open_tables().entries()
            if entry.name == where
        }

    def _make_room(self) -> None:
        """Our rules where others drop by default; what such a default kept stays kept."""
        if self._room is None:
            return
        ours, tables = self._bridges(), self._open_tables()
        named = self._room.kept(one for one in forwarding.interfaces() if one not in ours)
        others = inner_bridges(named) if named and ours else set()
        gone = self._names(rules.OTHERS) - others
        tables.remove(entries.of_others(gone))
        tables.add(entries.of_others(sorted(others)), "keep other engines' bridges apart")
        self._room.make(ours)
        found = set(self._room.obstacles(ours)) if ours else set()
        for one in sorted(found - self._obstacles):
            log.warning("%s", one)
        self._obstacles = found

    def _let_go(self) -> None:
        for one in (self._monitor, self._netfilter):
            if one is not None:
                one.close()
        self._netfilter = self._tables = self._room = self._monitor = self._thread = None
        self._publications.clear()

    def _fence(self, protocol: rules.Protocol) -> None:
        """Before routing is turned on: what the host did not route it will not route."""
        tables = self._open_tables()
        bridges = self._bridges()
        names = [name for name in forwarding.interfaces() if name not in bridges]
        tables.add(entries.of_fence(protocol, names), "fence the host's interfaces")

    def _publishable(self, one: Published, addresses: Sequence[str]) -> None:
        version = 6 if ":" in one.address else 4
        if one.address and not any((":" in address) == (version == 6) for address in addresses):
            raise Conflict(
                f"{one.address} cannot lead to this container: it has no IPv{version} address; "
                "give it a network with one (network create --ipv6, daemon --fixed-cidr-v6)"
            )
        if one.address == "::1" and not self._loopback6:
            raise Conflict(
                "[::1] cannot be published while bridged frames pass through ip6tables; "
                "set net.bridge.bridge-nf-call-ip6tables to 0 and start the engine again, "
                "or publish on 127.0.0.1"
            )

    def _forget_flows(self, ports: Iterable[Published], addresses: Sequence[str]) -> None:
        """UDP flows that lead where the ports led before. A flow that cannot be forgotten ends
        by itself, so that is no reason to fail."""
        for one in ports:
            if one.protocol != "udp" or self._netfilter is None:
                continue
            for address in addresses:
                family = Family.IPV6 if ":" in address else Family.IPV4
                try:
                    conntrack.forget_udp(
                        self._netfilter, family, one.host_port, entries.packed(address)
                    )
                except KernelError as error:
                    log.warning("flows to port %d/udp are not forgotten: %s", one.host_port, error)

    def _watch(self) -> None:
        """Put back what somebody changed; forget the connections of ended containers."""
        monitor = self._monitor
        assert monitor is not None
        failed = False
        while True:
            news = monitor.wait(RETRY if failed else self._sweep_in())
            if self._closing:
                return
            if News.CHANGED in news or failed:
                failed = not self._try_to_restore()
                time.sleep(PAUSE)
            if self._sweep_in() == 0:
                self._sweep()

    def _sweep_in(self) -> float | None:
        """Seconds until ended containers' connections are due; None: there are none."""
        with self._lock:
            if not self._ended:
                return None
            return max(0.0, self._sweep_at - time.monotonic())

    def _try_to_restore(self) -> bool:
        try:
            self.restore()
        except KernelError as error:
            log.error("the firewall's tables cannot be put back: %s", error)  # noqa: TRY400
            return False
        return True

    def _sweep(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, set()
            netfilter = self._netfilter
        for family, length in ((Family.IPV4, 4), (Family.IPV6, 16)):
            gone = {address for address in ended if len(address) == length}
            if gone and netfilter is not None:
                try:
                    conntrack.forget_addresses(netfilter, family, gone)
                except KernelError as error:
                    log.warning("connections of ended containers are not forgotten: %s", error)


def _addresses(*given: str) -> tuple[str, ...]:
    return tuple(filter(None, given))
