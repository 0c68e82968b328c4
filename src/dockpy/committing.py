"""From what a container changed to an image: its upper becomes a layer on the image's.

The upper is written into the store as a layer stream, hashed on the way, and that is the layer: its
files are made of it later (`dockpy.unpacking`). The container's files are only read.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from dockpy import image_config
from dockpy.archive import Budget
from dockpy.errors import Cancelled, RequestError, StoreError
from dockpy.graph import Graph, Layer, StagedLayer
from dockpy.image_config import HistoryEntry
from dockpy.model import Config, Image
from dockpy.packing import Progress, pack_layer


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
        image = graph.create(
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
    graph.unpack_soon(image)
    return image


def existing_layer(graph: Graph, chain: str) -> Layer:
    """A layer of an image; StoreError when it is not there any more."""
    layer = graph.layer(chain)
    if layer is None:
        raise StoreError(f"layer {chain[:12]} of the container's image is missing")
    return layer


def stage_upper(
    graph: Graph, upper: Path, stop: int = -1, limits: Budget | None = None
) -> StagedLayer:
    """Pack a container's upper into the store, as a layer that has no place yet.

    Blocks. Raises KernelError, RequestError for what no layer can say or is beyond `limits`, which
    are those of who unpacks it, and Cancelled when the descriptor `stop` becomes readable.
    """

    allowed = limits or Budget()

    def check(progress: Progress) -> None:
        if stop >= 0 and select.select([stop], [], [], 0)[0]:
            raise Cancelled("interrupted")
        if (problem := beyond(progress, allowed)) is not None:
            raise RequestError(f"the container's files cannot be a layer: {problem}")

    directory = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return graph.stage_packed(lambda out: pack_layer(directory, out, check=check))
    finally:
        os.close(directory)


def beyond(progress: Progress, limits: Budget) -> str | None:
    """Why an archive would not be taken back; None: it would be."""
    if progress.content > limits.size:
        return f"more than {limits.size} bytes"
    if progress.entries > limits.entries:
        return f"more than {limits.entries} names"
    if progress.longest > limits.path:
        return f"a path longer than {limits.path} bytes"
    if progress.metadata > limits.metadata:
        return f"more than {limits.metadata} bytes of extended attributes of one file"
    return None
