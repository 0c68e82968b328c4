"""Images to one tar stream, which is Docker's archive and an OCI layout at once.

The documents come first, so a reader may unpack layers while they arrive. Layers are stored as they
are named: uncompressed, by their diff ids. The same images give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dockpy.errors import KernelError, StoreError
from dockpy.graph import Graph, Layer
from dockpy.image_archive import layout
from dockpy.model import Image
from dockpy.references import parse

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True, slots=True)
class Selected:
    """An image to be saved and the names it is saved by, `repository:tag`; maybe none."""

    image: Image
    names: tuple[str, ...]


def save(graph: Graph, selected: Sequence[Selected], out: int) -> None:
    """Write images to a descriptor. Blocks as it does; on failure a part was written.

    They may be removed meanwhile. Raises NoSuchImage when one is before it begins, StoreError for
    a layer that cannot be had, KernelError.
    """
    with ExitStack() as held:
        for one in selected:
            held.enter_context(graph.holding(one.image))
        _save(graph, selected, out)


def _save(graph: Graph, selected: Sequence[Selected], out: int) -> None:
    configurations = {one.image.id: graph.configuration(one.image) for one in selected}
    layers: dict[str, Layer] = {}
    for one in selected:
        for chain in one.image.layers:
            layer = graph.layer(chain)
            if layer is None:
                raise StoreError(f"layer {chain[:12]} of image {one.image.short_id} is missing")
            layers.setdefault(layer.diff_id, layer)
    sizes = {key: layer.stream or graph.stream_size(layer) for key, layer in layers.items()}
    manifests = {
        one.image.id: manifest(one.image, configurations[one.image.id], sizes) for one in selected
    }
    _file(out, layout.LAYOUT, layout.encode({"imageLayoutVersion": "1.0.0"}))
    _file(out, layout.INDEX, index(selected, manifests))
    _file(out, layout.MANIFEST, docker_manifest(selected))
    for documents in (manifests, configurations):
        for data in documents.values():
            _file(out, layout.BLOBS + hashlib.sha256(data).hexdigest(), data)
    for diff_id, layer in layers.items():
        size = sizes[diff_id]
        _write(out, header(layout.BLOBS + diff_id, size))
        packed = graph.write_layer(layer, out)
        if packed.size != size:
            raise StoreError(f"layer {layer.chain_id[:12]} changed while it was written")
        _write(out, bytes(-size % BLOCK))
    _write(out, END)


def manifest(image: Image, configuration: bytes, sizes: dict[str, int]) -> bytes:
    """An image's OCI manifest."""
    return layout.encode(
        {
            "schemaVersion": 2,
            "mediaType": layout.MANIFEST_TYPE,
            "config": described(layout.CONFIG_TYPE, image.id, len(configuration)),
            "layers": [described(layout.LAYER_TYPE, one, sizes[one]) for one in image.diff_ids],
        }
    )


def described(media_type: str, hex_digest: str, size: int) -> dict[str, object]:
    """A descriptor."""
    return {"mediaType": media_type, "digest": f"sha256:{hex_digest}", "size": size}


def index(selected: Sequence[Selected], manifests: dict[str, bytes]) -> bytes:
    """index.json: a descriptor per name, or one for an image without any."""
    listed: list[dict[str, object]] = []
    for one in selected:
        data = manifests[one.image.id]
        entry = described(layout.MANIFEST_TYPE, hashlib.sha256(data).hexdigest(), len(data))
        for name in one.names:
            reference = parse(name)
            full = f"{reference.repository}:{reference.tag or 'latest'}"
            notes = {layout.FULL_NAME: full, layout.REF_NAME: reference.tag or "latest"}
            listed.append({**entry, "annotations": notes})
        if not one.names:
            listed.append(entry)
    return layout.encode({"schemaVersion": 2, "mediaType": layout.INDEX_TYPE, "manifests": listed})


def docker_manifest(selected: Sequence[Selected]) -> bytes:
    """manifest.json."""
    return layout.encode(
        [
            {
                "Config": layout.BLOBS + one.image.id,
                "RepoTags": list(one.names) or None,
                "Layers": [layout.BLOBS + diff_id for diff_id in one.image.diff_ids],
            }
            for one in selected
        ]
    )


def header(name: str, size: int) -> bytes:
    """A tar header, with what it needs before it when the size does not fit."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _file(out: int, name: str, data: bytes) -> None:
    _write(out, header(name, len(data)) + data + bytes(-len(data) % BLOCK))


def _write(out: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(out, view) :]
    except OSError as refusal:
        raise KernelError("write archive", refusal.errno or 0) from refusal
