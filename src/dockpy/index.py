"""The records of one kind, said again in one file, for a start-up that meets ten thousand.

    {"version": 1, "crc32": ..., "files": ["meta.json", "json"]}
    [["<name>", "<inode, changed, modified and size of each file, packed, as hex>", <values>],
    ...]

The records stay the truth. An entry counts when each of its files is still what it was when the
record was read: inode, size, and the times of modification and of change to the nanosecond. The
kernel sets the latter at every write, rename, link and chmod, and nobody else can (inode(7)). So an
index may be old, torn, of another root or gone: what does not match is read from its record, and a
kill at any moment costs time only. Nothing but a start-up reads or writes it.

Doubt: a kernel before 6.13 takes the time from its tick, so two changes within 10 ms can look like
one. What was changed less than `SETTLED` before it was looked at is therefore not put in.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dockpy._look import look, read_small
from dockpy.errors import KernelError
from dockpy.records import Flusher, parse_json, read_json, write


class Sight(NamedTuple):
    """What the kernel says of a file; times in nanoseconds. Zeros: there is none."""

    inode: int
    changed: int
    modified: int
    size: int
    """Or a negative errno: it cannot be looked at."""

    @property
    def exists(self) -> bool:
        return self.inode != 0

    @property
    def error(self) -> int:
        """The errno, or 0."""
        return 0 if self.exists else -self.size


SETTLED = 2_000_000_000
"""Nanoseconds for which a record must have been unchanged."""
FEW = 100
"""So many records are read faster than an index is written."""

_VERSION = 1
_SIGHT = struct.Struct("=4q")
_UNKNOWN = (None, None, None)
_AT_ONCE = 250
_READERS = 4  # they wait for the disk, if for anything
_LARGE = 64 << 10  # bytes


class Entry(NamedTuple):
    """A directory of a record. `values`: what its record said, None when it is to be read."""

    name: str
    packed: str
    """What was seen of its files, as text that is compared."""
    values: Any
    contents: Sequence[bytes | int] = ()
    """What is in the record's files when `values` is None; a number is the errno of a refusal."""

    @property
    def sights(self) -> tuple[Sight, ...]:
        """The same, file by file."""
        return unpack(bytes.fromhex(self.packed))

    def read_json(self, number: int, path: str) -> Any:
        """The JSON value in one of the files, by its number. As `records.read_json` of `path`."""
        data = self.contents[number] if self.contents else errno.EFBIG
        if isinstance(data, bytes):
            return parse_json(path, data)
        if data == errno.EFBIG:  # or it was not read ahead
            return read_json(path)
        raise OSError(data, os.strerror(data), path)


class RecordIndex:
    """`path` says again what the records in the directories below `directory` say.

    `files`: what a record depends on, in each of these directories; "." is the directory itself.
    `contents`: the ones that hold values. The looking begins at once, in a thread of its own, or
    when `after` has looked, which is waited for first. For one start-up, in one thread.
    """

    def __init__(
        self,
        path: Path,
        directory: Path,
        files: Sequence[str],
        contents: Sequence[str],
        after: RecordIndex | None = None,
    ) -> None:
        self._path = path
        self._directory = directory
        self._files = [file.encode() for file in files]
        self._contents = [file.encode() for file in contents]
        self._looked_at = 0
        self._names: list[str] = []
        self._packed: list[str] = []
        self._failure: OSError | None = None
        self._kept: list[Entry] = []
        self._new = 0
        self._outdated = 0
        before = None if after is None else after._thread
        self._thread: threading.Thread = threading.Thread(
            target=self._look, args=(before,), name="dockpy-look", daemon=True
        )
        self._thread.start()

    def entries(self) -> Iterator[Entry]:
        """Everything in the directory, sorted by name; OSError when it cannot be listed.

        What the index does not know is read a little ahead of the caller.
        """
        written = self._read()  # while the other thread looks
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        known = {entry[0]: entry for entry in written}
        self._outdated = len(known)
        found = []
        for name, packed in zip(self._names, self._packed, strict=True):
            _, then, values = known.get(name, _UNKNOWN)
            found.append(Entry(name, packed, values if then == packed else None))
        unknown = [entry.name for entry in found if entry.values is None]
        with closing(read_ahead(self._directory, unknown, self._contents)) as contents:
            for entry in found:
                known_already = entry.values is not None
                yield entry if known_already else entry._replace(contents=next(contents))

    def keep(self, entry: Entry, values: Any) -> None:
        """The entry's record says `values`, which are JSON's: the next index may have them."""
        if entry.values is not None:
            self._outdated -= 1
        elif not _settled(entry.sights, self._looked_at):
            return
        else:
            self._new += 1
        self._kept.append(Entry(entry.name, entry.packed, values))

    def save(self, flusher: Flusher) -> bool:
        """Write an index of what was kept if that will save the next start-up time.

        False when there was no need, or no room: the next start-up reads more records then.
        """
        kept, self._kept = self._kept, []
        if self._new + self._outdated <= max(FEW, len(kept) // 16):
            return False
        try:
            write(self._path, encode(self._files, kept), flusher)
        except KernelError:
            return False
        return True

    def _look(self, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        self._looked_at = time.time_ns()
        try:
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._names = sorted(os.listdir(directory))
                found = look(directory, [os.fsencode(one) for one in self._names], self._files)
            finally:
                os.close(directory)
        except OSError as refusal:
            self._failure = refusal
        else:
            self._packed = [one.hex() for one in found]

    def _read(self) -> list[Any]:
        try:
            return decode(self._files, self._path.read_bytes())
        except OSError:
            return []


def unpack(packed: bytes) -> tuple[Sight, ...]:
    """What `look` saw of one name, file by file."""
    return tuple(map(Sight._make, _SIGHT.iter_unpack(packed)))


def read_ahead(
    directory: Path, names: Sequence[str], files: Sequence[bytes]
) -> Generator[Sequence[bytes | int], None, None]:
    """For each name what is in its files below `directory`, or the errno (EFBIG: above 64 KB)."""
    if not names:
        return
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:

        def read(begin: int) -> list[bytes | int]:
            some = [os.fsencode(name) for name in names[begin : begin + _AT_ONCE]]
            return read_small(place, [b"%s/%s" % (n, f) for n in some for f in files], _LARGE)

        with ThreadPoolExecutor(_READERS, "dockpy-read") as pool:
            for contents in pool.map(read, range(0, len(names), _AT_ONCE)):
                for begin in range(0, len(contents), len(files)):
                    yield contents[begin : begin + len(files)]
    finally:
        os.close(place)


def encode(files: Sequence[bytes], entries: Sequence[Entry]) -> bytes:
    """An index as bytes. Lets other threads work between any two pieces."""
    lines = (json.dumps(entry[:3], separators=(",", ":")) for entry in entries)
    pieces = []
    while piece := ",\n".join(islice(lines, _AT_ONCE)):
        pieces.append(piece)
    body = ("[" + ",\n".join(pieces) + "]").encode()
    return json.dumps(_head(files, body)).encode() + b"\n" + body


def decode(files: Sequence[bytes], data: bytes) -> list[Any]:
    """The entries of an index, as lists; none when it is torn, or another version's."""
    head, _, body = data.partition(b"\n")
    try:
        if json.loads(head) != _head(files, body):
            return []
        entries = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return entries if isinstance(entries, list) else []


def _head(files: Sequence[bytes], body: bytes) -> dict[str, Any]:
    names = [os.fsdecode(file) for file in files]
    return {"version": _VERSION, "crc32": zlib.crc32(body), "files": names}


def _settled(sights: Sequence[Sight], now: int) -> bool:
    return all(not one.error and one.changed < now - SETTLED for one in sights)
