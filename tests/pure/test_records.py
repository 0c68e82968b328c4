from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dockpy import records
from dockpy.errors import KernelError, TornRecord
from dockpy.records import Flusher, Trash, read_json, set_aside, write


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_record_is_replaced_and_nothing_temporary_stays(tmp_path: Path) -> None:
    write(tmp_path / "r", b"1")
    write(tmp_path / "r", b'{"a": 2}')
    assert read_json(tmp_path / "r") == {"a": 2}
    assert names(tmp_path) == ["r"]
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o600


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "kept").touch()
    with pytest.raises(KernelError) as caught:
        write(tmp_path / "r", b"1")
    assert caught.value.errno == errno.EISDIR
    assert names(tmp_path) == ["r"]
    with pytest.raises(KernelError) as caught:
        write(tmp_path / "none" / "r", b"1")
    assert caught.value.errno == errno.ENOENT


def test_a_record_is_written_over_a_worn_one(tmp_path: Path) -> None:
    (tmp_path / "worn").write_bytes(b"what another one said, which is longer")
    number = (tmp_path / "worn").stat().st_ino
    write(tmp_path / "r", b"1", worn="worn")
    assert (tmp_path / "r").read_bytes() == b"1"
    assert (tmp_path / "r").stat().st_ino == number
    write(tmp_path / "r", b"2", worn="worn")
    assert (tmp_path / "r").read_bytes() == b"2"
    assert names(tmp_path) == ["r"]


def test_a_worn_record_serves_one_of_many_at_once(tmp_path: Path) -> None:
    for turn in range(200):
        (tmp_path / "worn").touch()
        both = [
            threading.Thread(
                target=write, args=(tmp_path / name, name.encode() * 9), kwargs={"worn": "worn"}
            )
            for name in "abcd"
        ]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert [(tmp_path / one).read_text() for one in "abcd"] == [one * 9 for one in "abcd"], turn
    assert names(tmp_path) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_a_torn_record_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(TornRecord) as caught:
        read_json(tmp_path / "r.json")
    assert caught.value.path == str(tmp_path / "r.json")


def test_a_missing_record_is_not_a_torn_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_setting_aside_never_overwrites(tmp_path: Path) -> None:
    found = set()
    for number in range(3):
        (tmp_path / "r").write_text(str(number))
        found.add(set_aside(tmp_path / "r"))
    assert len(found) == 3
    assert all(path.name.startswith("r.torn-") for path in found)
    assert sorted(path.read_text() for path in found) == ["0", "1", "2"]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("waited for ten seconds")


class Disk:
    """Stands in for the disk: notes what is flushed, fails or waits on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        self.systems: list[str] = []
        self.fail = False
        self.go = threading.Event()
        self.go.set()
        monkeypatch.setattr(records.os, "fdatasync", lambda fd: self._note(self.files, fd))
        monkeypatch.setattr(records, "_syncfs", lambda fd: self._note(self.systems, fd))

    def _note(self, where: list[str], fd: int) -> None:
        assert self.go.wait(10)
        where.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        if self.fail:
            raise OSError(errno.EIO, "disk")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_flusher_without_work_has_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    flusher = Flusher()
    trash = Trash(tmp_path)
    flusher.flush()
    assert threading.active_count() == before
    flusher.close()
    trash.close()
    assert names(tmp_path) == []


def test_the_barrier_returns_when_records_are_on_the_disk(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher(delay=3600)
    write(tmp_path / "a", b"1", flusher)
    write(tmp_path / "b", b"1", flusher)
    flusher.flush()
    assert sorted(disk.files) == ["a", "b"]
    flusher.flush()
    assert len(disk.files) == 2
    flusher.close()


def test_records_reach_the_disk_without_a_barrier(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher(delay=0.001)
    noted = threading.Event()
    disk.files = _Watched(noted)
    write(tmp_path / "a", b"1", flusher)
    assert noted.wait(10)
    flusher.close()


class _Watched(list[str]):
    def __init__(self, noted: threading.Event) -> None:
        super().__init__()
        self._noted = noted

    def append(self, item: str) -> None:
        super().append(item)
        self._noted.set()


def test_many_records_are_flushed_with_one_call(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher(delay=3600)
    for number in range(50):
        write(tmp_path / str(number), b"1", flusher)
    flusher.flush()
    assert disk.files == []
    assert len(disk.systems) == 1
    flusher.close()


def test_the_barrier_also_waits_for_trees_and_for_a_group_at_work(
    tmp_path: Path, disk: Disk
) -> None:
    flusher = Flusher(delay=0)
    disk.go.clear()
    write(tmp_path / "a", b"1", flusher)
    until(lambda: not flusher._paths)  # the thread has taken the group
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (flusher.flush(), done.set()))
    waiter.start()
    assert not done.wait(0.05)
    disk.go.set()
    assert done.wait(10)
    waiter.join()
    flusher.flush(tmp_path)
    assert disk.systems == [tmp_path.name]
    flusher.close()


def test_closing_flushes_what_is_left(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher(delay=3600)
    write(tmp_path / "a", b"1", flusher)
    flusher.close()
    assert disk.files == ["a"]
    flusher.close()
    write(tmp_path / "b", b"1", flusher)  # works again
    flusher.close()
    assert disk.files == ["a", "b"]


def test_a_failing_disk_is_told_to_every_waiter_and_only_once(tmp_path: Path, disk: Disk) -> None:
    flusher = Flusher(delay=3600)
    disk.fail = True
    write(tmp_path / "a", b"1", flusher)
    with pytest.raises(KernelError) as caught:
        flusher.flush()
    assert (caught.value.step, caught.value.errno) == ("flush record", errno.EIO)
    disk.fail = False
    flusher.flush()
    flusher.close()


def test_a_failure_nobody_waited_for_is_told_at_the_next_barrier(
    tmp_path: Path, disk: Disk
) -> None:
    flusher = Flusher(delay=0)
    disk.fail = True
    write(tmp_path / "a", b"1", flusher)
    until(lambda: flusher._unreported is not None)
    with pytest.raises(KernelError):
        flusher.flush()
    flusher.close()


def test_a_record_removed_before_the_flush_is_no_failure(tmp_path: Path) -> None:
    flusher = Flusher(delay=3600)
    write(tmp_path / "a", b"1", flusher)
    os.unlink(tmp_path / "a")
    flusher.flush()
    flusher.close()
    assert names(tmp_path) == []


def test_of_what_was_moved_only_the_name_is_flushed(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    flusher = Flusher(delay=3600)
    directories: list[str] = []
    monkeypatch.setattr(records.os, "fsync", lambda fd: disk._note(directories, fd))
    (tmp_path / "moved").mkdir()
    flusher.moved(tmp_path / "moved")
    flusher.flush()
    assert (disk.files, disk.systems, directories) == ([], [], [tmp_path.name])
    flusher.moved(tmp_path / "moved")
    flusher.close()
    assert directories == [tmp_path.name] * 2


def test_a_watched_file_system_is_flushed_by_the_descriptor_that_saw_all(
    tmp_path: Path, disk: Disk
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    flusher = Flusher(delay=3600)
    for name in ("watched", "tree"):
        (tmp_path / name).mkdir()
    flusher.watch(tmp_path / "watched")
    flusher.watch(tmp_path / "tree")  # the same file system
    for _ in range(2):
        flusher.flush(tmp_path / "tree")
    assert disk.systems == ["watched", "watched"]
    disk.fail = True
    with pytest.raises(KernelError, match="flush filesystem"):
        flusher.flush(tmp_path / "tree")
    flusher.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_real_disk_takes_records_and_trees(tmp_path: Path) -> None:
    flusher = Flusher(delay=3600)
    write(tmp_path / "a", b"1", flusher)
    flusher.flush(tmp_path)
    flusher.close()
    assert (tmp_path / "a").read_bytes() == b"1"


def test_what_is_discarded_is_gone_at_once_and_deleted_later(tmp_path: Path) -> None:
    trash = Trash(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    for number in range(3):
        (tmp_path / "tree" / "sub").mkdir(parents=True)
        (tmp_path / "tree" / "sub" / "file").touch()
        (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
        trash.discard(tmp_path / "tree")
        assert not (tmp_path / "tree").exists(), number
    (tmp_path / "file").touch()
    trash.discard(tmp_path / "file")
    trash.discard(tmp_path / "never-was")
    assert trash.wait(10)
    trash.close()
    assert names(tmp_path / "trash") == []
    assert names(tmp_path / "outside") == ["kept"]
    assert trash.failures == []


def test_what_an_earlier_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "trash" / "old" / "deep").mkdir(parents=True)
    trash = Trash(tmp_path)
    assert trash.sweep() == 1
    assert trash.wait(10)
    assert trash.sweep() == 0
    trash.close()
    assert names(tmp_path / "trash") == []


def test_a_failing_deletion_is_kept_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "remove_tree", lambda fd, name: errno.EBUSY)
    trash = Trash(tmp_path)
    (tmp_path / "tree").mkdir()
    trash.discard(tmp_path / "tree")
    assert trash.wait(10)
    trash.close()
    assert [failure.errno for failure in trash.failures] == [errno.EBUSY]
    monkeypatch.undo()
    again = Trash(tmp_path)
    assert again.sweep() == 1
    assert again.wait(10)
    again.close()
    assert names(tmp_path / "trash") == []


def test_closing_the_trash_ends_its_thread_and_it_can_be_used_again(tmp_path: Path) -> None:
    before = threading.active_count()
    trash = Trash(tmp_path)
    (tmp_path / "a").touch()
    trash.discard(tmp_path / "a")
    trash.close()
    assert threading.active_count() == before
    (tmp_path / "b").touch()
    trash.discard(tmp_path / "b")
    assert trash.wait(10)
    trash.close()
