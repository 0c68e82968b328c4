"""An engine that starts with an index: it finds what one without finds, whatever happened since."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from dockpy import Config, Runtime, index
from dockpy.container_files import WRITTEN
from dockpy.loading import LOST_WITH_HOST
from dockpy.model import Status
from dockpy.records import TEMPORARY
from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

SOURCE = Path(__file__).resolve().parents[2] / "src"
TWICE = "[ -e /x ] && sleep 600; touch /x; exit %d"
INDEXES = ("containers.index", "images.index")


class Host:
    """A state directory of one image and three containers, with an index of them."""

    def __init__(self, root: Path, run: Path) -> None:
        self.root = root
        self.run = run

    def engine(self) -> Runtime:
        return Runtime(self.root, run=self.run, supervisors=1)

    def facts(self) -> tuple[object, ...]:
        """All that an engine knows after its start."""
        with self.engine() as runtime:
            containers = [(one.record, asdict(one.state)) for one in runtime.list()]
            return containers, runtime.graph.all(), runtime.warnings

    def killed(self, script: str, *, reboot: bool = False) -> None:
        """Run `script` with an engine that is killed then, and at a reboot its supervisor too."""
        program = (
            "import os, signal, sys; from dockpy import Config, Runtime, index;"
            "index.FEW = index.SETTLED = 0;"
            "start = lambda: Runtime(sys.argv[1], run=sys.argv[2], supervisors=1);"
            "exec(sys.argv[3]); print(*runtime.info().supervisors, flush=True);"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(self.root), str(self.run), script],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            timeout=patient(60),
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        for pid in map(int, done.stdout.split() if reboot else ()):
            end_family(pid)
        if reboot:
            shutil.rmtree(self.run)


def end_family(pid: int) -> None:
    """Kill a process and its children, as a power cut does, and wait until they are gone."""
    family = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        family += map(int, task.read_text().split())
    for one in family:
        os.kill(one, signal.SIGKILL)
    limit = time.monotonic() + patient(10)
    while any(Path(f"/proc/{one}").exists() for one in family):
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The records that were read because no index told what is in them."""
    names: list[str] = []
    original = index.read_ahead

    def read_ahead(directory: Path, wanted: Sequence[str], files: Sequence[bytes]) -> object:
        names.extend(wanted)
        return original(directory, wanted, files)

    monkeypatch.setattr(index, "read_ahead", read_ahead)
    monkeypatch.setattr(index, "FEW", 0)
    monkeypatch.setattr(index, "SETTLED", 0)
    return names


@pytest.fixture
def host(
    _leaves_nothing: None,
    real_tmp: Path,
    short_run: Callable[[], Path],
    tiny_archive: Path,
    reads: list[str],
) -> Iterator[Host]:
    host = Host(Path(tempfile.mkdtemp(prefix="index-", dir=real_tmp)), short_run())
    with host.engine() as runtime:
        with open(tiny_archive, "rb") as source:
            runtime.import_image(source, "base")
        for number, name in enumerate(("one", "two", "new")):
            config = Config(image="base", cmd=("sh", "-c", TWICE % number), network_mode="none")
            container = runtime.create(config, name)
            if name != "new":
                container.run()
                container.released.wait()
    time.sleep(0.02)  # longer than a tick: what comes now has another time
    host.engine().close()
    assert all((host.root / name).exists() for name in INDEXES)
    reads.clear()
    yield host
    with host.engine() as runtime:
        for container in runtime.list():
            runtime.destroy(container, force=True)
    shutil.rmtree(host.root)
    shutil.rmtree(host.run)


def test_an_index_tells_all_that_the_records_tell(host: Host, reads: list[str]) -> None:
    told = host.facts()
    assert reads == []
    for name in INDEXES:
        (host.root / name).unlink()
    assert host.facts() == told
    assert len(reads) == 4
    assert told[2] == []


def test_a_run_that_the_index_does_not_know_is_lost_with_the_host(
    host: Host, reads: list[str]
) -> None:
    host.killed("runtime = start(); runtime.get('one').start()", reboot=True)
    with host.engine() as runtime:
        one = runtime.get("one")
        assert (one.state.status, one.state.exit_code) == (Status.EXITED, LOST_WITH_HOST)
        assert reads == [one.id]


def test_a_run_that_ended_after_the_index_was_written_is_told_by_its_record(
    host: Host, reads: list[str]
) -> None:
    host.killed("runtime = start(); one = runtime.get('new'); one.run(); runtime._janitor.drain()")
    with host.engine() as runtime:
        new = runtime.get("new")
        assert (new.state.status, new.state.exit_code) == (Status.EXITED, 2)
        assert reads == [new.id]


def test_what_was_removed_since_is_not_brought_back(host: Host) -> None:
    host.killed(
        "runtime = start(); runtime.destroy(runtime.get('two')); runtime._janitor.drain();"
        "runtime.create(Config(image='base', cmd=('true',)), 'two')"
    )
    with host.engine() as runtime:
        assert sorted(one.name for one in runtime.list()) == ["new", "one", "two"]
        assert runtime.get("two").config.cmd == ("true",)
        assert runtime.warnings == []


def test_an_engine_killed_while_files_are_copied_in_is_told_by_the_mark(host: Host) -> None:
    host.killed("runtime = start(); one = runtime.get('one'); runtime.writing(one).__enter__()")
    told = host.facts()
    assert not list(host.root.glob(f"containers/*/{WRITTEN}"))
    assert host.facts() == told


KILLED_WHILE_IT_WRITES = """
rename = os.rename
def renamed(old, new):
    if {after}: rename(old, new)
    if str(new).endswith('{name}'): os.kill(os.getpid(), signal.SIGKILL)
    if not {after}: rename(old, new)
os.rename = renamed
runtime = start()
runtime._janitor.drain()
os._exit(0)
"""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", INDEXES)
def test_an_engine_killed_while_it_writes_an_index_leaves_nothing_that_counts(
    host: Host, name: str, after: bool
) -> None:
    told = host.facts()
    for each in INDEXES:
        (host.root / each).unlink()
    host.killed(KILLED_WHILE_IT_WRITES.format(name=name, after=after))
    assert (host.root / name).exists() is after
    assert bool(list(host.root.glob(f"{TEMPORARY}*"))) is not after
    assert host.facts() == told
    assert not list(host.root.glob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_whose_values_make_no_sense_is_passed_over(host: Host, name: str) -> None:
    told = host.facts()
    path = host.root / name
    files = json.loads(path.read_bytes().partition(b"\n")[0])["files"]
    encoded = [file.encode() for file in files]
    entries = [index.Entry(*entry) for entry in index.decode(encoded, path.read_bytes())]
    for values in ({}, [], 1, [{}, {}], {"config": 1}):
        changed = [entry._replace(values=values) for entry in entries]
        path.write_bytes(index.encode(encoded, changed))
        assert host.facts() == told
