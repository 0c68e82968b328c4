"""Directories that ext4 keeps apart, and where in them new files are cheap.

Facts, and where they come from:

- ext4 puts a new directory into the block group of its parent, and new files beside their
  directory. Below a directory with the flag T each new directory gets a group of its own, one with
  few directories and much room, looked for from a place that its name decides (chattr(1), "T"; the
  kernel's fs/ext4/ialloc.c, find_group_orlov).
- Without a journal an inode that was removed in the last minutes is not taken again while its group
  has others: for each new file the ones passed over are looked at one by one (ialloc.c,
  find_inode_bit, recently_deleted). After a mass delete a file beside it costs up to 30 times as
  much. No system call tells where that is; the time of a few files does.

So what holds layers is spread, and a new directory that got a bad place is made again under another
name. benchmarks/spreading.py measures it; docs/decisions/0020-spread-layers.md has the figures.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_GET = 0x80086601  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h
_SET = 0x40086602
_TOP = 0x00020000  # FS_TOPDIR_FL

TRIES = 6
"""Places that are tried for a directory."""
CHEAP = 60e-6
"""Processor seconds for a new file below which a place is good; a usual one takes a fifth."""
_FILES = 3


def spread(directory: Path) -> bool:
    """Tell the file system that what is made in `directory` shall be spread; whether it took it.

    Nothing changes where the file system knows no such flag, or we may not set it. Raises nothing.
    """
    with contextlib.suppress(OSError), _opened(directory) as descriptor:
        flags = _flags(descriptor)
        if not flags & _TOP:
            fcntl.ioctl(descriptor, _SET, (flags | _TOP).to_bytes(8, "little"))
        return True
    return False


def is_spread(directory: Path) -> bool:
    """Whether the file system was told so. Raises nothing."""
    with contextlib.suppress(OSError), _opened(directory) as descriptor:
        return bool(_flags(descriptor) & _TOP)
    return False


def make_directory(parent: Path, prefix: str, cost: Callable[[Path], float] | None = None) -> Path:
    """A new directory, mode 0700, whose name begins with `prefix`; in a good place if we can.

    Where `parent` is spread a few files are made in it and removed, and other names are tried while
    those are dear; `cost` gives the seconds for one. The worse directories are removed again. Takes
    0.1 ms, some ms after mass deletes. OSError as mkdir(2) and open(2); nothing is left then.
    """
    if not is_spread(parent):
        return _new(parent, prefix)
    made: dict[Path, float] = {}
    best: Path | None = None
    try:
        while len(made) < TRIES:
            place = _new(parent, prefix)
            made[place] = float("inf")
            made[place] = (cost or file_cost)(place)
            if made[place] <= CHEAP:
                break
        best = min(made, key=made.__getitem__)
        return best
    finally:
        for place in made:
            if place != best:
                with contextlib.suppress(OSError):
                    place.rmdir()


def file_cost(directory: Path) -> float:
    """Processor seconds of this thread for a new file there: the least of a few. OSError."""
    paths = [f"{directory}/{number}" for number in range(_FILES)]
    found = []
    try:
        for path in paths:
            began = time.thread_time()
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            found.append(time.thread_time() - began)
    finally:
        for path in paths[: len(found)]:
            os.unlink(path)
    return min(found)


def _new(parent: Path, prefix: str) -> Path:
    place = parent / f"{prefix}{secrets.token_hex(8)}"
    place.mkdir(mode=0o700)
    return place


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _flags(descriptor: int) -> int:
    """The kernel writes an int here, whatever the number of the call says."""
    return int.from_bytes(fcntl.ioctl(descriptor, _GET, bytes(8))[:4], "little")
