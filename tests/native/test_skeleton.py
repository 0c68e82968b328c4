"""A layer's stream comes out of skeleton and tree as it went in."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dockpy import archive, skeleton
from dockpy.errors import StoreError

pytestmark = pytest.mark.needs("root")


def unpack(stream: bytes, place: Path) -> tuple[archive.Extracted, Path]:
    """What `extract` says, and the file of the skeleton; the tree is beside it."""
    place.mkdir(exist_ok=True)
    kept = place / "skeleton"
    with open(kept, "wb") as out:
        found = archive.extract(io.BytesIO(stream), place / "tree", skeleton=out.fileno())
    return found, kept


def rebuilt(kept: Path, tree: Path, out: Path) -> bytes:
    directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(kept, "rb") as source, open(out, "wb") as target:
            packed = skeleton.rebuild(source.fileno(), directory, target.fileno())
    finally:
        os.close(directory)
    data = out.read_bytes()
    assert (packed.size, packed.digest) == (len(data), hashlib.sha256(data).hexdigest())
    return data


def add(archive_: tarfile.TarFile, name: str, data: bytes = b"", **values: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in values.items():
        setattr(info, key, value)
    archive_.addfile(info, io.BytesIO(data))


def python_tar(form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as one:
        add(one, "dir", type=tarfile.DIRTYPE, mode=0o755)
        add(one, "dir/empty")
        add(one, "dir/block", b"x" * 512)
        add(one, "dir/odd", os.urandom(70001), mtime=1_700_000_000, mode=0o4755)
        add(one, "dir/" + "prefix/" * 12 + "long" * 10, b"a long name")
        if form != tarfile.USTAR_FORMAT:
            add(one, "dir/" + "long" * 30, b"a longer one")
        add(one, "dir/linked", type=tarfile.LNKTYPE, linkname="dir/odd")
        add(one, "soft", type=tarfile.SYMTYPE, linkname="dir")
        add(one, "soft/through", b"by a link in the archive")
        add(one, "pipe", type=tarfile.FIFOTYPE)
        add(one, ".wh.gone")
        add(one, "dir/.wh..wh..opq")
    return out.getvalue()


def gnu_sparse(directory: Path) -> bytes:
    with open(directory / "holes", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"end")
    (directory / "plain").write_bytes(b"plain" * 1000)
    done = subprocess.run(
        ["tar", "-S", "-C", str(directory), "-cf", "-", "holes", "plain"],
        capture_output=True,
        check=True,
    )
    return done.stdout


STREAMS: list[tuple[str, Callable[[Path], bytes]]] = [
    ("ustar", lambda _: python_tar(tarfile.USTAR_FORMAT)),
    ("gnu", lambda _: python_tar(tarfile.GNU_FORMAT)),
    ("pax", lambda _: python_tar(tarfile.PAX_FORMAT)),
    ("sparse", gnu_sparse),
    ("unpadded end", lambda _: python_tar(tarfile.GNU_FORMAT).rstrip(b"\0") + b"\0" * 1024),
    ("long padding", lambda _: python_tar(tarfile.GNU_FORMAT) + b"\0" * 100_000),
]


@pytest.mark.parametrize("make", [make for _, make in STREAMS], ids=[name for name, _ in STREAMS])
def test_a_stream_comes_out_as_it_went_in(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    stream = make(source)
    found, kept = unpack(stream, tmp_path / "place")
    assert found.rebuildable
    assert found.diff_id == hashlib.sha256(stream).hexdigest()
    assert rebuilt(kept, tmp_path / "place" / "tree", tmp_path / "out") == stream


@pytest.mark.parametrize("cut", [1, 511, 513, 4096, 70_000])
def test_it_does_not_matter_in_what_pieces_the_stream_comes(tmp_path: Path, cut: int) -> None:
    stream = python_tar(tarfile.PAX_FORMAT)

    class Slow(io.BytesIO):
        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            return super().readinto(memoryview(buffer)[:cut])

    place = tmp_path / "place"
    place.mkdir()
    with open(place / "skeleton", "wb") as out:
        archive.extract(Slow(stream), place / "tree", skeleton=out.fileno())
    assert rebuilt(place / "skeleton", place / "tree", tmp_path / "out") == stream


@pytest.mark.parametrize("second", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_a_stream_that_replaces_its_own_files_is_told(tmp_path: Path, second: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as one:
        add(one, "twice", b"first")
        add(one, "twice", type=second, linkname="x" if second == tarfile.SYMTYPE else "")
    found, _ = unpack(out.getvalue(), tmp_path / "place")
    assert not found.rebuildable


def test_a_changed_tree_is_a_clear_error(tmp_path: Path) -> None:
    stream = python_tar(tarfile.GNU_FORMAT)
    _, kept = unpack(stream, tmp_path / "place")
    tree = tmp_path / "place" / "tree"
    for change in (b"shorter", b"longer" * 20_000):
        (tree / "dir" / "odd").write_bytes(change)
        with pytest.raises(StoreError, match="dir/odd"):
            rebuilt(kept, tree, tmp_path / "out")


@pytest.mark.parametrize("size", [0, 1, 20, 200])
def test_a_torn_skeleton_is_a_clear_error(tmp_path: Path, size: int) -> None:
    stream = python_tar(tarfile.GNU_FORMAT)
    _, kept = unpack(stream, tmp_path / "place")
    kept.write_bytes(kept.read_bytes()[:size])
    tree = tmp_path / "place" / "tree"
    with pytest.raises((StoreError, AssertionError)):
        assert rebuilt(kept, tree, tmp_path / "out") == stream


def test_paths_of_a_hostile_skeleton_stay_in_the_tree(tmp_path: Path) -> None:
    import zstandard

    (tmp_path / "secret").write_bytes(b"12345")
    tree = tmp_path / "tree"
    tree.mkdir()
    for path in (b"../secret", b"/../secret", bytes(tmp_path / "secret")):
        record = b"F" + (5).to_bytes(8, "little") + len(path).to_bytes(8, "little") + path
        (tmp_path / "skeleton").write_bytes(zstandard.compress(record))
        with pytest.raises(Exception, match="secret"):
            rebuilt(tmp_path / "skeleton", tree, tmp_path / "out")
        assert b"12345" not in (tmp_path / "out").read_bytes()
