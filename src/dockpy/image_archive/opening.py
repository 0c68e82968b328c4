"""The files in an archive of images: read where they lie, or unpacked beside the store's layers.

A plain tar in a file is read where it is. What comes through a pipe, is compressed, or is not plain
is unpacked first, as any hostile archive is: what its names and links lead to is then a question
for openat2 inside that directory.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

from dockpy import archive
from dockpy.errors import BadArchive, KernelError
from dockpy.graph import Graph
from dockpy.image_archive import layout
from dockpy.image_archive.tarindex import index, plain
from dockpy.mounts import open_in_root


class Files(Protocol):
    """The files of one archive. Thread-safe."""

    def open(self, path: str) -> BinaryIO:
        """A plain file of the archive, which can be sought. BadArchive when there is none."""


@contextmanager
def opened(graph: Graph, source: BinaryIO | int) -> Iterator[Files]:
    """The files of the archive that `source` is. BadArchive, KernelError."""
    places = _places(source) if isinstance(source, int) else None
    if places is not None and isinstance(source, int):
        yield _Lying(source, places)
        return
    with graph.workplace() as directory:
        archive.extract(source, directory / "archive", whiteouts=False)
        root = os.open(directory / "archive", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield _Unpacked(root)
        finally:
            os.close(root)


def has(files: Files, path: str) -> bool:
    """Whether the archive has a file of that name."""
    try:
        with files.open(path):
            return True
    except BadArchive:
        return False


def document(files: Files, path: str, hex_digest: str = "") -> bytes:
    """A small file, verified when its digest is known. BadArchive."""
    with files.open(path) as file:
        data = file.read(layout.DOCUMENT_LIMIT + 1)
    if len(data) > layout.DOCUMENT_LIMIT:
        raise BadArchive(f"{path[:200]!r} is larger than {layout.DOCUMENT_LIMIT} bytes")
    if hex_digest and hashlib.sha256(data).hexdigest() != hex_digest:
        raise BadArchive(f"{path[:200]!r} is not what its digest promises")
    return data


def _places(source: int) -> dict[str, tuple[int, int]] | None:
    """Where the files lie in a descriptor from its position on; None: it has to be unpacked."""
    about = os.fstat(source)
    if not stat.S_ISREG(about.st_mode):
        return None
    try:
        start = os.lseek(source, 0, os.SEEK_CUR)
        found = index(lambda n, at: os.pread(source, n, start + at), about.st_size - start)
    except OSError as refusal:
        raise KernelError("read archive", refusal.errno or errno.EIO) from refusal
    if found is None:
        return None
    return {name: (start + at, size) for name, (at, size) in found.items()}


class _Lying:
    def __init__(self, source: int, places: dict[str, tuple[int, int]]) -> None:
        self._source = source
        self._places = places

    def open(self, path: str) -> BinaryIO:
        place = self._places.get(plain(path) or "")
        if place is None:
            raise BadArchive(f"the archive has no file {path[:200]!r}")
        return cast(BinaryIO, io.BufferedReader(_Piece(self._source, *place)))


class _Piece(io.RawIOBase):
    """A part of a file, whose own position does not move."""

    def __init__(self, source: int, start: int, size: int) -> None:
        self._source = source
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = max(min(len(buffer), self._size - self._at), 0)
        if count:
            count = os.preadv(self._source, [memoryview(buffer)[:count]], self._start + self._at)
        self._at += count
        return count


class _Unpacked:
    def __init__(self, root: int) -> None:
        self._root = root

    def open(self, path: str) -> BinaryIO:
        try:
            descriptor = open_in_root(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise BadArchive(f"the archive has no file {path[:200]!r}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadArchive(f"{path[:200]!r} in the archive is not a file")
        return os.fdopen(descriptor, "rb")
