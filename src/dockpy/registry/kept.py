"""Layers' bytes as registries have them: blobs kept as they came, and tar streams of layers.

<root>/blobs/sha256/<hex>     a blob as it came; its digest was verified when it was put there
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from dockpy.errors import KernelError, StoreError
from dockpy.graph import Graph
from dockpy.packing import Packed
from dockpy.registry.manifests import Descriptor


class KeptBlobs:
    """The kept blobs of one engine. Thread-safe."""

    def __init__(self, root: Path, graph: Graph) -> None:
        self._directory = root / "blobs" / "sha256"
        self._graph = graph

    def blob(self, digest: str) -> Path | None:
        """The file of a blob, if it is kept."""
        path = self._directory / digest.partition(":")[2]
        return path if path.is_file() else None

    def keep(self, blob: Descriptor, _diff_id: str, path: Path) -> None:
        """Take over the file of a verified blob, on the same file system. KernelError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another pull of it was first
                os.rename(path, self._directory / blob.hex)
        except OSError as refusal:
            raise KernelError("keep blob", refusal.errno or 0, str(path)) from refusal

    def sweep(self, needed: Iterable[str]) -> int:
        """Remove all blobs but those with these digests; how many."""
        keep = {digest.partition(":")[2] for digest in needed}
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                if name not in keep:
                    with contextlib.suppress(OSError):
                        os.unlink(self._directory / name)
                        removed += 1
        return removed

    def stream(self, chain: str, out: int) -> Packed:
        """Write the tar stream of a layer, by its chain id, to a descriptor. StoreError."""
        layer = self._graph.layer(chain)
        if layer is None:
            raise StoreError(f"layer {chain[:12]} is missing")
        return self._graph.write_layer(layer, out)
