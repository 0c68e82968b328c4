"""The engine's networks: which there are, who is in them, what a start gets of them.

    manager = NetworkManager(root, NetworkSettings(), namespaces, flusher)
    connection = manager.connect(Owner(id, name), wanted)     before a start
    manager.adopt(owner, lease)                               a container of an engine before this
    manager.settle()                                          once all of those are adopted
    manager.disconnect(id)                                    after its end

Nothing of the host is touched before the first container wants a network. The default network's
namespaces are made ahead with their cables, addresses and firewall entries, so such a start pays
for none of it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dockpy import etcfiles
from dockpy.errors import Conflict, DockpyError, KernelError, NotFound
from dockpy.namespaces import NamespacePool, ReadyPool, drop_network
from dockpy.network.addresses import (
    CANDIDATES,
    USER_CANDIDATES,
    Segment,
    choose_range,
    parse_subnet,
)
from dockpy.network.bridges import (
    BridgeLink,
    has_link,
    links_on,
    make_bridge,
    remove_bridge,
    taken_ranges,
)
from dockpy.network.cables import Layer
from dockpy.network.entries import Bridge, Cable
from dockpy.network.firewall import Firewall
from dockpy.network.hostservers import only_the_host_can_ask
from dockpy.network.lending import Lending, Loan
from dockpy.network.live import LiveNetwork
from dockpy.network.naming import Leases
from dockpy.network.portalloc import PortAllocator
from dockpy.network.ports import Binding
from dockpy.network.resolver import Resolver
from dockpy.network.store import NetworkStore
from dockpy.network.values import (
    BRIDGE,
    DEFAULT,
    OUTSIDE_MTU,
    Endpoint,
    Lease,
    Network,
    NetworkSettings,
    Owner,
    Wish,
)
from dockpy.records import Flusher
from dockpy.spawn import Network as Namespace
from dockpy.spawn import make_network

log = logging.getLogger(__name__)
READY = 6
"""Cables of the default network that are laid ahead."""
NEARLY_FULL = 0.9
"""Part of a range that is worth a warning."""
ANYHOW = Wish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a container asks of the network."""

    network: str = BRIDGE
    wish: Wish = ANYHOW
    bindings: tuple[Binding, ...] = ()
    dns: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Connection:
    """What a start gets: a namespace, the caller's to close, and what is in it."""

    namespace: Namespace
    lease: Lease

    def close(self) -> None:
        drop_network(self.namespace)


@dataclass(frozen=True, slots=True)
class _Cabled:
    """A namespace with its cable laid."""

    namespace: Namespace
    endpoint: Endpoint
    alike: bool
    """In the default network without a wish, as all that are laid ahead."""


class NetworkManager:
    """The networks of one engine, in the network namespace of its process. Thread-safe."""

    def __init__(
        self, root: Path, settings: NetworkSettings, namespaces: NamespacePool, flusher: Flusher
    ) -> None:
        self.settings = settings
        self.store = NetworkStore(root, flusher)
        self.ports = PortAllocator()
        self.firewall = Firewall(settings.firewall)
        self._namespaces = namespaces
        self._layer = Layer()
        self._lock = threading.RLock()
        self._live: dict[str, LiveNetwork] = {}
        self._leases = Leases()
        self._lending = Lending()
        self._resolver = Resolver(self._leases, Path(etcfiles.RESOLV))
        self._ready: ReadyPool[_Cabled] = ReadyPool(
            "cables", self._cable_ahead, self._drop_cabled, READY
        )
        self._closed = False

    # -- networks ------------------------------------------------------------------------------

    def all(self) -> list[Network]:
        """Oldest first, the default one among them once it was used."""
        return self.store.all()

    def get(self, reference: str) -> Network:
        """By name, id or unique beginning of an id; NotFound."""
        if reference in (BRIDGE, DEFAULT):
            return self._default()
        return self.store.get(reference)

    def create(
        self,
        name: str,
        *,
        subnet: str = "",
        gateway: str = "",
        subnet6: str = "",
        internal: bool = False,
        masquerade: bool = True,
        mtu: int = 0,
        labels: dict[str, str] | None = None,
    ) -> Network:
        """Make a network; its bridge comes with the first container. Conflict: the range or name
        is taken."""
        with self._lock:
            taken = self._other_ranges()
            if subnet:
                chosen = parse_subnet(subnet)
                clash = next((one for one in taken if one.overlaps(chosen)), None)
                if clash is not None:
                    raise Conflict(
                        f"{chosen} overlaps {clash}, which this host uses; choose another --subnet"
                    )
            else:
                chosen = choose_range(taken, USER_CANDIDATES)
            key = secrets.token_hex(32)
            network = Network(
                id=key,
                name=name,
                bridge=f"{self._bridge_prefix()}{key[:6]}",
                subnet=str(chosen),
                gateway=str(_gateway(gateway, chosen)) if gateway else "",
                subnet6=subnet6,
                internal=internal,
                masquerade=masquerade and not internal,
                mtu=mtu,
                labels=labels or {},
                created=time.time(),
            )
            list(network.segments())  # an IPv6 range that is too small is told now
            self.store.put(network)
        return network

    def remove(self, network: Network) -> None:
        """Remove a network nobody is in. Conflict."""
        with self._lock:
            if network.default:
                raise Conflict(f"network {network.name} is the engine's own and stays")
            inside = self.users(network)
            if inside:
                raise Conflict(
                    f"network {network.name} is in use by {', '.join(inside)}; remove or "
                    "disconnect them first"
                )
            live = self._live.pop(network.id, None)
            self.store.remove(network)
            if live is not None:
                self._take_down(live)

    def users(self, network: Network) -> list[str]:
        """Names of running containers in it."""
        with self._lock:
            return [
                owner.name
                for owner, lease in self._leases.values()
                if any(one.network == network.id for one in lease.endpoints)
            ]

    def members(self, network: Network) -> list[str]:
        """Ids of containers, running or not, that were put in it beside their own."""
        return self.store.members(network)

    def lease(self, container: str) -> Lease | None:
        """What a running container has."""
        found = self._leases.get(container)
        return None if found is None else found[1]

    @property
    def ready(self) -> bool:
        """Whether all that is made ahead is there."""
        return self._ready.full and self._namespaces.full

    def prepare(self) -> None:
        """Make the default network and its first cables now, so that no start waits for them."""
        self._live_network(self._default())
        self._ready.begin()

    # -- containers ----------------------------------------------------------------------------

    def isolate(self, container: str, *, returnable: bool) -> Connection | None:
        """A namespace without a way out; None when none is ready.

        `returnable`: nobody outside can get a grip on it, nor its processes change it.
        """
        namespace = self._namespaces.take()
        if namespace is None:
            return None
        try:
            theirs = self._lending.lend(container, namespace) if returnable else None
        except BaseException:
            drop_network(namespace)
            raise
        return Connection(theirs or namespace, Lease())

    def connect(self, owner: Owner, wanted: Wanted, *, returnable: bool = False) -> Connection:
        """A namespace in the wanted network and those it joined, its ports published.

        `returnable`: see `isolate`. On an error nothing is left. NotFound, PoolExhausted,
        NoFirewall, KernelError.
        """
        network = self.get(wanted.network)
        live = self._live_network(network)
        if wanted.bindings and network.internal:
            raise Conflict(
                f"network {network.name} is internal: no port of it can be published; leave -p out"
            )
        with contextlib.ExitStack() as undo:
            cabled = self._cabled(live, wanted.wish)
            undo.callback(self._drop_cabled, cabled)
            endpoints = [cabled.endpoint]
            for number, (key, wish) in enumerate(self.store.joined(owner.id).items()):
                if key != network.id and (other := self._joined(key)) is not None:
                    extra = self._lay(other, cabled.namespace.namespace, wish, number + 1)
                    undo.callback(self._release, extra)
                    endpoints.append(extra)
            lease = Lease(endpoints=tuple(endpoints), dns=wanted.dns, links=wanted.links)
            lease = self._publish(owner, lease, wanted.bindings)
            theirs = None
            if returnable and cabled.alike and len(endpoints) == 1 and not lease.published:
                theirs = self._lending.lend(owner.id, cabled.namespace, cabled.endpoint)
            with self._lock:
                self._leases[owner.id] = owner, lease
            undo.pop_all()
        return Connection(theirs or cabled.namespace, lease)

    def share(self, other: str, pid: int) -> Connection:
        """The network of another container that runs: process `pid` is in it. Conflict."""
        found = self._leases.get(other)
        lease = replace(found[1] if found else Lease(), shared=other)
        fd = namespace_of(pid, other[:12])
        return Connection(Namespace(fd, None), replace(lease, published=()))

    def adopt(self, owner: Owner, lease: Lease) -> None:
        """Take over what a container has that an engine before this one started."""
        if lease.shared:
            return
        for endpoint in lease.endpoints:
            network = self.store.get(endpoint.network)
            live = self._live_network(network, adopted=True)
            live.adopt(endpoint)
            self.firewall.allow(cable_of(endpoint))
        if lease.published:
            first = lease.endpoints[0]
            ipv6 = bool(first.address6)
            self.ports.adopt(owner.id, lease.published, name=owner.name, ipv6=ipv6)
            self.firewall.publish(first.address, lease.published, owner.id, first.address6)
        with self._lock:
            self._leases[owner.id] = owner, lease

    def settle(self) -> None:
        """Take away what an engine before this one left and no running container has."""
        for network in self.store.all():
            if network.id not in self._live and has_link(network.bridge):
                # Its engine was killed while nothing ran in it.
                with contextlib.suppress(DockpyError):
                    self._live_network(network, adopted=True)
        if self._live:
            self.firewall.settle()

    def reclaim(self, container: str) -> None:
        """Take back what was lent to a container that has just ended, if it went unused.

        Nobody got a grip on it meanwhile, and all processes in it are gone. Takes a few reads of
        small files, so that the next start has it at once; `disconnect` does the rest.
        """
        loan = self._lending.back(container)
        if loan is None:
            return
        if loan.unused and self._take_back(loan):
            with self._lock:
                self._leases.pop(container, None)
        else:
            drop_network(loan.namespace)

    def disconnect(self, container: str) -> None:
        """Give back what a container had, once it has ended. Nothing happens for an unknown one."""
        self._lending.forget(container)
        with self._lock:
            found = self._leases.pop(container, None)
        if found is None:
            return
        _, lease = found
        if lease.published:
            self.firewall.withdraw(container)
            self.ports.release(container)
        for endpoint in lease.endpoints:
            self._release(endpoint)

    def join(self, owner: Owner, network: Network, wish: Wish, pid: int) -> Lease:
        """Put a running container into one more network; its new lease. Conflict."""
        self._lending.forget(owner.id)
        with self._lock:
            found = self._leases.get(owner.id)
            lease = found[1] if found else Lease()
            if lease.shared:
                raise Conflict(f"container {owner.name} uses the network of another container")
            if any(one.network == network.id for one in lease.endpoints):
                raise Conflict(f"container {owner.name} is in network {network.name} already")
        live = self._live_network(network)
        namespace = namespace_of(pid, owner.name)
        try:
            used = {one.index for one in lease.endpoints}
            number = next(n for n in range(len(used) + 1) if n + 2 not in used)
            extra = self._lay(live, namespace, wish, number)
        finally:
            os.close(namespace)
        with self._lock:
            made = replace(lease, endpoints=(*lease.endpoints, extra))
            self._leases[owner.id] = owner, made
        return made

    def part(self, owner: Owner, network: Network) -> Lease:
        """Take a running container out of a network; its new lease. Conflict: it is not in it."""
        self._lending.forget(owner.id)
        with self._lock:
            found = self._leases.get(owner.id)
            lease = found[1] if found else Lease()
            gone = [one for one in lease.endpoints if one.network == network.id]
            if not gone:
                raise Conflict(f"container {owner.name} is not in network {network.name}")
            if lease.published and gone[0] == lease.endpoints[0]:
                raise Conflict(
                    f"container {owner.name} publishes ports through network {network.name}; "
                    "stop it first"
                )
            made = replace(
                lease, endpoints=tuple(one for one in lease.endpoints if one not in gone)
            )
            self._leases[owner.id] = owner, made
        for one in gone:
            self._layer.cut(one)
            self._release(one)
        return made

    def answering(self, lease: Lease) -> tuple[str, ...]:
        """Where the engine answers questions for names in a lease's first network."""
        first = lease.endpoints[0] if lease.endpoints else None
        listening = first is not None and self._resolver.listens(first.network)
        return first.gateways if first is not None and listening else ()

    def warnings(self) -> list[str]:
        """What keeps packets from containers, and ranges that are nearly used up: a line each."""
        with self._lock:
            networks = list(self._live.values())
        found = [
            f"network {live.network.name}: {live.used} of the {live.capacity} addresses of "
            f"{live.network.subnet} are in use; make a network with a larger --subnet"
            for live in networks
            if live.used >= live.capacity * NEARLY_FULL
        ]
        with contextlib.suppress(KernelError):
            found += self.firewall.obstacles()
        return found

    def dying(self) -> int:
        """Cables whose container has ended and that the kernel has not taken away yet."""
        with self._lock:
            networks = list(self._live.values())
            known = sum(len(lease.endpoints) for _, lease in self._leases.values())
        bridges = [segment.bridge for live in networks for segment in live.open_segments]
        there = sum(links_on(bridges).values()) if bridges else 0
        return max(0, there - known - self._ready.count)

    def close(self) -> None:
        """Let go. Where no container runs any more, bridges and tables go too."""
        self._ready.close()
        self._lending.close()
        with self._lock:
            self._closed = True
            used = {one.network for _, lease in self._leases.values() for one in lease.endpoints}
            for key, live in list(self._live.items()):
                if key not in used:
                    del self._live[key]
                    self._take_down(live)
            self._resolver.close()
            self.firewall.close(remove=not self._live)
            self.ports.close()
            self._layer.close()

    # -- inside --------------------------------------------------------------------------------

    def _default(self) -> Network:
        """The default network, chosen at its first use."""
        with self._lock:
            for one in self.store.all():
                if one.default:
                    return one
            return self._choose_default()

    def _choose_default(self, before: Network | None = None) -> Network:
        """A range for the default network: the given one, or one that is free."""
        settings = self.settings
        others = self._other_ranges(besides=before)
        if settings.bip:
            own = ipaddress.ip_interface(settings.bip)
            subnet, gateway = parse_subnet(settings.bip), str(own.ip)
            if own.ip == subnet.network_address:
                gateway = ""
        else:
            subnet, gateway = choose_range(others, CANDIDATES), ""
        made = Network(
            id=before.id if before else secrets.token_hex(32),
            name=BRIDGE,
            bridge=settings.bridge,
            subnet=str(subnet),
            gateway=gateway,
            subnet6=settings.subnet6,
            mtu=settings.mtu,
            created=before.created if before else time.time(),
        )
        self.store.put(made)
        return made

    def _other_ranges(self, besides: Network | None = None) -> list[ipaddress.IPv4Network]:
        """Ranges of the host and of the engine's networks."""
        networks = [one for one in self.store.all() if besides is None or one.id != besides.id]
        own = [parse_subnet(one.subnet) for one in networks]
        bridges = [segment.bridge for live in self._live.values() for segment in live.open_segments]
        if besides is not None:
            bridges += [segment.bridge for segment in besides.segments()]
        return own + taken_ranges(bridges)

    def _live_network(self, network: Network, *, adopted: bool = False) -> LiveNetwork:
        """The network with its bridge there. Conflict: the host uses its range by now."""
        live = self._live.get(network.id)
        if live is not None:
            return live
        with self._lock:
            live = self._live.get(network.id)
            if live is not None:
                return live
            if self._closed:
                raise Conflict("the engine is closing; no network is started any more")
            network = self.store.get(network.id)
            if not adopted and not has_link(network.bridge):
                network = self._still_free(network)
            self.firewall.open()
            opener = self._opener(network)
            live = self._live[network.id] = LiveNetwork(network, opener)
        return live

    def _still_free(self, network: Network) -> Network:
        others = self._other_ranges(besides=network)
        subnet = parse_subnet(network.subnet)
        clash = next((one for one in others if one.overlaps(subnet)), None)
        wanted = self.settings
        if network.default and (
            (clash is not None and not wanted.bip)
            or network.bridge != wanted.bridge
            or network.subnet6 != wanted.subnet6
            or network.mtu != wanted.mtu
            or (wanted.bip and subnet != parse_subnet(wanted.bip))
        ):
            network = self._choose_default(before=network)
            subnet = parse_subnet(network.subnet)
            clash = next((one for one in others if one.overlaps(subnet)), None)
        if clash is not None:
            raise Conflict(
                f"network {network.name}: its range {subnet} overlaps {clash}, which this host "
                f"uses; {'choose another --bip' if network.default else 'make it anew'}"
            )
        return network

    def _opener(self, network: Network) -> Callable[[Segment], BridgeLink]:
        """Makes the bridges of a network, each guarded before it is there."""
        opened: list[str] = []

        def open_segment(segment: Segment) -> BridgeLink:
            guarded = self._guarded(network, segment)
            self.firewall.attach(guarded)
            try:
                link = make_bridge(segment, network.mtu)
            except BaseException:
                self.firewall.detach(guarded)
                raise
            self.firewall.accept_loopback(segment.bridge)
            for other in opened:
                self.firewall.let_talk(segment.bridge, other)
            opened.append(segment.bridge)
            if not network.default:
                self._answer(network, segment)
            elif only_the_host_can_ask():
                try:
                    self._answer(network, segment)
                except (Conflict, KernelError) as refusal:
                    log.warning("containers ask public name servers: %s", refusal)
            return link

        return open_segment

    def _answer(self, network: Network, segment: Segment) -> None:
        """Answer questions for names on the segment's gateways."""
        for address, within in (
            (segment.gateway, network.subnet),
            (segment.gateway6, network.subnet6),
        ):
            if address is not None:
                self._resolver.listen(
                    network.id, str(address), within=within, internal=network.internal
                )

    @staticmethod
    def _guarded(network: Network, segment: Segment) -> Bridge:
        return Bridge(
            segment.bridge,
            str(segment.subnet),
            "" if segment.subnet6 is None else str(segment.subnet6),
            internal=network.internal,
            masquerade=network.masquerade,
        )

    def _take_down(self, live: LiveNetwork) -> None:
        """Remove a network's bridges and their rules."""
        segments = live.open_segments
        self._resolver.forget(live.network.id)
        for segment in segments:
            with contextlib.suppress(KernelError):
                remove_bridge(segment.bridge)
            self.firewall.detach(self._guarded(live.network, segment))
        for number, segment in enumerate(segments):
            for other in segments[:number]:
                self.firewall.keep_apart(segment.bridge, other.bridge)

    def _joined(self, key: str) -> LiveNetwork | None:
        """A network a container joined earlier; None when it was removed since."""
        try:
            return self._live_network(self.store.get(key))
        except NotFound:
            return None

    def _cabled(self, live: LiveNetwork, wish: Wish) -> _Cabled:
        alike = live.network.default and wish == ANYHOW
        if alike:
            ready = self._ready.take()
            if ready is not None:
                return ready
        return self._cable(live, self._namespaces.take() or make_network(), wish, alike=alike)

    def _cable_ahead(self) -> _Cabled:
        live = self._live_network(self._default())
        return self._cable(live, make_network(), ANYHOW, alike=True)

    def _cable(
        self, live: LiveNetwork, namespace: Namespace, wish: Wish, *, alike: bool
    ) -> _Cabled:
        """Lay the cable of a namespace, which is closed on an error."""
        try:
            return _Cabled(namespace, self._lay(live, namespace.namespace, wish, 0), alike)
        except BaseException:
            drop_network(namespace)
            raise

    def _take_back(self, loan: Loan) -> bool:
        """Put an unused namespace where the next start finds it; False: there are enough."""
        if loan.endpoint is None:
            return self._namespaces.give(loan.namespace)
        return self._ready.give(_Cabled(loan.namespace, loan.endpoint, alike=True))

    def _drop_cabled(self, cabled: _Cabled) -> None:
        drop_network(cabled.namespace)
        self._release(cabled.endpoint)

    def _lay(self, live: LiveNetwork, namespace: int, wish: Wish, number: int) -> Endpoint:
        """A cable into a namespace, the container's `number`th: what it may send is settled
        before it is there."""
        endpoint = live.place(wish, f"eth{number}", number + 2)
        bridge = live.link(endpoint)
        try:
            self.firewall.allow(cable_of(endpoint))
            self._layer.lay(
                endpoint,
                namespace,
                bridge.number,
                live.gateway_hardware(endpoint),
                default_route=number == 0 and not live.network.internal,
                mtu=bridge.mtu,
                route_mtu=min(bridge.mtu, OUTSIDE_MTU) if not live.network.mtu else 0,
            )
        except BaseException:
            self._release(endpoint)
            raise
        return endpoint

    def _release(self, endpoint: Endpoint) -> None:
        live = self._live.get(endpoint.network)
        self.firewall.forget(cable_of(endpoint))
        if live is not None:
            self._layer.forget(endpoint, live.link(endpoint).number)
            live.release(endpoint)

    def _publish(self, owner: Owner, lease: Lease, bindings: Sequence[Binding]) -> Lease:
        if not bindings:
            return lease
        first = lease.endpoints[0]
        published = self.ports.reserve(
            owner.id, bindings, name=owner.name, ipv6=bool(first.address6)
        )
        try:
            self.firewall.publish(first.address, published, owner.id, first.address6)
        except BaseException:
            self.ports.release(owner.id)
            raise
        return replace(lease, published=published)

    def _bridge_prefix(self) -> str:
        """How the bridges of users' networks begin; with six digits and a segment's number it
        stays below the 15 bytes of a link's name."""
        return "dpy-"


def cable_of(endpoint: Endpoint) -> Cable:
    """What the firewall is told of it."""
    return Cable(endpoint.cable, endpoint.hardware, endpoint.address, endpoint.address6)


def namespace_of(pid: int, container: str) -> int:
    """The network namespace of a container's process. Conflict: it has ended."""
    try:
        return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Conflict(
            f"container {container} has ended, and its network with it; start it first"
        ) from error


def _gateway(text: str, subnet: ipaddress.IPv4Network) -> ipaddress.IPv4Address:
    try:
        found = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise Conflict(f"{text!r} is not an IPv4 address") from error
    if found not in subnet or found in (subnet.network_address, subnet.broadcast_address):
        raise Conflict(f"the gateway {found} is not an address of {subnet}")
    return found
