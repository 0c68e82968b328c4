"""From a registry to images: layers arrive, are inflated, hashed and unpacked all at once.

    manifest -> configuration -> for each layer: download -> unpack -> place     -> register -> name

A layer that is here is not fetched. Each missing one is a job (`sharing`), keyed by its chain id,
on a download, keyed by its digest: pulls that want the same wait for the same. Nothing is placed
before its blob's digest and size and its diff id were verified. On failure and on Ctrl-C what has
arrived stays in `<root>/downloads`, and the next pull goes on there.
"""

from __future__ import annotations

import contextlib
import platform as host_platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dockpy import image_config
from dockpy.archive import Budget
from dockpy.errors import (
    BadArchive,
    Cancelled,
    NoSuchImage,
    NotInRegistry,
    RegistryError,
    RequestError,
)
from dockpy.graph import Graph, Layer
from dockpy.image_config import ImageConfig, chain_ids, go_architecture
from dockpy.model import Image
from dockpy.registry import manifests
from dockpy.registry import progress as say
from dockpy.registry.blobs import (
    discard,
    download,
    is_full,
    sweep,
)
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.client import RegistryClient
from dockpy.registry.growing import GrowingFile, GrowingReader, StaleDownload
from dockpy.registry.manifests import Descriptor, Index, Manifest, Platform
from dockpy.registry.names import Remote
from dockpy.registry.origins import Origin, Origins
from dockpy.registry.progress import Event, Listener, Meter
from dockpy.registry.settings import RegistrySettings
from dockpy.registry.sharing import Job, Jobs, Ticket


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that is here now. `digest`: what the registry knows it by; `name`: what people call
    it, with its tag or digest; `new`: the name meant another image, or none, before."""

    image: Image
    name: str
    digest: str
    new: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """An image in a registry: what it is, not yet its bytes."""

    digest: str
    manifest: Manifest
    data: bytes

    @property
    def image_id(self) -> str:
        return self.manifest.config.hex


@dataclass(slots=True)
class Unpacking:
    """A layer on its way. `layer` once it is placed; `path`: its blob, verified then."""

    path: Path
    layer: Layer | None = None


def own_platform() -> Platform:
    """What runs here."""
    return manifests.normal(Platform("linux", go_architecture(host_platform.machine())))


MOST_DEFLATED = 1100
"""So many bytes may come of one compressed byte."""
Keep = Callable[[Descriptor, str, Path], None]
"""Blob, diff id (hex), file."""


class Puller:
    """All pulls of one engine. Thread-safe."""

    def __init__(
        self, root: Path, graph: Graph, origins: Origins, settings: RegistrySettings, keep: Keep
    ) -> None:
        """`keep` takes over the file of a blob that was verified and unpacked."""
        self._keep = keep
        self._graph = graph
        self._origins = origins
        self._settings = settings
        self._directory = root / "downloads"
        self._turns = threading.Semaphore(settings.limits.downloads)
        self._downloads: Jobs[GrowingFile] = Jobs("dockpy-download", GrowingFile.close)
        self._layers: Jobs[Unpacking] = Jobs("dockpy-layer", self._give_up)
        sweep(self._directory)

    def close(self) -> None:
        """Give up what goes on."""
        self._layers.close()
        self._downloads.close()

    # -- looking -------------------------------------------------------------------------------

    def look_up(
        self, client: RegistryClient, remote: Remote, wanted: Platform | None = None
    ) -> Found:
        """What a name means in the registry. NotInRegistry, Unauthorized, RegistryError."""
        where = remote.familiar
        data, parsed = self._manifest(client, remote.selector, where)
        digest = manifests.digest_of(data)
        if remote.digest and remote.digest != digest:
            raise RegistryError(f"{where}: the registry sent {digest} instead")
        for _ in range(2):  # an index may list an index
            if isinstance(parsed, Manifest):
                return Found(digest, parsed, data)
            data, parsed = self._chosen(client, parsed, wanted or own_platform(), where)
        if isinstance(parsed, Manifest):
            return Found(digest, parsed, data)
        raise RegistryError(f"{where}: an index of indexes of indexes")

    def _chosen(
        self, client: RegistryClient, index: Index, wanted: Platform, where: str
    ) -> tuple[bytes, Manifest | Index]:
        one = manifests.choose(index, wanted, where)
        known = self._origins.manifest(client.endpoint.host, client.path, one.digest)
        if known is not None:
            return known.manifest, known.parsed()
        data, parsed = self._manifest(client, one.digest, where)
        if manifests.digest_of(data) != one.digest or len(data) != one.size:
            raise RegistryError(f"{where}: the registry sent another manifest than {one.digest}")
        if parsed.media_type != one.media_type:
            raise RegistryError(
                f"{where}: the index says {one.media_type!r}, the registry {parsed.media_type!r}"
            )
        return data, parsed

    def _manifest(
        self, client: RegistryClient, selector: str, where: str
    ) -> tuple[bytes, Manifest | Index]:
        def fetch() -> tuple[bytes, str]:
            url = client.url("manifests", selector)
            with client.send("GET", url, {"Accept": manifests.ACCEPT}) as response:
                told = response.header("Content-Type")
                return response.read(self._settings.limits.manifest), told

        try:
            data, content_type = client.repeat(fetch)
        except NotInRegistry as missing:
            raise NotInRegistry(f"{where}: there is no such image ({missing})") from missing
        return data, manifests.parse(data, content_type, where)

    # -- pulling -------------------------------------------------------------------------------

    def pull(
        self,
        client: RegistryClient,
        remote: Remote,
        wanted: Platform | None,
        listener: Listener,
    ) -> tuple[Image, Found]:
        """Bring an image here. Blocks until it is on the disk.

        Raises RegistryError, Unauthorized, NotInRegistry, BadArchive, KernelError, Cancelled.
        """
        found = self.look_up(client, remote, wanted)
        document = self._document(client, found.manifest.config, remote.familiar)
        parsed = self._checked(document, found, remote.familiar, wanted)
        image = None
        for _ in range(3):
            image = self._bring(client, found, parsed, document, listener)
            if image is not None:
                break
        else:
            raise RegistryError(f"{remote.familiar}: its layers are removed while they arrive")
        origin = Origin(
            client.endpoint.host,
            client.path,
            found.digest,
            found.manifest.media_type,
            found.data,
            parsed.diff_ids,
        )
        self._origins.add(image.id, origin)
        return image, found

    def _document(self, client: RegistryClient, config: Descriptor, where: str) -> bytes:
        """The image's configuration, verified; from here when the image is here."""
        if self._graph.exists(config.hex):
            return self._graph.configuration(self._graph.get(config.hex))
        limit = min(self._settings.limits.answer, image_config.SIZE_LIMIT)
        if config.size > limit:
            raise RegistryError(f"{where}: its configuration has more than {limit} bytes")

        def fetch() -> bytes:
            url = client.url("blobs", config.digest)
            with client.send("GET", url, {}) as response:
                return response.read(config.size)

        data = client.repeat(fetch)
        if len(data) != config.size or manifests.digest_of(data) != config.digest:
            raise RegistryError(f"{where}: its configuration is not {config.digest} as promised")
        return data

    def _checked(
        self, document: bytes, found: Found, where: str, wanted: Platform | None
    ) -> ImageConfig:
        try:
            parsed = image_config.parse(document)
        except BadArchive as failure:
            raise RegistryError(f"{where}: {failure}") from failure
        if len(parsed.diff_ids) != len(found.manifest.layers):
            raise RegistryError(
                f"{where}: {len(found.manifest.layers)} layers in the manifest, "
                f"{len(parsed.diff_ids)} in the configuration"
            )
        is_for = manifests.normal(Platform(parsed.os, parsed.architecture))
        if parsed.os not in ("", "linux"):
            raise RegistryError(f"{where}: an image for {is_for}; containers here are Linux")
        if wanted is not None and (
            wanted.os != "linux" or is_for.architecture not in ("", wanted.architecture)
        ):
            raise RegistryError(f"{where}: the image is for {is_for}, not for {wanted}")
        for blob in found.manifest.layers:
            if blob.size > self._settings.limits.blob:
                raise RegistryError(f"{where}: layer {blob.short} has {blob.size} bytes; too many")
        return parsed

    def _bring(
        self,
        client: RegistryClient,
        found: Found,
        parsed: ImageConfig,
        document: bytes,
        listener: Listener,
    ) -> Image | None:
        """All missing layers, then the image; None when somebody removed a layer meanwhile."""
        chain = chain_ids(parsed.diff_ids)
        missing: list[tuple[Descriptor, str, Ticket[Unpacking]]] = []
        with contextlib.ExitStack() as tickets:
            for place, blob in enumerate(found.manifest.layers):
                if self._graph.layer(chain[place]) is not None:
                    listener(Event(blob.short, say.EXISTS))
                    continue
                parent = chain[place - 1] if place else ""
                ticket = self._join(
                    client, blob, parsed.diff_ids[place], parent, chain[place], listener
                )
                tickets.enter_context(ticket)
                missing.append((blob, parsed.diff_ids[place], ticket))
            if not missing and self._graph.exists(found.image_id):
                with contextlib.suppress(NoSuchImage):  # removed just now: its layers may go too
                    return self._graph.get(found.image_id)  # no write, no wait for the disk
            try:
                for blob, _, ticket in missing:
                    self._wait(ticket, client.cancellation)
                    listener(Event(blob.short, say.PULLED))
                image = self._graph.register(document)
            except Cancelled:
                raise
            except RequestError:
                if any(self._graph.layer(one) is None for one in chain) and all(
                    ticket.job.done and ticket.value.layer for _, _, ticket in missing
                ):
                    return None
                raise
            except OSError as failure:
                if not is_full(failure):
                    raise
                for blob, _, ticket in missing:
                    ticket.leave()
                    discard(self._directory / blob.hex)
                raise RegistryError(
                    f"no room on the disk of {self._directory.parent}: {failure}; what had "
                    "arrived is removed again; remove images or containers, then pull again"
                ) from failure
            for blob, diff_id, ticket in missing:
                self._keep(blob, diff_id, ticket.value.path)
        return image

    # -- layers --------------------------------------------------------------------------------

    def _join(
        self,
        client: RegistryClient,
        blob: Descriptor,
        diff_id: str,
        parent: str,
        chain: str,
        listener: Listener,
    ) -> Ticket[Unpacking]:
        return self._layers.join(
            (chain, blob.digest),
            lambda: Unpacking(self._directory / blob.hex),
            lambda job: self._unpack(job, blob, diff_id, parent, client),
            listener,
        )

    def _unpack(
        self,
        job: Job[Unpacking],
        blob: Descriptor,
        diff_id: str,
        parent: str,
        client: RegistryClient,
    ) -> None:
        job.tell(Event(blob.short, say.PULLING, 0, blob.size))
        with self._turn(job.cancellation):
            for attempt in range(3):
                with self._downloads.join(
                    blob.hex,
                    lambda: GrowingFile(self._directory / blob.hex),
                    lambda down: self._download(down, blob, client),
                    job.tell,
                ) as ticket:
                    try:
                        job.value.layer = self._stage_and_place(job, ticket, blob, diff_id, parent)
                    except StaleDownload:
                        if attempt == 2:
                            raise
                    except RegistryError:
                        if ticket.first or attempt == 2:
                            raise
                    else:
                        return

    def _stage_and_place(
        self,
        job: Job[Unpacking],
        ticket: Ticket[GrowingFile],
        blob: Descriptor,
        diff_id: str,
        parent: str,
    ) -> Layer:
        arrival = ticket.value

        def report(count: int) -> None:
            if ticket.job.done:
                meter(count)

        meter = Meter(job.tell, blob.short, say.EXTRACTING, blob.size)
        reader = GrowingReader(arrival, job.cancellation, report)
        try:
            staged = self._graph.stage_layer(
                cast(BinaryIO, reader), expected=diff_id, limits=self._budget(blob)
            )
        except BadArchive:
            ticket.wait(job.cancellation)  # a blob that is not the right one is the reason then
            raise
        try:
            ticket.wait(job.cancellation)
            if not staged.repeatable:  # push and save need its own bytes
                with open(arrival.path, "rb") as blob_as_it_came:
                    staged = self._graph.keep_stream(staged, blob_as_it_came)
        except BaseException:
            self._graph.discard(staged)
            raise
        return self._graph.place_layer(staged, parent)

    def _budget(self, blob: Descriptor) -> Budget:
        """What a layer may unpack to: what deflate can make of it (1032 to 1), or a GiB."""
        likely = max(blob.size * MOST_DEFLATED, 1 << 30)
        return Budget(size=min(likely, self._settings.limits.unpacked))

    def _download(self, job: Job[GrowingFile], blob: Descriptor, client: RegistryClient) -> None:
        arrival = job.value
        meter = Meter(job.tell, blob.short, say.DOWNLOADING, blob.size)
        try:
            download(
                arrival,
                blob,
                client.under(job.cancellation),
                meter,
                lambda _seconds: job.tell(Event(blob.short, say.RETRYING)),
            )
        except BaseException as failure:
            if not arrival.there:
                discard(arrival.path)
            arrival.failed(failure)
            raise
        job.tell(Event(blob.short, say.DOWNLOADED, blob.size, blob.size))

    @contextlib.contextmanager
    def _turn(self, cancellation: Cancellation) -> Iterator[None]:
        while not self._turns.acquire(timeout=0.1):
            cancellation.check()
        try:
            yield
        finally:
            self._turns.release()

    def _wait(self, ticket: Ticket[Unpacking], cancellation: Cancellation) -> Layer:
        layer = ticket.wait(cancellation).layer
        assert layer is not None
        return layer

    def _give_up(self, unpacking: Unpacking) -> None:
        """Nobody waits for a layer any more; images that have it hold it by now."""
        if unpacking.layer is not None:
            self._graph.release([unpacking.layer])
