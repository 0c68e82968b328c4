"""The index of records: what it saves, and that it never says what a record does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dockpy import index
from dockpy._look import look, read_small
from dockpy.errors import TornRecord
from dockpy.index import Entry, RecordIndex, decode, encode, read_ahead, unpack
from dockpy.records import Flusher

FILES = (".", "a", "b")


class Shelf:
    """Ten records below one root, each a directory with the files `a` and, for some, `b`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "records"
        self.index = root / "records.index"
        self.flusher = Flusher()

    def fill(self) -> None:
        for number in range(10):
            record = self.directory / f"r{number}"
            record.mkdir(parents=True)
            (record / "a").write_text(json.dumps({"number": number}))
            if number % 2:
                (record / "b").write_text("{}")

    def start_up(self) -> tuple[dict[str, object], list[str]]:
        """What a start-up learns of each record, and which ones it read."""
        values: dict[str, object] = {}
        read: list[str] = []
        records = RecordIndex(self.index, self.directory, FILES, ["a"])
        for entry in records.entries():
            said = entry.values
            if said is None:
                read.append(entry.name)
                try:
                    said = entry.read_json(0, str(self.directory / entry.name / "a"))
                except (TornRecord, OSError):
                    continue
            records.keep(entry, said)
            values[entry.name] = said
        records.save(self.flusher)
        return values, read


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(index, "FEW", 0)
    monkeypatch.setattr(index, "SETTLED", 0)
    shelf = Shelf(tmp_path / "root")
    shelf.fill()
    time.sleep(0.02)  # longer than a tick: what comes now has another time
    return shelf


def test_a_start_up_reads_no_record_that_the_last_one_read(shelf: Shelf) -> None:
    first, read = shelf.start_up()
    assert read == sorted(first)
    assert first == {f"r{number}": {"number": number} for number in range(10)}
    assert shelf.start_up() == (first, [])


def write_in_place(record: Path) -> None:
    (record / "a").write_text('{"number": 7}')  # as long as before


def write_and_set_the_times_back(record: Path) -> None:
    before = (record / "a").stat()
    write_in_place(record)
    os.utime(record / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(record: Path) -> None:
    (record / "new").write_text('{"number": 7}')
    os.rename(record / "new", record / "a")


def replace_the_directory(record: Path) -> None:
    shutil.rmtree(record)
    record.mkdir()
    write_in_place(record)


def swap_with_another(record: Path) -> None:
    # Both inodes and all times of modification stay.
    other = record.with_name("r7")
    os.rename(record, record.with_name("x"))
    os.rename(other, record)
    os.rename(record.with_name("x"), other)


@pytest.mark.parametrize(
    "change",
    [
        write_in_place,
        write_and_set_the_times_back,
        replace,
        replace_the_directory,
        swap_with_another,
    ],
)
def test_a_changed_record_is_read_whatever_the_index_says(
    change: Callable[[Path], None], shelf: Shelf
) -> None:
    shelf.start_up()
    change(shelf.directory / "r5")
    values, read = shelf.start_up()
    assert values["r5"] == {"number": 7}
    assert "r5" in read
    assert len(values) == 10
    assert shelf.start_up() == (values, [])


@pytest.mark.parametrize("name", ["b", "new"])
def test_a_record_with_another_file_beside_it_is_read(name: str, shelf: Shelf) -> None:
    shelf.start_up()
    (shelf.directory / "r4" / name).write_text("")
    assert shelf.start_up()[1] == ["r4"]


def test_removed_records_are_gone_and_new_ones_are_there(shelf: Shelf) -> None:
    before, _ = shelf.start_up()
    shutil.rmtree(shelf.directory / "r3")
    (shelf.directory / "r10").mkdir()
    (shelf.directory / "r10" / "a").write_text("{}")
    values, read = shelf.start_up()
    del before["r3"]
    assert (values, read) == (before | {"r10": {}}, ["r10"])


def test_a_record_torn_after_the_index_was_written_is_found_torn(shelf: Shelf) -> None:
    shelf.start_up()
    os.truncate(shelf.directory / "r2" / "a", 0)
    values, read = shelf.start_up()
    assert read == ["r2"]
    assert "r2" not in values


def test_an_index_that_comes_back_after_the_records_went_on_is_not_believed(shelf: Shelf) -> None:
    shelf.start_up()
    old = shelf.index.read_bytes()
    write_in_place(shelf.directory / "r5")
    shelf.start_up()
    shelf.index.write_bytes(old)
    assert shelf.start_up()[0]["r5"] == {"number": 7}


def test_the_index_of_another_root_tells_nothing(shelf: Shelf, tmp_path: Path) -> None:
    values, _ = shelf.start_up()
    shutil.copytree(shelf.root, tmp_path / "copy")
    copy = Shelf(tmp_path / "copy")
    assert copy.start_up() == (values, sorted(values))


def test_an_index_cut_anywhere_or_with_any_byte_changed_tells_nothing(shelf: Shelf) -> None:
    shelf.start_up()
    whole = shelf.index.read_bytes()
    files = [name.encode() for name in FILES]
    assert len(decode(files, whole)) == 10
    for place in range(len(whole)):
        assert decode(files, whole[:place]) == []
        changed = bytearray(whole)
        changed[place] ^= 0x01
        told = decode(files, bytes(changed))
        assert told == [] or told == decode(files, whole)  # white space of the head
    assert decode([*files, b"c"], whole) == []
    for torn in (b"", b"\0" * 4096, b"[]\n[]", b"[" * 100_000):
        assert decode(files, torn) == []
        shelf.index.write_bytes(torn)
        assert len(shelf.start_up()[1]) == 10


def test_a_record_that_has_just_changed_is_not_put_in(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its next change may bear the same time.
    monkeypatch.setattr(index, "SETTLED", 3600 * 10**9)
    assert len(shelf.start_up()[1]) == 10
    assert len(shelf.start_up()[1]) == 10
    assert not shelf.index.exists()


def test_a_few_records_make_no_index(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FEW", 10)
    shelf.start_up()
    assert not shelf.index.exists()


def test_an_index_that_cannot_be_written_costs_nothing_else(shelf: Shelf) -> None:
    shelf.index.mkdir()
    assert len(shelf.start_up()[0]) == 10
    assert sorted(os.listdir(shelf.root)) == ["records", shelf.index.name]  # no half of it either


def test_what_is_not_json_in_a_name_comes_back_as_it_was() -> None:
    entries = [Entry('\udcff\n"', "00", {"a": "\u2028"}), Entry("b", "", None)]
    assert decode([], encode([], entries)) == [list(entry[:3]) for entry in entries]


def test_records_are_read_ahead_in_the_order_asked(tmp_path: Path) -> None:
    names = [f"n{number:04}" for number in range(600)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(name.encode())
    (tmp_path / names[300] / "a").write_bytes(b"x" * 65536)
    (tmp_path / names[301] / "a").write_bytes(b"x" * 65537)
    told = list(read_ahead(tmp_path, names[::-1], [b"a", b"b"]))[::-1]
    expected: list[list[bytes | int]] = [[name.encode(), errno.ENOENT] for name in names]
    expected[300][0] = b"x" * 65536
    expected[301][0] = errno.EFBIG
    assert told == expected


def test_a_look_tells_what_stat_tells_and_zeros_for_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"four")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        there, absent, no_directory, long, loop = (
            unpack(one)
            for one in look(
                directory, [b"d", b"none", b"file", b"n" * 4096, b"loop"], [b".", b"f", b"g"]
            )
        )
    finally:
        os.close(directory)
    for sight, path in zip(there, (tmp_path / "d", tmp_path / "d" / "f"), strict=False):
        told = path.stat()
        assert sight == (told.st_ino, told.st_ctime_ns, told.st_mtime_ns, told.st_size)
        assert sight.exists
    assert there[2] == absent[0] == no_directory[0] == no_directory[1] == (0, 0, 0, 0)
    assert not there[2].exists
    assert [one.error for one in (there[0], absent[0], long[0], loop[1])] == [
        0,
        0,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    ]


def test_many_files_are_read_as_one_by_one(tmp_path: Path) -> None:
    contents = [bytes([number % 256]) * (number * 97 % 3000) for number in range(500)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        names = [str(number).encode() for number in range(500)]
        assert read_small(directory, [*names, b"none", b"."], 3000) == [
            *contents,
            errno.ENOENT,
            errno.EISDIR,
        ]
    finally:
        os.close(directory)
