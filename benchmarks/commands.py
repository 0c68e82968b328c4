"""The command lines of dockpy and its peers, with one image in each: `run` alone and by many."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import FLOORS, Bench, in_threads, stop_daemon
from benchmarks.samples import Samples

LOW = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
"""Limits for podman that any host lets it set; its own defaults are higher."""
CROWDS = (1, 8, 16)
"""Clients at once."""
SLOW_CROWD = 8
"""The most clients for engines that take long."""


@contextlib.contextmanager
def engines(
    bench: Bench, only: Collection[str] = ("dockpy", "docker", "podman")
) -> Iterator[dict[str, list[str]]]:
    """The commands that are here, dockpy's first, each with the image `base`. Who is not is named.

    Empty when dockpy is not installed beside this Python.
    """
    program = shutil.which("dockpy", path=str(Path(sys.executable).parent))
    if program is None:
        print("dockpy: the command is not installed beside this Python; skipped")
        yield {}
        return
    directory = bench.directory / "cli"
    directory.mkdir()
    ours = [program, "--root", str(directory / "state"), "--run", str(directory / "run")]
    archive = bench.directory / "base.tar"
    try:
        subprocess.run([*ours, "import", str(archive), "base"], check=True, capture_output=True)
        found = {"dockpy": ours}
        with contextlib.ExitStack() as stack:
            for name in [one for one in only if one != "dockpy"]:
                command = (
                    stack.enter_context(peers.docker(directory, network=True))
                    if name == "docker"
                    else peers.podman(directory)
                )
                if command is None:
                    print(f"{name}: not installed or does not start here; skipped")
                    continue
                words = [*command, "import", str(archive), "base"]
                loaded = subprocess.run(words, check=False, capture_output=True)
                if loaded.returncode != 0:
                    said = loaded.stderr.decode(errors="replace").strip()[-200:]
                    print(f"{name}: {said}; skipped")
                    continue
                found[name] = command
            yield found
    finally:
        stop_daemon(directory / "state")
        shutil.rmtree(directory, ignore_errors=True)


def run_words(name: str, command: list[str], network: str) -> list[str]:
    """`run --rm` of /bin/true by the engine of that name."""
    limits = LOW if name == "podman" else []
    return [*command, "run", "--rm", *limits, "--network", network, "base", "/bin/true"]


def cli(bench: Bench) -> None:
    """`run --rm base /bin/true` from process start to process end, beside peers."""
    rounds = 6 if bench.short else 30
    with engines(bench) as found:
        for network in FLOORS if found else ():
            contestants = {"python -IS": [sys.executable, "-IS", "-c", "pass"]}
            for name, command in found.items():
                contestants[f"{name} run"] = run_words(name, command, network)
            rows = {name: Samples(name) for name in contestants}
            race(contestants, rows, rounds)
            reference = rows["docker run"] if "docker run" in rows else rows["python -IS"]
            bench.show(
                f"run --rm --network {network} base /bin/true, command line",
                [*rows.values()],
                reference if reference.values else rows["python -IS"],
            )


def race(contestants: Mapping[str, list[str]], rows: Mapping[str, Samples], rounds: int) -> None:
    """Time each command in turn. The first round does not count."""
    left = dict(contestants)
    for turn in range(rounds + 1):
        one_round(left, rows, counts=turn > 0)


def one_round(
    left: dict[str, list[str]], rows: Mapping[str, Samples], *, counts: bool, times: int = 1
) -> None:
    """Time each command that is left, so many times in a row. A peer that fails is named and left
    out from then on; RuntimeError when we do, or the interpreter."""
    for name, command in [*left.items()]:
        try:
            taken = [peers.wall(command) for _ in range(times)]
        except (RuntimeError, OSError) as error:
            if name.startswith(("dockpy", "python")):
                raise
            print(f"{name}: {error}; skipped from here on")
            del left[name]
            continue
        rows[name].values += taken if counts else []


def clients(bench: Bench) -> None:
    """`run --rm` by 1, 8 and 16 clients at once: what each waits, and how many are done a second.
    The engines take turns at each size of the crowd."""
    with engines(bench) as found:
        for network in FLOORS if found else ():
            waits, rates = list[Samples](), list[Samples]()
            for size in CROWDS:
                for name, command in [*found.items()]:
                    if name != "dockpy" and size > SLOW_CROWD:
                        continue
                    each = (5 if bench.short else 25) if name == "dockpy" else 2
                    try:
                        found_waits, rate = crowd(run_words(name, command, network), size, each)
                    except RuntimeError as error:
                        if name == "dockpy":
                            raise
                        print(f"{name}, {size} clients: {error}; skipped from here on")
                        del found[name]
                        continue
                    title = f"{name}, {size} client{'s' if size > 1 else ''}"
                    waits.append(Samples(title, found_waits))
                    rates.append(Samples(title, [rate], "/s"))
            bench.show(f"run --rm, {network}: what each client waits", waits, waits[0])
            bench.show(f"run --rm, {network}: runs a second", rates, rates[0])


def crowd(command: list[str], size: int, each: int) -> tuple[list[float], float]:
    """`size` clients that run the command, `each` times on average: milliseconds of every run, and
    runs a second of all together. RuntimeError when one of them failed."""
    waits: list[float] = []
    peers.wall(command)  # what it does the first time only
    began = time.perf_counter()
    in_threads(lambda _: waits.append(peers.wall(command)), size * each, size)  # append is atomic
    return waits, len(waits) / (time.perf_counter() - began)
