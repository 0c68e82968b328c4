"""From images to a registry.

    for each layer: there already | mounted from another repository | sent as it came | packed,
    compressed and sent at once     -> configuration -> manifest

A layer that came from a registry is pushed as the bytes it came as, and when that holds for all of
them the manifest is the one it came with: the image has the same digest wherever it goes. Any other
layer is packed again (which gives its own tar stream, or fails) and compressed by `compressing`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from dockpy.errors import Cancelled, RegistryError, StoreError
from dockpy.graph import Graph
from dockpy.model import Image
from dockpy.packing import Packed
from dockpy.registry import manifests
from dockpy.registry import progress as say
from dockpy.registry.blobs import discard, is_full, sweep
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.client import RegistryClient
from dockpy.registry.compressing import compress
from dockpy.registry.growing import GrowingFile
from dockpy.registry.manifests import Descriptor
from dockpy.registry.names import Repository
from dockpy.registry.origins import Origin, Origins
from dockpy.registry.progress import Event, Listener, Meter
from dockpy.registry.settings import RegistrySettings
from dockpy.registry.uploads import Upload, exists, mount, send_bytes

MOUNTS = 3
"""Repositories a layer is looked for in before it is sent."""
REMEMBERED = 1024
"""Layers of pushes that did not come to their end."""

Stream = Callable[[str, int], Packed]
"""Writes the tar stream of a layer, by its chain id, to a descriptor."""
Kept = Callable[[str], Path | None]
"""The file of a blob that is kept as it came, by its digest."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that is in a registry now."""

    name: str
    digest: str
    size: int
    """Bytes of the manifest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer to be pushed. `blobs`: what it is known to be as a blob, the best first; `sources`:
    for each digest, the repositories of the registry that have it."""

    diff_id: str
    chain: str
    blobs: tuple[Descriptor, ...]
    sources: dict[str, tuple[str, ...]]

    @property
    def short(self) -> str:
        return self.diff_id[:12]


def plan(image: Image, repository: Repository, origins: Origins) -> list[Wanted]:
    """What is known of an image's layers, for a push to a repository."""
    preferred = [blob for one in ranked(image, repository, origins) for _, blob in one.layers()]
    found = []
    for diff_id, chain in zip(image.diff_ids, image.layers, strict=True):
        known = origins.layer(diff_id)
        blobs = {blob.digest: blob for _, blob in known}
        first = [blob.digest for blob in preferred if blob.digest in blobs]
        order = dict.fromkeys((*first, *blobs))
        sources = {
            digest: tuple(
                dict.fromkeys(
                    origin.path
                    for origin, blob in known
                    if blob.digest == digest
                    and origin.host == repository.host
                    and origin.path != repository.path
                )
            )[:MOUNTS]
            for digest in order
        }
        found.append(Wanted(diff_id, chain, tuple(blobs[one] for one in order), sources))
    return found


def ranked(image: Image, repository: Repository, origins: Origins) -> list[Origin]:
    """Where an image is, the repository itself first, then the newest."""
    known = origins.of(image.id)[::-1]
    place = (repository.host, repository.path)
    return sorted(known, key=lambda one: (one.host, one.path) != place)


def scopes(layers: Sequence[Wanted]) -> list[str]:
    """What a token must allow besides the push: to read where layers are mounted from."""
    paths = {path for one in layers for paths in one.sources.values() for path in paths}
    return [f"repository:{path}:pull" for path in sorted(paths)]


class Pusher:
    """All pushes of one engine. Thread-safe."""

    def __init__(
        self,
        root: Path,
        graph: Graph,
        origins: Origins,
        settings: RegistrySettings,
        stream: Stream,
        kept: Kept,
    ) -> None:
        self._directory = root / "uploads"
        self._graph = graph
        self._origins = origins
        self._settings = settings
        self._stream = stream
        self._kept = kept
        self._lock = threading.Lock()
        self._sent: dict[tuple[str, str, str], Descriptor] = {}
        """Registry, repository and diff id to the blob it has: known before a manifest says so."""
        sweep(self._directory, older_than=-1.0)

    def push(
        self,
        client: RegistryClient,
        image: Image,
        repository: Repository,
        tag: str,
        listener: Listener,
    ) -> Pushed:
        """Put an image where `client` points, under a tag. Blocks until the registry has it.

        The image may be removed meanwhile. Raises RegistryError, Unauthorized, NoSuchImage when it
        is gone before it begins, StoreError, KernelError, Cancelled.
        """
        with self._graph.holding(image):
            return self._push(client, image, repository, tag, listener)

    def _push(
        self,
        client: RegistryClient,
        image: Image,
        repository: Repository,
        tag: str,
        listener: Listener,
    ) -> Pushed:
        document = self._graph.configuration(image)
        layers = plan(image, repository, self._origins)
        for one in layers:
            listener(Event(one.short, say.PREPARING))
        blobs = self._send_all(client, layers, listener)
        config_digest = manifests.digest_of(document)
        client.repeat(lambda: send_bytes(client, config_digest, document))
        data, media_type = self._manifest(image, repository, document, blobs)
        digest = manifests.digest_of(data)

        def put() -> str:
            headers = {"Content-Type": media_type}
            url = client.url("manifests", tag)
            with client.send("PUT", url, headers, body=data, ok=(201, 202, 200)) as response:
                return response.header("Docker-Content-Digest")

        told = client.repeat(put)
        if told and told != digest:
            raise RegistryError(f"{repository}:{tag}: the registry keeps {told[:80]}, not {digest}")
        self._origins.add(
            image.id,
            Origin(
                repository.host, repository.path, digest, media_type, data, tuple(image.diff_ids)
            ),
        )
        return Pushed(f"{repository.familiar}:{tag}", digest, len(data))

    def _manifest(
        self, image: Image, repository: Repository, document: bytes, blobs: Sequence[Descriptor]
    ) -> tuple[bytes, str]:
        """The manifest the image came with, when it says just this; else a new one."""
        digests = [one.digest for one in blobs]
        for origin in ranked(image, repository, self._origins):
            if [blob.digest for _, blob in origin.layers()] == digests:
                return origin.manifest, origin.media_type
        config = Descriptor("", manifests.digest_of(document), len(document))
        return manifests.make(config, blobs)

    # -- layers --------------------------------------------------------------------------------

    def _send_all(
        self, client: RegistryClient, layers: Sequence[Wanted], listener: Listener
    ) -> list[Descriptor]:
        """All layers, several at once; their blobs in the same order."""
        unique = {one.diff_id: one for one in layers}
        found: dict[str, Descriptor] = {}
        given_up = Cancellation()
        ours = client.under(given_up)
        workers = min(self._settings.limits.uploads, max(len(unique), 1))
        with (
            client.cancellation.waking(given_up.cancel),
            ThreadPoolExecutor(workers, thread_name_prefix="dockpy-push") as pool,
        ):
            jobs = {
                pool.submit(self._send, ours, one, listener): one.diff_id for one in unique.values()
            }
            try:
                for job in as_completed(jobs):
                    found[jobs[job]] = job.result()
            except BaseException:
                given_up.cancel()
                raise
        return [found[one.diff_id] for one in layers]

    def _send(self, client: RegistryClient, layer: Wanted, listener: Listener) -> Descriptor:
        client.cancellation.check()
        with self._lock:
            before = self._sent.get((client.endpoint.host, client.path, layer.diff_id))
        known = layer.blobs if before is None else (*layer.blobs, before)
        for blob in dict.fromkeys(known):
            if exists(client, blob.digest):
                listener(Event(layer.short, say.PUSH_EXISTS))
                return blob
        for blob in layer.blobs:
            for source in layer.sources[blob.digest]:
                if mount(client, blob.digest, source):
                    listener(Event(layer.short, f"{say.MOUNTED} {source}"))
                    return blob
        for blob in layer.blobs:
            path = self._kept(blob.digest)
            if path is not None:
                self._send_kept(client, layer, blob, path, listener)
                return blob
        return self._send_packed(client, layer, listener)

    def _send_kept(
        self,
        client: RegistryClient,
        layer: Wanted,
        blob: Descriptor,
        path: Path,
        listener: Listener,
    ) -> None:
        """A blob as it came. The registry verifies it."""
        file = GrowingFile(path)
        try:
            size = os.fstat(file.fd).st_size
            if size != blob.size:
                raise StoreError(f"{path}: has {size} bytes, not {blob.size}; remove it")
            file.grew(size)
            file.complete()
            meter = Meter(listener, layer.short, say.PUSHING, size)
            upload = Upload(client, file, meter, lambda: _retrying(listener, layer))
            upload.send(lambda: (blob.digest, size))
        finally:
            file.close()
        listener(Event(layer.short, say.PUSHED, size, size))

    def _send_packed(self, client: RegistryClient, layer: Wanted, listener: Listener) -> Descriptor:
        """A layer's tree as a blob: packed, compressed and sent at the same time."""
        path = self._directory / secrets.token_hex(16)
        file = GrowingFile(path)
        total = self._size(layer)
        work = _Packing(self._stream, layer, file, Meter(listener, layer.short, say.PUSHING, total))
        try:
            upload = Upload(client, file, lambda _offset: None, lambda: _retrying(listener, layer))
            with client.cancellation.waking(work.stop):
                upload.send(work.finish)
            digest, size = work.finish()
        except OSError as failure:
            if not is_full(failure):
                raise
            raise RegistryError(
                f"no room on the disk of {self._directory.parent} to compress a layer: {failure}; "
                "remove images or containers, then push again"
            ) from failure
        finally:
            work.stop()
            work.join()
            file.close()
            discard(path)
        listener(Event(layer.short, say.PUSHED, size, size))
        blob = Descriptor(manifests.layer_type("gzip", oci=False), digest, size)
        self._remember(client, layer, blob)
        return blob

    def _remember(self, client: RegistryClient, layer: Wanted, blob: Descriptor) -> None:
        with self._lock:
            self._sent[client.endpoint.host, client.path, layer.diff_id] = blob
            while len(self._sent) > REMEMBERED:
                del self._sent[next(iter(self._sent))]

    def _size(self, layer: Wanted) -> int:
        found = self._graph.layer(layer.chain)
        return found.size if found is not None else 0


class _Packing:
    """A layer's tree to a compressed file, in two threads: one packs, one compresses."""

    def __init__(
        self, stream: Stream, layer: Wanted, file: GrowingFile, report: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self._layer = layer
        self._file = file
        self._report = report
        self._stopped = False
        self._packed: Packed | None = None
        self._failure: BaseException | None = None
        self._digest = ""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._packer = threading.Thread(
            target=self._pack, args=(writer,), name="dockpy-pack", daemon=True
        )
        self._compressor = threading.Thread(
            target=self._compress, args=(reader,), name="dockpy-compress", daemon=True
        )
        self._packer.start()
        self._compressor.start()

    def stop(self) -> None:
        """Make an end of it soon."""
        self._stopped = True

    def join(self) -> None:
        self._packer.join()
        self._compressor.join()

    def finish(self) -> tuple[str, int]:
        """Digest and size once it is made. Raises what it failed with."""
        self.join()
        if self._failure is not None:
            raise self._failure
        return self._digest, self._file.there

    def _pack(self, writer: int) -> None:
        try:
            self._packed = self._stream(self._layer.chain, writer)
        except BaseException as failure:  # raised again in `finish`
            self._failure = self._failure or failure
        finally:
            os.close(writer)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._packed is None or self._packed.digest != self._layer.diff_id:
            raise StoreError(
                f"layer {self._layer.short} cannot be packed as it was: its files were changed"
            )

    def _compress(self, reader: int) -> None:
        def report(count: int) -> None:
            if self._stopped:
                raise Cancelled("cancelled")
            self._report(count)

        try:
            digest = compress(reader, self._file, report)
            self._packer.join()
            self._check()
            self._digest = f"sha256:{digest}"
            self._file.complete()
        except BaseException as failure:  # raised again in `finish`
            self._failure = self._failure or failure
            self._file.failed(failure)
        finally:
            os.close(reader)


def _retrying(listener: Listener, layer: Wanted) -> None:
    listener(Event(layer.short, say.RETRYING))
