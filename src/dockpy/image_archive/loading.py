"""An archive of images, of Docker's kind or an OCI layout, to images in the store.

The archive is unpacked beside the store's layers first, as any hostile archive is: what its names
and links lead to is then a question for openat2 inside that directory. Every byte that becomes part
of an image is verified: layers by the configuration's diff ids, the configuration of an OCI layout
by its digest.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from dockpy import archive, image_config
from dockpy.errors import BadArchive
from dockpy.graph import Graph, Layer, StagedLayer
from dockpy.image_archive import layout
from dockpy.image_config import chain_ids, go_architecture
from dockpy.model import Image
from dockpy.mounts import open_in_root

TOGETHER = 4
"""Layers that are unpacked at the same time."""
DEPTH = 3
"""How deep an index may lead to other indexes."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was read, and the names the archive gives it."""

    image: Image
    names: tuple[str, ...]


def load(graph: Graph, source: BinaryIO | int) -> list[Loaded]:
    """Take in every image of an archive; blocks until they are on the disk.

    What was taken in before a failure stays; of the image that failed nothing is left. Raises
    BadArchive for what is wrong with the archive, KernelError.
    """
    with graph.workplace() as directory:
        archive.extract(source, directory / "archive", whiteouts=False)
        root = os.open(directory / "archive", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            opened = _Opened(root)
            return [_take_in(graph, opened, entry) for entry in entries_of(opened)]
        finally:
            os.close(root)


class _Opened:
    """An unpacked archive."""

    def __init__(self, root: int) -> None:
        self._root = root

    def has(self, path: str) -> bool:
        try:
            with self.file(path):
                return True
        except BadArchive:
            return False

    @contextmanager
    def file(self, path: str) -> Iterator[int]:
        """A plain file of the archive. BadArchive when there is none."""
        try:
            descriptor = open_in_root(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise BadArchive(f"the archive has no file {path[:200]!r}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadArchive(f"{path[:200]!r} in the archive is not a file")
            yield descriptor
        finally:
            os.close(descriptor)

    def document(self, path: str, hex_digest: str = "") -> bytes:
        """A small file, verified when its digest is known."""
        with self.file(path) as descriptor:
            if os.fstat(descriptor).st_size > layout.DOCUMENT_LIMIT:
                raise BadArchive(f"{path[:200]!r} is larger than {layout.DOCUMENT_LIMIT} bytes")
            with os.fdopen(os.dup(descriptor), "rb") as file:
                data = file.read()
        if hex_digest and hashlib.sha256(data).hexdigest() != hex_digest:
            raise BadArchive(f"{path[:200]!r} is not what its digest promises")
        return data


def entries_of(opened: _Opened) -> list[layout.Entry]:
    """The images in an archive. BadArchive when it holds none."""
    if opened.has(layout.MANIFEST):
        return layout.docker_entries(opened.document(layout.MANIFEST))
    if opened.has(layout.INDEX):
        found = layout.descriptors(opened.document(layout.INDEX), layout.INDEX)
        entries = [entry for one in found for entry in _entries(opened, one, DEPTH)]
        merged: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
        for one in entries:
            key = (one.config, one.layers)
            merged[key] = tuple(dict.fromkeys((*merged.get(key, ()), *one.names)))
        digests = {one.config: one.digest for one in entries}
        if merged:
            return [
                layout.Entry(config, layers, names, digests[config])
                for (config, layers), names in merged.items()
            ]
    raise BadArchive(
        f"the archive has neither {layout.MANIFEST} nor {layout.INDEX} with an image; "
        "to make an image of a root file system, use import"
    )


def _entries(opened: _Opened, one: layout.Descriptor, depth: int) -> list[layout.Entry]:
    if one.media_type in layout.LISTS:
        if depth == 0:
            raise BadArchive("the archive's indexes lead to indexes without end")
        found = layout.descriptors(opened.document(one.path, one.hex), one.path)
        chosen = layout.choose(found, go_architecture(platform.machine()))
        if chosen is None:
            return []
        named = layout.Descriptor(chosen.media_type, chosen.hex, one.names, chosen.platform)
        return _entries(opened, named, depth - 1)
    config, layers = layout.manifest(opened.document(one.path, one.hex), one.path)
    return [layout.Entry(config.path, tuple(layer.path for layer in layers), one.names, config.hex)]


def _take_in(graph: Graph, opened: _Opened, entry: layout.Entry) -> Loaded:
    data = opened.document(entry.config, entry.digest)
    diff_ids = image_config.parse(data).diff_ids
    if len(diff_ids) != len(entry.layers):
        raise BadArchive(
            f"an image has {len(entry.layers)} layers and its configuration {len(diff_ids)}"
        )
    chain = chain_ids(diff_ids)
    placed: list[Layer] = []
    try:
        with ThreadPoolExecutor(TOGETHER) as pool:

            def stage(number: int) -> StagedLayer:
                with opened.file(entry.layers[number]) as source:
                    return graph.stage_layer(source, expected=diff_ids[number])

            missing = {
                number: pool.submit(stage, number)
                for number, one in enumerate(chain)
                if graph.layer(one) is None
            }
            placed = place_all(graph, chain, {key: one.result for key, one in missing.items()})
        return Loaded(graph.register(data, placed=placed), entry.names)
    except BaseException:
        graph.release(placed)
        raise


def place_all(
    graph: Graph, chain: Sequence[str], staged: dict[int, Callable[[], StagedLayer]]
) -> list[Layer]:
    """Put staged layers, by their number, in place when all are ready; all of them or none."""
    ready: list[tuple[StagedLayer, str]] = []
    waiting = dict(sorted(staged.items()))
    try:
        for number in list(waiting):
            ready.append((waiting.pop(number)(), chain[number - 1] if number else ""))
    except BaseException:
        for layer, _ in ready:
            graph.discard(layer)
        for rest in waiting.values():
            try:
                graph.discard(rest())
            except Exception:
                continue  # it failed as well, and left nothing
        raise
    return graph.place_layers(ready)
