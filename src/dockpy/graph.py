"""Images on disk, addressed by content.

    <root>/graph/<image id>/json         the OCI configuration; sha256(json) = id
    <root>/graph/<image id>/meta.json    what the configuration does not say, and a summary of it

An image is made under a temporary name beside its place, taken to the disk and renamed, so it is
there whole or not at all; so are its layers (`dockpy.layers`). Deleting takes the image first, then
what nobody needs any more. What a crash leaves between two steps - temporary directories, layers of
no image - is found by `check` at start-up.

The summary is what a start-up reads, instead of checking every configuration again: ten thousand
images are then a fraction of a second. Whoever reads a configuration compares it with the id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dockpy import archive, image_config
from dockpy.errors import (
    AmbiguousPrefix,
    BadArchive,
    KernelError,
    NoSuchImage,
    NotFound,
    RequestError,
    StoreError,
    TornRecord,
)
from dockpy.image_config import HistoryEntry, ImageConfig, chain_ids
from dockpy.index import Entry, RecordIndex
from dockpy.layers import Finding, Layer, LayerStore, StagedLayer, placed, unfinished
from dockpy.model import Config, Image
from dockpy.packing import Packed
from dockpy.records import TEMPORARY, Flusher, Trash, set_aside, write
from dockpy.settings import from_json, to_json
from dockpy.truncindex import TruncIndex

__all__ = ["Finding", "Graph", "Layer", "StagedLayer"]

_ID = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{1,64}")
_FILES = ("meta.json", "json")  # what an image depends on


class Graph:
    """All images below one root. Thread-safe; images are immutable."""

    def __init__(
        self, root: Path, flusher: Flusher, trash: Trash, records: RecordIndex | None = None
    ) -> None:
        """Load all images. Torn ones are left out; `check` names them.

        `records`: an `image_index` that has begun to look already.
        """
        self._directory = root / "graph"
        self._flusher = flusher
        self._trash = trash
        self._layers = LayerStore(root, flusher, trash)
        self.deleted: Callable[[], object] = lambda: None
        """Called after an image was deleted, from any thread."""
        self._lock = threading.RLock()
        self._users = threading.Lock()  # taken before every other one
        self._images: dict[str, Image] = {}
        self._torn: dict[Path, StoreError] = {}
        self._records = records or image_index(root)
        for entry in self._records.entries():
            if not _ID.fullmatch(entry.name):
                continue
            try:
                self._images[entry.name] = self._load(entry)
            except StoreError as torn:
                self._torn[self._directory / entry.name] = torn
        self._layers.hold(one for image in self._images.values() for one in image.layers)
        self._index = TruncIndex("image", self._images)

    def _load(self, entry: Entry) -> Image:
        """An image as the index or its records tell it. TornRecord names the file at fault."""
        if entry.values is not None:
            try:
                image = _from_summary(entry.name, entry.values)
            except (AttributeError, KeyError, TypeError, ValueError):
                entry = entry._replace(values=None)  # the record will tell what is wrong
            else:
                self._records.keep(entry, entry.values)
                return image
        image, meta = _read(f"{self._directory}/{entry.name}", entry)
        if meta is not None:
            self._records.keep(entry, meta)
        return image

    def save_index(self) -> bool:
        """Write down what the next start-up need not read again; blocks. False: no need for it."""
        return self._records.save(self._flusher)

    # -- asking --------------------------------------------------------------------------------

    def get(self, reference: str) -> Image:
        """By id or unique prefix, with or without `sha256:`. NoSuchImage, AmbiguousPrefix."""
        prefix = reference.removeprefix("sha256:")
        if not _PREFIX.fullmatch(prefix):
            raise NoSuchImage(reference)
        with self._lock:
            image = self._images.get(prefix)
            if image is not None:
                return image
            try:
                return self._images[self._index.get(prefix)]
            except NotFound as missing:
                raise NoSuchImage(reference) from missing

    def exists(self, reference: str) -> bool:
        """Whether `get` would find an image."""
        try:
            self.get(reference)
        except (NoSuchImage, AmbiguousPrefix):
            return False
        return True

    def all(self) -> list[Image]:
        """Every image, newest first."""
        with self._lock:
            images = list(self._images.values())
        return sorted(images, key=lambda image: (-image.created, image.id))

    def walk_all(self, visit: Callable[[Image], object]) -> None:
        """Call `visit` for every image, newest first."""
        for image in self.all():
            visit(image)

    def map(self) -> dict[str, Image]:
        """Every image by its id."""
        with self._lock:
            return dict(self._images)

    def by_parent(self) -> dict[str, list[Image]]:
        """The images made from each image, newest first."""
        children: defaultdict[str, list[Image]] = defaultdict(list)
        for image in self.all():
            if image.parent:
                children[image.parent].append(image)
        return dict(children)

    def children(self, image: Image) -> list[Image]:
        """The images made from this one."""
        return self.by_parent().get(image.id, [])

    def heads(self) -> dict[str, Image]:
        """The images no other image was made from."""
        images = self.map()
        parents = {image.parent for image in images.values()}
        return {key: image for key, image in images.items() if key not in parents}

    def history(self, image: Image) -> list[Image]:
        """The image, its parent, and so on, as far as they are here."""
        images = self.map()
        line = {image.id: image}
        while (parent := images.get(image.parent)) is not None and parent.id not in line:
            line[parent.id] = image = parent
        return list(line.values())

    def configuration(self, image: Image) -> bytes:
        """The OCI configuration, byte for byte. Raises TornRecord when it is not the image's."""
        return _configuration(f"{self._directory}/{image.id}")

    def lower_directories(self, image: Image) -> list[Path]:
        """The directories of the image's layers, top-most first, for somebody who reads them.

        Blocks while packed layers are unpacked. StoreError names a missing one; KernelError when
        the disk is full, the layer stays packed then.
        """
        return [self._unpacked(image, one) for one in reversed(image.layers)]

    def _unpacked(self, image: Image, chain: str) -> Path:
        path = self._layers.tree(chain)
        if os.path.isdir(path):
            return path
        if self._layers.get(chain) is None:
            raise StoreError(f"{path}: this layer of image {image.short_id} is missing")
        return self._layers.unpacked(chain)

    def directory_names(self, image: Image) -> list[Path]:
        """What `lower_directories` gives, for somebody who only tells: nothing is unpacked."""
        return [self._layers.tree(one) for one in reversed(image.layers)]

    def unpack_soon(self, image: Image) -> None:
        """Unpack the image's packed layers in the background, for those who will start it."""
        self._layers.unpack_soon(image.layers)

    def wait_unpacked(self, timeout: float | None = None) -> bool:
        """Block until nothing is unpacked in the background; False after `timeout` seconds."""
        return self._layers.wait_unpacked(timeout)

    def close(self) -> None:
        """End what goes on in the background; packed layers stay packed. May be called twice."""
        self._layers.close()

    # -- layers --------------------------------------------------------------------------------

    def layer(self, chain: str) -> Layer | None:
        """The layer with that chain id, if it is here. Raises TornRecord."""
        return self._layers.get(chain)

    def stage_layer(
        self,
        source: BinaryIO | int,
        *,
        expected: str = "",
        limits: archive.Budget | None = None,
    ) -> StagedLayer:
        """Unpack a layer beside its place; any number of threads may. See `LayerStore.stage`."""
        return self._layers.stage(source, expected=expected, limits=limits)

    def stage_packed(self, pack: Callable[[int], Packed]) -> StagedLayer:
        """A layer that is its stream until somebody needs files. See `LayerStore.stage_packed`."""
        return self._layers.stage_packed(pack)

    def keep_stream(self, staged: StagedLayer, source: BinaryIO | int) -> StagedLayer:
        """Keep the stream of a layer that is not `repeatable`. See `LayerStore.keep_stream`."""
        return self._layers.keep_stream(staged, source)

    def discard(self, staged: StagedLayer) -> None:
        """Give up a layer that was not placed."""
        self._layers.discard(staged)

    def place_layer(self, staged: StagedLayer, parent: str = "") -> Layer:
        """Put a staged layer on the stack with chain id `parent`; waits for the disk.

        It is kept for an image to come until `create` or `register` uses it or `release` gives
        it up. Raises KernelError; what was staged is gone then.
        """
        [layer] = self._layers.place([(staged, parent)])
        return layer

    def place_layers(self, stack: Sequence[tuple[StagedLayer, str]]) -> list[Layer]:
        """The same for several, each with its parent; waits for the disk once. All or none."""
        return self._layers.place(stack)

    def register_layer(
        self, source: BinaryIO | int, *, parent: str = "", expected: str = ""
    ) -> Layer:
        """`stage_layer` and `place_layer` in one."""
        return self.place_layer(self.stage_layer(source, expected=expected), parent)

    def release(self, layers: Sequence[Layer]) -> None:
        """Give up layers that were placed for an image that did not come to be."""
        self._layers.drop([layer.chain_id for layer in layers if layer.kept])

    def write_layer(self, layer: Layer, out: int) -> Packed:
        """Write a layer's own tar stream to a descriptor; blocks. See `LayerStore.write`."""
        return self._layers.write(layer, out)

    def stream_size(self, layer: Layer) -> int:
        """Bytes of a layer's own tar stream."""
        return self._layers.stream_size(layer)

    # -- making --------------------------------------------------------------------------------

    def mktemp(self) -> Path:
        """A new directory on the store's disk; what is left of it goes at the next start-up."""
        with unfinished(self._layers.directory, self._trash) as directory:
            return directory

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A `mktemp` that goes away at the end."""
        directory = self.mktemp()
        try:
            yield directory
        finally:
            self._trash.discard(directory)

    def create(
        self,
        layers: Sequence[Layer],
        config: Config,
        *,
        parent: str = "",
        comment: str = "",
        author: str = "",
        container: str = "",
        created: float | None = None,
        history: Sequence[HistoryEntry] | None = None,
    ) -> Image:
        """Make an image of placed layers, lowest first, and wait until it is on the disk.

        `created`: seconds since the epoch, now by default. `history`: one entry per layer, made up
        from comment and author by default.
        """
        document = _document(layers, config, author, comment, created, history)
        return self.register(
            document,
            placed=layers,
            parent=parent,
            comment=comment,
            container=container,
        )

    def register(
        self,
        document: bytes,
        *,
        placed: Sequence[Layer] = (),
        parent: str = "",
        comment: str = "",
        container: str = "",
    ) -> Image:
        """Take in an image by its OCI configuration, byte for byte; its layers are in place.

        `placed`: the layers that were kept for it. An image that is here already is given as it
        is. Blocks until it is on the disk. On failure the layers stay kept; the caller releases
        them. Raises BadArchive for a bad configuration, RequestError for a missing layer.
        """
        parsed = image_config.parse(document)
        image_id = hashlib.sha256(document).hexdigest()
        chain = chain_ids(parsed.diff_ids)
        if not comment and parsed.history:
            comment = parsed.history[-1].comment
        self._layers.hold(chain)
        try:
            size = 0
            for one in chain:
                layer = self.layer(one)
                if layer is None:
                    raise RequestError(f"layer {one[:12]} of image {image_id[:12]} is not here")
                size += layer.size
            meta = {"parent": parent, "comment": comment, "container": container, "size": size}
            with unfinished(self._directory, self._trash) as directory:
                image = _image(image_id, parsed, meta)
                _write(directory, image, document, self._flusher)
                self._flusher.flush()
                image = self._take_in(directory, image)
        finally:
            self._layers.drop(chain)
        self.release(placed)
        self._flusher.flush()
        return image

    def _take_in(self, directory: Path, image: Image) -> Image:
        """Give an image that is on the disk, and so are its layers, its name.

        The name is on the disk after the next barrier. An image that is here already is given.
        """
        place = self._directory / image.id
        with self._lock:
            if image.id in self._images:
                self._trash.discard(directory)
                return self._images[image.id]
            if place.exists():
                set_aside(place)  # torn: `_load` refused it
            os.rename(directory, place)
            self._images[image.id] = image
            self._index.add(image.id)
            self._layers.hold(image.layers)
        self._flusher.moved(place)
        return image

    def import_archive(self, source: BinaryIO | int, *, config: Config, comment: str = "") -> Image:
        """Make an image of one layer from an archive of a root directory, compressed or not.

        Blocks until it is on the disk; on failure nothing is left. Raises BadArchive, KernelError.
        """
        with unfinished(self._directory, self._trash) as directory:
            staged = self.stage_layer(source)
            try:
                image, document = _made_here(placed(staged, ""), config, comment)
                _write(directory, image, document)
            except BaseException:
                with contextlib.suppress(KernelError):
                    self.discard(staged)
                raise
            # Three waits for the disk: files and all records; the layer's name; the image's.
            [layer] = self._layers.place([(staged, "")], beside=[directory])
            try:
                self._flusher.flush()
                image = self._take_in(directory, image)
            finally:
                self.release([layer])
        self._flusher.flush()
        return image

    def delete(self, reference: str) -> None:
        """Remove an image, and its layers that no other image has. NoSuchImage, AmbiguousPrefix.

        Whether it is tagged, or in use by containers, is for the caller to know: `steady_users`.
        """
        with self._lock:
            image = self.get(reference)
            self._trash.discard(self._directory / image.id)
            del self._images[image.id]
            self._index.remove(image.id)
            self._layers.drop(image.layers)
        self.deleted()

    @contextmanager
    def holding(self, image: Image) -> Iterator[None]:
        """For who reads an image for long: its layers stay, though it may be removed meanwhile.

        NoSuchImage when that has happened already.
        """
        with self._lock:
            self.get(image.id)
            self._layers.hold(image.layers)
        try:
            yield
        finally:
            self._layers.drop(image.layers)

    @contextmanager
    def steady_users(self) -> Iterator[None]:
        """Nobody begins to use an image meanwhile, or removes one.

        For who removes images that nobody uses, and for who tells that one is used from now on.
        """
        with self._users:
            yield

    # -- keeping order -------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """Put right what a crash left and name what is broken; for the start-up, before any work.

        Temporary directories and layers of no image go to the trash (layers stay while an image is
        torn: it may have been theirs). A torn image is set aside under another name.
        """
        findings: list[Finding] = []
        with self._lock:
            for path, torn in self._torn.items():
                aside = set_aside(path)
                findings.append(Finding(path, str(torn), f"set aside as {aside.name}"))
            self._torn.clear()
            set_asides = False
            for name in os.listdir(self._directory):
                set_asides = set_asides or ".torn-" in name
                if name.startswith(TEMPORARY):
                    self._trash.discard(self._directory / name)
                    findings.append(Finding(self._directory / name, "left unfinished", "removed"))
            seen = self._layers.look()
            findings += self._layers.check(seen, keep=set_asides)
            missing = self._layers.missing(seen)
            for image in self._images.values() if missing else ():
                for chain in missing.intersection(image.layers):
                    path = self._layers.tree(chain)
                    findings.append(Finding(path, f"missing; image {image.short_id} needs it"))
        return findings


def image_index(root: Path) -> RecordIndex:
    """The index of the images below `root`, for one start-up. It looks at them from now on."""
    directory = root / "graph"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return RecordIndex(root / "images.index", directory, _FILES, _FILES[:1])


def _configuration(directory: str) -> bytes:
    path = f"{directory}/json"
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as refusal:
        raise TornRecord(path, refusal.strerror or "cannot be read") from refusal
    if hashlib.sha256(data).hexdigest() != os.path.basename(directory):
        raise TornRecord(path, "its content does not match the image's id")
    return data


def _read(directory: str, entry: Entry) -> tuple[Image, dict[str, Any] | None]:
    """Read an image back, and the summary if there is one. TornRecord names the file at fault."""
    path = f"{directory}/meta.json"
    try:
        meta = entry.read_json(0, path)
        document = meta.get("document")
        path = f"{directory}/json"
        if entry.sights[1].size != document:  # torn, or from before there were summaries
            parsed = image_config.parse(_configuration(directory), history=False)
            return _image(os.path.basename(directory), parsed, meta), None
        path = f"{directory}/meta.json"
        return _from_summary(os.path.basename(directory), meta), meta
    except FileNotFoundError as missing:
        raise TornRecord(path, "is missing") from missing
    except (BadArchive, AttributeError, KeyError, TypeError, ValueError) as reason:
        raise TornRecord(path, f"not an image's ({reason})") from reason


def _image(image_id: str, parsed: ImageConfig, meta: dict[str, Any]) -> Image:
    return Image(
        id=image_id,
        layers=chain_ids(parsed.diff_ids),
        diff_ids=parsed.diff_ids,
        created=parsed.created,
        config=parsed.config,
        architecture=parsed.architecture,
        os=parsed.os,
        parent=str(meta["parent"]),
        comment=str(meta["comment"]),
        author=parsed.author,
        container=str(meta["container"]),
        size=_whole(meta["size"]),
    )


def _document(
    layers: Sequence[Layer],
    config: Config,
    author: str,
    comment: str,
    created: float | None = None,
    history: Sequence[HistoryEntry] | None = None,
) -> bytes:
    """The OCI configuration of an image made here; arguments as of `Graph.create`."""
    made = time.time() if created is None else created
    entries = history
    if entries is None:
        entries = [HistoryEntry(created=made, author=author, comment=comment) for _ in layers]
    return image_config.dump(
        ImageConfig(
            created=made,
            author=author,
            architecture=image_config.go_architecture(platform.machine()),
            config=config,
            diff_ids=tuple(layer.diff_id for layer in layers),
            history=tuple(entries),
        )
    )


def _made_here(layer: Layer, config: Config, comment: str) -> tuple[Image, bytes]:
    """An image of one layer and no parent, and its OCI configuration."""
    document = _document([layer], config, "", comment)
    meta = {"parent": "", "comment": comment, "container": "", "size": layer.size}
    image_id = hashlib.sha256(document).hexdigest()
    return _image(image_id, image_config.parse(document), meta), document


def _write(directory: Path, image: Image, document: bytes, flusher: Flusher | None = None) -> None:
    """An image's records into its directory; `flusher` as for `records.write`."""
    write(directory / "json", document, flusher)
    write(directory / "meta.json", _summary(image, len(document)), flusher)


def _summary(image: Image, document: int) -> bytes:
    """meta.json. `document`: bytes of the configuration that the summary is of."""
    values = {
        "parent": image.parent,
        "comment": image.comment,
        "container": image.container,
        "size": image.size,
        "document": document,
        "created": image.created,
        "author": image.author,
        "architecture": image.architecture,
        "os": image.os,
        "layers": image.layers,
        "diff_ids": image.diff_ids,
        "config": to_json(image.config),
    }
    return json.dumps(values, separators=(",", ":")).encode()


def _from_summary(image_id: str, meta: dict[str, Any]) -> Image:
    return Image(
        id=image_id,
        layers=_shared(meta["layers"]),
        diff_ids=_shared(meta["diff_ids"]),
        created=float(meta["created"]),
        config=from_json(meta["config"]),
        architecture=str(meta["architecture"]),
        os=str(meta["os"]),
        parent=str(meta["parent"]),
        comment=str(meta["comment"]),
        author=str(meta["author"]),
        container=str(meta["container"]),
        size=_whole(meta["size"]),
    )


def _shared(digests: list[str]) -> tuple[str, ...]:
    """Images have many layers in common: one text for each."""
    return tuple(map(sys.intern, digests))


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("size is not a number")
    return value
