"""The tar stream of a layer from what its directory keeps of it.

One of these is there: `packed`, the stream; `stream`, the stream as it came, compressed;
`skeleton`, what is not in the files; or none, when our own packer writes the stream from them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import zstandard

from dockpy import packing, skeleton
from dockpy.compression import HEAD_SIZE, Compression, decoder, detect
from dockpy.errors import BadArchive, DockpyError, KernelError, StoreError
from dockpy.packing import Packed
from dockpy.unpacking import DIFF, PACKED, SKELETON

STREAM = "stream"
NOWHERE = Path(os.devnull)


def keep(directory: Path, source: BinaryIO | int) -> None:
    """Keep a stream beside the files made of it; compressed ones as they are. Blocks; KernelError.

    `source` gives it as it came and can be sought.
    """
    try:
        with contextlib.ExitStack() as rest:
            kept = rest.enter_context(open(directory / STREAM, "wb"))
            given = source
            if isinstance(given, int):
                given = rest.enter_context(os.fdopen(os.dup(given), "rb"))
            head = given.read(HEAD_SIZE)
            given.seek(-len(head), os.SEEK_CUR)
            if detect(head) is Compression.NONE:
                zstandard.ZstdCompressor(level=3).copy_stream(given, kept)
            else:
                shutil.copyfileobj(given, kept, 1 << 20)
    except OSError as refusal:
        raise KernelError(
            "keep layer", refusal.errno or errno.EIO, str(directory / STREAM)
        ) from refusal


def of_tree(directory: Path) -> Packed:
    """Size and digest of the stream that our own packer makes of the files; blocks."""
    with (
        opened(directory / DIFF, os.O_RDONLY | os.O_DIRECTORY) as tree,
        opened(NOWHERE, os.O_WRONLY) as out,
    ):
        return packing.pack_layer(tree, out)


def write(directory: Path, out: int) -> Packed:
    """Write a layer's stream to a descriptor; blocks. The caller compares the digest.

    Raises FileNotFoundError when nothing is kept, StoreError for what is damaged, KernelError.
    """
    for name in (PACKED, STREAM):
        with contextlib.suppress(FileNotFoundError), open(directory / name, "rb", 0) as raw:
            return packing.write_stream(_Kept(raw), out, digest=True, failure=_damaged)
    with opened(directory / DIFF, os.O_RDONLY | os.O_DIRECTORY) as tree:
        with (
            contextlib.suppress(FileNotFoundError),
            opened(directory / SKELETON, os.O_RDONLY) as kept,
        ):
            return skeleton.rebuild(kept, tree, out)
        return packing.pack_layer(tree, out)


class _Kept:
    """A kept stream, decompressed in buffers, for `write_stream`."""

    def __init__(self, raw: FileIO) -> None:
        self._decoded = decoder(detect(os.pread(raw.fileno(), HEAD_SIZE, 0)), raw)
        self.entries = 0
        self.size = 0

    def fill(self, buffer: memoryview, /) -> int:
        try:
            count = self._decoded.readinto(buffer)
        except BadArchive:
            return -1
        self.size += count
        return count


def _damaged() -> DockpyError:
    return StoreError("a layer's kept stream is damaged; remove its images and pull them again")


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file of the store."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
