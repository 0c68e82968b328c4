"""Who is called what on the engine's networks: what its resolver answers by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dockpy.network.values import Endpoint, Lease, Owner


class LeaseNames:
    """Names of running containers by what they have; reads a table that others change."""

    def __init__(self, leases: Mapping[str, tuple[Owner, Lease]]) -> None:
        self._leases = leases

    def addresses(self, network: str, name: str, client: str) -> Sequence[str] | None:
        """Addresses of the containers that are called so in a network; None for nobody's name.

        A container is called by its name, the first twelve digits of its id, and its aliases
        there. On the default network nobody has a name.
        """
        del client  # everybody sees the same
        wanted = name.lower()
        found = [
            address
            for owner, _, one in self._endpoints(network)
            if wanted in (owner.name.lower(), owner.id[:12], *map(str.lower, one.aliases))
            for address in (one.address, one.address6)
            if address
        ]
        return found or None

    def name(self, network: str, address: str) -> str | None:
        """The name of the container with that address."""
        for owner, _, one in self._endpoints(network):
            if address in (one.address, one.address6):
                return f"{owner.name}.{one.network_name}"
        return None

    def servers(self, network: str, client: str) -> Sequence[str]:
        """What --dns gave to the container that asks."""
        for _, lease, one in self._endpoints(network):
            if client in (one.address, one.address6):
                return lease.dns
        return ()

    def _endpoints(self, network: str) -> Iterator[tuple[Owner, Lease, Endpoint]]:
        for owner, lease in list(self._leases.values()):
            for one in lease.endpoints:
                if one.network == network and one.named:
                    yield owner, lease, one
