"""Stores of layers and images without an engine, and processes that are killed at their work."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from dockpy.graph import Graph
from dockpy.layers import LayerStore
from dockpy.model import Image
from dockpy.records import TEMPORARY, Flusher, Trash
from dockpy.tags import TagStore
from dockpy.unpacking import PACKED
from patience import patient
from reference.tarblocks import END, file, header

ROOT = header(b"./", b"5", mode=0o755)
PLAIN = ROOT + file(b"a", b"first") + END


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Store:
    """Layers, images and names below one root, as the runtime puts them together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flusher = Flusher()
        self.trash = Trash(root)
        self.graph = Graph(root, self.flusher, self.trash)
        self.layers: LayerStore = self.graph._layers
        self.tags = TagStore(root, self.graph, self.flusher)

    def close(self) -> None:
        self.graph.close()
        self.trash.close()
        self.flusher.close()

    def names(self, of: str) -> list[str]:
        return sorted(os.listdir(self.root / of))


@contextlib.contextmanager
def descriptor(data: bytes) -> Iterator[int]:
    """A descriptor that can go back."""
    made = os.memfd_create("stream")
    try:
        os.write(made, data)
        os.lseek(made, 0, os.SEEK_SET)
        yield made
    finally:
        os.close(made)


def stream_of(store: Store, chain: str) -> bytes:
    layer = store.layers.get(chain)
    assert layer is not None
    with descriptor(b"") as out:
        packed = store.layers.write(layer, out)
        data = os.pread(out, 1 << 20, 0)
    assert (packed.size, packed.digest) == (len(data), digest(data))
    assert store.layers.stream_size(layer) == len(data)
    return data


STEPS = ("rename", "mkdir", "unlink", "write")
"""What Python does to the disk here; `_tar`'s own steps are met by kills at any time."""
T = TypeVar("T")
P = ParamSpec("P")


def die_before(step: int) -> None:
    """Kill this process before its `step`th call that may change what is on the disk."""
    count = 0

    def counted(real: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **more: P.kwargs) -> T:
            nonlocal count
            count += 1
            if count > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    read, make = os.open, counted(os.open)
    os.open = lambda path, flags, *rest: (make if flags & os.O_CREAT else read)(path, flags, *rest)


def in_child(action: Callable[[], None]) -> int:
    """Its pid; it ends with 0 when the action comes to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def all_is_well(root: Path, kept: Image) -> None:
    """The start-up check mends what a kill left, and nothing that was finished is lost."""
    store = Store(root)
    findings = store.graph.check()
    assert not any("set aside" in str(one) for one in (*findings, *store.tags.findings)), findings
    assert store.tags.lookup_image("kept") == kept
    for names in store.tags.repositories().values():
        for image_id in names.values():
            assert store.graph.exists(image_id)
    for image in store.graph.all():
        assert digest(store.graph.configuration(image)) == image.id
        for chain, diff_id in zip(image.layers, image.diff_ids, strict=True):
            assert digest(stream_of(store, chain)) == diff_id
    assert store.graph.wait_unpacked(patient(10))
    for image in store.graph.all():
        for chain, diff_id in zip(image.layers, image.diff_ids, strict=True):
            assert store.layers.tree(chain).is_dir()
            assert not (store.layers.directory / chain / PACKED).exists()
            assert digest(stream_of(store, chain)) == diff_id
    used = {layer for image in store.graph.all() for layer in image.layers}
    assert set(store.names("layers")) == used
    assert not [name for name in store.names("graph") if name.startswith(TEMPORARY)]
    assert store.graph.check() == []
    store.trash.sweep()
    assert store.trash.wait(patient(10))
    assert not (root / "trash").exists() or store.names("trash") == []
    store.close()
