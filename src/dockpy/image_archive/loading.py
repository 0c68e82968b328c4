"""An archive of images, of Docker's kind or an OCI layout, to images in the store.

Every byte that becomes part of an image is verified: layers by the configuration's diff ids, the
configuration of an OCI layout by its digest. An archive from before there were configurations
(Docker before 1.10) has nothing to verify with; its images get the names their content gives them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from dockpy import image_config
from dockpy.errors import BadArchive
from dockpy.graph import Graph, Layer, StagedLayer
from dockpy.image_archive import layout, legacy
from dockpy.image_archive.opening import Files, document, has, opened
from dockpy.image_config import chain_ids, go_architecture
from dockpy.model import Image

TOGETHER = 4
"""Layers that are unpacked at the same time."""
DEPTH = 3
"""How deep an index may lead to other indexes."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was read, and the names the archive gives it."""

    image: Image
    names: tuple[str, ...]


def load(graph: Graph, source: BinaryIO | int, call: Callable[[str], str] = str) -> list[Loaded]:
    """Take in every image of an archive; blocks until they are on the disk.

    `call` gives what a name of the archive, `repository[:tag]`, is here; nothing is named yet.
    What was taken in before a failure stays; of the image that failed nothing is left. Raises
    BadArchive for what is wrong with the archive, KernelError.
    """
    with opened(graph, source) as files:
        old = not has(files, layout.MANIFEST) and not has(files, layout.INDEX)
        if old and has(files, legacy.REPOSITORIES):
            named = legacy.repositories(document(files, legacy.REPOSITORIES))
            found = [_take_in_old(graph, files, top, names) for top, names in named.items()]
        else:
            found = [_take_in(graph, files, entry) for entry in entries_of(files)]
    return [Loaded(one.image, tuple(dict.fromkeys(map(call, one.names)))) for one in found]


def entries_of(files: Files) -> list[layout.Entry]:
    """The images in an archive. BadArchive when it holds none."""
    if has(files, layout.MANIFEST):
        return layout.docker_entries(document(files, layout.MANIFEST))
    if has(files, layout.INDEX):
        found = layout.descriptors(document(files, layout.INDEX), layout.INDEX)
        images = [one for one in found if not one.is_note]
        entries = [entry for one in images for entry in _entries(files, one, DEPTH)]
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


def _entries(files: Files, one: layout.Descriptor, depth: int) -> list[layout.Entry]:
    if one.media_type in layout.LISTS:
        if depth == 0:
            raise BadArchive("the archive's indexes lead to indexes without end")
        found = layout.descriptors(document(files, one.path, one.hex), one.path)
        chosen = layout.choose(found, go_architecture(platform.machine()))
        if chosen is None:
            return []
        named = layout.Descriptor(chosen.media_type, chosen.hex, one.names, chosen.platform)
        return _entries(files, named, depth - 1)
    config, layers = layout.manifest(document(files, one.path, one.hex), one.path)
    return [layout.Entry(config.path, tuple(layer.path for layer in layers), one.names, config.hex)]


def _take_in(graph: Graph, files: Files, entry: layout.Entry) -> Loaded:
    data = document(files, entry.config, entry.digest)
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
                with files.open(entry.layers[number]) as source:
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


def _take_in_old(graph: Graph, files: Files, top: str, names: tuple[str, ...]) -> Loaded:
    """An image of layers that each have a document of their own, from the top one down."""
    line: list[legacy.Step] = []
    at = top
    while at:
        if len(line) == layout.IMAGE_LIMIT or any(one.id == at for one in line):
            raise BadArchive(f"the parents of image {top[:12]} have no end")
        line.append(legacy.step(at, document(files, f"{at}/json")))
        at = line[-1].parent
    line.reverse()
    placed: list[Layer] = []
    try:
        for one in line:
            with files.open(f"{one.id}/layer.tar") as source:
                below = placed[-1].chain_id if placed else ""
                placed.append(graph.register_layer(source, parent=below))
        data = legacy.configuration(line, [layer.diff_id for layer in placed])
        return Loaded(graph.register(data, placed=placed), names)
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
