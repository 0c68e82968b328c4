"""From what a container changed to an image: its upper becomes a layer on the image's.

The upper is packed as a layer stream, and the stream is unpacked into the store, hashed on the way:
one pass, nothing on the disk but the layer. The container's files are only read.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dockpy import image_config
from dockpy.copying import packed
from dockpy.errors import StoreError
from dockpy.graph import Graph, Layer, StagedLayer
from dockpy.image_config import HistoryEntry
from dockpy.model import Config, Image
from dockpy.packing import pack_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What is said about the new image. `config`: what its containers get when nothing is said;
    `command`: what ran in the container that it is made of."""

    config: Config
    command: tuple[str, ...] = ()
    comment: str = ""
    author: str = ""
    container: str = ""


def commit(graph: Graph, base: Image, staged: StagedLayer, said: Commit) -> Image:
    """Make an image of `base` and one more layer; waits for the disk. A failure leaves nothing."""
    try:
        layers = [existing_layer(graph, chain) for chain in base.layers]
    except BaseException:
        graph.discard(staged)
        raise
    top = graph.place_layer(staged, base.layers[-1] if base.layers else "")
    try:
        made = time.time()
        before = image_config.parse(graph.configuration(base)).history
        entry = HistoryEntry(
            created=made,
            created_by=" ".join(said.command),
            author=said.author,
            comment=said.comment,
        )
        return graph.create(
            [*layers, top],
            said.config,
            parent=base.id,
            comment=said.comment,
            author=said.author,
            container=said.container,
            created=made,
            history=(*before, entry),
        )
    except BaseException:
        graph.release([top])
        raise


def existing_layer(graph: Graph, chain: str) -> Layer:
    """A layer of an image; StoreError when it is not there any more."""
    layer = graph.layer(chain)
    if layer is None:
        raise StoreError(f"layer {chain[:12]} of the container's image is missing")
    return layer


def stage_upper(graph: Graph, upper: Path, stop: int = -1) -> StagedLayer:
    """Copy a container's upper to the store as a layer that has no place yet.

    Blocks. Raises KernelError, RequestError for names that no layer can say, and Cancelled when
    the descriptor `stop` becomes readable.
    """
    directory = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with packed(lambda out: pack_layer(directory, out, digest=False), stop) as stream:
            return graph.stage_layer(stream)
    finally:
        os.close(directory)
