"""Trees: from a tar stream, to a tar stream, and what a container changed in one."""

from __future__ import annotations

import itertools
import os
import random
import stat
from pathlib import Path

import pytest

from benchmarks.hot.contest import Contest, repeated
from dockpy import mounts
from dockpy.archive import extract
from dockpy.changes import changes
from dockpy.packing import pack_tree
from reference.retar import retar
from reference.treediff import treediff
from reference.untar import snapshot, untar

FILES = 400


@pytest.fixture
def tree(memory: Path) -> Path:
    """Small files in directories of forty, and a link to each: a tree where names cost."""
    dice = random.Random(1)
    root = memory / "tree"
    for number in range(FILES):
        directory = root / f"usr/lib/part-{number // 40}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file-{number}").write_bytes(dice.randbytes(dice.randrange(4096)))
        (directory / f"link-{number}").symlink_to(f"file-{number}")
    return root


def test_tar_extract(contest: Contest, tree: Path, memory: Path) -> None:
    data = retar(str(tree))
    archive = memory / "tree.tar"
    archive.write_bytes(data)
    number = itertools.count()
    last: dict[str, Path] = {}

    def ours() -> None:
        last["ours"] = memory / f"ours-{next(number)}"
        with open(archive, "rb") as file:
            extract(file.fileno(), last["ours"])

    def slowly() -> None:
        last["reference"] = memory / f"reference-{next(number)}"
        last["reference"].mkdir()
        untar(data, str(last["reference"]))

    contest(ours, slowly, against="tests/reference/untar", rounds=12)
    assert snapshot(str(last["ours"])) == snapshot(str(last["reference"]))


def test_tar_pack(contest: Contest, tree: Path, memory: Path) -> None:
    directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    out = os.open(memory / "out.tar", os.O_RDWR | os.O_CREAT, 0o600)

    def ours() -> None:
        os.ftruncate(out, 0)
        os.lseek(out, 0, os.SEEK_SET)
        pack_tree(directory, out, digest=False)

    expected = retar(str(tree))
    contest(ours, lambda: retar(str(tree)), against="tests/reference/retar", rounds=20)
    assert os.pread(out, len(expected) + 1, 0) == expected
    os.close(out)
    os.close(directory)


def test_diff(contest: Contest, tree: Path, memory: Path) -> None:
    upper, work = memory / "upper", memory / "work"
    upper.mkdir()
    work.mkdir()
    view = mounts.overlay([tree], upper, work, volatile=True)
    merged = f"/proc/self/fd/{view}"
    for number in range(0, FILES, 4):
        directory = f"{merged}/usr/lib/part-{number // 40}"
        os.unlink(f"{directory}/file-{number}")
        with open(f"{directory}/new-{number}", "wb"):
            pass
        with open(f"{directory}/file-{number + 1}", "ab") as file:
            file.write(b"more")
    assert stat.S_ISCHR((upper / "usr/lib/part-0/file-0").lstat().st_mode)
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (upper, tree)]
    found = [f"{one.kind.value} {one.path}" for one in changes(fds[0], fds[1:])]
    assert found == treediff(str(tree), merged)
    contest(
        repeated(lambda: changes(fds[0], fds[1:]), 5),
        lambda: treediff(str(tree), merged),
        against="tests/reference/treediff",
        rounds=25,
    )
    for fd in (*fds, view):
        os.close(fd)
