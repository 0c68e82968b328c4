"""A disk that is full: told by class, no record torn, nobody else hurt, and all made good later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups", "mount_namespace")

SOURCE = Path(__file__).resolve().parents[2] / "src"

PROLOGUE = """
import contextlib, json, os, subprocess, sys
from pathlib import Path
from dockpy import Config, Runtime
from dockpy.errors import KernelError

place, run, archive = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", place], check=True)
root = place / "root"
told = {}


def engine():
    return Runtime(root, run=run, supervisors=1)


def fill():
    with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as file:
        for size in (65536, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def gated(runtime, name, script):
    one = runtime.create(
        Config(image="base", cmd=("sh", "-c", "read line; " + script), open_stdin=True), name
    )
    gate = one.stdin_pipe()
    one.start()
    return one, gate


def refusal(runtime):
    try:
        runtime.create(Config(image="base", cmd=("true",)), "refused")
    except KernelError as error:
        return type(error).__name__, error.errno
    return "made"


def text(one):
    return b"".join(entry.message for entry in one.read_log()).decode()


def whole_lines(one):
    lines = (root / "containers" / one.id / "container.log").read_text().splitlines()
    return all(isinstance(json.loads(line)["log"], str) for line in lines)


runtime = engine()
with open(archive, "rb") as source:
    runtime.import_image(source, "base")
"""
EPILOGUE = """
for one in runtime.list():
    runtime.destroy(one, force=True)
runtime.close()
told["left"] = os.listdir(root / "containers") + os.listdir(run / "containers")
print(json.dumps(told))
"""


@pytest.fixture
def on_a_small_disk(
    tmp_path: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Callable[[str], dict[str, object]]:
    """Runs a script with an engine on 16 MB of tmpfs that nobody else sees; what it told."""

    def play(script: str) -> dict[str, object]:
        done = subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *(sys.executable, "-c", PROLOGUE + script + EPILOGUE),
                *(str(tmp_path), str(short_run()), str(tiny_archive)),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            timeout=patient(60),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return play


def test_a_create_on_a_full_disk_is_refused_by_class_and_leaves_nothing(
    on_a_small_disk: Callable[[str], dict[str, object]],
) -> None:
    told = on_a_small_disk("""
fill()
told["refusals"] = [refusal(runtime) for _ in range(5)]
told["containers"] = len(runtime.list())
(place / "filler").unlink()
told["then"] = runtime.create(Config(image="base", cmd=("sh", "-c", "exit 3")), "refused").run()
runtime.close()
runtime = engine()
told["names"] = [one.name for one in runtime.list()]
told["warnings"] = runtime.warnings
""")
    assert told == {
        "refusals": [["KernelError", 28]] * 5,
        "containers": 0,
        "then": 3,
        "names": ["refused"],
        "warnings": [],
        "left": [],
    }


def test_an_image_whose_layer_cannot_be_unpacked_says_so_at_the_start_and_keeps_it(
    on_a_small_disk: Callable[[str], dict[str, object]],
) -> None:
    told = on_a_small_disk("""
from dockpy import unpacking
unpacking.Unpacking.soon = lambda *_: None  # nobody unpacks but who needs it
one = runtime.create(Config(image="base", cmd=("sh", "-c", "seq 100000 > /numbers")), "one")
one.run()
image = runtime.commit(one, "made")
fill()


def start():
    return runtime.create(Config(image="made", cmd=("sh", "-c", "wc -l < /numbers")), "two")


try:
    start()
except KernelError as error:
    told["refused"] = [str(error).split()[0], str(error).split()[1], error.errno]
told["layers"] = sorted(os.listdir(root / "layers")) == sorted(image.layers)
runtime.close()
runtime = engine()
told["warnings"] = runtime.warnings
(place / "filler").unlink()
told["then"] = start().output().decode()
""")
    assert told == {
        "refused": ["unpack", "layer", 28],
        "layers": True,
        "warnings": [],
        "then": "100000\n",
        "left": [],
    }


def test_ends_on_a_full_disk_are_known_and_written_when_there_is_room(
    on_a_small_disk: Callable[[str], dict[str, object]],
) -> None:
    told = on_a_small_disk("""
jobs = [gated(runtime, f"job-{n}", f"echo $line; exit {n}") for n in range(1, 6)]
later, later_gate = gated(runtime, "later", "echo $line; exit 9")
fill()
for _, gate in jobs:
    gate.write(b"went on\\n")
told["codes"] = [one.wait(20) for one, _ in jobs]
runtime._janitor.drain()
(place / "filler").unlink()
later_gate.write(b"after that\\n")
told["later"] = later.wait(20), text(later)
runtime._janitor.drain()
told["records"] = [(one.directory / "state.json").exists() for one, _ in jobs]
told["lines"] = [whole_lines(one) for one, _ in jobs if (one.directory / "container.log").exists()]
runtime.close()
runtime = engine()
told["found"] = {one.name: one.state.exit_code for one in runtime.list()}
told["warnings"] = runtime.warnings
""")
    assert all(told.pop("lines"))  # type: ignore[arg-type]
    assert told == {
        "codes": [1, 2, 3, 4, 5],
        "later": [9, "after that\n"],
        "records": [True] * 5,
        "found": {"job-1": 1, "job-2": 2, "job-3": 3, "job-4": 4, "job-5": 5, "later": 9},
        "warnings": [],
        "left": [],
    }


def test_ends_that_found_no_room_are_told_to_the_next_engine_by_the_supervisor(
    on_a_small_disk: Callable[[str], dict[str, object]],
) -> None:
    told = on_a_small_disk("""
one, gate = gated(runtime, "one", "exit 7")
fill()
gate.write(b"\\n")
told["code"] = one.wait(20)
runtime.close()
told["record"] = (root / "containers" / one.id / "state.json").exists()
(place / "filler").unlink()
runtime = engine()
told["found"] = runtime.get("one").state.exit_code, runtime.get("one").state.status.value
runtime._janitor.drain()
told["then"] = (root / "containers" / one.id / "state.json").exists()
""")
    assert told == {
        "code": 7,
        "record": False,
        "found": [7, "exited"],
        "then": True,
        "left": [],
    }
