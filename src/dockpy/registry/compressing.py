"""A tar stream to gzip: by as many threads as there are processors, and always to the same bytes.

The stream is cut into blocks of BLOCK bytes; each is deflated for itself and ends at a byte
boundary (Z_SYNC_FLUSH), so that the blocks in a row, with an empty last one, are one deflate stream
(RFC 1951) in one gzip member (RFC 1952) with an empty header. Neither the number of threads nor
the sizes of reads change a bit of it; another version of ISA-L may.

Level 1 of ISA-L: 5 % larger than `gzip -6` and about ten times as fast.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from isal import isal_zlib

from dockpy.errors import KernelError
from dockpy.registry.growing import GrowingFile

BLOCK = 1 << 20
LEVEL = 1
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST = b"\x03\x00"
"""An empty block, the last one, in fixed codes."""


def deflate(block: bytes) -> bytes:
    """A block as raw deflate that ends at a byte boundary and is not the last."""
    stream = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15, 9)
    return bytes(stream.compress(block) + stream.flush(isal_zlib.Z_SYNC_FLUSH))


def compress(
    source: int, target: GrowingFile, report: Callable[[int], None] = lambda _count: None
) -> str:
    """Compress what descriptor `source` gives to its end; the hex sha256 of the compressed bytes.

    `target` grows by them and is not marked complete. `report` gets the uncompressed bytes so far.
    Blocks as `source` does; memory is a few blocks for each processor. Raises KernelError.
    """
    hashed = hashlib.sha256()
    check, size = 0, 0
    waiting: deque[Future[bytes]] = deque()
    workers = len(os.sched_getaffinity(0))

    def put(piece: bytes) -> None:
        hashed.update(piece)
        target.append(piece)

    put(_HEADER)
    with ThreadPoolExecutor(workers, thread_name_prefix="dockpy-deflate") as pool:
        try:
            while block := read_block(source):
                check = isal_zlib.crc32(block, check)
                size += len(block)
                waiting.append(pool.submit(deflate, block))
                if len(waiting) > 2 * workers:
                    put(waiting.popleft().result())
                report(size)
            while waiting:
                put(waiting.popleft().result())
        finally:
            for one in waiting:
                one.cancel()
    put(_LAST + check.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"))
    return hashed.hexdigest()


def read_block(source: int) -> bytes:
    """BLOCK bytes, fewer only at the end. KernelError."""
    block = bytearray(BLOCK)
    view = memoryview(block)
    filled = 0
    try:
        while filled < BLOCK and (count := os.readv(source, [view[filled:]])):
            filled += count
    except OSError as refusal:
        raise KernelError("read layer", refusal.errno or 0) from refusal
    return bytes(view[:filled])
