"""The native unpacker against the slow, obvious one."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from dockpy._below import open_below, remove_tree
from dockpy._tar import ARCHIVE_PROBLEMS, KERNEL_STEPS, Unpacker, begin_write_back
from reference.tarblocks import END, file, header, long_name, octal, padded, pax, seal
from reference.untar import Refused, Snapshot, snapshot, untar

ROOT_ONLY = pytest.mark.needs("root")


def unpack(
    data: bytes,
    directory: Path,
    *,
    chunk: int = 1 << 20,
    whiteouts: bool = True,
    by_hand: bool = False,
    **limits: int,
) -> Unpacker:
    directory.mkdir(exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    budget = {
        "max_bytes": 1 << 30,
        "max_entries": 10_000,
        "max_path": 4095,
        "max_metadata": 1 << 20,
    }
    unpacker = Unpacker(fd, whiteouts=whiteouts, by_hand=by_hand, **(budget | limits))
    os.close(fd)
    fine = all(unpacker.feed(data[at : at + chunk]) for at in range(0, len(data), chunk))
    assert (fine and unpacker.finish()) == (unpacker.problem == 0)
    unpacker.close()
    return unpacker


def random_archive(seed: int) -> bytes:
    """Entries of every kind over few names, so that they replace and go through each other."""
    dice = random.Random(seed)
    out = io.BytesIO()
    format_ = dice.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    names = [
        "a",
        "b",
        "c",
        "a/b",
        "a/c",
        "b/c",
        "a/b/c",
        "d/e/f",
        "é\udcff/ü",
        "l" * 120 + "/x",
        "s/a",
    ]
    with tarfile.open(
        fileobj=out, mode="w", format=format_, errors="surrogateescape", encoding="utf-8"
    ) as tar:
        for _ in range(dice.randrange(1, 40)):
            name = dice.choice(names)
            if format_ == tarfile.PAX_FORMAT and "\udcff" in name:
                name = name.replace("\udcff", "x")
            if dice.random() < 0.1:
                head, _, tail = name.rpartition("/")
                name = f"{head}/.wh.{tail}" if head else f".wh.{tail}"
            if dice.random() < 0.03:
                name = "/".join([*name.split("/")[:-1], ".wh..wh..opq"])
            member = tarfile.TarInfo(dice.choice(["", "./"]) + name)
            member.mode = dice.choice([0o644, 0o600, 0o4755, 0o2711, 0o1777, 0o000, 0o755])
            member.uid = dice.choice([0, 0, 1000, 1 << 20, (1 << 31) + 5 if format_ else 7])
            member.gid = dice.choice([0, 0, 1000, 5])
            member.mtime = dice.randrange(1 << 31)
            if format_ == tarfile.PAX_FORMAT and dice.random() < 0.5:
                member.pax_headers["mtime"] = f"{member.mtime}.{dice.randrange(10**9):09d}"
            data = dice.randbytes(dice.choice([0, 1, 511, 512, 513, 5000]))
            member.type = dice.choice(
                [tarfile.REGTYPE] * 5
                + [tarfile.DIRTYPE] * 5
                + [tarfile.SYMTYPE] * 2
                + [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
            )
            if member.isreg():
                member.size = len(data)
                if format_ == tarfile.PAX_FORMAT and dice.random() < 0.3:
                    member.pax_headers["SCHILY.xattr.user.note"] = "v" * dice.randrange(1, 50)
                    member.pax_headers["SCHILY.xattr.trusted.overlay.redirect"] = "/etc"
            elif member.issym():
                member.linkname = dice.choice(
                    ["a", "../..", "/", "/a/b", "b/..", ".", "none", "/d/e"]
                )
            elif member.islnk():
                member.linkname = dice.choice(names[:7])
            elif member.ischr() or member.isblk():
                member.devmajor, member.devminor = dice.choice([(1, 3), (7, 255), (0, 1)])
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def reference(data: bytes, directory: Path) -> Snapshot | None:
    directory.mkdir()
    try:
        untar(data, str(directory))
    except Refused:
        return None
    return snapshot(str(directory), times=False)


@pytest.mark.needs("root", "mknod")
@pytest.mark.parametrize("seed", range(60))
def test_random_archives_unpack_as_the_reference_does(seed: int, tmp_path: Path) -> None:
    data = random_archive(seed)
    expected = reference(data, tmp_path / "expected")
    for by_hand in (False, True):
        directory = tmp_path / f"native-{by_hand}"
        unpacker = unpack(data, directory, by_hand=by_hand)
        if expected is None:
            assert unpacker.problem in ARCHIVE_PROBLEMS
        else:
            assert (unpacker.problem, unpacker.error, unpacker.name) == (0, 0, unpacker.name)
            assert snapshot(str(directory), times=False) == expected


@pytest.mark.needs("root", "mknod")
@pytest.mark.parametrize("chunk", [1, 7, 511, 512, 513, 10_000])
def test_how_the_stream_is_cut_changes_nothing(chunk: int, tmp_path: Path) -> None:
    data = random_archive(
        next(s for s in range(99) if reference(random_archive(s), tmp_path / str(s)))
    )
    unpack(data, tmp_path / "whole")
    unpack(data, tmp_path / "cut", chunk=chunk)
    assert snapshot(str(tmp_path / "cut"), times=False) == snapshot(
        str(tmp_path / "whole"), times=False
    )


@ROOT_ONLY
@pytest.mark.parametrize(
    "options",
    [
        ["--format=v7"],
        ["--format=oldgnu"],
        ["--format=gnu"],
        ["--format=ustar"],
        ["--format=posix"],
        ["--format=gnu", "--sparse"],
        ["--format=oldgnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=posix", "--xattrs", "--xattrs-include=*"],
    ],
    ids=" ".join,
)
def test_every_dialect_gnu_tar_writes_is_read(options: list[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    deep = source / "d1" / "d2"
    deep.mkdir(parents=True)
    (deep / "plain").write_bytes(b"hello\n" * 100)
    (source / "link").symlink_to("d1/d2/plain")
    os.link(deep / "plain", source / "hard")
    (source / b"bytes-\xff".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    if options[0] not in ("--format=v7", "--format=ustar"):
        long = source / ("n" * 200) / ("m" * 200)
        long.mkdir(parents=True)
        (long / ("f" * 255)).write_bytes(b"long")
        (source / "long-link").symlink_to("t" * 300)
    if "--format=v7" not in options:
        os.mkfifo(source / "fifo")
    with (source / "holes").open("wb") as holes:
        for piece in range(60):
            holes.seek(piece * 40_000)
            holes.write(b"data%d" % piece * 100)
        holes.truncate(60 * 40_000 + 12_345)
    os.chmod(source / "d1", 0o2750)
    os.chown(deep / "plain", 12, 34)
    os.chmod(deep / "plain", 0o4755)
    if "--xattrs" in options:
        os.setxattr(deep / "plain", "user.comment", b"a=b\nc\0d")
        os.setxattr(source / "d1", "user.directory", b"yes")
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        os.setxattr(source / "holes", "security.capability", capability)
    made = subprocess.run(
        ["tar", *options, "-C", source, "-c", "."], capture_output=True, check=True, timeout=30
    )
    unpacker = unpack(made.stdout, tmp_path / "native")
    assert (unpacker.problem, unpacker.name) == (0, unpacker.name)
    expected = snapshot(str(source))
    found = snapshot(str(tmp_path / "native"))
    if "posix" not in options[0]:  # whole seconds only
        expected, found = whole_seconds(expected), whole_seconds(found)
    assert found == expected
    if "--sparse" in options:
        holes_there = os.stat(tmp_path / "native" / "holes").st_blocks * 512
        assert holes_there < 60 * 40_000 // 2


def whole_seconds(tree: Snapshot) -> Snapshot:
    return {
        path: (*values[:3], values[3] // 10**9, *values[4:])  # type: ignore[operator]
        for path, values in tree.items()
    }


@ROOT_ONLY
def test_ids_and_times_beyond_octal_are_kept(tmp_path: Path) -> None:
    data = b"".join(
        [
            file(b"new", uid=(1 << 32) - 2, gid=1 << 22, mtime=1 << 33),
            file(b"old", uid=1 << 21, mtime=-5),
            pax({b"mtime": b"-1.5"}) + file(b"fraction"),
            pax({b"mtime": b"1700000000.123456789", b"uid": b"3000000", b"gid": b"4294967294"})
            + file(b"pax"),
            END,
        ]
    )
    assert unpack(data, tmp_path / "t").problem == 0
    new, old, fraction, named = (
        os.stat(tmp_path / "t" / n) for n in ("new", "old", "fraction", "pax")
    )
    assert (new.st_uid, new.st_gid, new.st_mtime) == ((1 << 32) - 2, 1 << 22, 1 << 33)
    assert (old.st_uid, old.st_mtime) == (1 << 21, -5)
    assert fraction.st_mtime_ns == -1_500_000_000
    assert (named.st_mtime_ns, named.st_uid) == (1_700_000_000_123_456_789, 3_000_000)
    assert named.st_gid == (1 << 32) - 2


def test_directories_keep_mode_and_time_although_files_come_later(tmp_path: Path) -> None:
    data = header(b"d/", b"5", mode=0o555, mtime=5) + file(b"d/f", b"x") + END
    assert unpack(data, tmp_path / "t").problem == 0
    info = os.stat(tmp_path / "t" / "d")
    assert (info.st_mode & 0o7777, info.st_mtime) == (0o555, 5)


def test_an_empty_value_takes_a_pax_record_back(tmp_path: Path) -> None:
    body = pax({b"path": b"wrong"}) + pax({b"path": b""}) + file(b"right", b"1") + END
    assert unpack(body, tmp_path / "t").problem == 0
    assert os.listdir(tmp_path / "t") == ["right"]


def test_pax_wins_over_gnu_long_name_and_header(tmp_path: Path) -> None:
    data = long_name(b"gnu") + pax({b"path": b"pax"}) + file(b"header") + END
    assert unpack(data, tmp_path / "t").problem == 0
    assert os.listdir(tmp_path / "t") == ["pax"]


def test_a_path_as_long_as_the_kernel_takes_is_unpacked(tmp_path: Path) -> None:
    name = b"/".join([b"p" * 200] * 20 + [b"q" * 75])
    assert len(name) == 4095
    assert unpack(pax({b"path": name}) + file(b"x", b"deep") + END, tmp_path / "t").problem == 0
    fd = os.open(tmp_path / "t", os.O_RDONLY)
    below, err = open_below(fd, name.rpartition(b"/")[0], False)
    assert err == 0
    assert os.listdir(f"/proc/self/fd/{below}") == ["q" * 75]
    os.close(below)
    assert remove_tree(fd, b"p" * 200) == 0
    os.close(fd)
    assert os.listdir(tmp_path / "t") == []


@pytest.mark.parametrize("sum_of", ["unsigned", "signed"])
def test_both_historic_checksums_are_taken(sum_of: str, tmp_path: Path) -> None:
    block = header("naïve".encode("latin-1"))
    if sum_of == "signed":
        total = sum(b - 256 if b > 127 else b for b in block[:148] + b" " * 8 + block[156:])
        block = block[:148] + b"%06o\0 " % total + block[156:]
    assert unpack(block + END, tmp_path / "t").problem == 0
    assert os.listdir(os.fsencode(tmp_path / "t")) == ["naïve".encode("latin-1")]


PATHS = [
    (b"", 0),
    (b"d", 0),
    (b"d/e", 0),
    (b"up", 0),
    (b"up/up/d", 0),
    (b"absolute", 0),
    (b"absolute/.././e//", 0),
    (b"far/e", 0),
    (b"../../../d", 0),
    (b"dead", errno.ENOENT),
    (b"missing/x", errno.ENOENT),
    (b"file", errno.ENOTDIR),
    (b"file/x", errno.ENOTDIR),
    (b"loop", errno.ELOOP),
    (b"x" * 300, errno.ENAMETOOLONG),
    (b"d/" * 2048, errno.ENAMETOOLONG),
]


@pytest.mark.parametrize(("path", "expected"), PATHS, ids=lambda value: repr(value)[:30])
def test_the_hand_walk_goes_where_openat2_goes(path: bytes, expected: int, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "file").touch()
    (tmp_path / "d").mkdir()  # where a walk that left the root would arrive
    for name, target in {
        "up": "../../..",
        "absolute": "/d/e",
        "far": "d/e/../../up/absolute/..",
        "dead": "/none",
        "loop": "loop",
    }.items():
        (root / name).symlink_to(target)
    fd = os.open(root, os.O_RDONLY)
    answers = []
    for by_hand in (False, True):
        below, err = open_below(fd, path, by_hand)
        answers.append((err, os.fstat(below).st_ino if below >= 0 else None))
        if below >= 0:
            os.close(below)
    os.close(fd)
    assert answers[0] == answers[1]
    assert answers[0][0] == expected


def test_a_tree_deeper_than_descriptors_and_stack_is_removed(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("deep", dir_fd=top)
    here = os.open("deep", os.O_RDONLY, dir_fd=top)
    for level in range(3000):
        os.mkdir("d", dir_fd=here)
        if level % 100 == 0:
            os.close(os.open(f"f{level}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    assert remove_tree(top, b"deep") == 0
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(top)
    assert os.listdir(tmp_path) == []


def test_removing_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside" / "kept").mkdir(parents=True)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "itself").symlink_to("outside")
    fd = os.open(tmp_path, os.O_RDONLY)
    assert remove_tree(fd, b"tree") == 0
    assert remove_tree(fd, b"itself") == 0
    assert remove_tree(fd, b"none") == 0
    os.close(fd)
    assert [p.name for p in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside" / "kept").is_dir()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_removing_takes_one_name_only(name: bytes, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert remove_tree(fd, name) == errno.EINVAL
    os.close(fd)


def damaged(dice: random.Random, data: bytes) -> bytes:
    """A few changes; headers are often sealed again, so that what follows is reached."""
    raw = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(raw))
        block = at // 512 * 512
        change = dice.randrange(6)
        if change == 0:
            raw[at] = dice.randrange(256)
        elif change == 1:
            raw[block + 156] = dice.choice(b"01234567xgLKSDVMNAX\0")
        elif change == 2:
            raw[block + 124 : block + 136] = octal(dice.choice([0, 1, 512, 5000, 1 << 62, -1]), 12)
        elif change == 3:
            del raw[block : block + 512 * dice.randrange(3)]
        elif change == 4:
            raw[block:block] = dice.choice(
                [
                    pax({b"path": dice.randbytes(5)}),
                    pax({b"GNU.sparse.map": b"1,2,3"}),
                    long_name(b"../x"),
                ]
            )
        else:
            name = dice.choice([b"..", b"/x", b"a/../b", b".", b"", b"a/b/c", b"out", b".wh.a"])
            raw[block : block + 100] = name.ljust(100, b"\0")
        if dice.random() < 0.8 and len(raw) >= block + 512:
            raw[block : block + 512] = seal(bytes(raw[block : block + 512]))
        if not raw:
            break
    return bytes(raw)


class Fuzz:
    """Damaged archives, one after the other, beside a directory that must stay as it is."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._dice = random.Random(seed)
        self._outside = directory / "outside"
        self._outside.mkdir()
        (self._outside / "precious").write_bytes(b"kept")
        self._before = snapshot(str(self._outside))
        self.unpacked = 0
        self.outcomes: set[int] = set()

    def unpack_one(self) -> None:
        data = random_archive(self.unpacked % 50)
        escape = header(b"out", b"2", link=b"../outside") + file(b"out/precious", b"gone")
        unpacker = unpack(
            damaged(self._dice, escape + data),
            self._directory / "t",
            chunk=self._dice.choice([100, 512, 1 << 20]),
            by_hand=self.unpacked % 2 == 0,
            max_bytes=1 << 20,
        )
        self.unpacked += 1
        self.outcomes.add(unpacker.problem)
        assert unpacker.problem in {0, *ARCHIVE_PROBLEMS, *KERNEL_STEPS}
        fd = os.open(self._directory, os.O_RDONLY)
        assert remove_tree(fd, b"t") == 0
        os.close(fd)

    def check(self) -> None:
        assert snapshot(str(self._outside)) == self._before
        assert sorted(os.listdir(self._directory)) == ["outside"]


@pytest.mark.needs("root", "mknod")
def test_damaged_archives_never_reach_outside_nor_break_the_process(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    fuzz = Fuzz(tmp_path, seed=7)
    for _ in range(1500):
        fuzz.unpack_one()
    fuzz.check()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(fuzz.outcomes) > 8  # it did reach many different ends


@pytest.mark.needs("root", "mknod")
def test_archives_damaged_anew_in_each_run_never_reach_outside(tmp_path: Path) -> None:
    """DOCKPY_FUZZ_SECONDS long. A failure tells its seed, and DOCKPY_FUZZ_SEED repeats it; after a
    crash, which takes the whole run along, it is in the test's directory."""
    seed = int(os.environ.get("DOCKPY_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    end = time.monotonic() + float(os.environ.get("DOCKPY_FUZZ_SECONDS", "5"))
    (tmp_path / "seed").write_text(str(seed))
    (tmp_path / "fuzz").mkdir()
    fuzz = Fuzz(tmp_path / "fuzz", seed)
    while time.monotonic() < end:
        try:
            fuzz.unpack_one()
        except AssertionError as failure:
            raise AssertionError(f"archive {fuzz.unpacked} of DOCKPY_FUZZ_SEED={seed}") from failure
    fuzz.check()
    assert fuzz.unpacked > 0


def test_gnu_sparse_extension_blocks_are_followed(tmp_path: Path) -> None:
    pairs = [(i * 1024, 512) for i in range(30)]
    block = bytearray(header(b"s", b"S", size=30 * 512, magic=b"ustar  \0"))
    for i, (offset, size) in enumerate(pairs[:4]):
        block[386 + 24 * i : 410 + 24 * i] = octal(offset, 12) + octal(size, 12)
    block[482] = 1
    block[483:495] = octal(40_000, 12)
    extensions = b""
    for start in (4, 25):
        part = pairs[start : start + 21]
        body = b"".join(octal(offset, 12) + octal(size, 12) for offset, size in part)
        extensions += body.ljust(504, b"\0") + (b"\1" if start == 4 else b"\0") + bytes(7)
    data = b"".join(bytes([65 + i]) * 512 for i in range(30))
    assert unpack(seal(bytes(block)) + extensions + padded(data) + END, tmp_path / "t").problem == 0
    content = (tmp_path / "t" / "s").read_bytes()
    assert len(content) == 40_000
    assert all(
        content[o : o + 1024] == bytes([65 + i]) * 512 + bytes(512)
        for i, (o, _) in enumerate(pairs)
    )


def test_large_files_are_kept_open_for_who_writes_them_back_and_small_ones_closed(
    tmp_path: Path,
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    target = os.open(tmp_path, os.O_RDONLY)
    unpacker = Unpacker(
        target,
        max_bytes=1 << 30,
        max_entries=100,
        max_path=4095,
        max_metadata=1 << 20,
        whiteouts=True,
        keeps_from=1000,
    )
    huge = bytes(20 << 20)
    assert unpacker.feed(file(b"small", b"s" * 999) + file(b"large", b"l" * 1000))
    assert unpacker.written == 1
    [kept] = unpacker.take_written()
    assert os.path.samestat(os.fstat(kept), os.stat(tmp_path / "large"))
    assert unpacker.take_written() == []
    stream = file(b"huge", huge) + END
    for at in range(0, len(stream), 1 << 20):
        assert unpacker.feed(stream[at : at + (1 << 20)])
    pieces = unpacker.take_written()
    assert len(pieces) == 3  # of eight MiB, of eight more, and the end
    assert all(os.fstat(one).st_ino == os.stat(tmp_path / "huge").st_ino for one in pieces)
    assert begin_write_back([kept, *pieces]) == 0
    assert unpacker.finish()
    unpacker.close()
    os.close(target)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "huge").read_bytes() == huge


def test_files_that_nobody_took_over_are_closed_with_the_unpacker(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    many = b"".join(file(b"%d" % number, b"x" * 10) for number in range(50))
    unpacker = unpack(many + END, tmp_path / "t", keeps_from=1)
    assert unpacker.problem == 0
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert len(os.listdir(tmp_path / "t")) == 50


def test_write_back_of_what_has_none_is_nothing_and_a_failed_close_is_told() -> None:
    reader, writer = os.pipe()
    assert begin_write_back([reader, writer]) == 0
    assert begin_write_back([reader]) == errno.EBADF  # it was closed
    with pytest.raises(ValueError, match="too many"):
        begin_write_back([reader] * 33)
