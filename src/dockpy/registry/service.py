"""Registries as the engine has them: names in, images out, and the other way round.

The names of 0.1.5's Go API in snake_case. Every call blocks, takes the caller's credentials as a
function of the registry's host, tells its progress to a listener, and ends at once, with
`Cancelled`, when its cancellation is cancelled.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from dockpy.errors import NoSuchImage, NotInRegistry, RegistryError, Unauthorized, UsageError
from dockpy.graph import Graph
from dockpy.model import DEFAULT_TAG, Image
from dockpy.records import Flusher
from dockpy.references import Reference, check_tag, parse
from dockpy.registry import manifests
from dockpy.registry.auth import ANONYMOUS, Authorizer, Credentials
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.client import RegistryClient
from dockpy.registry.connecting import Broken
from dockpy.registry.credentials import Asking
from dockpy.registry.kept import KeptBlobs
from dockpy.registry.names import (
    Endpoint,
    Remote,
    endpoints,
    registry_host,
    repository_of,
    resolve,
)
from dockpy.registry.origins import Origins
from dockpy.registry.progress import Event, Listener
from dockpy.registry.pull import Pulled, Puller, own_platform
from dockpy.registry.push import Pushed, Pusher, plan, scopes
from dockpy.registry.settings import RegistrySettings
from dockpy.registry.transport import Transport

P = ParamSpec("P")
T = TypeVar("T")


class Names(Protocol):
    """What is needed of the store of names."""

    def get(self, repository: str) -> dict[str, str]: ...

    def set(self, repository: str, tag: str, reference: str, force: bool = False) -> None: ...


def nobody(_host: str) -> Credentials:
    """No credentials, for any registry."""
    return ANONYMOUS


def silent(_event: Event) -> None:
    """Nobody listens."""


def talking(
    method: Callable[Concatenate[Registries, P], T],
) -> Callable[Concatenate[Registries, P], T]:
    """Connections are kept while the method runs."""

    @functools.wraps(method)
    def wrapped(self: Registries, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.transport.in_use():
            return method(self, *args, **kwargs)

    return wrapped


class Registries:
    """What one engine does with registries. Thread-safe."""

    def __init__(
        self, root: Path, graph: Graph, names: Names, flusher: Flusher, settings: RegistrySettings
    ) -> None:
        self.settings = settings
        self._graph = graph
        self._names = names
        self.transport = Transport(settings)
        self.origins = Origins(root, flusher, graph.exists)
        self._blobs = kept = KeptBlobs(root, graph)
        self._puller = Puller(root, graph, self.origins, settings, kept.keep)
        self._pusher = Pusher(root, graph, self.origins, settings, kept.stream, kept.blob)

    def sweep(self) -> None:
        """Forget what was only kept for images that are gone."""
        self._blobs.sweep(self.origins.digests_kept())

    def close(self) -> None:
        """Give up what goes on, and hang up."""
        self._puller.close()
        self.transport.close()

    # -- looking -------------------------------------------------------------------------------

    @talking
    def lookup_remote_image(
        self,
        name: str,
        credentials: Asking = nobody,
        *,
        platform: str = "",
        cancellation: Cancellation | None = None,
    ) -> str | None:
        """The digest a registry knows an image by; None when it has none of that name."""
        remote = resolve(name, self.settings)
        wanted = manifests.parse_platform(platform, own_platform()) if platform else None
        for client in self._clients(remote, credentials, cancellation or Cancellation()):
            try:
                return self._puller.look_up(client, remote, wanted).digest
            except NotInRegistry:
                continue
        return None

    @talking
    def lookup_remote_repository(
        self,
        name: str,
        credentials: Asking = nobody,
        *,
        cancellation: Cancellation | None = None,
    ) -> list[str]:
        """The tags a repository has. NotInRegistry when there is none."""
        remote = resolve(name, self.settings)
        failure: RegistryError | None = None
        for client in self._clients(remote, credentials, cancellation or Cancellation()):
            try:
                return list(tags_of(client))
            except NotInRegistry as missing:
                failure = failure or missing
        raise failure or NotInRegistry(f"{remote.repository}: there is no such repository")

    def find(self, name: str) -> Image | None:
        """The image here that was pulled or pushed as `name@digest`; None when there is none."""
        remote = resolve(name, self.settings)
        if not remote.digest:
            return None
        repository = remote.repository
        image_id = self.origins.find(repository.host, repository.path, remote.digest)
        return self._graph.get(image_id) if image_id else None

    def familiar(self, reference: Reference) -> str:
        """What people call a repository: `<default registry>/library/base` is `base`."""
        return repository_of(reference, self.settings).familiar

    def digest(self, image_id: str, repository: str) -> str:
        """The digest that repository knows an image by, the newest of several; "" when none."""
        named = resolve(repository, self.settings).repository
        known = [
            one.digest
            for one in self.origins.of(image_id)
            if (one.host, one.path) == (named.host, named.path)
        ]
        return known[-1] if known else ""

    def digests(self, image_id: str) -> list[str]:
        """Every `repository@digest` an image is known by, sorted: `find` takes each of them."""
        return sorted(
            {
                f"{self.familiar(Reference(one.host, one.path))}@{one.digest}"
                for one in self.origins.of(image_id)
            }
        )

    # -- pulling -------------------------------------------------------------------------------

    @talking
    def pull_image(
        self,
        name: str,
        credentials: Asking = nobody,
        *,
        platform: str = "",
        listener: Listener = silent,
        cancellation: Cancellation | None = None,
    ) -> Pulled:
        """Bring an image here and give it its name. See `Puller.pull` for what is raised."""
        remote = resolve(name, self.settings)
        wanted = manifests.parse_platform(platform, own_platform()) if platform else None
        failure: RegistryError | None = None
        for client in self._clients(remote, credentials, cancellation or Cancellation()):
            try:
                return self._pull(client, remote, wanted, listener)
            except (Broken, NotInRegistry, Unauthorized) as reason:
                if not client.endpoint.mirror:
                    raise
                failure = reason
        raise failure or RegistryError(f"{remote.familiar}: no registry can be reached")

    def _pull(
        self,
        client: RegistryClient,
        remote: Remote,
        wanted: manifests.Platform | None,
        listener: Listener,
    ) -> Pulled:
        repository = remote.repository
        tag = "" if remote.digest else remote.tag or DEFAULT_TAG
        listener(Event("", f"{remote.selector}: Pulling from {repository.path}"))
        image, found = self._puller.pull(client, remote, wanted, listener)
        listener(Event("", f"Digest: {found.digest}"))
        before = self._names.get(repository.familiar).get(tag) if tag else None
        if tag:
            self._names.set(repository.familiar, tag, image.id, force=True)
        new = before != image.id
        done = "Downloaded newer image for" if new else "Image is up to date for"
        listener(Event("", f"Status: {done} {remote.familiar}"))
        return Pulled(image, remote.familiar, found.digest, new)

    @talking
    def pull_repository(
        self,
        name: str,
        credentials: Asking = nobody,
        *,
        platform: str = "",
        listener: Listener = silent,
        cancellation: Cancellation | None = None,
    ) -> list[Pulled]:
        """Bring every tag of a repository here. UsageError when the name has a tag already."""
        remote = resolve(name, self.settings)
        if remote.tag or remote.digest:
            raise UsageError(f"{name}: all tags are wanted, so give the name without one")
        asked = cancellation or Cancellation()
        return [
            self.pull_image(
                f"{remote.repository.familiar}:{check_tag(tag)}",
                credentials,
                platform=platform,
                listener=listener,
                cancellation=asked,
            )
            for tag in self.lookup_remote_repository(name, credentials, cancellation=asked)
        ]

    # -- pushing -------------------------------------------------------------------------------

    @talking
    def push_image(
        self,
        name: str,
        credentials: Asking = nobody,
        *,
        listener: Listener = silent,
        cancellation: Cancellation | None = None,
    ) -> Pushed:
        """Put the image of that name into the registry the name says. See `Pusher.push`.

        NoSuchImage when nothing here has the name; UsageError for a name with a digest.
        """
        remote = resolve(name, self.settings)
        if remote.digest:
            raise UsageError(f"{name}: an image is pushed under a tag, not under a digest")
        repository, tag = remote.repository, remote.tag or DEFAULT_TAG
        image_id = self._names.get(repository.familiar).get(tag)
        if image_id is None:
            typed = parse(name).repository
            image_id = self._names.get(typed).get(tag)
        if image_id is None:
            raise NoSuchImage(remote.familiar, f"name one so: dockpy tag IMAGE {remote.familiar}")
        image = self._graph.get(image_id)
        endpoint = endpoints(repository.host, self.settings, pull=False)[-1]
        client = self._client(
            endpoint,
            repository.path,
            credentials,
            cancellation or Cancellation(),
            actions="pull,push",
            also=scopes(plan(image, repository, self.origins)),
        )
        listener(Event("", f"The push refers to repository [{repository.host}/{repository.path}]"))
        pushed = self._pusher.push(client, image, repository, tag, listener)
        listener(Event("", f"{tag}: digest: {pushed.digest} size: {pushed.size}"))
        return pushed

    @talking
    def push_repository(
        self,
        name: str,
        credentials: Asking = nobody,
        *,
        listener: Listener = silent,
        cancellation: Cancellation | None = None,
    ) -> list[Pushed]:
        """Put every image of a repository there. UsageError when the name has a tag already."""
        remote = resolve(name, self.settings)
        if remote.tag or remote.digest:
            raise UsageError(f"{name}: all tags are wanted, so give the name without one")
        familiar = remote.repository.familiar
        tags = sorted(self._names.get(familiar))
        if not tags:
            raise NoSuchImage(familiar, "no image here has a name in that repository")
        asked = cancellation or Cancellation()
        return [
            self.push_image(f"{familiar}:{tag}", credentials, listener=listener, cancellation=asked)
            for tag in tags
        ]

    # -- who we are ----------------------------------------------------------------------------

    @talking
    def login(
        self, registry: str, credentials: Credentials, cancellation: Cancellation | None = None
    ) -> str:
        """See whether a registry accepts credentials; its host. Unauthorized, RegistryError."""
        host = registry_host(registry, self.settings)
        endpoint = endpoints(host, self.settings, pull=False)[-1]
        client = self._client(
            endpoint, "", lambda _host: credentials, cancellation or Cancellation()
        )
        with client.get(client.root) as response:
            response.read(self.settings.limits.answer)
        return host

    def host_of(self, name: str) -> str:
        """The registry an image's name belongs to."""
        return resolve(name, self.settings).repository.host

    # -- inside --------------------------------------------------------------------------------

    def _clients(
        self, remote: Remote, credentials: Asking, cancellation: Cancellation
    ) -> Iterator[RegistryClient]:
        """A connected client for each endpoint; mirrors that do not answer are passed over."""
        for endpoint in endpoints(remote.repository.host, self.settings):
            try:
                yield self._client(endpoint, remote.repository.path, credentials, cancellation)
            except RegistryError:
                if not endpoint.mirror:
                    raise

    def _client(
        self,
        endpoint: Endpoint,
        path: str,
        credentials: Asking,
        cancellation: Cancellation,
        *,
        actions: str = "pull",
        also: Sequence[str] = (),
    ) -> RegistryClient:
        host = endpoint.address if endpoint.mirror else endpoint.host
        authorizer = Authorizer(host, credentials(host), self.transport, self.settings)
        client = RegistryClient(
            endpoint,
            path,
            authorizer,
            self.transport,
            self.settings,
            cancellation,
            actions=actions,
            also=also,
        )
        client.connect()
        return client


def tags_of(client: RegistryClient) -> Iterator[str]:
    """The tags of a client's repository, page by page (distribution specification, "tags").

    RegistryError for an answer that makes no sense, or has no end.
    """
    url = client.url("tags", "list")
    limits = client.settings.limits
    seen: set[str] = set()
    for _ in range(limits.pages):
        with client.get(url, {"Accept": "application/json"}) as response:
            data = response.read(limits.answer)
            link = response.header("Link")
            if link:
                url = client.location(response, link.partition("<")[2].partition(">")[0])
        try:
            listed = json.loads(data).get("tags") or []
            tags = [check_tag(one) for one in listed]
        except (ValueError, RecursionError, AttributeError, TypeError, UsageError) as reason:
            raise RegistryError(f"{client.path}: its list of tags makes no sense") from reason
        fresh = [one for one in tags if one not in seen]
        seen.update(fresh)
        yield from fresh
        if not link or not fresh:
            return
    raise RegistryError(f"{client.path}: its list of tags has no end")
