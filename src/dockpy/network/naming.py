"""What every container of the engine has of its networks, and who is called what on them.

The resolver looks here for each question, from its own thread, so a look must neither wait for a
lock nor grow with the number of containers: next to the leases stand two tables, of names and of
addresses, whose entries are replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from dockpy.network.values import Endpoint, Lease, Owner

Entry = tuple[Owner, Lease]


@dataclass(frozen=True, slots=True)
class _Client:
    """Who asks: the container's id, its name in full, servers of --dns, and whom it calls how."""

    container: str
    name: str
    servers: tuple[str, ...]
    links: Mapping[str, str]


class Leases(MutableMapping[str, Entry]):
    """Owners and leases by container id; the names of the running ones with them.

    A container is called by its name, the first twelve digits of its id, and its aliases there,
    each also with the network's name behind a dot; and by what a container that is linked to it
    calls it, for that one alone. On the default network nobody has a name. Changed by one thread
    at a time; `addresses`, `name` and `servers` may be asked meanwhile.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._called: dict[tuple[str, str], tuple[tuple[str, Endpoint], ...]] = {}
        """By network and lower-case name, with the container's id; an alias can be shared."""
        self._at: dict[tuple[str, str], _Client] = {}
        """By network and address."""

    # -- leases --------------------------------------------------------------------------------

    def __getitem__(self, container: str) -> Entry:
        return self._entries[container]

    def __setitem__(self, container: str, entry: Entry) -> None:
        old = self._entries.get(container)
        self._entries[container] = entry
        self._replace(container, old, entry)

    def __delitem__(self, container: str) -> None:
        self._replace(container, self._entries.pop(container), None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _replace(self, container: str, old: Entry | None, new: Entry | None) -> None:
        """Every entry changes once: a name that stays is never missing in between."""
        called, at = _called(new), _at(new)
        for name in {**_called(old), **called}:
            others = [each for each in self._called.get(name, ()) if each[0] != container]
            left = (*others, *((container, one) for one in called.get(name, ())))
            if left:
                self._called[name] = left
            else:
                del self._called[name]
        self._at.update(at)
        for place in _at(old):
            # The next container may have the address already.
            there = self._at.get(place)
            if place not in at and there is not None and there.container == container:
                del self._at[place]

    # -- names: what a resolver answers by -----------------------------------------------------

    def addresses(self, network: str, name: str, client: str) -> Sequence[str] | None:
        """Addresses of the containers that are called so in a network; None for nobody's name."""
        name, asking = name.lower(), self._at.get((network, client))
        if asking is not None:
            name = asking.links.get(name, name)
        found = self._called.get((network, name))
        return None if found is None else [each for _, one in found for each in _addresses(one)]

    def name(self, network: str, address: str) -> str | None:
        """The name of the container with that address."""
        found = self._at.get((network, address))
        return None if found is None else found.name

    def servers(self, network: str, client: str) -> Sequence[str]:
        """What --dns gave to the container that asks."""
        found = self._at.get((network, client))
        return () if found is None else found.servers


def _called(entry: Entry | None) -> dict[tuple[str, str], list[Endpoint]]:
    """A container's endpoints by network and name."""
    found: dict[tuple[str, str], list[Endpoint]] = {}
    if entry is not None:
        owner, lease = entry
        for one in lease.endpoints:
            if one.named:
                within = one.network_name.lower()
                for name in {owner.name.lower(), owner.id[:12], *map(str.lower, one.aliases)}:
                    for full in (name, f"{name}.{within}"):
                        found.setdefault((one.network, full), []).append(one)
    return found


def _at(entry: Entry | None) -> dict[tuple[str, str], _Client]:
    """What a container is to the resolver, by network and address."""
    if entry is None:
        return {}
    owner, lease = entry
    links = {alias.lower(): name.lower() for alias, name in lease.links}
    return {
        (one.network, address): _Client(
            owner.id, f"{owner.name}.{one.network_name}", lease.dns, links
        )
        for one in lease.endpoints
        if one.named
        for address in _addresses(one)
    }


def _addresses(one: Endpoint) -> list[str]:
    return [each for each in (one.address, one.address6) if each]
