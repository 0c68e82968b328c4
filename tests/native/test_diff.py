"""The native comparison over plain directories: what it is told, and what it says when it fails.

What overlayfs itself makes of a container's work is compared in tests/kernel/test_changes.py.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from dockpy._diff import KERNEL_STEPS, TREE_PROBLEMS, Comparison
from dockpy.changes import change_lines, changes
from dockpy.errors import KernelError, RequestError
from dockpy.model import Change, ChangeKind

pytestmark = pytest.mark.needs("root", "mknod")

OPAQUE = "trusted.overlay.opaque"


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    (tmp_path / "lower").mkdir()
    return tmp_path / "lower"


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def said(upper: Path, *lowers: Path, mount_points: tuple[str, ...] = ()) -> list[str]:
    with ExitStack() as stack:
        fds = []
        for path in (upper, *lowers):
            fds.append(os.open(path, os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        before = os.listdir("/proc/self/fd")
        found = changes(fds[0], fds[1:], mount_points=mount_points)
        lines = change_lines(fds[0], fds[1:], mount_points=mount_points)
        assert os.listdir("/proc/self/fd") == before
    told = [f"{one.kind.value} {one.path}" for one in found]
    assert lines == b"".join(os.fsencode(one) + b"\n" for one in told)
    return told


def test_changes_are_values(upper: Path) -> None:
    (upper / "ü").touch()
    with open(os.fsencode(upper) + b"/\xff", "w"):
        pass
    fd = os.open(upper, os.O_RDONLY)
    found = changes(fd, [])
    os.close(fd)
    assert found == [Change("/ü", ChangeKind.ADD), Change("/\udcff", ChangeKind.ADD)]
    assert said(upper) == ["A /ü", "A /\udcff"]
    assert len({*found, *found}) == 2
    with pytest.raises(AttributeError):
        found[0].path = "/other"  # type: ignore[misc]


def test_nothing_and_no_lowers(upper: Path, lower: Path) -> None:
    assert said(upper) == []
    assert said(upper, lower) == []
    (lower / "a").touch()
    assert said(upper, lower) == []
    whiteout(upper / "b")
    assert said(upper, lower) == []
    whiteout(upper / "a")
    assert said(upper, lower) == ["D /a"]


def test_paths_are_sorted_by_bytes_not_by_directory(upper: Path) -> None:
    for name in ("b", "a", "a-b", "a.c"):
        (upper / name).mkdir()
        (upper / name / "x").touch()
    assert [one[2:] for one in said(upper)] == [
        *("/a", "/a-b", "/a-b/x", "/a.c", "/a.c/x", "/a/x", "/b", "/b/x")
    ]


def test_the_upper_lower_wins_and_its_marks_hide_the_rest(tmp_path: Path, upper: Path) -> None:
    top, middle, bottom = (tmp_path / name for name in ("top", "middle", "bottom"))
    for layer in (top, middle, bottom):
        (layer / "d").mkdir(parents=True)
    for name in ("deleted", "again", "kept"):
        (bottom / "d" / name).touch()
    whiteout(middle / "d/deleted")
    whiteout(middle / "d/again")
    (top / "d/again").touch()
    (upper / "d").mkdir()
    os.setxattr(upper / "d", OPAQUE, b"y")
    assert said(upper, top, middle, bottom) == ["C /d", "D /d/again", "D /d/kept"]
    os.setxattr(top / "d", OPAQUE, b"y")
    assert said(upper, top, middle, bottom) == ["C /d", "D /d/again"]
    os.setxattr(top, OPAQUE, b"y")
    os.rmdir(upper / "d")
    whiteout(upper / "d")
    assert said(upper, middle, bottom) == ["D /d"]


def test_an_opaque_lower_root_hides_what_is_below(tmp_path: Path, upper: Path, lower: Path) -> None:
    (tmp_path / "top").mkdir()
    (lower / "file").touch()
    whiteout(upper / "file")
    assert said(upper, tmp_path / "top", lower) == ["D /file"]
    os.setxattr(tmp_path / "top", OPAQUE, b"y")
    assert said(upper, tmp_path / "top", lower) == []


def test_an_opaque_upper_root_deletes_all_else(upper: Path, lower: Path) -> None:
    (lower / "file").touch()
    (lower / "dir").mkdir()
    os.setxattr(upper, OPAQUE, b"y")
    (upper / "new").touch()
    assert said(upper, lower) == ["D /dir", "D /file", "A /new"]


def test_five_hundred_lowers_are_searched_in_order(tmp_path: Path, upper: Path) -> None:
    lowers = [tmp_path / f"{number}" for number in range(500)]
    for number, layer in enumerate(lowers):
        (layer / "d").mkdir(parents=True)
        if number >= 250:
            (layer / "d/file").write_text("x" * number)
            os.utime(layer / "d/file", (1, 1))
    (upper / "d").mkdir()
    (upper / "d/file").write_text("x" * 250)
    os.utime(upper / "d/file", (1, 1))
    assert said(upper, *lowers) == []
    os.utime(upper / "d/file", (2, 2))
    assert said(upper, *lowers) == ["C /d", "C /d/file"]


def test_only_empty_mount_points_are_left_out(upper: Path) -> None:
    (upper / "etc").mkdir()
    (upper / "etc/hosts").touch()
    (upper / "dev").mkdir()
    (upper / "hosts").touch()
    points = ("etc/hosts", "dev", "etc")
    assert said(upper, mount_points=points) == ["A /hosts"]
    (upper / "dev/a").mkdir()
    assert said(upper, mount_points=points) == ["A /dev", "A /dev/a", "A /hosts"]
    (upper / "etc/hosts").write_text("text")
    assert said(upper, mount_points=points)[-3:] == ["A /etc", "A /etc/hosts", "A /hosts"]


def test_a_reference_of_overlayfs_is_refused_not_misread(upper: Path, lower: Path) -> None:
    (upper / "renamed").mkdir()
    os.setxattr(upper / "renamed", "trusted.overlay.redirect", b"/old")
    with pytest.raises(RequestError, match=r"redirect_dir=off.*'/renamed'"):
        said(upper, lower)


def test_what_the_kernel_refuses_is_told_with_step_and_path(upper: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError) as caught:
        said(upper, tmp_path / "file")
    assert (caught.value.step, caught.value.errno) == ("open directory", errno.ENOTDIR)
    with pytest.raises(KernelError) as caught:
        said(tmp_path / "file", upper)
    assert (caught.value.step, caught.value.filename) == ("open directory", "/")
    (upper / "name").touch()
    fd = os.open(upper, os.O_RDONLY)
    comparison = Comparison(fd, [1 << 20])
    assert comparison.run() is None
    os.close(fd)
    assert (KERNEL_STEPS[comparison.problem], comparison.error) == ("open directory", errno.EBADF)
    assert set(KERNEL_STEPS).isdisjoint(TREE_PROBLEMS)
