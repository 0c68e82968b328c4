"""What an unpacker leaves to another thread: done in time, and what goes wrong is told."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy import archive, behind
from dockpy.archive import extract
from dockpy.behind import WRITE_BACK_FROM
from dockpy.errors import BadArchive, KernelError
from needs import dirty_pages
from patience import patient
from reference.tarblocks import END, file, header
from reference.untar import snapshot

pytestmark = pytest.mark.needs("root")

LARGE = bytes(range(256)) * (WRITE_BACK_FROM // 256)


@pytest.fixture
def place(real_tmp: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=real_tmp) as name:
        yield Path(name)


def files(count: int) -> bytes:
    return b"".join(file(b"%d" % number, LARGE) for number in range(count))


class Gated(io.RawIOBase):
    """A stream that stands still after `first` until it is told to go on."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self._parts = [io.BytesIO(first), io.BytesIO(rest)]
        self.go = threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not (count := self._parts[0].readinto(buffer)):
            assert self.go.wait(patient(30))
            count = self._parts[1].readinto(buffer)
        return count


def dirty(path: Path) -> int:
    """Pages that nobody began to write; 1 for a file that is not there, or not all of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 1
    try:
        return dirty_pages(descriptor) if os.fstat(descriptor).st_size else 1
    finally:
        os.close(descriptor)


def began_early(tree: Path) -> bool:
    """Whether a large file is written back, a small one from before it is not, and the archive
    has not ended. Another program's sync(2) takes both."""
    stream = Gated(file(b"small", b"s" * 4096) + files(40), file(b"last", b"x") + END)
    options = {"write_back": True}
    unpacking = threading.Thread(target=extract, args=(stream, tree), kwargs=options)
    unpacking.start()
    try:
        tick = threading.Event()
        for _ in range(100):
            if not dirty(tree / "1"):
                break
            tick.wait(0.01)
        return not dirty(tree / "1") and dirty(tree / "small") == 1
    finally:
        assert not (tree / "last").exists()
        stream.go.set()
        unpacking.join()
        assert (tree / "last").read_bytes() == b"x"


@pytest.mark.needs("write_back")
def test_large_files_are_on_their_way_to_the_disk_before_the_archive_ends(place: Path) -> None:
    assert any(began_early(place / str(number)) for number in range(20))


def test_trees_and_digests_are_the_same_with_write_back(place: Path) -> None:
    root = header(b"./", b"5", mode=0o755)
    data = root + files(20) + file(b"huge", LARGE * 300) + file(b"small", b"s") + END
    one = extract(io.BytesIO(data), place / "one", write_back=True)
    other = extract(io.BytesIO(data), place / "other")
    assert one == other
    assert snapshot(str(place / "one")) == snapshot(str(place / "other"))


def test_nothing_stays_open_and_no_thread_runs_on_after_a_failure(place: Path) -> None:
    descriptors, threads = sorted(os.listdir("/proc/self/fd")), threading.active_count()
    with pytest.raises(BadArchive):
        extract(io.BytesIO(files(100) + file(b"../x", b"x")), place / "tree", write_back=True)
    assert not (place / "tree").exists()
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_a_file_that_did_not_reach_the_disk_fails_the_extraction(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = behind.begin_write_back

    def fail(files: list[int]) -> int:
        real(files)
        return 5

    monkeypatch.setattr(behind, "begin_write_back", fail)
    descriptors = sorted(os.listdir("/proc/self/fd"))
    for count in (1, 500):  # told at the end; told while it goes on
        with pytest.raises(KernelError, match="write file: EIO"):
            extract(io.BytesIO(files(count) + END), place / "tree", write_back=True)
        assert not (place / "tree").exists()
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_a_skeleton_that_the_disk_does_not_take_fails_the_extraction(place: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(KernelError) as caught:
        archive.extract(
            io.BytesIO(files(3) + END), place / "tree", skeleton=full.fileno(), write_back=True
        )
    assert caught.value.step == "write skeleton"
    assert not (place / "tree").exists()
