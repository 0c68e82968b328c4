"""Packed layers: a layer that is its tar stream, until somebody needs its files.

    <layers>/<chain id>/packed            the stream, as the packer wrote it
    <layers>/.tmp-unpack-<chain id>/      where its files are made; there until the stream is gone

From the one to the other, each step a rename, so that a kill leaves a layer that is packed or one
that has its files, and at most a stream too many:

1. The files and the skeleton are made of the stream in the work directory, and compared with the
   layer's digest.
2. They are taken to the disk.
3. The skeleton, then the files are renamed into the layer: now it is like any other.
4. Both names are taken to the disk.
5. The stream moves into the work directory.
6. That goes to the trash.

Who needs the files does 1 to 3, or waits for the one who does; a thread of this class does the
rest, and all of it for layers that are wanted `soon`. A stream lies beside files only while there
is a work directory: `mend` finds it without a look into every layer.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from dockpy import archive
from dockpy.errors import BadArchive, Cancelled, DockpyError, KernelError, StoreError
from dockpy.records import TEMPORARY, Flusher, Trash

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DIFF", "PACKED", "SKELETON", "WORK", "Unpacking"]

log = logging.getLogger(__name__)

DIFF = "diff"
PACKED = "packed"
SKELETON = "skeleton"
WORK = f"{TEMPORARY}unpack-"
"""How the name of a work directory begins."""


class Unpacking:
    """Makes the files of packed layers below one directory. Thread-safe.

    `digest_of` gives a layer's diff id (hex). `holding`: the layer stays while the context is open;
    `wanted` tells whether it would without: for others the background does not go on.
    """

    def __init__(
        self,
        directory: Path,
        flusher: Flusher,
        trash: Trash,
        *,
        digest_of: Callable[[str], str],
        wanted: Callable[[str], bool],
        holding: Callable[[str], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._directory = directory
        self._flusher = flusher
        self._trash = trash
        self._digest_of = digest_of
        self._wanted = wanted
        self._holding = holding
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._queue: deque[str] = deque()
        self._closing = False
        self._thread: threading.Thread | None = None

    def is_packed(self, chain: str) -> bool:
        """Whether a layer has no files yet, and its stream instead."""
        place = f"{self._directory}/{chain}"
        return not os.path.isdir(f"{place}/{DIFF}") and os.path.isfile(f"{place}/{PACKED}")

    def make(self, chain: str) -> None:
        """Make a layer's files unless they are there; blocks, as long as making them takes.

        On failure the layer is packed as before. Raises KernelError, ENOSPC for a full disk, and
        StoreError for a stream that is not the layer's any more, or a layer that is not there.
        """
        with self._holding(chain):
            if self._make(chain, lambda: True):
                self.soon(chain)

    def soon(self, chain: str) -> None:
        """Make a layer's files, or drop its stream, in the background; returns at once."""
        with self._changed:
            if self._closing:
                return
            if chain not in self._queue:
                self._queue.append(chain)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dockpy-unpack", daemon=True)
                self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is queued; False when `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def close(self) -> None:
        """Give up what the background does and end its thread; layers stay as they are."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            thread = self._thread
        if thread is not None:
            thread.join()

    def mend(self, name: str) -> None:
        """At a start-up: what a kill left with a work directory of this name in `directory`."""
        place = self._directory / name.removeprefix(WORK)
        if (place / DIFF).is_dir():
            self._trash.discard(place / PACKED)
        self._trash.discard(self._directory / name)

    # -- inside --------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, chain: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: chain not in self._busy)
            self._busy.add(chain)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(chain)
                self._changed.notify_all()

    def _make(self, chain: str, goes_on: Callable[[], bool]) -> bool:
        """Steps 1 to 3; False when there was nothing to do. Cancelled when it shall not go on."""
        place, work = self._directory / chain, self._directory / f"{WORK}{chain}"
        with self._alone(chain):
            if (place / DIFF).is_dir():
                return False
            try:
                self._flusher.watch(self._directory)
                with open(place / PACKED, "rb", buffering=0) as stream:
                    archive.remove(work)
                    work.mkdir(mode=0o700)
                    self._extract(chain, _Abandonable(stream, goes_on), work)
                    self._flusher.flush(work)
                os.rename(work / SKELETON, place / SKELETON)
                os.rename(work / DIFF, place / DIFF)
            except BaseException as failure:
                with contextlib.suppress(KernelError):
                    self._trash.discard(work)
                explained = _explained(chain, failure)
                if explained is failure:
                    raise
                raise explained from failure
        return True

    def _extract(self, chain: str, stream: _Abandonable, work: Path) -> None:
        kept = os.open(work / SKELETON, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            made = archive.extract(
                cast("BinaryIO", stream), work / DIFF, skeleton=kept, write_back=True
            )
        finally:
            os.close(kept)
        if made.diff_id != self._digest_of(chain) or not made.rebuildable:
            raise BadArchive("the stream is not the layer's")

    def _drop_stream(self, chain: str) -> None:
        """Steps 4 to 6."""
        place, work = self._directory / chain, self._directory / f"{WORK}{chain}"
        with self._alone(chain):
            if not (place / DIFF).is_dir() or not work.is_dir():
                return
            self._flusher.wrote(place / SKELETON)  # and the directory that it is in
            self._flusher.flush()
            with contextlib.suppress(FileNotFoundError):
                os.rename(place / PACKED, work / PACKED)
            self._trash.discard(work)

    def _run(self) -> None:
        while (chain := self._next()) is not None:
            try:
                with self._holding(chain):
                    self._make(chain, partial(self._goes_on, chain))
                    self._drop_stream(chain)
            except Cancelled:
                pass
            except (DockpyError, OSError) as failure:
                log.warning("%s; tried again when a container needs its files", failure)
            except Exception:
                log.exception("layer %s was not unpacked", chain[:12])

    def _next(self) -> str | None:
        """Of the queue; when it is empty the thread ends."""
        with self._changed:
            if not self._queue:
                self._thread = None
                self._changed.notify_all()
                return None
            return self._queue.popleft()

    def _goes_on(self, chain: str) -> bool:
        return not self._closing and self._wanted(chain)


class _Abandonable(io.RawIOBase):
    """A stream that ends with Cancelled when its reader shall not go on."""

    def __init__(self, stream: FileIO, goes_on: Callable[[], bool]) -> None:
        self._stream = stream
        self._goes_on = goes_on

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int | None:
        if not self._goes_on():
            raise Cancelled("nobody needs the layer any more")
        return self._stream.readinto(buffer)


def _explained(chain: str, failure: BaseException) -> BaseException:
    """What the one who needs the layer is told."""
    name = f"layer {chain[:12]}"
    if isinstance(failure, FileNotFoundError):
        return StoreError(f"{name} is missing; pull or load its image again")
    if isinstance(failure, BadArchive):
        return StoreError(
            f"{name} is not on the disk as it was made ({failure}); "
            "remove its images, then commit, pull or load them again"
        )
    if isinstance(failure, OSError):
        return KernelError(f"unpack {name}", failure.errno or errno.EIO, failure.filename)
    return failure
