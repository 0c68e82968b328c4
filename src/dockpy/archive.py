"""A stream of any compression to a tree of files; values in, exceptions out.

Threads share the work, and a fixed set of buffers goes round between them: one reads and
decompresses, one hashes (of a plain archive they are one), and the caller's own unpacks (`_tar`),
which takes longest. What need not be done in its turn is another's (`behind`). All release the GIL.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from dockpy._below import remove_tree
from dockpy._tar import ARCHIVE_PROBLEMS, KERNEL_STEPS, Unpacker
from dockpy.behind import WRITE_BACK_FROM, Behind
from dockpy.compression import HEAD_SIZE, Compression, Readable, decoder, detect
from dockpy.errors import BadArchive, DockpyError, KernelError, RequestError
from dockpy.pipes import widen

__all__ = ["Budget", "Compression", "Extracted", "detect", "extract", "extract_into", "remove"]

_BUFFERS = 4
_BUFFER_SIZE = 256 << 10  # larger ones leave the caches before the next thread has them

# What the kernel says about names and sizes an archive chose.
_ARCHIVE_FAULTS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.EINVAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much an archive may ask for. `size`: bytes of file data; `path`: bytes of one name;
    `metadata`: bytes of extended headers and attributes of one entry."""

    size: int = 256 << 30
    entries: int = 10_000_000
    path: int = 4095
    metadata: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What came out of an archive.

    `diff_id`: hex sha256 of the uncompressed stream to its last byte; `size`: bytes of file data
    written; `ignored_attributes`: extended attributes the filesystem would not take.
    """

    diff_id: str
    size: int
    entries: int
    compression: Compression
    ignored_attributes: int = 0
    stream: int = 0
    """Bytes of the uncompressed stream."""
    rebuildable: bool = False
    """A skeleton was asked for, and with it and the tree the stream can be written again."""


def extract(
    source: BinaryIO | int,
    directory: Path,
    *,
    limits: Budget = Budget(),
    whiteouts: bool = True,
    by_hand: bool = False,
    skeleton: int | None = None,
    write_back: bool = False,
) -> Extracted:
    """Unpack the tar stream `source` into `directory`, which is made unless it is there and empty.

    `source` is a descriptor or a binary file, at its current position, read to its end and left
    open. `whiteouts`: `.wh.` names become overlayfs's marks, as OCI layers mean them; otherwise
    they are names like any other. `by_hand` resolves names without openat2, for tests. `skeleton`:
    a descriptor to write what `skeleton.rebuild` needs to. `write_back`: the kernel begins to write
    large files to the disk at once, for a caller that will flush them.

    Blocks until all is unpacked, not until it is on the disk. On failure everything made here is
    removed again. A blocked read of a descriptor is given up when unpacking fails; one of a file
    object is waited for.
    Raises BadArchive for what is wrong with the archive, KernelError for what the kernel refuses,
    Conflict when the directory is not empty.
    """
    made = _make_empty(directory)
    target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        unpacker = Unpacker(
            target,
            max_bytes=limits.size,
            max_entries=limits.entries,
            max_path=limits.path,
            max_metadata=limits.metadata,
            whiteouts=whiteouts,
            by_hand=by_hand,
            skeleton=skeleton is not None,
            keeps_from=WRITE_BACK_FROM if write_back else 0,
        )
        length = 0
        try:
            with _Stream(source) as stream, Behind(skeleton) as behind:
                for piece in stream.pieces():
                    length += len(piece)
                    if not unpacker.feed(piece):
                        raise _failure(unpacker)
                    behind.take(unpacker)
                behind.take(unpacker, all_of_it=True)
                if not unpacker.finish():
                    raise _failure(unpacker)
                behind.finish()
            return Extracted(
                diff_id=stream.digest(),
                size=unpacker.bytes_written,
                entries=unpacker.entries,
                compression=stream.compression,
                ignored_attributes=unpacker.ignored_attributes,
                stream=length,
                rebuildable=skeleton is not None and not unpacker.replaced,
            )
        finally:
            unpacker.close()
    except BaseException:
        _clear(target)
        if made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise
    finally:
        os.close(target)


def extract_into(
    source: BinaryIO | int, directory: int, *, owner: tuple[int, int] | None = None
) -> int:
    """Unpack a tar stream into a directory that has content; the number of entries.

    Files are replaced, directories kept, and neither becomes the other. Nothing outside the
    directory at that descriptor changes, whatever links it holds or somebody puts there meanwhile.
    `owner`: user and group of everything made, instead of the archive's; what means something for
    another owner only is then left out: setuid and setgid bits, file capabilities, devices (an
    error). Names of whiteouts are ordinary names. On failure what was made so far stays, without
    the half of a file. Raises BadArchive, KernelError, and what `source` raises.
    """
    limits = Budget()
    unpacker = Unpacker(
        directory,
        max_bytes=limits.size,
        max_entries=limits.entries,
        max_path=limits.path,
        max_metadata=limits.metadata,
        whiteouts=False,
        merges=True,
        owner=-1 if owner is None else owner[0],
        group=-1 if owner is None else owner[1],
        tame=owner is not None,
    )
    try:
        with _Stream(source) as stream:
            for piece in stream.pieces():
                if not unpacker.feed(piece):
                    raise _failure(unpacker)
            if not unpacker.finish():
                raise _failure(unpacker)
        return unpacker.entries
    finally:
        unpacker.close()


def remove(path: Path) -> None:
    """Remove `path` and all below it, never following a link; a missing path is fine.

    Raises KernelError with the first refusal; the rest is removed all the same.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        err = remove_tree(parent, os.fsencode(path.name))
    finally:
        os.close(parent)
    if err:
        raise KernelError("remove", err, str(path))


def _make_empty(directory: Path) -> bool:
    """Whether the directory had to be made."""
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        try:
            empty = not os.listdir(directory)
        except OSError as refusal:
            raise KernelError(
                "open directory", refusal.errno or errno.EIO, str(directory)
            ) from refusal
        if not empty:
            raise RequestError(f"{directory} is not empty") from None
        return False
    except OSError as refusal:
        raise KernelError("make directory", refusal.errno or errno.EIO, str(directory)) from refusal
    return True


def _clear(target: int) -> None:
    # The failure that led here is the one to report.
    with contextlib.suppress(OSError):
        for name in os.listdir(target):
            remove_tree(target, os.fsencode(name))


def _failure(unpacker: Unpacker) -> DockpyError:
    name = os.fsdecode(unpacker.name)
    where = f" (at {name!r})" if name else ""
    if unpacker.problem in ARCHIVE_PROBLEMS:
        return BadArchive(ARCHIVE_PROBLEMS[unpacker.problem] + where)
    if unpacker.error in _ARCHIVE_FAULTS:
        return BadArchive(
            f"cannot {KERNEL_STEPS[unpacker.problem]}: {os.strerror(unpacker.error)}{where}"
        )
    return KernelError(KERNEL_STEPS[unpacker.problem], unpacker.error, name or None)


_Item = tuple[memoryview, int] | BaseException | None
"""A buffer and how much is in it; what went wrong; the end."""


class _Given:
    """The caller's source as a raw stream that can be woken up and shown its first bytes again."""

    def __init__(self, source: BinaryIO | int, wake: int) -> None:
        self._fd = source if isinstance(source, int) else -1
        self._file = None if isinstance(source, int) else source
        self._into = getattr(source, "readinto", None)
        self._poll = select.poll()
        if self._fd >= 0:
            widen(self._fd)
            self._poll.register(self._fd, select.POLLIN)
            self._poll.register(wake, select.POLLIN)
        self._wake = wake
        self._head = b""

    def head(self) -> bytes:
        """The first HEAD_SIZE bytes, or all there are; they will be read again."""
        space = memoryview(bytearray(HEAD_SIZE))
        filled = 0
        while filled < HEAD_SIZE and (count := self.readinto(space[filled:])):
            filled += count
        self._head = bytes(space[:filled])
        return self._head

    def readinto(self, buffer: memoryview) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        try:
            return self._read(buffer)
        except OSError as refusal:
            if refusal.errno is None:
                raise RequestError(f"cannot read the archive: {refusal}") from refusal
            raise KernelError("read archive", refusal.errno) from refusal

    def _read(self, buffer: memoryview) -> int:
        if self._file is None:
            while True:
                ready = dict(self._poll.poll())
                if self._wake in ready:
                    return 0
                with contextlib.suppress(BlockingIOError):
                    return os.readv(self._fd, [buffer])
        if self._into is not None:
            count = self._into(buffer)
            if count is None:
                raise RequestError("cannot read the archive: the file object would block")
            return int(count)
        piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class _Stream:
    """The decompressed bytes of a source, hashed on the way. Use as a context, iterate once.

    A plain stream is read and hashed by one thread, which takes less time than unpacking does and
    hashes what is in its cache; a compressed one is decompressed in one and hashed in another.
    """

    def __init__(self, source: BinaryIO | int) -> None:
        self.compression = Compression.NONE
        self._hash = hashlib.sha256()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._given = _Given(source, self._wake)
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._read: SimpleQueue[_Item] = SimpleQueue()
        self._hashed: SimpleQueue[_Item] = SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(_BUFFER_SIZE)))
        self._reader = threading.Thread(target=self._reading, name="dockpy-inflate", daemon=True)

    def __enter__(self) -> _Stream:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
        os.eventfd_write(self._wake, 1)
        self._reader.join()
        os.close(self._wake)

    def pieces(self) -> Iterator[memoryview]:
        """Each piece is valid until the next is asked for."""
        while (item := self._hashed.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffer, count = item
            yield buffer[:count]
            self._free.put(buffer)

    def digest(self) -> str:
        """Hex sha256 of all pieces; right after the last."""
        return self._hash.hexdigest()

    def _reading(self) -> None:
        hasher = None
        try:
            head = self._given.head()
            self.compression = detect(head)
            stream: Readable = decoder(self.compression, self._given)
            if self.compression is not Compression.NONE:
                started = threading.Thread(target=self._hashing, name="dockpy-hash", daemon=True)
                started.start()
                hasher = started
            while (buffer := self._free.get()) is not None:
                count = stream.readinto(buffer)
                if count == 0:
                    break
                if hasher is not None:
                    self._read.put((buffer, count))
                else:
                    self._hash.update(buffer[:count])
                    self._hashed.put((buffer, count))
        except BaseException as failure:  # raised again in the caller's thread
            (self._hashed if hasher is None else self._read).put(failure)
        (self._hashed if hasher is None else self._read).put(None)
        if hasher is not None:
            hasher.join()

    def _hashing(self) -> None:
        while (item := self._read.get()) is not None:
            if not isinstance(item, BaseException):
                buffer, count = item
                self._hash.update(buffer[:count])
            self._hashed.put(item)
        self._hashed.put(None)
