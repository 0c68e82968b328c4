"""Files that grow while others read them already: blobs on their way here, or away."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

from dockpy.errors import KernelError, RegistryError
from dockpy.registry.cancellation import Cancellation

PIECE = 1 << 20


class StaleDownload(RegistryError):
    """What was kept of a blob is of no use; from the beginning it may be right."""


class GrowingFile:
    """A file that grows. One thread writes it, any number read."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; what it holds already counts once `grew` says so. KernelError."""
        self.path = path
        self._changed = threading.Condition()
        self._there = 0
        self._complete = False
        self._failure: BaseException | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as refusal:
            raise KernelError("keep blob", refusal.errno or 0, str(path)) from refusal

    def lock(self, cancellation: Cancellation) -> None:
        """Wait until nobody else writes this file: a download that was given up ends soon."""
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                cancellation.sleep(0.02)
            else:
                break
        if os.fstat(self.fd).st_nlink == 0:
            raise StaleDownload(f"{self.path.name[:12]} was removed just now")

    def close(self) -> None:
        """Close the file; nobody may read any more."""
        os.close(self.fd)

    def grew(self, there: int) -> None:
        """So many bytes can be read."""
        with self._changed:
            self._there = there
            self._changed.notify_all()

    def append(self, piece: memoryview | bytes) -> int:
        """Write behind what can be read; bytes that can be read now. KernelError: ENOSPC ..."""
        offset = self._there
        view = memoryview(piece)
        try:
            while view:
                count = os.pwrite(self.fd, view, offset)
                view = view[count:]
                offset += count
        except OSError as refusal:
            raise KernelError("keep blob", refusal.errno or 0, str(self.path)) from refusal
        self.grew(offset)
        return offset

    def complete(self) -> None:
        """All of it is there, and right."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def failed(self, failure: BaseException) -> None:
        """Nothing more will come; readers raise the failure."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    @property
    def there(self) -> int:
        """Bytes that can be read."""
        with self._changed:
            return self._there

    @property
    def size(self) -> int | None:
        """Bytes of all of it; None while it may grow."""
        with self._changed:
            return self._there if self._complete else None

    def wait(self, offset: int, cancellation: Cancellation) -> int:
        """Block until there is more than `offset`, or all is verified; bytes there are.

        Raises what the download failed with, and Cancelled.
        """
        with cancellation.waking(self._wake), self._changed:
            self._changed.wait_for(
                lambda: (
                    self._there > offset
                    or self._complete
                    or self._failure is not None
                    or cancellation.cancelled
                )
            )
            cancellation.check()
            if self._failure is not None:
                raise self._failure
            return self._there

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class GrowingReader:
    """Reads a growing file from `start`. Raises what its making failed with, and Cancelled.

    `report` gets the offset of what was read so far.
    """

    def __init__(
        self,
        file: GrowingFile,
        cancellation: Cancellation,
        report: Callable[[int], None] = lambda _offset: None,
        start: int = 0,
    ) -> None:
        self._file = file
        self._cancellation = cancellation
        self._report = report
        self._offset = start

    def readinto(self, buffer: memoryview) -> int:
        there = self._file.wait(self._offset, self._cancellation)
        wanted = min(len(buffer), there - self._offset)
        if wanted <= 0:
            return 0
        count = os.preadv(self._file.fd, [buffer[:wanted]], self._offset)
        self._offset += count
        self._report(self._offset)
        return count

    def read(self, size: int = -1) -> bytes:
        buffer = bytearray(PIECE if size < 0 else size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])
