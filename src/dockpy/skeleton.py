"""A layer's tar stream, kept as its skeleton: what is not the contents of files.

The stream of a layer must come out again byte for byte when it is saved or pushed, since its digest
is its name. The files are in the store already; kept beside them is the rest, compressed, which is
a few hundred bytes per entry before. `_skeleton` has the format.
"""

from __future__ import annotations

import os
from typing import IO

import zstandard

from dockpy._skeleton import KERNEL_STEPS, TREE_PROBLEMS, Rebuilder
from dockpy.errors import DockpyError, KernelError, StoreError
from dockpy.packing import Packed, write_stream

_LEVEL = 1
_PIECE = 64 << 10


class SkeletonWriter:
    """Compresses what an unpacker saw into a descriptor, which stays the caller's."""

    def __init__(self, out: int) -> None:
        self._file: IO[bytes] = os.fdopen(os.dup(out), "wb")
        self._compressed = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._file)

    def write(self, records: bytes) -> None:
        """KernelError when the disk does not take it."""
        try:
            self._compressed.write(records)
        except OSError as refusal:
            raise KernelError("write skeleton", refusal.errno or 0) from refusal

    def finish(self) -> None:
        """All of it is written; KernelError as `write`."""
        try:
            self._compressed.close()  # type: ignore[no-untyped-call]
        except OSError as refusal:
            raise KernelError("write skeleton", refusal.errno or 0) from refusal

    def abandon(self) -> None:
        """Close without more ado; fine after `finish`."""
        if not self._file.closed:
            self._file.detach().close()  # type: ignore[attr-defined]


def rebuild(skeleton: int, tree: int, out: int, *, digest: bool = True) -> Packed:
    """Write the stream that `tree` was unpacked from to descriptor `out`.

    `entries` of the answer counts the files that have content. Blocks as `out` does; the caller
    compares the digest. Raises StoreError when skeleton and tree do not fit together, KernelError.
    """
    source = _Rebuilt(skeleton, tree)
    try:
        return write_stream(source, out, digest=digest, failure=source.failure)
    finally:
        source.close()


class _Rebuilt:
    """The stream in buffers, for `write_stream`."""

    def __init__(self, skeleton: int, tree: int) -> None:
        self._rebuilder = Rebuilder(tree)
        self._input = os.fdopen(os.dup(skeleton), "rb", buffering=0)
        self._reader = zstandard.ZstdDecompressor().stream_reader(self._input)
        self._piece = b""
        self._torn = False

    @property
    def entries(self) -> int:
        return self._rebuilder.entries

    @property
    def size(self) -> int:
        return self._rebuilder.size

    def fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            used, made = self._rebuilder.fill(self._piece, buffer[filled:])
            if made < 0:
                return -1
            self._piece = self._piece[used:]
            filled += made
            if self._piece or filled == len(buffer) or not self._rebuilder.wants_input:
                continue
            try:
                self._piece = self._reader.read(_PIECE)
            except zstandard.ZstdError:
                self._torn = True
                return -1
            if not self._piece:
                self._torn = not self._rebuilder.complete
                return -1 if self._torn else filled
        return filled

    def failure(self) -> DockpyError:
        rebuilder = self._rebuilder
        name = os.fsdecode(rebuilder.name)
        if self._torn:
            return StoreError("the layer's skeleton is damaged; pull or load the image again")
        if rebuilder.problem in TREE_PROBLEMS:
            return StoreError(
                f"{TREE_PROBLEMS[rebuilder.problem]} (at {name!r}); pull or load the image again"
            )
        return KernelError(KERNEL_STEPS[rebuilder.problem], rebuilder.error, name or None)

    def close(self) -> None:
        self._rebuilder.close()
        self._input.close()
