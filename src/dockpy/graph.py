"""Images on disk, addressed by content; layers shared between them.

    <root>/graph/<image id>/{json,meta.json}     json: the OCI configuration, sha256(json) = id
    <root>/layers/<chain id>/{diff/,skeleton,meta.json}   diff: the unpacked layer; skeleton: the
                                                 rest of its tar stream, see `dockpy.skeleton`

A layer or an image is made under a temporary name beside its place, taken to the disk and renamed,
so each is there whole or not at all. Deleting takes the image first, then what nobody needs any
more. What a crash leaves between two steps - temporary directories, layers of no image - is found
by `check` at start-up. Layers are content: the same diff id on the same parents is the same tree,
so whiteouts are always read as OCI layers mean them, also in a plain archive.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dockpy import archive, image_config, packing, skeleton
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
from dockpy.image_config import HistoryEntry, ImageConfig, chain_id, chain_ids
from dockpy.model import Config, Image
from dockpy.packing import Packed
from dockpy.records import TEMPORARY, Flusher, Trash, read_json, set_aside, write
from dockpy.truncindex import TruncIndex

SKELETON = "skeleton"
NOWHERE = Path(os.devnull)
_ID = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An unpacked layer in its place. `size`: bytes of file data; `stream`: of its tar stream.

    `kept`: placed for an image to come, and not removed before `create`, `register` or `release`.
    """

    chain_id: str
    diff_id: str
    parent: str
    size: int
    entries: int
    stream: int
    kept: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedLayer:
    """An unpacked layer that has no place yet."""

    directory: Path
    diff_id: str
    size: int
    entries: int
    stream: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something `check` found that should not be there, or is not."""

    path: Path
    problem: str
    repair: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f"; {self.repair}" if self.repair else "")


class Graph:
    """All images below one root. Thread-safe; images are immutable."""

    def __init__(self, root: Path, flusher: Flusher, trash: Trash) -> None:
        """Load the index. Torn images are left out; `check` names them."""
        self._images_directory = root / "graph"
        self._layers_directory = root / "layers"
        self._flusher = flusher
        self._trash = trash
        self._lock = threading.RLock()
        self._images: dict[str, Image] = {}
        self._index = TruncIndex("image")
        self._torn: dict[Path, StoreError] = {}
        self._users: Counter[str] = Counter()  # images per layer
        self._pins: Counter[str] = Counter()  # layers placed for an image to come
        for directory in (self._images_directory, self._layers_directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in sorted(os.listdir(self._images_directory)):
            if not _ID.fullmatch(name):
                continue
            try:
                self._add(_load(f"{self._images_directory}/{name}"))
            except StoreError as torn:
                self._torn[self._images_directory / name] = torn

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
        line = [image]
        while (parent := images.get(line[-1].parent)) is not None and parent not in line:
            line.append(parent)
        return line

    def configuration(self, image: Image) -> bytes:
        """The OCI configuration, byte for byte. Raises TornRecord when it is not the image's."""
        return _configuration(str(self._images_directory / image.id))

    def lower_directories(self, image: Image) -> list[Path]:
        """The image's unpacked layers, top-most first. StoreError names a missing one."""
        paths = [self._layers_directory / one / "diff" for one in reversed(image.layers)]
        for path in paths:
            if not path.is_dir():
                raise StoreError(f"{path}: this layer of image {image.short_id} is missing")
        return paths

    def layer(self, chain: str) -> Layer | None:
        """The layer with that chain id, if it is here. Raises TornRecord."""
        directory = self._layers_directory / chain
        try:
            values = read_json(directory / "meta.json")
            return Layer(
                chain_id=chain,
                diff_id=str(values["diff_id"]),
                parent=str(values["parent"]),
                size=int(values["size"]),
                entries=int(values["entries"]),
                stream=int(values.get("stream", 0)),
            )
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as reason:
            raise TornRecord(str(directory / "meta.json"), f"not a layer ({reason!r})") from reason

    # -- making --------------------------------------------------------------------------------

    def stage_layer(
        self,
        source: BinaryIO | int,
        *,
        expected: str = "",
        limits: archive.Budget | None = None,
    ) -> StagedLayer:
        """Unpack a layer beside its place; any number of threads may.

        `expected`: the diff id it must have (hex). `limits`: what it may ask for. Nothing is left
        on failure. Not flushed. Raises what `archive.extract` raises, and BadArchive when the
        content is another.
        """
        with self._temporary(self._layers_directory) as directory:
            with opened(directory / SKELETON, os.O_WRONLY | os.O_CREAT) as kept:
                extracted = archive.extract(
                    source, directory / "diff", limits=limits or archive.Budget(), skeleton=kept
                )
            diff_id, stream = extracted.diff_id, extracted.stream
            if not extracted.rebuildable:
                (directory / SKELETON).unlink()
                if not expected:  # then the stream that the tree can say again names it
                    canonical = canonical_stream(directory / "diff")
                    diff_id, stream = canonical.digest, canonical.size
            if expected and extracted.diff_id != expected:
                raise BadArchive(
                    f"the layer is sha256:{extracted.diff_id}, not sha256:{expected} as promised"
                )
            return StagedLayer(
                directory=directory,
                diff_id=diff_id,
                size=extracted.size,
                entries=extracted.entries,
                stream=stream,
            )

    def write_layer(self, layer: Layer, out: int) -> Packed:
        """Write a layer's own tar stream, the one its diff id is of, to a descriptor; blocks.

        Raises StoreError when the stream cannot be had again, or is another than it was.
        """
        directory = self._layers_directory / layer.chain_id
        with opened(directory / "diff", os.O_RDONLY | os.O_DIRECTORY) as tree:
            try:
                with opened(directory / SKELETON, os.O_RDONLY) as kept:
                    packed = skeleton.rebuild(kept, tree, out)
            except FileNotFoundError:
                packed = packing.pack_layer(tree, out)
        if packed.digest != layer.diff_id:
            raise StoreError(
                f"layer {layer.chain_id[:12]} cannot be written again as it came; "
                "pull or load its image again"
            )
        return packed

    def stream_size(self, layer: Layer) -> int:
        """Bytes of a layer's own tar stream, by writing it nowhere. Raises as `write_layer`."""
        with opened(NOWHERE, os.O_WRONLY) as out:
            return self.write_layer(layer, out).size

    def discard(self, staged: StagedLayer) -> None:
        """Give up a layer that was not placed."""
        self._trash.discard(staged.directory)

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """A directory on the store's disk that goes away at the end."""
        with self._temporary(self._layers_directory) as directory:
            yield directory
        self._trash.discard(directory)

    def place_layer(self, staged: StagedLayer, parent: str = "") -> Layer:
        """Put a staged layer on the stack with chain id `parent`; waits for the disk.

        It is kept for an image to come until `create` or `register` uses it or `release` gives
        it up.
        """
        layer = Layer(
            chain_id=chain_id(parent, staged.diff_id),
            diff_id=staged.diff_id,
            parent=parent,
            size=staged.size,
            entries=staged.entries,
            stream=staged.stream,
            kept=True,
        )
        place = self._layers_directory / layer.chain_id
        try:
            write(
                staged.directory / "meta.json",
                _json(
                    {
                        "diff_id": layer.diff_id,
                        "parent": layer.parent,
                        "size": layer.size,
                        "entries": layer.entries,
                        "stream": layer.stream,
                    }
                ),
            )
            self._flusher.flush(staged.directory)
            with self._lock:
                if place.is_dir():
                    self._trash.discard(staged.directory)
                else:
                    os.rename(staged.directory, place)
                self._pins[layer.chain_id] += 1
        except BaseException as failure:
            with contextlib.suppress(KernelError):
                self._trash.discard(staged.directory)
            if isinstance(failure, OSError) and not isinstance(failure, KernelError):
                raise KernelError(
                    "place layer", failure.errno or errno.EIO, str(place)
                ) from failure
            raise
        self._flusher.wrote(place)
        return layer

    def register_layer(
        self, source: BinaryIO | int, *, parent: str = "", expected: str = ""
    ) -> Layer:
        """`stage_layer` and `place_layer` in one."""
        return self.place_layer(self.stage_layer(source, expected=expected), parent)

    def release(self, layers: Sequence[Layer]) -> None:
        """Give up layers that were placed for an image that did not come to be."""
        with self._lock:
            for layer in reversed(layers):
                self._pins[layer.chain_id] -= layer.kept
                self._drop(layer.chain_id)

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
        made = time.time() if created is None else created
        entries = history
        if entries is None:
            entries = [HistoryEntry(created=made, author=author, comment=comment) for _ in layers]
        document = ImageConfig(
            created=made,
            author=author,
            architecture=image_config.go_architecture(platform.machine()),
            config=config,
            diff_ids=tuple(layer.diff_id for layer in layers),
            history=tuple(entries),
        )
        return self.register(
            image_config.dump(document),
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
        with self._keeping(chain):
            size = 0
            for one in chain:
                layer = self.layer(one)
                if layer is None:
                    raise RequestError(f"layer {one[:12]} of image {image_id[:12]} is not here")
                size += layer.size
            meta = {"parent": parent, "comment": comment, "container": container, "size": size}
            image = self._store(_image(image_id, parsed, meta), document, meta)
            with self._lock:
                self._pins.subtract(layer.chain_id for layer in placed if layer.kept)
        self._flusher.wrote(self._images_directory / image_id)
        self._flusher.flush()
        return image

    def _store(self, image: Image, document: bytes, meta: dict[str, object]) -> Image:
        place = self._images_directory / image.id
        with self._temporary(self._images_directory) as directory:
            write(directory / "json", document, self._flusher)
            write(directory / "meta.json", _json(meta), self._flusher)
            self._flusher.flush()
            with self._lock:
                if image.id in self._images:
                    self._trash.discard(directory)
                    return self._images[image.id]
                if place.exists():
                    set_aside(place)  # torn: `_load` refused it
                os.rename(directory, place)
                self._add(image)
        return image

    @contextlib.contextmanager
    def _keeping(self, chain: Sequence[str]) -> Iterator[None]:
        """Nobody's removal takes these layers away meanwhile."""
        with self._lock:
            self._pins.update(chain)
        try:
            yield
        finally:
            with self._lock:
                self._pins.subtract(chain)
                for one in reversed(chain):
                    self._drop(one)

    def import_archive(self, source: BinaryIO | int, *, config: Config, comment: str = "") -> Image:
        """Make an image of one layer from an archive of a root directory, compressed or not.

        Blocks until it is on the disk; on failure nothing is left. Raises BadArchive, KernelError.
        """
        layer = self.register_layer(source)
        try:
            return self.create([layer], config, comment=comment)
        except BaseException:
            self.release([layer])
            raise

    def delete(self, reference: str) -> None:
        """Remove an image, and its layers that no other image has. NoSuchImage, AmbiguousPrefix.

        Whether it is tagged, or in use by containers, is for the caller to know.
        """
        with self._lock:
            image = self.get(reference)
            self._trash.discard(self._images_directory / image.id)
            del self._images[image.id]
            self._index.remove(image.id)
            for chain in image.layers:
                self._users[chain] -= 1
            for chain in reversed(image.layers):
                self._drop(chain)

    # -- keeping order -------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """Put right what a crash left and name what is broken; for the start-up, before any work.

        Temporary directories and layers of no image go to the trash (layers stay while an image is
        torn: it may have been theirs). A torn image is set aside under another name.
        """
        findings: list[Finding] = []
        with self._lock:
            for parent in (self._images_directory, self._layers_directory):
                for name in sorted(os.listdir(parent)):
                    if name.startswith(TEMPORARY):
                        self._trash.discard(parent / name)
                        findings.append(Finding(parent / name, "left unfinished", "removed"))
            for path, torn in self._torn.items():
                aside = set_aside(path)
                findings.append(Finding(path, str(torn), f"set aside as {aside.name}"))
            self._torn.clear()
            set_asides = any(".torn-" in name for name in os.listdir(self._images_directory))
            for name in sorted(os.listdir(self._layers_directory)):
                findings += self._check_layer(name, keep=set_asides)
            for image in self.all():
                for chain in image.layers:
                    if not (self._layers_directory / chain / "diff").is_dir():
                        path = self._layers_directory / chain
                        findings.append(Finding(path, f"missing; image {image.short_id} needs it"))
        return findings

    def _check_layer(self, name: str, *, keep: bool) -> Iterator[Finding]:
        path = self._layers_directory / name
        if not _ID.fullmatch(name):
            return
        if not self._users[name] and not self._pins[name]:
            if not keep:
                self._trash.discard(path)
            repair = "kept, an image was set aside" if keep else "removed"
            yield Finding(path, "a layer of no image", repair)
            return
        try:
            if self.layer(name) is None:
                yield Finding(path, "has no meta.json")
        except TornRecord as torn:
            yield Finding(path, str(torn))

    def _add(self, image: Image) -> None:
        self._images[image.id] = image
        self._index.add(image.id)
        self._users.update(image.layers)

    def _drop(self, chain: str) -> None:
        if self._users[chain] <= 0 and self._pins[chain] <= 0:
            del self._users[chain], self._pins[chain]
            self._trash.discard(self._layers_directory / chain)

    @contextlib.contextmanager
    def _temporary(self, parent: Path) -> Iterator[Path]:
        """A directory that goes away when the block fails."""
        directory = parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            directory.mkdir(mode=0o700)
            yield directory
        except BaseException as failure:
            with contextlib.suppress(KernelError):
                self._trash.discard(directory)
            if isinstance(failure, OSError) and not isinstance(failure, KernelError):
                raise KernelError(
                    "store image", failure.errno or errno.EIO, str(directory)
                ) from failure
            raise


def canonical_stream(tree: Path) -> Packed:
    """Digest and size of a tree's stream as our own packer writes it."""
    with opened(tree, os.O_RDONLY | os.O_DIRECTORY) as found, opened(NOWHERE, os.O_WRONLY) as out:
        return packing.pack_layer(found, out)


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file of the store."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _json(values: object) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


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


def _load(directory: str) -> Image:
    """Read an image back. TornRecord names the file at fault.

    The id vouches for the configuration, which was checked when it was registered.
    """
    path = f"{directory}/json"
    try:
        parsed = image_config.parse(_configuration(directory), history=False)
        path = f"{directory}/meta.json"
        return _image(os.path.basename(directory), parsed, read_json(path))
    except FileNotFoundError as missing:
        raise TornRecord(path, "is missing") from missing
    except (BadArchive, KeyError, TypeError, ValueError) as reason:
        raise TornRecord(path, f"not an image's ({reason})") from reason


def _image(image_id: str, parsed: ImageConfig, meta: dict[str, object]) -> Image:
    size = meta["size"]
    if not isinstance(size, int):
        raise TypeError("size is not a number")
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
        size=size,
    )
