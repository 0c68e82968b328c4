"""Layers on disk, shared by images and counted.

    <root>/layers/<chain id>/diff/        the unpacked layer, with overlayfs's own whiteouts
    <root>/layers/<chain id>/skeleton     the rest of its tar stream, see `dockpy.skeleton`; or
    <root>/layers/<chain id>/stream       the stream itself, compressed, when the tree cannot say it
                                          again (a name that the archive has twice); or neither,
                                          when our own packer writes the stream from the tree
    <root>/layers/<chain id>/packed       the stream alone, before anybody needed the tree: see
                                          `dockpy.unpacking`
    <root>/layers/<chain id>/meta.json    diff id, parent, sizes

A layer is made under a temporary name beside its place, taken to the disk and renamed, so it is
there whole or not at all. Layers are content: the same diff id on the same parents is the same
tree, so whiteouts are always read as OCI layers mean them, also in a plain archive.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from dockpy import archive, layer_streams
from dockpy._look import look
from dockpy.block_groups import make_directory, spread
from dockpy.errors import BadArchive, KernelError, StoreError, TornRecord
from dockpy.image_config import chain_id
from dockpy.index import Sight, unpack
from dockpy.layer_streams import NOWHERE, opened
from dockpy.packing import Packed
from dockpy.records import TEMPORARY, Flusher, Trash, read_json, set_aside, write
from dockpy.unpacking import DIFF, PACKED, SKELETON, WORK, Unpacking

META = "meta.json"
Seen = Mapping[str, Sequence[Sight]]
"""Of each name in the store what was seen of its record and of its tree."""
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer in its place. `size`: bytes of file data; `stream`: of its tar stream.

    `kept`: placed for an image to come, and not removed before an image has it or it is released.
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
    """A layer that has no place yet.

    `repeatable`: its stream can be written again from what is kept; if not, `keep_stream` helps.
    `packed`: it is its stream.
    """

    directory: Path
    diff_id: str
    size: int
    entries: int
    stream: int
    repeatable: bool = True
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a check found that should not be there, or is not."""

    path: Path
    problem: str
    repair: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f"; {self.repair}" if self.repair else "")


class LayerStore:
    """All layers below one root. Thread-safe.

    A layer stays while somebody holds it: each image that has it, and whoever placed it for an
    image to come. The last `drop` puts it into the trash.
    """

    def __init__(self, root: Path, flusher: Flusher, trash: Trash) -> None:
        self.directory = root / "layers"
        self._flusher = flusher
        self._trash = trash
        self._trees: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._holds: Counter[str] = Counter()
        self._unpacking = Unpacking(
            self.directory,
            flusher,
            trash,
            digest_of=self._digest_of,
            wanted=lambda chain: self._holds[chain] > 1,
            holding=self.holding,
        )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spread(self.directory)

    def close(self) -> None:
        """End what goes on in the background; may be called twice."""
        self._unpacking.close()

    # -- asking --------------------------------------------------------------------------------

    def get(self, chain: str) -> Layer | None:
        """The layer with that chain id, if it is here whole. Raises TornRecord."""
        path = f"{self.directory}/{chain}/{META}"
        try:
            values = read_json(path)
            layer = Layer(
                chain_id=chain,
                diff_id=str(values["diff_id"]),
                parent=str(values["parent"]),
                size=int(values["size"]),
                entries=int(values["entries"]),
                stream=int(values.get("stream", 0)),
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (KeyError, TypeError, ValueError) as reason:
            raise TornRecord(path, f"not a layer ({reason!r})") from reason
        # The files are there before the stream goes.
        tree = f"{self.directory}/{chain}/{DIFF}"
        here = os.path.isdir(tree) or self._unpacking.is_packed(chain) or os.path.isdir(tree)
        return layer if here else None

    def tree(self, chain: str) -> Path:
        """Where a layer's files are, or will be."""
        path = self._trees.get(chain)
        if path is None:  # a start asks for each layer, and joining costs more than looking there
            path = self._trees[chain] = self.directory / chain / DIFF
        return path

    def unpacked(self, chain: str) -> Path:
        """Where a layer's files are; makes them first when it is packed, which blocks.

        Raises StoreError for a layer that is not here, and what `Unpacking.make` raises.
        """
        tree = self.tree(chain)
        if not tree.is_dir():
            self._unpacking.make(chain)
        return tree

    def unpack_soon(self, chains: Iterable[str]) -> None:
        """Make the files of layers, as far as they are packed, in the background."""
        for chain in chains:
            if self._unpacking.is_packed(chain):
                self._unpacking.soon(chain)

    def wait_unpacked(self, timeout: float | None = None) -> bool:
        """Block until nothing is unpacked in the background; False after `timeout` seconds."""
        return self._unpacking.wait(timeout)

    def _digest_of(self, chain: str) -> str:
        layer = self.get(chain)
        return layer.diff_id if layer is not None else ""

    # -- making --------------------------------------------------------------------------------

    def stage(
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
        began = _position(source)
        self._flusher.watch(self.directory)
        with unfinished(self.directory, self._trash) as directory:
            with opened(directory / SKELETON, os.O_WRONLY | os.O_CREAT) as kept:
                extracted = archive.extract(
                    source,
                    directory / DIFF,
                    limits=limits or archive.Budget(),
                    skeleton=kept,
                    write_back=True,
                )
            if expected and extracted.diff_id != expected:
                raise BadArchive(
                    f"the layer is sha256:{extracted.diff_id}, not sha256:{expected} as promised"
                )
            staged = StagedLayer(
                directory=directory,
                diff_id=extracted.diff_id,
                size=extracted.size,
                entries=extracted.entries,
                stream=extracted.stream,
                repeatable=extracted.rebuildable,
            )
            if extracted.rebuildable:
                return staged
            (directory / SKELETON).unlink()
            if not expected:  # then the stream that the tree can say again names it
                return _canonical(staged)
            if began is None:
                return staged
            if isinstance(source, int):
                os.lseek(source, began, os.SEEK_SET)
            else:
                source.seek(began)
            return self.keep_stream(staged, source)

    def stage_packed(self, pack: Callable[[int], Packed]) -> StagedLayer:
        """A layer that `pack` writes, as a stream, to the descriptor it gets; files come later.

        Its answer has the digest. Nothing is left on failure. Not flushed. Raises KernelError, and
        what `pack` raises.
        """
        with (
            unfinished(self.directory, self._trash) as directory,
            opened(directory / PACKED, os.O_WRONLY | os.O_CREAT) as out,
        ):
            packed = pack(out)
            return StagedLayer(
                directory=directory,
                diff_id=packed.digest,
                size=packed.content,
                entries=packed.entries,
                stream=packed.size,
                packed=True,
            )

    def keep_stream(self, staged: StagedLayer, source: BinaryIO | int) -> StagedLayer:
        """Keep a layer's stream beside its tree; blocks.

        `source` gives it as it came and can be sought. Compressed streams are kept as they are.
        Raises KernelError.
        """
        layer_streams.keep(staged.directory, source)
        return replace(staged, repeatable=True)

    def discard(self, staged: StagedLayer) -> None:
        """Give up a layer that was not placed."""
        self._trash.discard(staged.directory)

    def place(
        self, stack: Sequence[tuple[StagedLayer, str]], beside: Sequence[Path] = ()
    ) -> list[Layer]:
        """Put staged layers in place, each on the stack with the chain id beside it ("" for none).

        Waits once for the disk, then renames them in the order given; all or none. Each is held
        until an image has it or `drop` gives it up. Raises KernelError; the staged are gone then.
        `beside`: directories that this wait takes to the disk too. That the layers have their names
        is on the disk after the next barrier.
        """
        layers = [placed(staged, parent) for staged, parent in stack]
        done = 0
        try:
            for (staged, _), layer in zip(stack, layers, strict=True):
                write(staged.directory / META, _encode(layer))
            for path in (one.directory for one, _ in stack if one.packed):
                self._flusher.wrote(path / PACKED)
                self._flusher.wrote(path / META)
            self._flusher.flush(*beside, *(one.directory for one, _ in stack if not one.packed))
            for (staged, _), layer in zip(stack, layers, strict=True):
                self._put(staged.directory, layer.chain_id)
                done += 1
        except BaseException as failure:
            with contextlib.suppress(KernelError):
                for staged, _ in stack[done:]:
                    self._trash.discard(staged.directory)
            self.drop([layer.chain_id for layer in layers[:done]])
            if isinstance(failure, OSError) and not isinstance(failure, KernelError):
                raise KernelError(
                    "place layer", failure.errno or errno.EIO, str(self.directory)
                ) from failure
            raise
        for layer in layers:
            self._flusher.moved(self.directory / layer.chain_id)
        return layers

    def _put(self, directory: Path, chain: str) -> None:
        place = self.directory / chain
        with self._lock:
            try:
                here = self.get(chain) is not None
            except TornRecord:
                here = False
            if here:
                self._trash.discard(directory)
            else:
                if place.exists():
                    set_aside(place)  # broken; containers may still have it mounted
                os.rename(directory, place)
            self._holds[chain] += 1

    # -- counting ------------------------------------------------------------------------------

    def hold(self, chains: Iterable[str]) -> None:
        """Nobody takes these layers away before as many calls of `drop`."""
        with self._lock:
            self._holds.update(chains)

    @contextlib.contextmanager
    def holding(self, chain: str) -> Iterator[None]:
        """Hold a layer in the block."""
        self.hold([chain])
        try:
            yield
        finally:
            self.drop([chain])

    def drop(self, chains: Sequence[str]) -> None:
        """Let go of layers, given lowest first; what nobody holds any more goes to the trash."""
        with self._lock:
            for chain in reversed(chains):
                self._holds[chain] -= 1
                if self._holds[chain] <= 0:
                    del self._holds[chain]
                    self._trash.discard(self.directory / chain)
                    self._trees.pop(chain, None)

    # -- reading -------------------------------------------------------------------------------

    def write(self, layer: Layer, out: int) -> Packed:
        """Write a layer's own tar stream, the one its diff id is of, to a descriptor; blocks.

        Raises StoreError when the stream cannot be had again, or is another than it was.
        """
        directory = self.directory / layer.chain_id
        try:
            packed = layer_streams.write(directory, out)
        except FileNotFoundError as missing:
            raise StoreError(
                f"layer {layer.chain_id[:12]} is missing; pull or load its image again"
            ) from missing
        if packed.digest != layer.diff_id:
            raise StoreError(
                f"layer {layer.chain_id[:12]} is not on the disk as it came; "
                "remove its images, then pull or load them again"
            )
        return packed

    def stream_size(self, layer: Layer) -> int:
        """Bytes of a layer's own tar stream; blocks when it has to be written. As `write`."""
        if layer.stream:
            return layer.stream
        with opened(NOWHERE, os.O_WRONLY) as out:
            return self.write(layer, out).size

    # -- keeping order -------------------------------------------------------------------------

    def look(self) -> Seen:
        """What the kernel says of each layer's record and tree, at once."""
        names = sorted(os.listdir(self.directory))
        files = [META.encode(), f"{DIFF}/.".encode()]
        with opened(self.directory, os.O_RDONLY | os.O_DIRECTORY) as directory:
            found = look(directory, [os.fsencode(name) for name in names], files)
        return dict(zip(names, map(unpack, found), strict=True))

    def check(self, seen: Seen, *, keep: bool) -> Iterator[Finding]:
        """Put right what a crash left and name what is broken; before any work.

        Temporary directories go to the trash, and so do layers that nobody holds, unless `keep`.
        """
        for name, (meta, _) in seen.items():
            if name in self._holds:
                yield from _check_meta(f"{self.directory}/{name}", meta)
            elif name.startswith(TEMPORARY):
                if name.startswith(WORK):
                    self._unpacking.mend(name)
                else:
                    self._trash.discard(self.directory / name)
                yield Finding(self.directory / name, "left unfinished", "removed")
            elif _ID.fullmatch(name):
                if not keep:
                    self._trash.discard(self.directory / name)
                repair = "kept, an image was set aside" if keep else "removed"
                yield Finding(self.directory / name, "a layer of no image", repair)

    def missing(self, seen: Seen) -> set[str]:
        """Layers that somebody holds and that are not here. Packed ones are unpacked soon."""
        here = {name for name, (_, tree) in seen.items() if tree.exists}
        away = self._holds.keys() - here
        packed = {chain for chain in away if self._unpacking.is_packed(chain)}
        self.unpack_soon(sorted(packed))
        return away - packed


def _check_meta(path: str, meta: Sight) -> Iterator[Finding]:
    # An empty file is what a power cut leaves; others are read, and checked, when they are used.
    if not meta.exists:
        yield Finding(Path(path), f"has no {META}; pull or load its images again")
    elif not meta.size:
        again = "is empty; remove its images and pull or load them again"
        yield Finding(Path(path, META), again)


def placed(staged: StagedLayer, parent: str) -> Layer:
    """What a staged layer will be on the stack with chain id `parent`."""
    return Layer(
        chain_id=chain_id(parent, staged.diff_id),
        diff_id=staged.diff_id,
        parent=parent,
        size=staged.size,
        entries=staged.entries,
        stream=staged.stream,
        kept=True,
    )


def _encode(layer: Layer) -> bytes:
    values = {
        "diff_id": layer.diff_id,
        "parent": layer.parent,
        "size": layer.size,
        "entries": layer.entries,
        "stream": layer.stream,
    }
    return json.dumps(values, separators=(",", ":")).encode()


def _canonical(staged: StagedLayer) -> StagedLayer:
    """The same tree, named by the stream that our own packer makes of it."""
    packed = layer_streams.of_tree(staged.directory)
    return replace(staged, diff_id=packed.digest, stream=packed.size, repeatable=True)


def _position(source: BinaryIO | int) -> int | None:
    """Where a source stands; None when it cannot go back there."""
    try:
        if isinstance(source, int):
            return os.lseek(source, 0, os.SEEK_CUR)
        return source.tell() if source.seekable() else None
    except (OSError, AttributeError):
        return None


@contextlib.contextmanager
def unfinished(parent: Path, trash: Trash) -> Iterator[Path]:
    """A new directory in `parent` that goes away when the block fails.

    The next start-up finds it by its name. OSError in the block becomes KernelError.
    """
    directory: Path | None = None
    try:
        directory = make_directory(parent, TEMPORARY)
        yield directory
    except BaseException as failure:
        if directory is not None:
            with contextlib.suppress(KernelError):
                trash.discard(directory)
        if isinstance(failure, OSError) and not isinstance(failure, KernelError):
            raise KernelError(
                "store image", failure.errno or errno.EIO, str(directory or parent)
            ) from failure
        raise
