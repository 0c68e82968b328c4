"""Uppers that nobody wrote to, with their overlays still mounted: the next containers get them.

Mounting an overlay makes and deletes files on the disk, and a container's directories do so again.
What a program left exactly as it was need not be thrown away: its directory gets the next
container's name, and the next child a clone of the mount. The first mount, the spare's own, is
detached and never attached anywhere; a clone of such a mount is possible since Linux 6.15
(open_tree(2)), before that there are no spares.

A spare is only made of what nobody can have kept a grip on: see `Spares.give`, and
`Assembler._leaves_no_grip`. It is not used for long, for an overlay remembers errors of the disk
below it, and names that were looked up in vain.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dockpy.closing import LateCloser
from dockpy.mounts import clone_tree
from dockpy.records import TEMPORARY, Trash

MOST = 32
"""Of one engine, those of containers that could be started again among them."""
AGE = 10.0
"""Seconds after its mount during which a spare is given to a container."""

UPPER, WORK = "upper", "work"
RECORD, STATE = "config.json", "state.json"
RECORDS = (RECORD, STATE)
MOUNTED = f"{WORK}/work"
"""Made by the kernel at each mount: its time of change tells of the last start."""
VOLATILE = f"{MOUNTED}/incompat/volatile"
WORN = TEMPORARY + "{}-worn"
"""What the files of the container before are called until the next one writes over them."""

Key = tuple[tuple[Path, ...], bool]
"""The lowers, top-most first, and whether nothing is flushed."""


class Sight(NamedTuple):
    """An empty upper: what would be another after any change to it.

    Every entry made or removed and every attribute set changes a time of the directory; times are
    fine enough to tell since Linux 6.13, "multigrain timestamps".
    """

    mode: int
    uid: int
    gid: int
    modified: int
    changed: int
    attributes: tuple[str, ...]


def sight(directory: str) -> Sight | None:
    """The upper in a container's directory; None when there is something in it."""
    upper = f"{directory}/{UPPER}"
    if os.listdir(upper):
        return None
    seen = os.stat(upper)
    return Sight(
        seen.st_mode,
        seen.st_uid,
        seen.st_gid,
        seen.st_mtime_ns,
        seen.st_ctime_ns,
        tuple(sorted(os.listxattr(upper))),
    )


@dataclass(slots=True, eq=False)
class Spare:
    """A mounted overlay over an empty upper. `tree` is the mount, `place` the directory of both."""

    key: Key
    tree: int
    place: str
    seen: Sight
    mounted: float = field(default_factory=time.monotonic)

    def clone(self) -> int:
        """A detached mount for one start. KernelError EINVAL: the kernel is too old for that."""
        return clone_tree(self.tree, recursive=False)

    def note_start(self) -> None:
        """On the disk, as a mount would."""
        os.utime(f"{self.place}/{MOUNTED}")

    @property
    def untouched(self) -> bool:
        try:
            return sight(self.place) == self.seen
        except OSError:
            return False


class Spares:
    """The spares of one engine. Thread-safe; its thread ends when there are none."""

    def __init__(self, trash: Trash, closer: LateCloser) -> None:
        self._trash = trash
        self._closer = closer
        self._changed = threading.Condition()
        self._free: list[Spare] = []
        self._kept: dict[str, Spare] = {}
        self._leaving: set[str] = set()
        """Containers of which the spare is being unmounted: nobody may mount the upper yet."""
        self._not_before = 0.0
        """When lowers may have gone that older spares have."""
        self._closed = False
        self._thread: threading.Thread | None = None

    def take(self, lowers: Sequence[Path], *, volatile: bool) -> Spare | None:
        """The one used last: the kernel still knows most of it."""
        key = (tuple(lowers), volatile)
        with self._changed:
            for index in range(len(self._free) - 1, -1, -1):
                spare = self._free[index]
                if spare.key == key and self._fresh(spare):
                    del self._free[index]
                    return spare
        return None

    def keep(self, identifier: str, spare: Spare) -> bool:
        """For the next start of a container, or until it is removed; not for long.

        False: there are too many.
        """
        with self._changed:
            if self._closed or len(self._free) + len(self._kept) >= MOST:
                return False
            self._kept[identifier] = spare
            self._watch()
        return True

    def pop(self, identifier: str) -> Spare | None:
        """What was kept for a container: the caller's from now on. Waits while it is unmounted."""
        with self._changed:
            if self._leaving:
                self._changed.wait_for(lambda: identifier not in self._leaving)
            return self._kept.pop(identifier, None)

    def unmount(self, identifier: str) -> None:
        """Its upper is about to be mounted by somebody else."""
        spare = self.pop(identifier)
        if spare is not None:
            self.let_go(spare)

    def give(self, spare: Spare, place: str) -> None:
        """The directory, now `place` in the trash, of a container that is removed.

        What lies in there but upper and work goes, or is written over by the next one's if it is
        a record. Nobody may have a descriptor of the container's files, who could reach the next
        one's by it.
        """
        spare.place = place
        with contextlib.suppress(OSError):
            for name in os.listdir(place):
                if name in RECORDS:
                    os.rename(f"{place}/{name}", f"{place}/{WORN.format(name)}")
                elif name not in (UPPER, WORK, *map(WORN.format, RECORDS)):
                    os.unlink(f"{place}/{name}")
            os.utime(f"{place}/{MOUNTED}", ns=(0, 0))  # its next container was never started
            if self._fresh(spare) and spare.untouched and self._add(spare):
                return
        self._throw_away([spare])

    def let_go(self, spare: Spare) -> None:
        """Unmount it, now; its directory stays, ready for any mount."""
        os.close(spare.tree)
        # Nothing was written, so nothing can have been lost.
        shutil.rmtree(f"{spare.place}/{VOLATILE}", ignore_errors=True)

    def clear(self) -> None:
        """An image is gone, perhaps with the lowers of spares: no container gets one of these."""
        with self._changed:
            self._not_before = time.monotonic()
            free, self._free = self._free, []
        self._throw_away(free)

    def close(self) -> None:
        """Unmount all of them and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
            kept, self._kept = self._kept, {}
        if thread is not None:
            thread.join()
        self.clear()
        for spare in kept.values():
            self.let_go(spare)

    def _fresh(self, spare: Spare) -> bool:
        return spare.mounted > max(self._not_before, time.monotonic() - AGE)

    def _add(self, spare: Spare) -> bool:
        with self._changed:
            if self._closed or len(self._free) + len(self._kept) >= MOST:
                return False
            self._free.append(spare)
            self._watch()
        return True

    def _throw_away(self, spares: Sequence[Spare]) -> None:
        for spare in spares:
            self._closer.put(spare.tree)
            self._trash.delete(spare.place)

    def _watch(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._age, name="spares", daemon=True)
            self._thread.start()

    def _age(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=AGE / 2)
                if self._closed:
                    return
                old = [one for one in self._free if not self._fresh(one)]
                self._free = [one for one in self._free if self._fresh(one)]
                kept = {key: one for key, one in self._kept.items() if not self._fresh(one)}
                self._kept = {key: one for key, one in self._kept.items() if key not in kept}
                self._leaving = set(kept)
            self._throw_away(old)
            for spare in kept.values():
                self.let_go(spare)
            with self._changed:
                self._leaving = set()
                self._changed.notify_all()
                if not self._free and not self._kept:
                    self._thread = None
                    return


def spare_of(lowers: Sequence[Path], directory: str, tree: int, *, volatile: bool) -> Spare | None:
    """What a start has just mounted, as a spare; None when its upper is not empty."""
    seen = sight(directory)
    return None if seen is None else Spare((tuple(lowers), volatile), tree, directory, seen)
