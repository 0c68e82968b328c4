from __future__ import annotations

import bz2
import gzip
import io
import lzma

import pytest
import zstandard

from dockpy.compression import Compression, Readable, ZstdFrames, decoder, detect
from dockpy.errors import BadArchive, KernelError


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (gzip.compress(b"x"), Compression.GZIP),
        (bz2.compress(b"x"), Compression.BZIP2),
        (bz2.compress(b""), Compression.BZIP2),
        (lzma.compress(b"x"), Compression.XZ),
        (zstandard.compress(b"x"), Compression.ZSTD),
        (b"\x53\x2a\x4d\x18\0\0\0\0", Compression.ZSTD),
        (b"BZhello, a file name in a tar", Compression.NONE),
        (b"", Compression.NONE),
        (bytes(512), Compression.NONE),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_compression_is_told_by_the_first_bytes(head: bytes, expected: Compression) -> None:
    assert detect(head) is expected
    assert expected.extension.startswith("tar")


def drain(stream: Readable) -> int:
    buffer = memoryview(bytearray(1 << 20))
    return sum(iter(lambda: stream.readinto(buffer), 0))


def frames() -> bytes:
    plain = b"some text " * 20_000
    sized = zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    streamed = zstandard.ZstdCompressor(write_content_size=False, threads=0).compressobj()
    unsized = streamed.compress(plain) + streamed.flush()
    return sized + b"\x50\x2a\x4d\x18\x05\0\0\0hello" + unsized + zstandard.compress(bytes(300_000))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_the_end_of_a_zstd_frame_is_seen_however_the_stream_is_cut(step: int) -> None:
    data = frames()
    whole = ZstdFrames()
    ends = set()
    for at in range(0, len(data), step):
        whole.feed(memoryview(data[at : at + step]))
        if whole.complete:
            ends.add(min(at + step, len(data)))
    assert whole.complete
    assert max(ends) == len(data)
    if step == 1:
        assert len(ends) == 4


@pytest.mark.parametrize("cut", [1, 3, 5, 20])
def test_a_truncated_zstd_stream_is_not_quietly_short(cut: int) -> None:
    stream = decoder(Compression.ZSTD, io.BytesIO(frames()[:-cut]))
    with pytest.raises(BadArchive, match="zstd"):
        drain(stream)


@pytest.mark.parametrize("compression", list(Compression))
def test_what_the_source_raises_comes_out_unchanged(compression: Compression) -> None:
    class Broken:
        def readinto(self, buffer: memoryview, /) -> int:
            raise KernelError("read archive", 5)

    stream = decoder(compression, Broken())
    with pytest.raises(KernelError):
        stream.readinto(memoryview(bytearray(100)))


def test_output_comes_in_pieces_no_larger_than_asked_for() -> None:
    data = bytes(5 << 20)
    for compression, packed in {
        Compression.GZIP: gzip.compress(data),
        Compression.BZIP2: bz2.compress(data),
        Compression.XZ: lzma.compress(data),
        Compression.ZSTD: zstandard.compress(data),
    }.items():
        stream = decoder(compression, io.BytesIO(packed))
        buffer = memoryview(bytearray(10_000))
        total = 0
        while count := stream.readinto(buffer):
            assert count <= 10_000
            total += count
        assert total == len(data)
