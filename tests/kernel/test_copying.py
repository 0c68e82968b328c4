"""Files copied into containers that do not run, and what engines make of it afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import Config, Container, Runtime, copying
from dockpy.copying import Side
from dockpy.errors import KernelError
from dockpy.model import Status
from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

SOURCE = Path(__file__).resolve().parents[2] / "src"
KILLED_IN_A_COPY = """
import os, signal, sys
from dockpy import Runtime
runtime = Runtime(sys.argv[1], run=sys.argv[2], supervisors=1)
with runtime.get(sys.argv[3]).root(writable=True) as root:
    os.mkdir("late", dir_fd=root.directory)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Place:
    """A state directory whose engine comes and goes."""

    def __init__(self, root: Path, run: Path) -> None:
        self.root = root
        self.run = run

    def engine(self) -> Runtime:
        return Runtime(self.root, run=self.run, supervisors=1)

    def killed_in_a_copy(self, container: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", KILLED_IN_A_COPY, str(self.root), str(self.run), container],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            timeout=patient(60),
            check=False,
        )
        assert done.returncode == -signal.SIGKILL


@pytest.fixture
def place(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Place]:
    """A state directory with the image `base` and no engine."""
    made = Place(Path(tempfile.mkdtemp(prefix="copying-", dir=real_tmp)), short_run())
    with made.engine() as runtime, open(tiny_archive, "rb") as source:
        runtime.import_image(source, "base")
    yield made
    with made.engine() as runtime:
        for container in runtime.list():
            runtime.destroy(container, force=True)
    shutil.rmtree(made.root)
    shutil.rmtree(made.run)


def ended(runtime: Runtime, code: int, name: str = "box") -> Container:
    """A container that ran and ended."""
    container = runtime.create(Config(image="base", cmd=("sh", "-c", f"exit {code}")), name)
    container.start()
    assert container.wait(patient(20)) == code
    return container


def write_into(container: Container, name: str) -> None:
    with container.root(writable=True) as root:
        os.mkdir(name, dir_fd=root.directory)


def test_a_copy_into_a_container_is_no_run_to_the_next_engine(place: Place) -> None:
    with place.engine() as runtime:
        write_into(ended(runtime, 3), "one")
        write_into(runtime.create(Config(image="base", cmd=("true",)), "new"), "two")
    with place.engine() as runtime:
        found = {one.name: (one.state.status, one.state.exit_code) for one in runtime.list()}
    assert found == {"box": (Status.EXITED, 3), "new": (Status.CREATED, 0)}


def test_an_engine_killed_in_a_copy_costs_no_exit_code(place: Place) -> None:
    with place.engine() as runtime:
        ended(runtime, 3)
        runtime.create(Config(image="base", cmd=("true",)), "new")
    place.killed_in_a_copy("box")
    place.killed_in_a_copy("new")
    for _ in range(2):  # the second finds no mark any more
        with place.engine() as runtime:
            found = {one.name: (one.state.status, one.state.exit_code) for one in runtime.list()}
            assert found == {"box": (Status.EXITED, 3), "new": (Status.CREATED, 0)}
            assert not list(place.root.glob("containers/*/written"))


def test_a_run_after_a_copy_that_left_its_mark_is_a_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.engine() as runtime:
        container = runtime.create(Config(image="base", cmd=("sleep", "1000")), "box")

        def full(*_: object) -> None:
            raise KernelError("write record", 28, "state.json")

        with monkeypatch.context() as disk:
            disk.setattr(runtime._files, "write_state", full)
            write_into(container, "one")
        assert list(place.root.glob("containers/*/written"))
        container.start()
        assert not list(place.root.glob("containers/*/written"))
        container.kill()


def test_a_copy_into_a_container_that_just_ended_waits_for_its_root_to_be_free(
    place: Place,
) -> None:
    with place.engine() as runtime:
        container = runtime.create(Config(image="base", cmd=("true",)), "box")
        for number in range(5):
            container.start()
            container.wait(patient(20))
            with container.root(writable=True) as root:
                assert container.released.is_set()
                os.mkdir(f"d{number}", dir_fd=root.directory)
        with container.root(writable=False) as root:
            assert {f"d{number}" for number in range(5)} <= names(root.directory)


def names(root: int) -> set[str]:
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    try:
        return set(os.listdir(directory))
    finally:
        os.close(directory)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A directory taken for a root, by descriptor and by path."""
    for name in ("d", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "d" / "f").write_bytes(b"1")
    (tmp_path / "file").symlink_to("d/f")
    (tmp_path / "directory").symlink_to("/d")
    (tmp_path / "up" / "below").mkdir(parents=True)
    (tmp_path / "nameless").symlink_to("/up/below/..")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield root, tmp_path
    os.close(root)


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ("file", "out", {"file"}),
        ("file", "out/new", {"new"}),
        ("directory", "out", {"directory", "directory/f"}),
        ("directory/", "out", {"directory", "directory/f"}),
        ("directory/.", "out", {"f"}),
        ("d/../directory", "out", {"directory", "directory/f"}),
        ("nameless", "out", {"nameless", "nameless/below"}),
    ],
)
def test_what_a_link_leads_to_is_called_as_the_link_is(
    scene: tuple[int, Path], source: str, target: str, names: set[str]
) -> None:
    root, place = scene
    copying.copy(Side(root, source, source), Side(root, target, target), follow=True)
    found = {str(one.relative_to(place / "out")) for one in (place / "out").rglob("*")}
    assert found == names
