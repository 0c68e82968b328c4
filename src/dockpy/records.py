"""Durable small files, and deletion that nobody waits for.

A record is written under a temporary name and renamed (rename(2): readers see the old or the new
file, never a part). Flushing to disk happens in groups, in one thread, off the caller's path; what
a power cut leaves torn is detected by `read_json` and set aside under another name, never guessed.
Neither class starts a thread before its first work.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dockpy._below import remove_tree
from dockpy.errors import KernelError, TornRecord

TEMPORARY = ".tmp-"
"""How the name of a record that is being written begins."""

_PIECE = 64 << 10  # bytes
_MANY = 16  # beyond it one syncfs is cheaper than a journal commit per file


def write(
    path: Path | str, data: bytes, flusher: Flusher | None = None, *, worn: str | None = None
) -> None:
    """Put `data` at `path`, replacing what is there at one moment. The directory must exist.

    On return every reader sees the new record; `flusher` takes it to the disk soon after.
    `worn`: a file beside it that nobody needs or reads, perhaps: the record is written over it.
    Who reads the record after a power cut may then find what that file said.
    Raises KernelError (ENOSPC, ENOENT, ...) and leaves the old record as it was.
    """
    directory, name = os.path.split(path)
    directory = directory or "."
    temporary = f"{directory}/{TEMPORARY}{name}-{secrets.token_hex(4)}"
    try:
        fd = _open_worn(f"{directory}/{worn}", temporary) if worn else -1
        if fd < 0:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as refusal:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise KernelError("write record", refusal.errno or errno.EIO, str(path)) from refusal
    if flusher is not None:
        flusher.wrote(path)


def _open_worn(worn: str, temporary: str) -> int:
    """The file, empty and called `temporary` from now on: nobody else takes it. -1: not there."""
    try:
        os.rename(worn, temporary)
        return os.open(temporary, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def read_json(path: Path | str) -> Any:
    """The JSON value in `path`. Raises TornRecord when it does not parse, OSError as open(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _PIECE)
        while len(data) % _PIECE == 0 and (more := os.read(fd, _PIECE)):
            data += more
    finally:
        os.close(fd)
    return parse_json(path, data)


def parse_json(path: Path | str, data: bytes) -> Any:
    """The JSON value that was read from `path`. Raises TornRecord when it does not parse."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as reason:
        why = "is empty" if not data.strip(b"\0") else f"is not JSON: {reason}"
        raise TornRecord(str(path), why) from reason


def set_aside(path: Path) -> Path:
    """Rename a broken file or directory to `<name>.torn-<time>` beside it; gives the new path."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.torn-{stamp}")
    serial = 1
    while os.path.lexists(aside):
        serial += 1
        aside = path.with_name(f"{path.name}.torn-{stamp}-{serial}")
    try:
        os.rename(path, aside)
    except OSError as refusal:
        raise KernelError("set aside", refusal.errno or errno.EIO, str(path)) from refusal
    return aside


class Flusher:
    """Takes written records to the disk in groups, at most `delay` seconds late.

    `flush` is the barrier for those who must know. Thread-safe.
    """

    def __init__(self, delay: float = 0.2) -> None:
        self._delay = delay
        self._changed = threading.Condition()
        self._paths: set[str] = set()
        self._moved: set[str] = set()
        self._trees: set[str] = set()
        self._watched: dict[int, int] = {}
        self._asked = 0
        self._done = 0
        self._failures: dict[int, KernelError] = {}
        self._unreported: KernelError | None = None
        self._waiting = 0
        self._busy = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def wrote(self, path: Path | str) -> None:
        """`path` has a new record; returns at once."""
        self._note(self._paths, path)

    def moved(self, path: Path | str) -> None:
        """`path` was renamed to here within its directory, and on the disk it is whole; at once."""
        self._note(self._moved, path)

    def watch(self, tree: Path) -> None:
        """From now on no failure to write to the file system of `tree` is missed.

        The kernel tells such a failure once to everybody who had a descriptor of the file system
        before it, and otherwise to the first who asks, which may be another program (syncfs(2)).
        For who has files written long before the barrier. Keeps the file system busy until `close`.
        """
        with self._changed, contextlib.suppress(OSError):
            system = os.stat(tree).st_dev
            if system not in self._watched:
                self._watched[system] = os.open(tree, os.O_RDONLY | os.O_CLOEXEC)

    def flush(self, *trees: Path) -> None:
        """Wait until every record written so far is on the disk, and all that is in `trees`.

        Callers that come together share one turn. Raises KernelError when the disk failed, now or
        since the last barrier.
        """
        with self._changed:
            failure, self._unreported = self._unreported, None
            if failure is not None:
                raise failure
            noted = self._paths or self._moved or trees
            if not noted and self._asked == self._done and not self._busy:
                return
            self._trees.update(map(os.fspath, trees))
            self._asked += 1
            ticket = self._asked
            self._waiting += 1
            self._start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done >= ticket)
            self._waiting -= 1
            failure = next((e for turn, e in self._failures.items() if turn >= ticket), None)
            if self._waiting == 0:
                self._failures.clear()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Flush what is left and end the thread. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
            self._thread = None
        if thread is not None:
            thread.join()
        with self._changed:
            for descriptor in self._watched.values():
                os.close(descriptor)
            self._watched.clear()

    def _note(self, where: set[str], path: Path | str) -> None:
        with self._changed:
            where.add(os.fspath(path))
            self._start()
            if len(self._paths) + len(self._moved) == 1:
                self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._closing = False
            self._thread = threading.Thread(target=self._run, name="dockpy-flush", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        bool(self._paths or self._moved)
                        or self._asked > self._done
                        or self._closing
                    )
                )
                if self._asked == self._done and not self._closing:
                    # Let a group gather; a barrier or the end cuts the wait short.
                    self._changed.wait_for(
                        lambda: self._asked > self._done or self._closing, timeout=self._delay
                    )
                group = _Group(set(self._paths), set(self._moved), set(self._trees), self._watched)
                for taken in (self._paths, self._moved, self._trees):
                    taken.clear()
                turn = self._asked
                if self._closing and group.is_empty and turn == self._done:
                    return
                waited_for = turn > self._done
                self._busy = True
            failure = group.take_to_disk()
            with self._changed:
                self._busy = False
                self._done = turn
                if failure is not None and waited_for:
                    self._failures[turn] = failure
                elif failure is not None:
                    self._unreported = failure
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Group:
    """What goes to the disk together. `watched`: descriptors by the number of their file system."""

    paths: set[str]
    moved: set[str]
    trees: set[str]
    watched: Mapping[int, int]

    @property
    def is_empty(self) -> bool:
        return not (self.paths or self.moved or self.trees)

    def take_to_disk(self) -> KernelError | None:
        """fdatasync for a few records, syncfs for trees and for many; the first failure."""
        failure: KernelError | None = None
        paths, trees = self.paths, self.trees
        directories = set(map(os.path.dirname, (*paths, *self.moved)))
        if len(paths) > _MANY:
            paths, trees, directories = set(), trees | directories, set()
        systems: dict[int, str] = {}
        for tree in trees:
            with contextlib.suppress(OSError):
                systems.setdefault(os.stat(tree).st_dev, tree)
        for system, path in systems.items():
            failure = _sync(path, "flush filesystem", _syncfs, self.watched.get(system)) or failure
        for path in paths:
            failure = _sync(path, "flush record", os.fdatasync) or failure
        for directory in directories:
            failure = _sync(directory, "flush directory", os.fsync) or failure
        return failure


def _sync(path: str, step: str, call: Any, watched: int | None = None) -> KernelError | None:
    try:
        if watched is not None:
            call(watched)
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            call(fd)
        finally:
            os.close(fd)
    except FileNotFoundError:
        pass  # removed meanwhile
    except OSError as refusal:
        return KernelError(step, refusal.errno or errno.EIO, path)
    return None


def _syncfs(fd: int) -> None:
    # Releases the GIL, as every ctypes call does.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")


class Trash:
    """`<root>/trash`: what is discarded is gone at once and deleted in the background.

    What cannot be deleted stays until `sweep`, which a start-up calls. Thread-safe.
    """

    def __init__(self, root: Path) -> None:
        self._directory = root / "trash"
        self._changed = threading.Condition()
        self._names: deque[str] = deque()
        self._busy = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self.failures: list[KernelError] = []
        """What could not be deleted since the start, for the log; at most 100."""

    def discard(self, path: Path | str) -> None:
        """Make `path` (a file or a tree on the same filesystem) disappear; a missing one is fine.

        One rename(2); raises KernelError when that is refused.
        """
        place = self.take(path)
        if place is not None:
            self.delete(place)

    def take(self, path: Path | str) -> str | None:
        """As `discard`, to be deleted when `delete` is told so, or by the next `sweep`.

        Where it is now; None when it was missing.
        """
        place = f"{self._directory}/{os.path.basename(path)[:64]}-{secrets.token_hex(8)}"
        try:
            try:
                os.rename(path, place)
            except FileNotFoundError:
                if not os.path.lexists(path):
                    return None
                self._directory.mkdir(mode=0o700, exist_ok=True)
                os.rename(path, place)
        except OSError as refusal:
            raise KernelError("discard", refusal.errno or errno.EIO, str(path)) from refusal
        return place

    def delete(self, place: str) -> None:
        """Delete in the background what `take` put in here."""
        self._queue([os.path.basename(place)])

    def sweep(self) -> int:
        """Queue what earlier runs left; gives how many things that are."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return 0
        with self._changed:
            names = [name for name in names if name not in self._names]
        if names:
            self._queue(names)
        return len(names)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is queued; False when `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._names and not self._busy, timeout)

    def close(self) -> None:
        """End the thread after the deletion at hand; the rest waits for the next `sweep`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
            self._thread = None
        if thread is not None:
            thread.join()

    def _queue(self, names: list[str]) -> None:
        with self._changed:
            self._names.extend(names)
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="dockpy-trash", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            # Nice values are per thread on Linux: setpriority(2), "C library/kernel differences".
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._names) or self._closing)
                if self._closing:
                    return
                name = self._names.popleft()
                self._busy = True
            failure = self._delete(name)
            if failure is not None and len(self.failures) < 100:
                self.failures.append(failure)

    def _delete(self, name: str) -> KernelError | None:
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as refusal:
            err = refusal.errno or errno.EIO
        else:
            try:
                err = remove_tree(fd, os.fsencode(name))
            finally:
                os.close(fd)
        return KernelError("delete", err, str(self._directory / name)) if err else None
