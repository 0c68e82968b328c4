"""Images made of containers: what a layer says, and engines that are killed while they commit."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dockpy import Config, Container, Runtime, unpacking
from dockpy.archive import Extracted
from dockpy.errors import DockpyError, KernelError
from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

SOURCE = Path(__file__).resolve().parents[2] / "src"
COUNTING = "mkdir /d; seq 500 > /d/f; while :; do echo x >> /n; usleep 10000; done"
KILLED_IN_A_COMMIT = """
import os, signal, sys
from dockpy import Runtime, committing, runtime, unpacking
from dockpy.graph import Graph
from dockpy.tags import TagStore
from dockpy.unpacking import Unpacking

def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

def die_half_way(upper, out, **_options):
    os.write(out, bytes(257) + b"ustar" + bytes(250))
    die()

where = sys.argv[3]
if where == "frozen":
    runtime.stage_upper = die
elif where == "half read":
    committing.pack_layer = die_half_way
elif where == "staged":
    Graph.place_layer = die
elif where == "placed":
    Graph.create = die
elif where == "made":
    TagStore.set = die
elif where == "unpacking":
    unpacking.archive.extract = die
elif where == "files made":
    Unpacking._drop_stream = die
elif where == "packed":
    Unpacking.soon = lambda *_: None
engine = Runtime(sys.argv[1], run=sys.argv[2], supervisors=1)
engine.commit(engine.get("box"), "made", "1")
engine.graph.wait_unpacked()
die()
"""


class Place:
    """A state directory with a container `box` that writes; its engine comes and goes."""

    def __init__(self, root: Path, run: Path) -> None:
        self.root = root
        self.run = run

    def engine(self) -> Runtime:
        return Runtime(self.root, run=self.run, supervisors=1)

    def kill_in_a_commit(self, where: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", KILLED_IN_A_COMMIT, str(self.root), str(self.run), where],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            timeout=patient(60),
            check=False,
        )
        assert done.returncode == -signal.SIGKILL

    def names(self, of: str) -> list[str]:
        return sorted(os.listdir(self.root / of))

    def count(self) -> int:
        """How far the container has come."""
        [found] = self.root.glob("containers/*/upper/n")
        return found.stat().st_size


@pytest.fixture
def place(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Place]:
    made = Place(Path(tempfile.mkdtemp(prefix="commit-", dir=real_tmp)), short_run())
    with made.engine() as runtime, open(tiny_archive, "rb") as source:
        runtime.import_image(source, "base")
        runtime.create(Config(image="base", cmd=("sh", "-c", COUNTING)), "box").start()
        until(lambda: list(made.root.glob("containers/*/upper/n")), "it counts")
    yield made
    with made.engine() as runtime:
        for container in runtime.list():
            runtime.destroy(container, force=True)
    shutil.rmtree(made.root)
    shutil.rmtree(made.run)


def until(check: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + patient(20)
    while not check():
        assert time.monotonic() < deadline, f"{what}: still not so"
        time.sleep(0.01)


def output(runtime: Runtime, image: str, *argv: str) -> bytes:
    """What a program in a new container of an image writes."""
    container = runtime.create(Config(image=image, cmd=argv))
    try:
        return container.output()
    finally:
        runtime.destroy(container, force=True)


IN_THE_COMMIT = ("frozen", "half read", "staged", "placed")
IN_THE_BACKGROUND = ("unpacking", "files made")
"""The commit itself may be at its last steps, or have come back."""


@pytest.mark.parametrize("where", [*IN_THE_COMMIT, "made", *IN_THE_BACKGROUND, "packed", "done"])
def test_a_kill_in_a_commit_leaves_all_of_the_image_or_nothing_and_nobody_frozen(
    place: Place, where: str
) -> None:
    layers, images = place.names("layers"), place.names("graph")
    place.kill_in_a_commit(where)
    if where in ("frozen", "half read"):
        before = place.count()
        time.sleep(0.1)
        assert place.count() == before, "the engine was not killed while it held the container"
    with place.engine() as runtime:
        now = place.count()
        until(lambda: place.count() > now, "the container goes on")
        assert runtime.warnings == []
        whole = where not in IN_THE_COMMIT
        assert len(runtime.graph.all()) == (2 if whole else 1)
        named = runtime.tags.get("made").keys()
        if where not in IN_THE_BACKGROUND:
            assert named == ({"1"} if where in ("packed", "done") else set())
        if whole:
            [made] = [one for one in runtime.graph.all() if one.parent]
            assert len(output(runtime, made.id, "cat", "/d/f").split()) == 500
        else:
            assert (place.names("layers"), place.names("graph")) == (layers, images)
        image = runtime.commit(runtime.get("box"), "made", "2")
        assert len(output(runtime, "made:2", "cat", "/d/f").split()) == 500
        assert image.parent == runtime.tags.lookup_image("base").id


def test_a_commit_that_fails_leaves_nothing_and_lets_the_container_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KernelError("write layer", 28)

    with place.engine() as runtime:
        layers, images = place.names("layers"), place.names("graph")
        for step in ("stage_packed", "layer", "create"):
            with monkeypatch.context() as broken:
                broken.setattr(runtime.graph, step, refuse)
                with pytest.raises(DockpyError):
                    runtime.commit(runtime.get("box"), "made")
            assert (place.names("layers"), place.names("graph")) == (layers, images), step
            now = place.count()
            until(lambda now=now: place.count() > now, "the container goes on")  # type: ignore[misc]


def test_the_container_goes_on_while_its_image_is_unpacked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def extract(*arguments: Any, **more: Any) -> Extracted:
        assert goes_on.wait(patient(20))
        return real(*arguments, **more)

    real = unpacking.archive.extract
    monkeypatch.setattr(unpacking.archive, "extract", extract)
    with place.engine() as runtime:
        image = runtime.commit(runtime.get("box"), "made")
        now = place.count()
        until(lambda: place.count() > now, "the container goes on")
        assert not (runtime.graph.directory_names(image)[0]).exists()
        goes_on.set()
        assert len(output(runtime, "made", "cat", "/d/f").split()) == 500


def test_a_layer_is_what_the_container_changed(module_engine: Runtime) -> None:
    script = "rm /etc/group; rm -r /var/lib; mkdir /var/lib; echo a > /var/lib/a; ln -s b /link"
    container = module_engine.create(Config(image="base", cmd=("sh", "-c", script)))
    try:
        container.run()
        said = [f"{one.kind.value} {one.path}" for one in container.changes()]
        image = module_engine.commit(container, "changed")
        assert digest_of(container) == image.diff_ids[-1]
        again = module_engine.create(Config(image="changed", cmd=("cat", "/etc/group")))
        try:
            assert again.run() != 0
            assert again.changes() == []
            empty = module_engine.commit(again)
            assert digest_of(again) == empty.diff_ids[-1]
        finally:
            module_engine.destroy(again)
        assert output(module_engine, "changed", "ls", "/var/lib") == b"a\n"
        module_engine.graph.delete(empty.id)
    finally:
        module_engine.destroy(container)
    assert said == [
        *("C /etc", "D /etc/group", "A /link"),
        *("C /var", "C /var/lib", "A /var/lib/a"),
    ]


def digest_of(container: Container) -> str:
    """Of the stream that `export_rw` writes."""
    with tempfile.TemporaryFile() as out:
        container.export_rw(out.fileno())
        out.seek(0)
        return hashlib.sha256(out.read()).hexdigest()
