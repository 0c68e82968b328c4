"""Very many short containers in one run: what is left of them, and whether starts become slower.

    python -m benchmarks.churn [--starts N] [--threads N] [--network NAME] [--json FILE]

create, start, wait and remove of /bin/true through the API, on the bridge unless told otherwise, in
a network namespace of this program's own. Counted before the first and after the last start, when
the engine's own cleaning is done: memory of engine and supervisors, descriptors, threads, mounts,
links, nftables elements, tracked connections, cgroups (also those the kernel still holds),
network namespaces, files of the store. Exit status 1 when any of the counts grew. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import base_archive, one_start
from benchmarks.compare import memory_of
from dockpy import Runtime
from dockpy.spares import MOST

WARM = 200
"""Starts before the first count: pools are full and modules imported."""
QUIET = 30.0
"""Seconds that the kernel may take to clear away."""


def cgroups(root: str = "/sys/fs/cgroup") -> int:
    return sum("dockpy" in directory for directory, _, _ in os.walk(root))


def dying(root: str = "/sys/fs/cgroup") -> int:
    """v1: memory groups without a directory that something still refers to; v2: by cgroup.stat."""
    for line in Path("/proc/cgroups").read_text().splitlines():
        if line.startswith("memory"):
            there = sum(1 for _ in os.walk(f"{root}/memory"))
            if there:
                return max(0, int(line.split()[2]) - there)
    found = re.search(r"nr_dying_descendants (\d+)", Path(f"{root}/cgroup.stat").read_text())
    return int(found[1]) if found else 0


def elements() -> int:
    """Elements of all sets and maps of the engine's tables."""
    listed = subprocess.run(
        ["nft", "-j", "list", "ruleset"], capture_output=True, check=True, text=True
    )
    found = 0
    for entry in json.loads(listed.stdout)["nftables"]:
        for kind in ("set", "map"):
            found += len(entry.get(kind, {}).get("elem", []))
    return found


def connections() -> int:
    path = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    return int(path.read_text()) if path.exists() else 0


def files(root: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(root))


def counts(runtime: Runtime, directory: Path) -> dict[str, int]:
    pids = list(runtime.info().supervisors)
    measures: dict[str, Callable[[], int]] = {
        "memory of the engine, KiB": lambda: memory_of([os.getpid()]),
        "memory of supervisors, KiB": lambda: memory_of(pids),
        "descriptors of the engine": lambda: len(os.listdir("/proc/self/fd")),
        "descriptors of supervisors": lambda: sum(
            len(os.listdir(f"/proc/{pid}/fd")) for pid in pids
        ),
        "threads": threading.active_count,
        "mounts": lambda: len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": lambda: len(socket.if_nameindex()),
        "nftables elements": elements,
        "tracked connections": connections,
        "cgroups": cgroups,
        "dying cgroups": dying,
        "dying networks": runtime.networks.dying,
        "files of the store": lambda: files(directory / "state"),
        "files of the run directory": lambda: files(directory / "run"),
    }
    return {name: measure() for name, measure in measures.items()}


ROOM = {
    "memory of the engine, KiB": 4096,
    "memory of supervisors, KiB": 1024,
    "threads": 2,
    "descriptors of the engine": 4 + MOST,
    "links": 2,
    "nftables elements": 6,
    "tracked connections": 8,
    "dying cgroups": 50,
}
"""By how much a count may be higher at the end without anything having leaked."""


def settled(runtime: Runtime) -> None:
    """The engine's and the kernel's cleaning is done."""
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline:
        if not runtime.info().backlog and not runtime.networks.dying() and runtime.networks.ready:
            break
        time.sleep(0.1)
    time.sleep(2)


def starts(runtime: Runtime, took: array[float], threads: int, network: str) -> None:
    """As many starts as there is room for; milliseconds of each, in the order of their beginning.

    The room is made before memory is looked at: this is the engine's process too.
    """
    left = iter(range(len(took)))

    def work() -> None:
        for number in left:
            took[number] = one_start(runtime, network)

    working = [threading.Thread(target=work) for _ in range(threads)]
    for one in working:
        one.start()
    for one in working:
        one.join()


def room(count: int) -> array[float]:
    return array("d", [0.0]) * count


def quantiles(values: Iterable[float]) -> str:
    ordered = sorted(values)
    picked = [ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99, 0.999)]
    return "  ".join(
        f"{name} {value:8.2f}" for name, value in zip(("p50", "p99", "p99.9"), picked, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--starts", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--network", default="bridge")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peers.own_network()
    with peers.scratch() as directory:
        archive = base_archive(directory, None)
        with Runtime(directory / "state", run=directory / "run") as runtime:
            with open(archive, "rb") as source:
                runtime.import_image(source, "base")
            starts(runtime, room(WARM), options.threads, options.network)
            took = room(options.starts)
            settled(runtime)
            before = counts(runtime, directory)
            began = time.perf_counter()
            starts(runtime, took, options.threads, options.network)
            rate = options.starts / (time.perf_counter() - began)
            settled(runtime)
            after = counts(runtime, directory)
        shutil.rmtree(directory / "state")
    part = max(1, min(1000, options.starts // 4))
    print(f"{options.starts} starts, {options.threads} threads, {rate:.1f} a second, ms each:")
    print(f"  first {part}: {quantiles(took[:part])}")
    print(f"  last  {part}: {quantiles(took[-part:])}")
    print(f"  {'':30} {'before':>10} {'after':>10}")
    grown = []
    for name, value in before.items():
        over = after[name] - value > ROOM.get(name, 0)
        grown += [name] if over else []
        print(f"  {name:30} {value:10} {after[name]:10}{'  grew' if over else ''}")
    if options.json:
        found = {"before": before, "after": after, "rate": rate, "median": statistics.median(took)}
        options.json.write_text(json.dumps(found))
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
