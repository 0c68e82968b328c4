"""`diff` gives Docker's answers, and the same as a comparison of the whole trees."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from dockpy import mounts
from dockpy.archive import extract
from dockpy.changes import change_lines, changes
from dockpy.packing import pack_layer
from needs import busybox_path
from reference.docker_diff import CASES, SECOND_LAYER, Case, make_root
from reference.treediff import treediff
from reference.trees import CAPABILITY, make_socket
from reference.untar import Snapshot, snapshot

pytestmark = pytest.mark.needs("root", "overlay", "mount_api", "mknod", "busybox")

POINTS = ("dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf")


class Layers:
    """Directories to mount over each other, top first, and what is done on top of them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.lowers: list[Path] = []

    def add_base(self) -> None:
        base = self.place / "base"
        for point in POINTS:
            (base / point).parent.mkdir(parents=True, exist_ok=True)
            if point.startswith("etc/"):
                (base / point).touch()
            else:
                (base / point).mkdir()
        self.lowers.append(base)

    @contextmanager
    def mounted(self) -> Iterator[tuple[str, Path]]:
        """The merged tree's path and its new upper. Both are there as long as the context."""
        directory = Path(tempfile.mkdtemp(prefix="upper-", dir=self.place))
        upper, work = directory / "upper", directory / "work"
        upper.mkdir(mode=0o755)
        work.mkdir()
        root = mounts.overlay(self.lowers, upper, work, volatile=True)
        try:
            yield f"/proc/self/fd/{root}", upper
        finally:
            os.close(root)

    def changes(self, upper: Path) -> list[str]:
        with ExitStack() as stack:
            fds = []
            for path in (upper, *self.lowers):
                fds.append(os.open(path, os.O_RDONLY))
                stack.callback(os.close, fds[-1])
            told = [f"{one.kind.value} {one.path}" for one in changes(fds[0], fds[1:])]
            assert os.fsdecode(change_lines(fds[0], fds[1:])) == "".join(f"{one}\n" for one in told)
            return told


def run(root: str, script: str) -> None:
    """The script in the busybox of `root`."""
    inside = os.open(root, os.O_RDONLY)
    try:
        subprocess.run(
            ["/bin/sh", "-ec", script],
            check=True,
            preexec_fn=lambda: os.chroot(f"/proc/self/fd/{inside}"),
            pass_fds=[inside],
            cwd="/",
            timeout=30,
        )
    finally:
        os.close(inside)


@pytest.fixture(scope="module")
def image(real_tmp: Path) -> Iterator[Layers]:
    """Docker's two layers over the mount points of every container."""
    place = real_tmp / "changes"
    place.mkdir()
    layers = Layers(place)
    layers.add_base()
    make_root(place / "first", busybox_path())
    layers.lowers.insert(0, place / "first")
    with layers.mounted() as (root, upper):
        run(root, SECOND_LAYER)
    layers.lowers.insert(0, upper)
    yield layers
    shutil.rmtree(place)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_docker_says_the_same(image: Layers, case: Case) -> None:
    with image.mounted() as (root, upper):
        run(root, case.script)
        assert image.changes(upper) == case.lines()
        with image.mounted() as (before, _):
            assert treediff(before, root) == case.lines()


@pytest.mark.parametrize("seed", range(30))
def test_random_layers_give_the_answers_of_the_comparison(real_tmp: Path, seed: int) -> None:
    dice = random.Random(seed)
    place = Path(tempfile.mkdtemp(prefix="changes-", dir=real_tmp))
    layers = Layers(place)
    bottom = place / "bottom"
    bottom.mkdir()
    scramble(dice, str(bottom), 60)
    layers.lowers.append(bottom)
    for _ in range(dice.randrange(4)):
        with layers.mounted() as (root, upper):
            scramble(dice, root, 25)
        layers.lowers.insert(0, upper)
    with layers.mounted() as (root, upper), layers.mounted() as (before, _):
        scramble(dice, root, 25)
        expected = treediff(before, root)
        assert layers.changes(upper) == expected
        seen = snapshot(root, times=False)
    # The layer made of the upper says the same, in a container of the committed image.
    unpacked = place / "unpacked"
    with open(place / "layer.tar", "w+b") as stream:
        with closing_fd(upper) as fd:
            pack_layer(fd, stream.fileno())
        stream.seek(0)
        extract(stream, unpacked)
    assert layers.changes(unpacked) == expected
    layers.lowers.insert(0, unpacked)
    with layers.mounted() as (root, _):
        assert without_links(snapshot(root, times=False)) == without_links(seen)
    shutil.rmtree(place)


@contextmanager
def closing_fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def without_links(tree: Snapshot) -> dict[str, object]:
    """Without the root, which the upper shows, and what overlayfs says of hard links."""
    return {path: values[:-1] for path, values in tree.items() if path != "."}


def scramble(dice: random.Random, root: str, steps: int) -> None:
    """Random changes over few names, so that they meet."""
    names = ["a", "b", "c", "dir", "a-b", "\udcff"]
    for _ in range(steps):
        parts = [dice.choice(names) for _ in range(dice.randrange(1, 5))]
        path = os.path.join(root, *parts)
        try:
            match dice.randrange(12):
                case 0 | 1:
                    os.makedirs(path)
                case 2 | 3:
                    Path(path).write_bytes(dice.randbytes(dice.randrange(5)))
                case 4:
                    os.unlink(path)
                case 5:
                    shutil.rmtree(path)
                case 6:
                    os.rename(path, os.path.join(root, *parts[:-1], dice.choice(names)))
                case 7:
                    os.chmod(path, dice.choice([0o700, 0o755, 0o644]))
                case 8:
                    os.symlink(dice.choice(names), path)
                case 9:
                    shutil.rmtree(path)
                    os.mkdir(path)
                case 10:
                    os.utime(path, (10**9, 10**9), follow_symlinks=False)
                case 11:
                    os.setxattr(path, "security.capability", CAPABILITY)
        except OSError:
            continue


def test_mount_points_made_by_the_engine_are_no_change(image: Layers) -> None:
    deleted = image.place / "deleted"
    (deleted / "etc").mkdir(parents=True)
    os.setxattr(deleted / "etc", "trusted.overlay.opaque", b"y")
    os.mknod(deleted / "dev", 0o20000, 0)
    layers = Layers(image.place)
    layers.lowers = [deleted, *image.lowers]
    with layers.mounted() as (root, upper):
        for name in ("hosts", "hostname", "resolv.conf"):
            Path(root, "etc", name).touch()
        os.mkdir(f"{root}/dev")
        assert layers.changes(upper) == []
        Path(root, "etc/hosts").write_text("a text")
        Path(root, "dev/file").touch()
        assert layers.changes(upper) == ["A /dev", "A /dev/file", "C /etc", "A /etc/hosts"]


def test_a_capability_is_a_change_and_other_attributes_are_not(image: Layers) -> None:
    with image.mounted() as (root, upper):
        os.setxattr(f"{root}/f/same", "security.capability", CAPABILITY)
        os.setxattr(f"{root}/f/append", "trusted.x", b"1")
        os.setxattr(f"{root}/d3", "trusted.x", b"1")
        make_socket(Path(root, "f/sock"))
        assert image.changes(upper) == ["C /f", "C /f/same", "A /f/sock"]


def test_times_are_compared_as_docker_does(image: Layers) -> None:
    with image.mounted() as (root, upper):
        os.utime(f"{root}/f/touch", ns=(10**18, 10**18 + 5))
        os.utime(f"{root}/f/trunc", ns=(10**18, 10**18 - 5))
        os.utime(f"{root}/f/link", ns=(10**18, 10**18 + 7), follow_symlinks=False)
        os.chown(f"{root}/f/dirlink", 5, 5, follow_symlinks=False)
        assert image.changes(upper) == ["C /f", "C /f/dirlink", "C /f/trunc"]


def test_many_names_in_a_lower_directory_are_found_too(real_tmp: Path) -> None:
    place = real_tmp / "many"
    layers = Layers(place)
    (place / "first/d").mkdir(parents=True)
    for number in range(700):
        (place / "first/d" / f"{number}").touch()
    layers.lowers.append(place / "first")
    with layers.mounted() as (root, upper), layers.mounted() as (before, _):
        for number in range(100, 900):
            Path(root, "d", f"{number}").write_text("new")
        for number in range(50):
            os.unlink(f"{root}/d/{number}")
        found = layers.changes(upper)
        assert found == treediff(before, root)
        assert len(found) == 1 + 800 + 50
    shutil.rmtree(place)


def test_paths_longer_than_the_kernel_takes_are_compared(real_tmp: Path) -> None:
    place = real_tmp / "deep"
    layers = Layers(place)
    place.mkdir()
    (place / "first").mkdir()
    make_deep(place / "first", b"old")
    layers.lowers.append(place / "first")
    with layers.mounted() as (root, upper):
        make_deep(Path(root), b"new")
        found = layers.changes(upper)
    assert [one[0] for one in found] == ["C"] * 61
    assert len(found[-1]) > 12_000
    shutil.rmtree(place)


def make_deep(root: Path, text: bytes) -> None:
    """60 directories of 200 bytes in each other, and a file in the last."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(60):
        with suppress(FileExistsError):
            os.mkdir("x" * 200, dir_fd=here)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here)
    os.write(file, text * len(text))
    os.utime(file, (len(text), text[0]))
    os.close(file)
    os.close(here)
