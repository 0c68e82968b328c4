"""The engine's networks on the disk: `<root>/networks.json`, networks and who joined them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from dockpy.errors import Conflict, NotFound, TornRecord
from dockpy.network.values import Network, Wish
from dockpy.records import Flusher, read_json, set_aside, write

log = logging.getLogger(__name__)


class NetworkStore:
    """All networks by id and name, and the containers that `network connect` put in them.

    Thread-safe. A file that does not parse is set aside and named.
    """

    def __init__(self, root: Path, flusher: Flusher) -> None:
        self._path = root / "networks.json"
        self._flusher = flusher
        self._lock = threading.RLock()
        self._networks: dict[str, Network] = {}
        self._members: dict[str, dict[str, Wish]] = {}
        self.findings: list[str] = []
        self._load()

    def all(self) -> list[Network]:
        """Oldest first."""
        with self._lock:
            return sorted(self._networks.values(), key=lambda one: one.created)

    def get(self, reference: str) -> Network:
        """By name, id or unique beginning of an id. NotFound; Conflict when several fit."""
        with self._lock:
            found = [one for one in self._networks.values() if one.name == reference]
            if not found:
                found = [one for one in self._networks.values() if one.id.startswith(reference)]
        if not found or not reference:
            raise NotFound("network", reference, "see dockpy network ls")
        if len(found) > 1:
            raise Conflict(f"{reference} is ambiguous: {len(found)} networks fit")
        return found[0]

    def put(self, network: Network) -> None:
        """Add it, or replace the one of that id. Conflict: another one has the name."""
        with self._lock:
            for other in self._networks.values():
                if other.name == network.name and other.id != network.id:
                    raise Conflict(f"network {network.name} is there already")
            self._networks[network.id] = network
            self._save()

    def remove(self, network: Network) -> None:
        with self._lock:
            self._networks.pop(network.id, None)
            for members in self._members.values():
                members.pop(network.id, None)
            self._save()

    # -- members -------------------------------------------------------------------------------

    def joined(self, container: str) -> Mapping[str, Wish]:
        """Networks a container was put in beside its own, by id."""
        with self._lock:
            return dict(self._members.get(container, {}))

    def members(self, network: Network) -> list[str]:
        """Ids of containers that were put in it."""
        with self._lock:
            return [one for one, joined in self._members.items() if network.id in joined]

    def join(self, container: str, network: Network, wish: Wish) -> None:
        with self._lock:
            self._members.setdefault(container, {})[network.id] = wish
            self._save()

    def leave(self, container: str, network: Network) -> bool:
        """Whether it was in it."""
        with self._lock:
            found = self._members.get(container, {}).pop(network.id, None)
            if found is not None:
                self._save()
            return found is not None

    def forget(self, container: str) -> None:
        """The container is removed."""
        if container in self._members:
            with self._lock:
                self._members.pop(container, None)
                self._save()

    def _save(self) -> None:
        values = {
            "networks": [one.to_json() for one in self._networks.values()],
            "members": {
                container: {key: asdict(wish) for key, wish in joined.items()}
                for container, joined in self._members.items()
                if joined
            },
        }
        write(self._path, json.dumps(values).encode(), self._flusher)

    def _load(self) -> None:
        if not self._path.exists():
            return
        try:
            values = read_json(self._path)
            networks = [Network.from_json(one) for one in values["networks"]]
            self._members = {
                container: {
                    key: Wish(**(wish | {"aliases": tuple(wish["aliases"])}))
                    for key, wish in joined.items()
                }
                for container, joined in values["members"].items()
            }
        except (TornRecord, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
            kept = set_aside(self._path).name
            self.findings.append(f"{self._path}: {error}; set aside as {kept}, networks are lost")
            return
        self._networks = {one.id: one for one in networks}
