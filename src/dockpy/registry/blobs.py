"""Blobs on their way here: files that grow while others read them already.

    <root>/downloads/<sha256 hex>     as much as has arrived; what is there is never trusted

A download writes and hashes a growing file, and whoever unpacks reads behind it. The reader's end
comes only when the whole blob was verified, so nothing made from a wrong blob is ever complete. A
file that is left over is where the next download goes on, after hashing what it holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from dockpy.errors import RegistryError
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.client import RegistryClient
from dockpy.registry.connecting import Broken
from dockpy.registry.growing import PIECE, GrowingFile, StaleDownload
from dockpy.registry.manifests import Descriptor
from dockpy.registry.transport import Response

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long an unfinished download waits to be gone on with."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def download(
    arrival: GrowingFile,
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
    arrival.complete()


def take_over(
    arrival: GrowingFile,
    size: int,
    update: Callable[[memoryview], None],
    cancellation: Cancellation,
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
    arrival: GrowingFile,
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
        discard(arrival.path)
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
        offset = arrival.append(buffer[:count])
        report(offset)
    if response.readinto(buffer[:1]):
        discard(arrival.path)
        raise RegistryError(f"{where}: the registry sends more than the {blob.size} bytes it has")
    return offset


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
