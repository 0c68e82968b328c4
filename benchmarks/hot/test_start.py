"""A start: its plan, its filter, the spawn, the whole of it, and the client's."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.client_start import BOOT, once
from benchmarks.hot.contest import Contest, repeated
from benchmarks.peers import Floor
from benchmarks.spawn_vs_floor import BARE, busybox_tree, one_start
from dockpy import Config, Runtime
from dockpy.capabilities import DEFAULT
from dockpy.seccomp import FilterCache, compile_profile, default_profile
from dockpy.start import start_plan
from reference.bpf_vm import Filter

EACH = 5
"""Starts of a round: the floor's program does as many in one go."""


def test_plan_and_pack(contest: Contest) -> None:
    """Beside a generic copy of the same values, which no start could do without much less."""
    spec = replace(BARE, seccomp=FilterCache().get("default", DEFAULT))
    assert start_plan(spec).pack() == start_plan(spec).pack()

    contest(
        repeated(lambda: start_plan(spec).pack(), 50),
        repeated(lambda: asdict(spec), 50),
        against="dataclasses.asdict of the spec",
        rounds=40,
    )


def test_seccomp_compile(contest: Contest) -> None:
    profile = default_profile()
    kernel = (6, 1)
    machine = os.uname().machine

    def compiled() -> bytes:
        return compile_profile(profile, DEFAULT, machine=machine, kernel=kernel)

    filter_ = Filter(compiled())
    audit = 0xC000003E if machine == "x86_64" else 0xC00000B7

    def run_through() -> None:
        for number in range(450):
            filter_.run(audit, number)

    contest(compiled, run_through, against="450 calls judged by tests/reference/bpf_vm", rounds=25)


def test_seccomp_known_filter(contest: Contest) -> None:
    """What a start pays for its filter: one that was compiled before."""
    cache = FilterCache()
    cache.get("default", DEFAULT)
    profile = default_profile()

    contest(
        repeated(lambda: cache.get("default", DEFAULT), 500),
        lambda: compile_profile(profile, DEFAULT, machine=os.uname().machine, kernel=(6, 1)),
        against="compiling it",
        rounds=25,
    )


@pytest.fixture
def floor(disk: Path) -> Floor:
    return Floor(disk)


@pytest.fixture
def tree(disk: Path) -> Path:
    return busybox_tree(disk / "tree")


def test_spawn(contest: Contest, floor: Floor, tree: Path, disk: Path) -> None:
    """Cgroups, overlay, plan, spawn, wait: what a supervisor and the assembler do, without both."""
    spec = replace(BARE, seccomp=FilterCache().get("default", DEFAULT))
    number = itertools.count()

    def ours() -> float:
        times = [one_start(tree, disk, str(next(number)), spec)[0] for _ in range(EACH)]
        return statistics.median(times) / 1e3

    contest(ours, lambda: of_floor(floor, tree), against="floor mounts net cgroup", rounds=12)


def of_floor(floor: Floor, tree: Path) -> float:
    """Seconds of one of the floor's starts."""
    return statistics.median(floor.times(tree, EACH, "mounts", "net", "cgroup")) / 1e3


@pytest.fixture
def runtime(disk: Path, tree: Path) -> Iterator[Runtime]:
    """An engine with the tree as its image `base`."""
    with subprocess.Popen(["tar", "-C", tree, "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        with Runtime(disk / "state", run=disk / "run", supervisors=1) as runtime:
            runtime.import_image(tar.stdout.fileno(), "base")
            yield runtime


def test_start_to_removal(contest: Contest, floor: Floor, tree: Path, runtime: Runtime) -> None:
    """create, start, wait, destroy through the Python interface."""
    config = Config(image="base", cmd=("/bin/true",), network_mode="none")

    def ours() -> float:
        return statistics.median(one() for _ in range(EACH))

    def one() -> float:
        began = time.perf_counter()
        container = runtime.create(config)
        container.start()
        code = container.wait()
        runtime.destroy(container)
        took = time.perf_counter() - began
        assert code == 0
        return took

    contest(ours, lambda: of_floor(floor, tree), against="floor mounts net cgroup", rounds=12)


@pytest.fixture
def served(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A command line of the client, whose daemon is up."""
    monkeypatch.setenv("DOCKPY_ROOT", str(disk / "state"))
    monkeypatch.setenv("DOCKPY_RUN", str(disk / "run"))
    command = [sys.executable, "-IS", "-c", BOOT]
    with (
        open(disk / "daemon.log", "wb") as log,
        subprocess.Popen([*command, "daemon"], stdout=log, stderr=log) as daemon,
    ):
        try:
            until_served(daemon, disk / "run" / "dockpy.sock")
            yield [*command, "version"]
        finally:
            daemon.terminate()


def until_served(daemon: subprocess.Popen[bytes], socket: Path) -> None:
    """Before that a client would start a daemon of its own."""
    while not socket.exists():
        if daemon.poll() is not None:
            raise RuntimeError(f"the daemon ended with {daemon.returncode}")
        time.sleep(0.01)


def test_client_start(contest: Contest, served: list[str]) -> None:
    bare = [sys.executable, "-IS", "-c", "pass"]
    contest(
        lambda: once(served) / 1e3,
        lambda: once(bare) / 1e3,
        against="python -IS -c pass",
        rounds=40,
    )
