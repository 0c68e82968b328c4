"""Very many containers at once, each on the bridge with a small memory limit and a server.

    python -m benchmarks.crowd [--count N] [--memory BYTES] [--threads N] [--published N]
                              [--json FILE]

More than a bridge takes (1,023) and more than the host's neighbour table may hold (gc_thresh3): the
addresses must all differ, every server must answer this host and each of those asked by containers
of other segments, ports must lead to theirs, and each memory limit must be in force. In a
network namespace of this program's own. At the end everything is removed, and what is left is
counted as `benchmarks.churn` counts. Exit status 1 when anything is not so. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shutil
import socket
import time
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import base_archive, in_threads, one_start
from benchmarks.churn import QUANTILES, wait_until_still
from benchmarks.remains import LIMITS, Engine, count, standing
from dockpy import Config, Container, Runtime
from dockpy.model import Exec
from dockpy.places import cgroup_name
from dockpy.spares import MOST

SERVER = ("/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "hostname")
ASK = 'for n in 1 2 3; do [ -z "$(busybox nc -w 3 $0 80 </dev/null)" ] || exit 0; done; exit 1'
PAIRS = 200
"""Questions from containers to others."""
AMONG = 40
"""Starts that are timed among all the others."""
WARM = 100
FIRST_PORT = 20000
CLEANING = 600.0
"""Seconds in which all must be cleaned up after thousands."""
MEMORY = "memory of the engine, B"
"""Shown, not judged: the allocator keeps what thousands needed for the next thousands."""


def answer(address: str, port: int) -> str:
    """What a server says; tried for a while, since a listener may not be there at once."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection((address, port), 5) as link:
                if said := link.makefile().readline().strip():
                    return said
        except OSError:
            if time.monotonic() > deadline:
                raise


def memory_limit(pid: int) -> int:
    """Bytes that the memory group of a process may use, on either version of cgroups."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes").read_text())
    path = Path(f"/proc/{pid}/cgroup").read_text().rpartition("::")[2].strip()
    return int(Path(f"/sys/fs/cgroup{path}/memory.max").read_text())


def faults(runtime: Runtime, crowd: Sequence[Container], memory: int, published: int) -> list[str]:
    """What is not as it must be, a line each."""
    found = list[str]()
    addresses = list[str]()
    for one in crowd:
        lease = runtime.networks.lease(one.id)
        addresses.append(lease.addresses[0] if lease else "")
    if len(set(addresses)) != len(crowd) or "" in addresses:
        found.append(f"{len(set(addresses))} addresses for {len(crowd)} containers")
    found += [
        f"{address} is {said}, not {one.short_id}"
        for one, address in zip(crowd, addresses, strict=True)
        if (said := answer(address, 80)) != one.short_id
    ]
    found += [
        f"port {FIRST_PORT + number} leads to {said}, not to {crowd[number].short_id}"
        for number in range(published)
        if (said := answer("127.0.0.1", FIRST_PORT + number)) != crowd[number].short_id
    ]
    source = random.Random(1)
    for asking, asked in (source.sample(range(len(crowd)), 2) for _ in range(PAIRS)):
        execution = crowd[asking].execute(
            Exec(cmd=("/bin/busybox", "sh", "-c", ASK, addresses[asked]))
        )
        execution.start()
        if execution.wait() != 0:
            found.append(f"{addresses[asking]} does not reach {addresses[asked]}")
    limits = {memory_limit(one.state.pid) for one in crowd}
    if limits != {memory}:
        found.append(f"memory limits are {sorted(limits)}, not {memory}")
    return found


def remove_all(runtime: Runtime) -> None:
    """Whatever happened, no container goes on."""
    for one in runtime.list():
        runtime.destroy(one, force=True)


def cleaned(runtime: Runtime) -> None:
    """All that the engine does behind is done, and what the kernel does then."""
    deadline = time.monotonic() + CLEANING
    while runtime.info().backlog and time.monotonic() < deadline:
        time.sleep(0.2)
    wait_until_still(lambda: standing(engine_of(runtime), cgroup_name(runtime.root)))


def engine_of(runtime: Runtime) -> Engine:
    return Engine(os.getpid(), runtime.info().supervisors, runtime.root, runtime.run)


def left(runtime: Runtime) -> dict[str, int]:
    """What is this engine's alone, of all that `benchmarks.churn` counts."""
    found = count(engine_of(runtime), cgroup_name(runtime.root))
    return {name: value for name, value in found.items() if not LIMITS[name].host}


def quantiles(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return "  ".join(
        f"{name} {ordered[min(len(ordered) - 1, int(len(ordered) * share))]:8.2f}"
        for name, share in QUANTILES.items()
    )


def neighbours() -> int:
    """Permanent neighbour entries of this host (NUD_PERMANENT, linux/neighbour.h)."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return sum(1 for one in route.get_neighbours(family=socket.AF_INET) if one["state"] & 0x80)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--memory", type=int, default=8 << 20)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--published", type=int, default=300)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.published = min(given.published, given.count)
    # Of all namespaces, and shown in the first one only.
    most = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3").read_text().strip()
    peers.own_network()
    print(f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}")
    crowd = list[Container]()
    took, among = array("d", [0.0]) * given.count, array("d")
    with peers.scratch() as directory:
        archive = base_archive(directory, None)
        with (
            Runtime(directory / "state", run=directory / "run") as runtime,
            contextlib.ExitStack() as undo,
        ):
            undo.callback(remove_all, runtime)
            with open(archive, "rb") as source:
                runtime.import_image(source, "base")
            in_threads(lambda _: one_start(runtime), WARM, given.threads)
            cleaned(runtime)
            before = left(runtime)
            ports = [f"{FIRST_PORT + number}:80" for number in range(given.published)]
            crowd += [
                runtime.create(
                    Config(
                        image="base",
                        cmd=SERVER,
                        memory=given.memory,
                        port_specs=tuple(ports[number : number + 1]),
                    )
                )
                for number in range(given.count)
            ]

            def start(number: int) -> None:
                began = time.perf_counter()
                crowd[number].start()
                took[number] = (time.perf_counter() - began) * 1e3

            began = time.perf_counter()
            in_threads(start, given.count, given.threads)
            rate = given.count / (time.perf_counter() - began)
            wrong = faults(runtime, crowd, given.memory, given.published)
            for _ in range(AMONG):
                time.sleep(0.05)
                among.append(one_start(runtime))
            there = neighbours()
            bridges = [
                name for _, name in socket.if_nameindex() if re.match(r"dpy[0-9a-f]{8}", name)
            ]
            held = len(os.listdir("/proc/self/fd"))
            warned = list(runtime.info().warnings)
            began = time.perf_counter()
            in_threads(
                lambda number: runtime.destroy(crowd[number], force=True),
                given.count,
                given.threads,
            )
            cleaned(runtime)
            gone = time.perf_counter() - began
            after = left(runtime)
        shutil.rmtree(directory / "state")
    print(f"{given.count} containers of {given.memory >> 20} MiB at once on {len(bridges)} bridges")
    print(f"  started by {given.threads} threads, {rate:.1f} a second, ms: {quantiles(took)}")
    print(f"  one more start among them, ms:        {quantiles(among)}")
    print(f"  descriptors of the engine: {held}; neighbour entries: {there} (gc_thresh3 {most})")
    print(f"  all removed and cleaned up in {gone:.0f} s")
    for one in warned:
        print(f"  warning: {one}")
    print(f"  {MEMORY}: {before[MEMORY]} before, {after[MEMORY]} after")
    # Bridges stay until the engine ends, and every two of them are a pair in the rules.
    stays = {"links": len(bridges), "nftables elements": 2 * len(bridges) ** 2 + 10 * len(bridges)}
    stays["inodes of the state directory"] = 6 * MOST  # of spare overlays, docs/decisions/0018
    grown = [
        name
        for name, value in before.items()
        if after[name] - value > LIMITS[name].room + stays.get(name, 0)
        and not name.startswith("memory")
    ]
    wrong += [f"{name}: {before[name]} before, {after[name]} after" for name in grown]
    for one in wrong:
        print(f"  wrong: {one}")
    if given.json:
        measured = {"count": given.count, "rate": rate, "among": list(among), "wrong": wrong}
        given.json.write_text(json.dumps(measured | {"before": before, "after": after}))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
