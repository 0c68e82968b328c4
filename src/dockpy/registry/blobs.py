"""Blobs on their way here: files that grow while others read them already.

    <root>/downloads/<sha256 hex>     as much as has arrived; what is there is never trusted

A download writes and hashes; whoever unpacks reads the same file behind it. The reader's end comes
only when the whole blob was verified, so nothing that was made from a wrong blob is ever complete.
A file that is left over is where the next download goes on, after hashing what it holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dockpy.errors import KernelError, RegistryError
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.client import RegistryClient
from dockpy.registry.manifests import Descriptor
from dockpy.registry.transport import Broken, Response

PIECE = 1 << 20
KEPT_SECONDS = 7 * 24 * 3600.0
"""How long an unfinished download waits to be gone on with."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Arrival:
    """A file that grows. One thread writes it, any number read."""

    def __init__(self, path: Path, size: int) -> None:
        """Open or make the file; `size` is what it must come to. KernelError."""
        self.path = path
        self.size = size
        self._changed = threading.Condition()
        self._there = 0
        self._verified = False
        self._failure: BaseException | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as refusal:
            raise KernelError("keep download", refusal.errno or 0, str(path)) from refusal

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

    def verified(self) -> None:
        """All of it is there, and right."""
        with self._changed:
            self._verified = True
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

    def wait(self, offset: int, cancellation: Cancellation) -> int:
        """Block until there is more than `offset`, or all is verified; bytes there are.

        Raises what the download failed with, and Cancelled.
        """
        with cancellation.waking(self._wake), self._changed:
            self._changed.wait_for(
                lambda: (
                    self._there > offset
                    or self._verified
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


class ArrivalReader:
    """Reads an arrival from its beginning. Raises what the download failed with."""

    def __init__(
        self,
        arrival: Arrival,
        cancellation: Cancellation,
        report: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._arrival = arrival
        self._cancellation = cancellation
        self._report = report
        self._offset = 0

    def readinto(self, buffer: memoryview) -> int:
        there = self._arrival.wait(self._offset, self._cancellation)
        wanted = min(len(buffer), there - self._offset)
        if not wanted:
            return 0
        count = os.preadv(self._arrival.fd, [buffer[:wanted]], self._offset)
        self._offset += count
        self._report(self._offset)
        return count

    def read(self, size: int = -1) -> bytes:
        buffer = bytearray(PIECE if size < 0 else size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])


def download(
    arrival: Arrival,
    blob: Descriptor,
    client: RegistryClient,
    report: Callable[[int], None] = lambda _count: None,
    retrying: Callable[[float], None] = lambda _seconds: None,
) -> None:
    """Bring a blob here and verify it; goes on where an earlier one stopped.

    Blocks. Drops are survived as long as every few attempts bring something. What is wrong is
    removed from the disk; what is merely unfinished stays. Raises RegistryError, KernelError,
    Cancelled.
    """
    arrival.lock(client.cancellation)
    hashed = hashlib.sha256()
    offset = take_over(arrival, blob.size, hashed.update, client.cancellation)
    resumed = offset > 0
    attempt = 0
    while offset < blob.size or blob.size == 0:
        before = offset
        try:
            with request(client, blob, offset) as response:
                offset = receive(arrival, blob, response, offset, hashed.update, report)
            break
        except Broken as failure:
            offset = arrival.there
            attempt = 1 if offset > before else attempt + 1
            if attempt >= client.settings.patience.attempts:
                raise
            retrying(client.settings.patience.backoff)
            client.pause(failure, attempt)
    if hashed.hexdigest() != blob.hex:
        discard(arrival.path)
        if resumed:
            raise StaleDownload(f"what was kept of {blob.short} is not what it should be")
        raise RegistryError(
            f"{client.endpoint.host}/{client.path}: blob {blob.digest} arrived as "
            f"sha256:{hashed.hexdigest()}; the registry or something on the way damages it"
        )
    arrival.verified()


class StaleDownload(RegistryError):
    """A blob that was partly here is wrong; from the beginning it may be right."""


def take_over(
    arrival: Arrival, size: int, update: Callable[[memoryview], None], cancellation: Cancellation
) -> int:
    """Hash what an earlier download left; how many bytes that is."""
    there = os.fstat(arrival.fd).st_size
    if there > size:
        os.ftruncate(arrival.fd, 0)
        there = 0
    buffer = memoryview(bytearray(PIECE))
    offset = 0
    while offset < there:
        cancellation.check()
        count = os.preadv(arrival.fd, [buffer[: min(PIECE, there - offset)]], offset)
        if not count:
            break
        update(buffer[:count])
        offset += count
        arrival.grew(offset)
    return offset


def request(client: RegistryClient, blob: Descriptor, offset: int) -> Response:
    """Ask for a blob from `offset` on, once. Broken, RegistryError."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    url = client.url("blobs", blob.digest)
    return client.send("GET", url, headers, ok=(200, 206) if offset else (200,))


def receive(
    arrival: Arrival,
    blob: Descriptor,
    response: Response,
    offset: int,
    update: Callable[[memoryview], None],
    report: Callable[[int], None],
) -> int:
    """Write an answer's bytes behind `offset` until the blob is whole; the new end."""
    where = f"blob {blob.digest}"
    skip = 0
    if response.status == 206:
        found = _RANGE.fullmatch(response.header("Content-Range").strip())
        if not found or int(found[1]) != offset or found[3] not in ("*", str(blob.size)):
            raise RegistryError(f"{where}: the registry sent another part of it than we asked for")
    else:
        skip = offset
    told = response.length
    if told is not None and told != blob.size - offset + skip:
        raise RegistryError(
            f"{where}: the manifest says {blob.size} bytes, the registry sends "
            f"{told + offset - skip}"
        )
    buffer = memoryview(bytearray(PIECE))
    while offset < blob.size or skip:
        wanted = min(PIECE, skip or blob.size - offset)
        count = response.readinto(buffer[:wanted])
        if not count:
            raise Broken(f"{where}: it ended after {offset} of {blob.size} bytes", sent=True)
        if skip:
            skip -= count
            continue
        update(buffer[:count])
        write(arrival, buffer[:count], offset)
        offset += count
        arrival.grew(offset)
        report(offset)
    if response.readinto(buffer[:1]):
        discard(arrival.path)
        raise RegistryError(f"{where}: the registry sends more than the {blob.size} bytes it has")
    return offset


def write(arrival: Arrival, piece: memoryview, offset: int) -> None:
    try:
        while piece:
            count = os.pwrite(arrival.fd, piece, offset)
            piece = piece[count:]
            offset += count
    except OSError as refusal:
        raise KernelError(
            "keep download", refusal.errno or errno.EIO, str(arrival.path)
        ) from refusal


def discard(path: Path) -> None:
    """Remove a download; the space is given back when its last reader has closed it."""
    with contextlib.suppress(OSError):
        path.unlink()


def sweep(directory: Path, older_than: float = KEPT_SECONDS) -> int:
    """Remove downloads nobody went on with for so many seconds; how many."""
    removed = 0
    limit = time.time() - older_than
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.stat(follow_symlinks=False).st_mtime <= limit:
                discard(Path(entry.path))
                removed += 1
    return removed


def is_full(failure: BaseException) -> bool:
    """Whether a failure means that there is no room on the disk."""
    return isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT)
