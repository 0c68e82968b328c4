"""The native packer against the slow, obvious one, and against those who read what it writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import random
import resource
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dockpy import packing
from dockpy._mount import try_clone
from dockpy._pack import KERNEL_STEPS, TREE_PROBLEMS, Packer, open_below
from dockpy.archive import extract
from dockpy.errors import KernelError, RequestError
from reference.retar import retar
from reference.trees import CAPABILITY, acl, make_socket, random_tree
from reference.untar import snapshot


@pytest.fixture(autouse=True)
def _no_deep_trees(tmp_path: Path) -> Iterator[None]:
    """pytest's own cleaning calls itself once for each directory; ours does not."""
    yield
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


MOUNT_ATTR_NODEV = 4
pytestmark = pytest.mark.needs("root")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def packed(
    path: Path, *, name: bytes = b"", leaf: bytes = b"", layer: bool = False, chunk: int = 1 << 16
) -> bytes:
    """All that a packer delivers, in pieces of at most `chunk` bytes."""
    out = []
    with opened(path) as fd:
        packer = Packer(fd, name=name, leaf=leaf, layer=layer)
        buffer = memoryview(bytearray(chunk))
        while (count := packer.fill(buffer)) > 0:
            out.append(bytes(buffer[:count]))
        assert count == 0, (packer.problem, packer.error, packer.name)
        assert packer.size == sum(map(len, out))
        packer.close()
    return b"".join(out)


def simplify(tree: Path) -> None:
    """No times before 1970 but whole seconds, no ACLs: bsdtar reads -1.5 as -0.5, and knows only
    ACLs as text."""
    for path in [tree, *tree.rglob("*")]:
        time = path.lstat().st_mtime_ns
        if "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, "system.posix_acl_access")
        if time < 0:
            os.utime(path, ns=(-(10**9), -(10**9)), follow_symlinks=False)


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return {one.name: one for one in tar}


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.needs("mknod", "user_attributes")
def test_random_trees_give_the_bytes_of_the_reference(tmp_path: Path, seed: int) -> None:
    random_tree(seed, tmp_path / "tree", layer=bool(seed % 2))
    for options in ({"layer": bool(seed % 2)}, {"name": b"given"}, {"name": b"n" * 150 + b"/x"}):
        expected = retar(str(tmp_path / "tree"), **options)  # type: ignore[arg-type]
        assert packed(tmp_path / "tree", **options) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [1, 7, 512, 1000])
def test_pieces_of_any_size_join_to_the_same_stream(tmp_path: Path, chunk: int) -> None:
    random_tree(3, tmp_path / "tree")
    assert packed(tmp_path / "tree", chunk=chunk) == packed(tmp_path / "tree")


@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.needs("mknod", "user_attributes")
def test_what_is_unpacked_is_the_tree_and_packs_to_the_same_bytes(
    tmp_path: Path, seed: int
) -> None:
    random_tree(seed, tmp_path / "tree", layer=True)
    data = packed(tmp_path / "tree", layer=True)
    extract(io.BytesIO(data), tmp_path / "again")
    before = snapshot(str(tmp_path / "tree"), times=False)
    assert snapshot(str(tmp_path / "again"), times=False) == before
    assert packed(tmp_path / "again", layer=True) == data


@pytest.mark.needs("tar", "mknod")
@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_unpack_the_same_tree(tmp_path: Path, program: str) -> None:
    random_tree(11, tmp_path / "tree")
    if program == "bsdtar":
        simplify(tmp_path / "tree")
    target = tmp_path / "again"
    target.mkdir()
    flags = {
        "tar": ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"],
        "bsdtar": ["--numeric-owner", "--xattrs", "--acls", "-xpf"],
    }[program]
    if not any(os.access(f"{one}/{program}", os.X_OK) for one in os.get_exec_path()):
        pytest.skip(f"{program} is not installed")
    command = [program, *flags, "-", "-C", str(target)]
    data = packed(tmp_path / "tree")
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=data, capture_output=True, check=False, env=environment)
    # bsdtar says so of names that are not UTF-8, ends with 1, and writes them as they are
    said = [one for one in done.stderr.splitlines() if b"can't be converted" not in one]
    assert done.returncode == 0 or said == [b"bsdtar: Error exit delayed from previous errors."]
    seen, expected = snapshot(str(target)), snapshot(str(tmp_path / "tree"))
    if program == "bsdtar":  # it does not give the target itself its time, whoever made the archive
        del seen["."], expected["."]
    assert seen == expected


def test_links_across_directories_name_the_first(tmp_path: Path) -> None:
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/z").write_text("text")
    (tmp_path / "tree/a/b/first").hardlink_to(tmp_path / "tree/z")
    found = members(packed(tmp_path / "tree", name=b"new/name"))
    assert found["new/name/a/b/first"].isreg()
    assert found["new/name/z"].islnk()
    assert found["new/name/z"].linkname == "new/name/a/b/first"


def test_times_ids_and_long_names_are_exact(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    times = {"a": -1, "b": -1_500_000_000, "c": 10**18 + 1, "d": -(10**9), "e": 8 * 10**18}
    for name, time in times.items():
        (tree / name).touch()
        os.chown(tree / name, 1 << 21, (1 << 32) - 2)
        os.utime(tree / name, ns=(0, time))
    os.symlink("t" * 4000, tree / "link")
    (tree / ("x" * 255)).touch()
    found = members(packed(tree))
    assert {name: found[name].pax_headers["mtime"] for name in "abcd"} == {
        "a": "-0.000000001",
        "b": "-1.5",
        "c": "1000000000.000000001",
        "d": "-1",
    }
    assert "mtime" not in found["e"].pax_headers
    assert {(found[name].uid, found[name].gid) for name in times} == {(1 << 21, (1 << 32) - 2)}
    assert found["link"].linkname == "t" * 4000
    assert "x" * 255 in found


def test_a_file_beyond_8_gib_tells_its_size_in_a_record(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with open(tmp_path / "tree/big", "wb") as file:
        file.truncate(9 << 30)
        os.utime(file.fileno(), (1, 1))
    with opened(tmp_path / "tree") as fd:
        packer = Packer(fd, name=b"", layer=False)
        buffer = bytearray(8192)
        assert packer.fill(buffer) == len(buffer)
        assert b"size=%d\n" % (9 << 30) in buffer
        packer.close()


def test_attributes_that_belong_to_the_host_stay_there(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").touch()
    kept = {
        "security.capability": CAPABILITY,
        "trusted.a": b"\0\n",
        "system.posix_acl_access": acl(7),
    }
    left = {"security.label": b"x", "trusted.overlay.origin": b"y", "user.overlay.opaque": b"y"}
    for name, value in (kept | left).items():
        os.setxattr(tree / "file", name, value)
    records = members(packed(tree))["file"].pax_headers
    names = {one.removeprefix("SCHILY.xattr.") for one in records if one.startswith("SCHILY")}
    assert names == set(kept)
    extract(io.BytesIO(packed(tree)), tmp_path / "again")
    assert {name: os.getxattr(tmp_path / "again/file", name) for name in kept} == kept


@pytest.mark.needs("tar", "user_attributes")
def test_odd_attribute_names_are_read_back_by_gnu_tar(tmp_path: Path) -> None:
    tree, target = tmp_path / "tree", tmp_path / "again"
    tree.mkdir()
    target.mkdir()
    (tree / "file").touch()
    odd = {"user.a=b": b"1", "user.%3D": b"2", "user.100%": b"3"}
    for name, value in odd.items():
        os.setxattr(tree / "file", name, value)
    command = ["tar", "--xattrs", "-xpf", "-", "-C", str(target)]
    subprocess.run(command, input=packed(tree), check=True)
    extract(io.BytesIO(packed(tree)), tmp_path / "ours")
    for copy in (target / "file", tmp_path / "ours/file"):
        assert {name: os.getxattr(copy, name) for name in os.listxattr(copy)} == odd


@pytest.mark.needs("mknod")
def test_the_marks_of_an_upper_become_the_marks_of_a_layer(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "dir/below").mkdir(parents=True)
    os.setxattr(upper / "dir", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "dir/below", "trusted.overlay.opaque", b"x")
    os.mknod(upper / "dir/gone", stat.S_IFCHR, 0)
    (upper / "marked").touch()
    os.setxattr(upper / "marked", "trusted.overlay.whiteout", b"")
    os.setxattr(upper, "trusted.overlay.opaque", b"y")
    make_socket(upper / "socket")
    found = members(packed(upper, layer=True))
    names = [".", ".wh..wh..opq", "dir", "dir/.wh..wh..opq", "dir/below", "dir/.wh.gone"]
    assert list(found) == [*names, ".wh.marked"]
    mark = found["dir/.wh.gone"]
    assert (mark.isreg(), mark.size, mark.mtime, mark.uid) == (True, 0, 0, 0)
    assert set(found["dir"].pax_headers) <= {"mtime"}


@pytest.mark.parametrize("kind", ["file", "directory", "link", "deletion"])
@pytest.mark.needs("mknod")
def test_a_layer_cannot_hold_names_that_look_like_marks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".wh.name"
    {
        "file": path.touch,
        "directory": path.mkdir,
        "link": lambda: path.symlink_to("x"),
        "deletion": lambda: os.mknod(path, stat.S_IFCHR, 0),
    }[kind]()
    with opened(tmp_path) as fd, opened_null() as null:
        with pytest.raises(RequestError, match=r"begins with \.wh\..*'\.wh\.name'"):
            packing.pack_layer(fd, null)
        assert packing.pack_tree(fd, null).entries == 2


def test_a_layer_cannot_hold_references_of_overlayfs(tmp_path: Path) -> None:
    (tmp_path / "renamed").mkdir()
    os.setxattr(tmp_path / "renamed", "trusted.overlay.redirect", b"/old")
    with (
        opened(tmp_path) as fd,
        opened_null() as null,
        pytest.raises(RequestError, match="redirect_dir=off"),
    ):
        packing.pack_layer(fd, null)


class Reading:
    """A packer that is stopped after its first header, so that the tree can change under it."""

    def __init__(self, tree: Path, *, nodev: bool = False) -> None:
        self.fd = os.open(tree, os.O_RDONLY)
        if nodev:
            clone, step, err = try_clone(self.fd, False, MOUNT_ATTR_NODEV)
            assert (step, err) == (0, 0)
            os.close(self.fd)
            self.fd = clone
        self.packer = Packer(self.fd, name=b"", layer=False)
        assert self.packer.is_careful != nodev
        self.out = b""
        self.read(512)

    def read(self, size: int) -> int:
        buffer = bytearray(size)
        count = self.packer.fill(buffer)
        self.out += buffer[: max(count, 0)]
        return count

    def rest(self) -> dict[str, tarfile.TarInfo]:
        while self.read(1 << 16) > 0:
            pass
        assert self.packer.problem == 0, (self.packer.problem, self.packer.error)
        self.close()
        return members(self.out)

    def close(self) -> None:
        self.packer.close()
        os.close(self.fd)


def whole_second(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("now", "expected"), [(100, b"x" * 100 + bytes(2900)), (9000, b"x" * 3000)]
)
def test_a_file_that_changes_its_size_keeps_the_one_of_its_header(
    tmp_path: Path, now: int, expected: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3000)
    (tmp_path / "next").write_bytes(b"next")
    for path in (tmp_path / "file", tmp_path / "next", tmp_path):
        whole_second(path)
    reading = Reading(tmp_path)
    reading.read(512)
    if now < 3000:
        os.truncate(tmp_path / "file", now)
    else:
        (tmp_path / "file").write_bytes(b"x" * now)
    assert list(reading.rest()) == [".", "file", "next"]
    with tarfile.open(fileobj=io.BytesIO(reading.out)) as tar:
        for name, content in (("file", expected), ("next", b"next")):
            file = tar.extractfile(name)
            assert file is not None
            assert file.read() == content


@pytest.mark.parametrize("nodev", [False, True])
@pytest.mark.parametrize("before", ["file", "directory", "link"])
@pytest.mark.parametrize(
    "after", ["nothing", "file", "directory", "link", "fifo", "device", "socket"]
)
@pytest.mark.needs("mknod", "open_tree")
def test_a_name_that_changes_its_type_is_packed_as_what_it_is(
    tmp_path: Path, before: str, after: str, nodev: bool
) -> None:
    make = {
        "nothing": lambda path: None,
        "file": Path.touch,
        "directory": Path.mkdir,
        "link": lambda path: path.symlink_to("file"),
        "fifo": os.mkfifo,
        "device": lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(4000, 1)),
        "socket": make_socket,
    }
    expected = {"file": "0", "directory": "5", "link": "2", "fifo": "6", "device": "3"}
    make[before](tmp_path / "name")
    reading = Reading(tmp_path, nodev=nodev)
    if before == "directory":
        (tmp_path / "name").rmdir()
    else:
        (tmp_path / "name").unlink()
    make[after](tmp_path / "name")
    found = reading.rest()
    assert found.pop(".").isdir()
    kinds = {name: one.type.decode() for name, one in found.items()}
    assert kinds == ({"name": expected[after]} if after in expected else {})


def test_paths_of_any_length_and_depth_are_packed(tmp_path: Path) -> None:
    names = [b"x" * 200] * 60 + [b"d"] * 150
    here = os.open(tmp_path, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=here)
        os.mkdir(b"z", dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    reading = Reading(tmp_path)
    most = 0
    while reading.read(4096) > 0:
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert reading.packer.problem == 0
    reading.close()
    assert most - before < 60
    found = members(reading.out)
    # Each level and its sibling, which comes after all that is below.
    assert len(found) == 1 + 2 * len(names)
    deepest = b"/".join(names).decode()
    assert list(found)[len(names)] == deepest
    assert list(found)[-2:] == ["x" * 200 + "/z", "z"]
    for _ in range(3):  # pytest's own removal goes by path
        subprocess.run(["rm", "-rf", tmp_path / ("x" * 200)], check=True)


def test_a_directory_that_moves_away_while_it_is_deep_inside_is_told(tmp_path: Path) -> None:
    here = tmp_path / "tree"
    for _ in range(80):
        here = here / "d"
    here.mkdir(parents=True)
    reading = Reading(tmp_path / "tree")
    while len(reading.out) < 78 * 512:
        reading.read(512)
    (tmp_path / "tree/d/d").rename(tmp_path / "moved")
    while reading.read(512) > 0:
        pass
    assert TREE_PROBLEMS[reading.packer.problem].startswith("a directory was moved")
    reading.close()


@pytest.mark.parametrize("by_hand", [False, True])
def test_directories_are_found_by_paths_of_any_length_without_following_links(
    tmp_path: Path, by_hand: bool
) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    here = os.dup(root)
    for _ in range(50):
        os.mkdir(b"y" * 150, dir_fd=here)
        below = os.open(b"y" * 150, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    path = b"/".join([b"y" * 150] * 50)
    for text, inode in ((path, here), (path + b"/", here), (b"", root), (b"y" * 150, None)):
        fd, err = open_below(root, text, by_hand)
        assert err == 0
        assert inode is None or os.fstat(fd).st_ino == os.fstat(inode).st_ino
        os.close(fd)
    (tmp_path / "link").symlink_to("y" * 150)
    (tmp_path / "file").touch()
    for text, expected in (
        (b"link", {errno.ELOOP, errno.ENOTDIR}),
        (b"link/" + b"y" * 150, {errno.ELOOP, errno.ENOTDIR}),
        (b"file", {errno.ENOTDIR}),
        (b"y" * 150 + b"/missing", {errno.ENOENT}),
        (path + b"/missing", {errno.ENOENT}),
    ):
        assert open_below(root, text, by_hand)[1] in expected
    before = len(os.listdir("/proc/self/fd"))
    os.close(here)
    os.close(root)
    assert len(os.listdir("/proc/self/fd")) == before - 2
    subprocess.run(["rm", "-rf", tmp_path / ("y" * 150)], check=True)


# -- the Python beside it


def packed_path(directory: Path, leaf: bytes, target: Path, **options: bytes) -> bytes:
    with opened(directory) as fd, open(target, "wb") as out:
        done = packing.pack_path(fd, leaf, out.fileno(), **options)
    data = target.read_bytes()
    assert (done.size, done.digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert done.entries == len(members(data))
    return data


@pytest.mark.parametrize("size", [0, 100, 700_000, 5_000_000])
def test_the_digest_is_of_what_was_written(tmp_path: Path, size: int) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(size))
    with opened(tmp_path / "tree") as tree, open(tmp_path / "out", "w+b") as out:
        for pack in (packing.pack_tree, packing.pack_layer):
            for digest in (True, False):
                os.ftruncate(out.fileno(), 0)
                os.lseek(out.fileno(), 0, os.SEEK_SET)
                done = pack(tree, out.fileno(), digest=digest)
                data = (tmp_path / "out").read_bytes()
                assert data == retar(str(tmp_path / "tree"))
                assert done == packing.Packed(
                    entries=2,
                    size=len(data),
                    digest=hashlib.sha256(data).hexdigest() if digest else "",
                    content=size,
                )


def test_one_name_of_a_directory_is_packed_under_any_name(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "dir/sub").mkdir(parents=True)
    (place / "dir/sub/file").write_text("below")
    (place / "file").write_text("text")
    (place / "link").symlink_to("dir")
    (place / ".wh.x").touch()
    os.mkfifo(place / "fifo")
    out = tmp_path / "out"
    for leaf in ("file", "link", "fifo", ".wh.x"):
        assert list(members(packed_path(place, leaf.encode(), out))) == [leaf]
    assert members(packed_path(place, b"link", out))["link"].linkname == "dir"
    renamed = members(packed_path(place, b"file", out, name=b"a/\xff"))
    assert list(renamed) == ["a/\udcff"]
    assert list(members(packed_path(place, b"dir", out))) == ["dir", "dir/sub", "dir/sub/file"]
    below = packed_path(place, b"dir", out, name=b"new")
    assert list(members(below)) == ["new", "new/sub", "new/sub/file"]
    assert below == retar(str(place / "dir"), name=b"new")


def test_what_cannot_be_packed_is_told_in_one_line(tmp_path: Path) -> None:
    make_socket(tmp_path / "socket")
    with opened(tmp_path) as fd, opened_null() as null:
        with pytest.raises(RequestError, match=r"cannot hold a socket .*'socket'"):
            packing.pack_path(fd, b"socket", null)
        with pytest.raises(KernelError) as missing:
            packing.pack_path(fd, b"missing", null)
        assert (missing.value.step, missing.value.errno) == ("look at file", errno.ENOENT)
        for leaf in (b"", b".", b"..", b"a/b"):
            with pytest.raises(RequestError, match="not the name of a file"):
                packing.pack_path(fd, leaf, null)
    (tmp_path / "plain").touch()
    with opened(tmp_path / "plain") as fd, opened_null() as null:
        with pytest.raises(KernelError) as refused:
            packing.pack_tree(fd, null)
        assert (refused.value.step, refused.value.errno) == ("open directory", errno.ENOTDIR)
    assert set(KERNEL_STEPS).isdisjoint(TREE_PROBLEMS)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_of_a_pipe_gets_everything(tmp_path: Path, blocking: bool) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(3_000_000))
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 100_000):
            got.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    with opened(tmp_path / "tree") as fd:
        done = packing.pack_tree(fd, writer)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert hashlib.sha256(b"".join(got)).hexdigest() == done.digest


def test_a_reader_that_goes_away_ends_the_work(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(bytes(3_000_000))
    reader, writer = os.pipe()
    os.close(reader)
    before = threading.active_count()
    with opened(tmp_path / "tree") as fd, pytest.raises(KernelError) as caught:
        packing.pack_tree(fd, writer)
    os.close(writer)
    assert (caught.value.step, caught.value.errno) == ("write archive", errno.EPIPE)
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(30):
        (tree / f"{number}").mkdir(parents=True)
        for other in range(100):
            (tree / f"{number}/{other}").touch()
    with open(tree / "big", "wb") as file:
        file.truncate(256 << 20)
    with opened(tree) as fd, opened_null() as null:
        packing.pack_path(fd, b"0", null, digest=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert packing.pack_tree(fd, null, digest=False).size > 256 << 20
        packing.pack_layer(fd, null, digest=True)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16 << 10  # KiB


@pytest.mark.needs("mknod")
def test_a_tree_that_is_changed_all_the_time_gives_whole_archives(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    dice = random.Random(1)
    end = threading.Event()

    def change() -> None:
        names = [f"{tree}/{one}" for one in ("a", "b", "a/c", "a/d", "b/c", "e")]
        while not end.is_set():
            one, other = dice.choice(names), dice.choice(names)
            with contextlib.suppress(OSError):
                match dice.randrange(7):
                    case 0:
                        os.mkdir(one)
                    case 1:
                        fd = os.open(one, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
                        os.ftruncate(fd, dice.randrange(100_000))
                        os.close(fd)
                    case 2 if not os.path.isdir(one) or len(one) == len(other):
                        os.rename(one, other)  # directories not into each other, ever deeper
                    case 3:
                        os.unlink(one)
                    case 4:
                        os.symlink(other, one)
                    case 5:
                        os.mknod(one, dice.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK]), 1)
                    case 6:
                        os.link(one, other)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(600):
            data = packed(tree, chunk=512 if number % 2 else 4096)
            assert "." in members(data)
            assert data.endswith(bytes(1024))
    finally:
        end.set()
        thread.join()
