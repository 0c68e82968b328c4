"""Compressed streams: told apart by their first bytes, read in bounded pieces.

Facts: gzip, bzip2, xz and zstd files may be several streams in a row (RFC 1952 2.2, bzip2(1),
xz(1), RFC 8878 3.1). A gzip header may hold a name of any length, so what is read without
anything coming out is bounded. `zstandard.stream_reader` ends quietly on a truncated stream, so
the frames are counted here (RFC 8878 3.1.1).
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import zstandard
from isal import igzip, isal_zlib

from dockpy.errors import BadArchive

HEAD_SIZE = 512
"""How many first bytes `detect` wants to see."""

_XZ_MEMORY = 192 << 20  # bytes; `xz -9` needs 65 MiB
_ZSTD_WINDOW = 1 << 27  # bytes; what `zstd -d` accepts without asking
_SILENT_LIMIT = 4 << 20  # compressed bytes without any output
_PIECE = 256 << 10
_ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # stub: a value


class Readable(Protocol):
    """The one method of a raw stream that is used here; 0 is the end."""

    def readinto(self, buffer: memoryview, /) -> int: ...


class Compression(Enum):
    """How a stream is compressed; the value is what people call it."""

    NONE = "tar"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"

    @property
    def extension(self) -> str:
        """The usual end of a file's name."""
        return _EXTENSIONS[self]


_EXTENSIONS = {
    Compression.NONE: "tar",
    Compression.GZIP: "tar.gz",
    Compression.BZIP2: "tar.bz2",
    Compression.XZ: "tar.xz",
    Compression.ZSTD: "tar.zst",
}


def detect(head: bytes) -> Compression:
    """The compression of a stream that begins with `head`; NONE when nothing is recognised."""
    if head.startswith(b"\x1f\x8b\x08"):
        return Compression.GZIP
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return Compression.BZIP2
    if head.startswith(b"\xfd7zXZ\x00"):
        return Compression.XZ
    # A skippable frame may come first (RFC 8878 3.1.2).
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    ):
        return Compression.ZSTD
    return Compression.NONE


def decoder(compression: Compression, source: Readable) -> Readable:
    """A stream of the decompressed bytes of `source`.

    Its `readinto` blocks as `source` does, gives at most what fits, and raises BadArchive for
    damaged or truncated data. What `source` raises comes out unchanged.
    """
    match compression:
        case Compression.NONE:
            return source
        case Compression.GZIP:
            return _Gzip(source)
        case Compression.BZIP2:
            return _Streams("bzip2", source, bz2.BZ2Decompressor)
        case Compression.XZ:
            return _Streams("xz", source, _xz_decompressor)
        case Compression.ZSTD:
            return _Zstd(source)


def _xz_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


class _Tap:
    """A source as the decompressors want it; keeps its exceptions apart from theirs."""

    def __init__(self, source: Readable, seen: Callable[[memoryview], None]) -> None:
        self._source = source
        self._seen = seen
        self.failure: BaseException | None = None

    def readinto(self, buffer: memoryview) -> int:
        try:
            view = memoryview(buffer).cast("B")
            count = self._source.readinto(view)
            self._seen(view[:count])
        except BaseException as failure:
            self.failure = failure
            raise
        return count

    def read(self, size: int = -1) -> bytes:
        piece = bytearray(_PIECE if size < 0 else size)
        count = self.readinto(memoryview(piece))
        return bytes(memoryview(piece)[:count])

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure


class _Gzip:
    def __init__(self, source: Readable) -> None:
        self._silent = 0
        self._tap = _Tap(source, self._count)
        self._file = igzip.IGzipFile(fileobj=self._tap, mode="rb")  # type: ignore[no-untyped-call]

    def _count(self, piece: memoryview) -> None:
        self._silent += len(piece)
        if self._silent > _SILENT_LIMIT:
            raise BadArchive("damaged gzip data: an endless header")

    def readinto(self, buffer: memoryview) -> int:
        try:
            count: int = self._file.readinto(buffer)
        except (OSError, EOFError, _ISAL_ERROR, ValueError, OverflowError, MemoryError) as failure:
            self._tap.raise_failure()
            raise BadArchive(f"damaged gzip data: {failure}") from failure
        self._silent = 0
        return count


class _Zstd:
    def __init__(self, source: Readable) -> None:
        self._frames = ZstdFrames()
        self._tap = _Tap(source, self._frames.feed)
        self._reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
            self._tap,  # type: ignore[arg-type]  # only read() is used
            read_size=_PIECE,
            read_across_frames=True,
        )

    def readinto(self, buffer: memoryview) -> int:
        try:
            count: int = self._reader.readinto(buffer)
        except (zstandard.ZstdError, MemoryError) as failure:
            self._tap.raise_failure()
            raise BadArchive(f"damaged zstd data: {failure}") from failure
        if count == 0 and not self._frames.complete:
            raise BadArchive("damaged zstd data: it ends in the middle of a frame")
        return count


class ZstdFrames:
    """Follows the frames of a zstd stream without decoding: is the last one whole?"""

    def __init__(self) -> None:
        self._held = b""
        self._skip = 0
        self._in_frame = False
        self._last_block = False
        self._checksum = False

    @property
    def complete(self) -> bool:
        """Whether the bytes so far end between two frames."""
        return not self._in_frame and not self._skip and not self._held

    def feed(self, piece: memoryview) -> None:
        at = 0
        size = len(piece)
        while at < size:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                at += step
                continue
            wanted = self._wanted(self._held)
            step = min(wanted - len(self._held), size - at)
            self._held += bytes(piece[at : at + step])
            at += step
            if len(self._held) == self._wanted(self._held):
                self._header(self._held)
                self._held = b""

    def _wanted(self, held: bytes) -> int:
        if self._in_frame:
            return 3
        if len(held) < 5:
            return 5
        if held[1:4] == b"\x2a\x4d\x18":
            return 8
        descriptor = held[4]
        single = descriptor >> 5 & 1
        content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        return 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + content

    def _header(self, held: bytes) -> None:
        if not self._in_frame:
            if held[1:4] == b"\x2a\x4d\x18":
                self._skip = int.from_bytes(held[4:8], "little")
            else:
                self._in_frame = True
                self._checksum = bool(held[4] & 4)
            return
        block = int.from_bytes(held, "little")
        self._skip = 1 if block >> 1 & 3 == 1 else block >> 3
        if block & 1:
            self._skip += 4 if self._checksum else 0
            self._in_frame = False


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Streams:
    """Streams in a row for the decompressors of the standard library."""

    def __init__(self, name: str, source: Readable, start: Callable[[], _Decompressor]) -> None:
        self._name = name
        self._source = source
        self._start = start
        self._decompressor = start()
        self._input = memoryview(bytearray(_PIECE))
        self._started = False
        self._first = True

    def readinto(self, buffer: memoryview) -> int:
        rest = b""
        while True:
            if self._decompressor.eof:
                # Zeros may pad the end, and bzip2 has always ignored what follows.
                rest = self._decompressor.unused_data.lstrip(b"\0")
                self._decompressor = self._start()
                self._started, self._first = False, False
            if not rest and self._decompressor.needs_input:
                count = self._source.readinto(self._input)
                if count == 0:
                    if self._started or self._first:
                        raise BadArchive(f"damaged {self._name} data: it ends too early")
                    return 0
                rest = bytes(self._input[:count])
                if not self._started and not self._first:
                    rest = rest.lstrip(b"\0")
                    if not rest:
                        continue
            self._started = True
            try:
                piece = self._decompressor.decompress(rest, len(buffer))
            except (OSError, lzma.LZMAError, ValueError) as failure:
                raise BadArchive(f"damaged {self._name} data: {failure}") from failure
            rest = b""
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
