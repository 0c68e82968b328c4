"""Trees of files as tar streams: for export, layers and copies. Values in, exceptions out.

The caller's thread reads the tree (`_pack`) and writes the stream; another hashes it meanwhile.
Both release the GIL and use the same few buffers, so memory does not grow with the tree.
"""

from __future__ import annotations

import hashlib
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Protocol

from dockpy._mount import try_clone
from dockpy._pack import KERNEL_STEPS, TREE_PROBLEMS, Packer
from dockpy.errors import DockpyError, KernelError, RequestError
from dockpy.pipes import widen

__all__ = ["Packed", "Progress", "Source", "pack_layer", "pack_path", "pack_tree", "write_stream"]

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = 1, 4

_BUFFERS = 4
_BUFFER_SIZE = 512 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A tar stream that was written. `size`: its bytes; `digest`: hex sha256 of them, or empty when
    it was not asked for; `content`: bytes of files in it, when a tree was packed."""

    entries: int
    size: int
    digest: str
    content: int = 0


class Progress(Protocol):
    """What a packer has come to. `content`: bytes of files, the one at hand whole; `metadata`: most
    bytes of extended headers that an entry had; `longest`: most bytes of a name."""

    @property
    def entries(self) -> int: ...

    @property
    def content(self) -> int: ...

    @property
    def metadata(self) -> int: ...

    @property
    def longest(self) -> int: ...


def pack_tree(tree: int, out: int, *, name: bytes = b"", digest: bool = True) -> Packed:
    """Write the directory at descriptor `tree`, and all in it, to descriptor `out` as tar.

    The same tree gives the same bytes. `name` is what the directory is called in the archive;
    empty: the root is `./` and names are relative. Sockets are left out. `digest` off saves the
    hashing. A file that changes meanwhile is cut, or filled with zeros, to its size at the start.
    What is mounted below belongs to the tree. Mounts without device nodes are read faster.

    Blocks as `out` does. Both descriptors stay open; on failure a part of the stream was written.
    Raises KernelError for what the kernel refuses, RequestError for a directory that was moved.
    """
    return _pack(Packer(tree, name=name, layer=False), out, digest)


def pack_layer(
    upper: int,
    out: int,
    *,
    digest: bool = True,
    check: Callable[[Progress], object] | None = None,
) -> Packed:
    """The same for an overlayfs upper as an OCI layer: what hides names below becomes `.wh.`.

    Packing what `archive.extract` made of the stream gives the same stream again. `check` is called
    before each piece is written, and may raise to give up.
    Raises RequestError, too, when a name begins with `.wh.`: no layer can say that.
    """
    with _without_devices(upper) as safe:
        return _pack(Packer(safe, name=b"", layer=True), out, digest, check)


def pack_path(
    directory: int, leaf: bytes, out: int, *, name: bytes = b"", digest: bool = True
) -> Packed:
    """The same for one name in a directory: a file, link, device, or a directory with all in it.

    `leaf` is one part of a path and a link is not followed; `name` is what it is called in the
    archive, empty: as it is. Raises RequestError, too, for a socket.
    """
    if not leaf or b"/" in leaf or leaf in {b".", b".."}:
        raise RequestError(f"{os.fsdecode(leaf)!r} is not the name of a file in a directory")
    return _pack(Packer(directory, leaf=leaf, name=name, layer=False), out, digest)


@contextmanager
def _without_devices(upper: int) -> Iterator[int]:
    """The upper through a mount of its own where no device can be opened by mistake.

    On other mounts the packer has to look at every file before it opens it, which nearly doubles
    its time for small files; so it does where the kernel gives no such mount. What is mounted
    below is not in the copy: in an upper there is nothing.
    """
    if os.fstatvfs(upper).f_flag & os.ST_NODEV:
        yield upper
        return
    clone, _, _ = try_clone(upper, False, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV)
    try:
        yield upper if clone < 0 else clone
    finally:
        if clone >= 0:
            os.close(clone)


class Source(Protocol):
    """What fills buffers with a stream."""

    @property
    def entries(self) -> int: ...

    @property
    def size(self) -> int: ...

    def fill(self, buffer: memoryview, /) -> int: ...


def _pack(
    packer: Packer, out: int, digest: bool, check: Callable[[Progress], object] | None = None
) -> Packed:
    source: Source = packer if check is None else _Checked(packer, check)
    try:
        done = write_stream(source, out, digest=digest, failure=lambda: _failure(packer))
        return replace(done, content=packer.content)
    finally:
        packer.close()


class _Checked:
    """A packer that somebody may stop."""

    def __init__(self, packer: Packer, check: Callable[[Progress], object]) -> None:
        self._packer = packer
        self._check = check

    @property
    def entries(self) -> int:
        return self._packer.entries

    @property
    def size(self) -> int:
        return self._packer.size

    def fill(self, buffer: memoryview, /) -> int:
        count = self._packer.fill(buffer)
        self._check(self._packer)
        return count


def write_stream(
    source: Source, out: int, *, digest: bool, failure: Callable[[], DockpyError]
) -> Packed:
    """Write what `source` gives until it gives nothing, hashing beside it. Blocks as `out` does.

    `failure` is asked for the error when `source` answers with a negative number.
    """
    widen(out)
    with _Hash(digest) as hashed:
        while True:
            buffer = hashed.free.get()
            count = source.fill(buffer)
            if count < 0:
                raise failure()
            if count == 0:
                break
            hashed.add(buffer, count)
            _write(out, buffer[:count])
            if not digest:
                hashed.free.put(buffer)
    return Packed(entries=source.entries, size=source.size, digest=hashed.hexdigest())


def _failure(packer: Packer) -> DockpyError:
    name = os.fsdecode(packer.name)
    if packer.problem in TREE_PROBLEMS:
        return RequestError(f"{TREE_PROBLEMS[packer.problem]} (at {name!r})")
    return KernelError(KERNEL_STEPS[packer.problem], packer.error, name or None)


def _write(out: int, piece: memoryview) -> None:
    while piece:
        try:
            piece = piece[os.write(out, piece) :]
        except BlockingIOError:
            select.select([], [out], [])
        except OSError as refusal:
            raise KernelError("write archive", refusal.errno or 0) from refusal


class _Hash:
    """Hashes pieces in a thread of its own, which only a second piece is worth. Use as a context.

    `free`: buffers to fill; each comes back when its piece was hashed.
    """

    def __init__(self, wanted: bool) -> None:
        self.free: SimpleQueue[memoryview] = SimpleQueue()
        self._hash = hashlib.sha256() if wanted else None
        self._filled: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._pieces = 0
        self._thread = threading.Thread(target=self._work, name="dockpy-hash", daemon=True)
        for _ in range(_BUFFERS if wanted else 1):
            self.free.put(memoryview(bytearray(_BUFFER_SIZE)))

    def __enter__(self) -> _Hash:
        return self

    def __exit__(self, *_: object) -> None:
        self._filled.put(None)
        if self._pieces > 1:
            self._thread.join()
        else:
            self._work()

    def add(self, buffer: memoryview, size: int) -> None:
        """The first `size` bytes of the buffer, which must not change until it is free again."""
        if self._hash is None:
            return
        self._filled.put((buffer, size))
        self._pieces += 1
        if self._pieces == 2:
            self._thread.start()

    def hexdigest(self) -> str:
        """Of all pieces; after the context."""
        return self._hash.hexdigest() if self._hash is not None else ""

    def _work(self) -> None:
        while (item := self._filled.get()) is not None:
            buffer, size = item
            if self._hash is not None:
                self._hash.update(buffer[:size])
            self.free.put(buffer)
