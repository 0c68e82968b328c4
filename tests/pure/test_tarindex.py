"""Where files lie in a plain tar, compared with Python's own reader."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from dockpy.image_archive.tarindex import index


def made(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for one in members:
            tar.addfile(one, io.BytesIO(bytes(one.size)) if one.isfile() else None)
    return out.getvalue()


def member(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: object
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def indexed(data: bytes) -> dict[str, tuple[int, int]] | None:
    return index(lambda count, at: data[at : at + count], len(data))


def by_tarfile(data: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            one.name.removeprefix("./"): (one.offset_data, one.size) for one in tar if one.isfile()
        }


LONG = "/".join(["blobs"] * 20) + "/" + "d" * 64
PLAIN = [
    member("oci-layout", 30),
    member("blobs/", kind=tarfile.DIRTYPE),
    member("blobs/sha256", kind=tarfile.DIRTYPE),
    member("blobs/sha256/" + "a" * 64, 5000),
    member("./manifest.json", 512),
    member("empty", 0),
    member(LONG, 7),
    member("timed", 3, mtime=1.5),
    member("ünicode", 3),
]


def test_files_of_a_plain_archive_are_where_tarfile_finds_them() -> None:
    data = made(*PLAIN)
    assert indexed(data) == by_tarfile(data)
    assert len(indexed(data) or {}) == 7
    assert indexed(made()) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(100),
        b"junk" * 1000,
        made(member("a", 10))[:512],
        made(member("a", 10))[:1024],
        made(member("a", 10), member("b", 1))[:1024],
        made(member("a", 1), member("a", 2)),
        made(member("a", 1), member("./a", 2)),
        made(member("../a", 1)),
        made(member("a/../b", 1)),
        made(member("/a", 1)),
        made(member("a//b", 1)),
        made(member("a", kind=tarfile.SYMTYPE, linkname="b")),
        made(member("a", kind=tarfile.LNKTYPE, linkname="b")),
        made(member("a", kind=tarfile.FIFOTYPE)),
        made(member("a", kind=tarfile.CHRTYPE)),
        made(member(LONG, 1), form=tarfile.GNU_FORMAT),
        made(member("a", 1), form=tarfile.GNU_FORMAT),
        made(member("a", 1, pax_headers={"GNU.sparse.major": "1"})),
        made(member("a", 1, pax_headers={"path": "../x"})),
        made(member("a", 1, pax_headers={"size": "-5"})),
        made(member("a", 1, pax_headers={"size": "9" * 30})),
        made(member("a", 1, pax_headers={"comment": "x" * 100_000})),
    ],
)
def test_what_is_not_plain_has_to_be_unpacked(data: bytes) -> None:
    assert indexed(data) is None


def test_more_files_than_an_archive_of_images_has_are_not_looked_at() -> None:
    data = made(*(member(str(number)) for number in range(5)))

    def read(count: int, at: int) -> bytes:
        return data[at : at + count]

    assert index(read, len(data), limit=5) is not None
    assert index(read, len(data), limit=4) is None


def test_damaged_archives_are_read_as_tarfile_reads_them_or_not_at_all() -> None:
    chance = random.Random(5)
    whole = made(*PLAIN)
    starts = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    taken = 0
    for _ in range(1500):
        data = bytearray(whole)
        at = chance.choice(starts)
        for _ in range(chance.randrange(1, 4)):
            data[at + chance.randrange(512 + 200)] = chance.choice(b"\x00\x01 /.0159ax\xff")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        found = indexed(bytes(data))
        if found is not None:
            taken += 1
            assert found == by_tarfile(bytes(data))
    assert 50 < taken < 1450
