"""Engines that a churn measures, each in a process that does nothing else: one of `dockpy.Runtime`
for create, start, wait and remove through the API, and the daemon for `run --rm`.

The measuring process asks the first one by lines of JSON on its stdin, one answer a line:

    {"starts": N}       does them; {"took": [ms ...]} in the order of their beginning
    {}                  {"supervisors": [pid ...]}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks import peers
from benchmarks.bench import in_threads, one_start, stop_daemon
from benchmarks.remains import Engine
from dockpy import Runtime

IMAGE = "base"


class Churned(Protocol):
    """An engine and who gives it work."""

    def starts(self, count: int) -> array[float]:
        """So many starts; milliseconds of each, in the order of their beginning."""

    def engine(self) -> Engine:
        """Whose leavings they are."""


def by_threads(count: int, threads: int, start: Callable[[], float]) -> array[float]:
    """`count` starts by so many threads at once; milliseconds of each."""
    took = array("d", [0.0]) * count

    def work(number: int) -> None:
        took[number] = start()

    in_threads(work, count, threads)
    return took


# -- through the API ---------------------------------------------------------------------------


class InItsOwnProcess:
    """A runtime in a child of this process, asked by lines."""

    def __init__(self, directory: Path, child: subprocess.Popen[str]) -> None:
        self._directory = directory
        self._child = child

    def starts(self, count: int) -> array[float]:
        return array("d", self._ask({"starts": count})["took"])

    def engine(self) -> Engine:
        found = self._ask({})
        state, run = self._directory / "state", self._directory / "run"
        return Engine(self._child.pid, found["supervisors"], state, run)

    def _ask(self, words: dict[str, Any]) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(words) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError("the engine's process ended; see what it said above")
        return json.loads(answer)


@contextmanager
def through_the_api(
    directory: Path, archive: Path, network: str, threads: int
) -> Iterator[InItsOwnProcess]:
    """Its state in `directory`, its image of `archive`. It ends with this block."""
    words = [sys.executable, "-m", __spec__.name, str(directory), str(archive), network]
    with subprocess.Popen(
        [*words, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        yield InItsOwnProcess(directory, child)


def serve(directory: Path, archive: Path, network: str, threads: int) -> None:
    """What the child does, until its stdin ends."""
    with Runtime(directory / "state", run=directory / "run") as runtime:
        with open(archive, "rb") as source:
            runtime.import_image(source, IMAGE)
        for line in sys.stdin:
            asked = json.loads(line)
            if "starts" in asked:
                took = by_threads(asked["starts"], threads, lambda: one_start(runtime, network))
                answer: dict[str, object] = {"took": took.tolist()}
                del took
            else:
                answer = {"supervisors": runtime.info().supervisors}
            print(json.dumps(answer), flush=True)
            del answer


# -- through the command line ------------------------------------------------------------------


class ByCommands:
    """The daemon, which the first command started."""

    def __init__(self, words: list[str], directory: Path, network: str, threads: int) -> None:
        self._words = words
        self._run = [*words, "run", "--rm", "--network", network, IMAGE, "/bin/true"]
        self._state, self._rundir = directory / "state", directory / "run"
        self._threads = threads

    def starts(self, count: int) -> array[float]:
        return by_threads(count, self._threads, lambda: peers.wall(self._run))

    def engine(self) -> Engine:
        words = [*self._words, "info", "--format", "{{json .Supervisors}}"]
        said = subprocess.run(words, check=True, capture_output=True).stdout
        pid = int((self._state / "lock").read_text())
        return Engine(pid, json.loads(said), self._state, self._rundir)


@contextmanager
def through_commands(
    program: Path, directory: Path, archive: Path, network: str, threads: int
) -> Iterator[ByCommands]:
    """By the installed `program`. The daemon ends with this block."""
    state = directory / "state"
    words = [str(program), "--root", str(state), "--run", str(directory / "run")]
    try:
        subprocess.run([*words, "import", str(archive), IMAGE], check=True, capture_output=True)
        yield ByCommands(words, directory, network, threads)
    finally:
        stop_daemon(state)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    os._exit(0)
