"""The native packer against the slow, obvious one, and against those who read what it writes."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dockpy._pack import Packer
from dockpy.archive import extract
from reference.retar import retar
from reference.trees import random_tree
from reference.untar import snapshot

pytestmark = pytest.mark.needs("root")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
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
