"""Detached mounts: overlays of many layers, terminals, copies of trees, and paths below a root."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dockpy import mounts
from dockpy.errors import KernelError

pytestmark = pytest.mark.needs("root", "overlay", "mount_api", "openat2")

Overlay = Callable[..., int]


@pytest.fixture
def place(real_tmp: Path) -> Iterator[Path]:
    made = real_tmp / "mounts"
    made.mkdir()
    yield made
    shutil.rmtree(made)


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def directories(place: Path, *names: str) -> list[Path]:
    made = [place / name for name in names]
    for path in made:
        path.mkdir(parents=True)
    return made


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def text_of(root: int, path: str) -> str:
    with open(mounts.open_in_root(root, path, os.O_RDONLY)) as file:
        return file.read()


both_ways = pytest.mark.parametrize("make", [mounts.overlay, mounts.overlay_in_one_page])


@both_ways
def test_the_first_lower_is_the_top_most_and_writes_go_to_the_upper(
    place: Path, make: Overlay
) -> None:
    top, bottom, upper, work = directories(place, "top", "bottom", "upper", "work")
    (top / "both").write_text("top")
    (bottom / "both").write_text("bottom")
    (bottom / "below").write_text("below")
    before = Path("/proc/self/mountinfo").read_text()
    with closing(make([top, bottom], upper, work, volatile=True)) as root:
        assert (text_of(root, "both"), text_of(root, "below")) == ("top", "below")
        os.close(mounts.open_in_root(root, "new", os.O_CREAT | os.O_WRONLY, 0o600))
        os.mknod("node", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=root)
        with pytest.raises(PermissionError):
            mounts.open_in_root(root, "node", os.O_RDONLY)
        assert Path("/proc/self/mountinfo").read_text() == before
    assert sorted(path.name for path in upper.iterdir()) == ["new", "node"]
    assert os.getcwd() == str(Path.cwd())


@both_ways
def test_five_hundred_lowers_are_one_root(place: Path, make: Overlay) -> None:
    lowers = directories(place, *(f"layers/{number:064}/diff" for number in range(500)))
    upper, work = directories(place, "upper", "work")
    (lowers[0] / "first").write_text("0")
    (lowers[499] / "last").write_text("499")
    with closing(make(lowers, upper, work, volatile=True)) as root:
        assert (text_of(root, "first"), text_of(root, "last")) == ("0", "499")


@both_ways
@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a\\:,b=c", "ö\udcff", "x" * 255])
def test_any_name_may_be_a_layer(place: Path, make: Overlay, name: str) -> None:
    lower, upper, work = directories(place, f"{name}/lower", f"{name}/upper", f"{name}/work")
    (lower / "file").write_text("seen")
    with closing(make([lower], upper, work, volatile=False)) as root:
        assert text_of(root, "file") == "seen"
        os.close(mounts.open_in_root(root, "new", os.O_CREAT | os.O_WRONLY, 0o600))
    assert [path.name for path in upper.iterdir()] == ["new"]


@pytest.mark.parametrize("again", [True, False])
def test_a_volatile_upper_is_never_mounted_again(place: Path, again: bool) -> None:
    lower, upper, work = directories(place, "lower", "upper", "work")
    os.close(mounts.overlay([lower], upper, work, volatile=True))
    with pytest.raises(mounts.VolatileUpper, match="throw it away"):
        mounts.overlay([lower], upper, work, volatile=again)


def test_a_flushed_upper_is_mounted_again(place: Path) -> None:
    lower, upper, work = directories(place, "lower", "upper", "work")
    for _ in range(2):
        os.close(mounts.overlay([lower], upper, work, volatile=False))
    assert list(upper.iterdir()) == []


def test_a_missing_layer_is_named(place: Path) -> None:
    upper, work = directories(place, "upper", "work")
    with pytest.raises(mounts.MountRefused) as caught:
        mounts.overlay([place, place / "absent"], upper, work, volatile=True)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(place / "absent"))


def test_a_refusal_carries_the_kernels_own_words(place: Path) -> None:
    upper, work = directories(place, "upper", "work")
    (place / "file").touch()
    with pytest.raises(mounts.MountRefused) as caught:
        mounts.overlay([place / "file"], upper, work, volatile=True)
    if kernel() >= (6, 5):  # before, overlay wrote to the log of the host only
        assert "is not a directory" in caught.value.words
    assert caught.value.errno == errno.EINVAL
    assert caught.value.words in str(caught.value)


@both_ways
def test_a_file_as_layer_is_refused_and_leaves_no_descriptor(place: Path, make: Overlay) -> None:
    upper, work = directories(place, "upper", "work")
    (place / "file").touch()
    with pytest.raises(KernelError):
        make([place / "file"], upper, work, volatile=True)


@both_ways
def test_a_work_directory_inside_the_upper_is_refused(place: Path, make: Overlay) -> None:
    lower, upper, work = directories(place, "lower", "upper", "upper/work")
    with pytest.raises(mounts.MountRefused) as caught:
        make([lower], upper, work, volatile=True)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(upper))


def test_the_old_way_leaves_the_other_threads_where_they_are(place: Path) -> None:
    lower, upper, work = directories(place, "lower", "upper", "work")
    before = os.getcwd(), os.readlink("/proc/thread-self/ns/mnt"), threading.active_count()
    os.close(mounts.overlay_in_one_page([lower], upper, work, volatile=True))
    after = os.getcwd(), os.readlink("/proc/thread-self/ns/mnt"), threading.active_count()
    assert after == before


@pytest.mark.needs("devpts")
def test_a_terminal_is_the_first_of_its_own_instance() -> None:
    mount, master, slave = mounts.devpts()
    try:
        assert not os.get_blocking(master)
        os.write(slave, b"abc\n")
        assert os.read(master, 10) == b"abc\r\n"
        with pytest.raises(BlockingIOError):
            os.read(master, 10)
        status = os.fstat(slave)
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o620, 5)
        with closing(mounts.open_in_root(mount, ".", os.O_RDONLY)) as listing:
            assert sorted(os.listdir(listing)) == ["0", "ptmx"]
        assert all(not os.get_inheritable(one) for one in (mount, master, slave))
    finally:
        for one in (mount, master, slave):
            os.close(one)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_copied_tree_shows_the_source_and_obeys_read_only(place: Path, read_only: bool) -> None:
    (source,) = directories(place, "source")
    with closing(os.open(source, os.O_PATH)) as opened:
        tree = mounts.clone_tree(opened, read_only=read_only)
    with closing(tree):
        if read_only:
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("inside", dir_fd=tree)
        else:
            os.mkdir("inside", dir_fd=tree)
    assert (source / "inside").exists() is not read_only
    (source / "outside").mkdir()  # the source itself stays writable


def test_a_file_can_be_copied_as_a_tree(place: Path) -> None:
    (place / "file").write_text("x")
    with closing(os.open(place / "file", os.O_PATH)) as opened:
        tree = mounts.clone_tree(opened)
    with closing(tree):
        assert stat.S_ISREG(os.fstat(tree).st_mode)


def test_recursive_read_only_covers_mounts_below() -> None:
    # a tree with another mount in it that nobody has to make
    with closing(os.open("/dev", os.O_PATH)) as opened:
        tree = mounts.clone_tree(opened, recursive=True, read_only=True)
    with closing(tree), pytest.raises(OSError, match="Read-only"):
        os.mkdir("shm/dockpy-test", dir_fd=tree)


def test_what_is_no_mount_point_or_path_cannot_be_copied() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(KernelError) as caught:
            mounts.clone_tree(reader)
        assert (caught.value.step, caught.value.errno) == ("clone mount", errno.EINVAL)
    finally:
        os.close(reader)
        os.close(writer)


def test_paths_below_a_root_never_leave_it(place: Path) -> None:
    root, outside = directories(place, "root", "outside")
    (outside / "secret").write_text("secret")
    (root / "up").symlink_to("../outside/secret")
    (root / "absolute").symlink_to(outside / "secret")
    (root / "magic").symlink_to("/proc/self/root")
    (root / "file").write_text("inside")
    (root / "inner").symlink_to("/file")
    with closing(os.open(root, os.O_PATH)) as opened:
        assert text_of(opened, "inner") == text_of(opened, "/../../inner") == "inside"
        for name in ("up", "absolute", "magic/etc/passwd", "../outside/secret"):
            with pytest.raises(FileNotFoundError):
                mounts.open_in_root(opened, name, os.O_RDONLY)
        with pytest.raises(OSError, match="Invalid argument"):
            mounts.open_in_root(opened, "a\0b", os.O_RDONLY)
    magic = "Too many levels|Invalid cross-device"
    with closing(os.open("/", os.O_PATH)) as host, pytest.raises(OSError, match=magic):
        mounts.open_in_root(host, "/proc/self/root/etc", os.O_RDONLY)


RENAMES = """
import os, sys
print("ready", flush=True)
while True:
    os.rename("a", "b")
    os.rename("b", "a")
"""


def test_renames_elsewhere_on_the_host_do_not_make_a_path_fail(tmp_path: Path) -> None:
    """Where the kernel goes up by a `..` it gives up when anything at all is renamed meanwhile."""
    root, busy = directories(tmp_path, "root", "busy")
    (root / "file").write_text("inside")
    (root / "up").mkdir()
    (root / "up" / "link").symlink_to("../file")
    (busy / "a").touch()
    command = [sys.executable, "-c", RENAMES]
    with (
        closing(os.open(root, os.O_PATH)) as opened,
        subprocess.Popen(command, cwd=busy, stdout=subprocess.PIPE) as renaming,
    ):
        try:
            assert renaming.stdout is not None
            renaming.stdout.readline()
            for _ in range(20_000):
                os.close(mounts.open_in_root(opened, "up/link", os.O_RDONLY))
        finally:
            renaming.kill()


def test_init_is_a_sealed_program_of_a_few_kilobytes() -> None:
    with closing(mounts.init_program()) as program:
        assert os.pread(program, 4, 0) == b"\x7fELF"
        assert os.fstat(program).st_size < 16384
        with pytest.raises(PermissionError):
            os.pwrite(program, b"x", 0)
