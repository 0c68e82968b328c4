"""What may be left of containers that are gone, counted from outside the engine's process, and by
how much it may grow.

A count is taken between starts, when the engine's and the kernel's cleaning is done; the samples of
a run are a line (`benchmarks.slopes`), and its slope is what is judged.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.slopes import Slope, slope
from dockpy.spares import MOST

KIB = 1024
NAMESPACE = re.compile(r"(net|mnt|pid|uts|ipc|user|cgroup|time):\[\d+\]")
"""What a descriptor of a namespace is called, see namespaces(7)."""


class Limit(NamedTuple):
    """What a count may grow: `each` start, and by `room` in all whatever the starts.

    Room is for what comes and goes: pools, threads that end when they are idle, noise of few
    samples. `host`: the whole host's count, which others who work there change.
    """

    each: float
    room: float
    host: bool = False

    def exceeded(self, found: Slope, starts: int) -> bool:
        """Whether it surely grows more than it may."""
        return found.least > self.each and found.least * starts > self.room


RARE = 1e-4
"""Counts that grow by less than one in ten thousand starts do not grow."""

LIMITS: Mapping[str, Limit] = {
    "memory of the engine, B": Limit(4, 2048 * KIB),
    "memory of supervisors, B": Limit(2, 256 * KIB),
    "descriptors of the engine": Limit(RARE, MOST),
    "descriptors of supervisors": Limit(RARE, 4),
    "threads of the engine": Limit(RARE, 2),
    "threads of supervisors": Limit(RARE, 0),
    "processes": Limit(RARE, 0),
    "namespaces held": Limit(RARE, 8),
    "links": Limit(RARE, 2),
    "nftables elements": Limit(RARE, 6),
    "tracked connections": Limit(RARE, 8),
    "cgroups": Limit(RARE, 0),
    "inodes of the state directory": Limit(RARE, 3 * MOST),
    "inodes of the run directory": Limit(RARE, 0),
    "host: mounts": Limit(RARE, 0, host=True),
    "host: dying cgroups": Limit(RARE, 50, host=True),
    "host: network namespaces": Limit(RARE, 50, host=True),
    "host: pid namespaces": Limit(RARE, 50, host=True),
    "host: inodes of the file system": Limit(RARE, 500, host=True),
    "host: memory per processor, B": Limit(16, 1024 * KIB, host=True),
}
"""Memory is what is nobody else's: pages of files are shared with every other program that maps
them. Its room is what malloc keeps of freed pieces for each thread, seven of each size up to 1 KiB
(236 KiB in all), which fill slowly: rare sizes come rarely. Of the host's counts, room is as much
as the kernel clears away late, in groups."""


class Engine(NamedTuple):
    """Whose leavings are counted. `root`: its state directory; `run`: its run directory."""

    pid: int
    supervisors: Sequence[int]
    root: Path
    run: Path


def count(engine: Engine, cgroup: str) -> dict[str, int]:
    """All counts of `LIMITS`, those that this host does not tell left out.

    `cgroup`: what the names of the engine's cgroups have in them. Everything is looked at from the
    network and mount namespace of the caller, which should be the engine's.
    """
    known = (engine.pid, *engine.supervisors)
    measures: dict[str, Callable[[], int | None]] = {
        "memory of the engine, B": lambda: anonymous([engine.pid]),
        "memory of supervisors, B": lambda: anonymous(engine.supervisors),
        "descriptors of the engine": lambda: entries("fd", [engine.pid]),
        "descriptors of supervisors": lambda: entries("fd", engine.supervisors),
        "threads of the engine": lambda: entries("task", [engine.pid]),
        "threads of supervisors": lambda: entries("task", engine.supervisors),
        "processes": lambda: len(below(known)),
        "namespaces held": lambda: namespaces(known),
        "links": lambda: len(socket.if_nameindex()),
        "nftables elements": elements,
        "tracked connections": connections,
        "cgroups": lambda: cgroups(cgroup),
        "inodes of the state directory": lambda: inodes(engine.root),
        "inodes of the run directory": lambda: inodes(engine.run),
        "host: mounts": lambda: lines(f"/proc/{engine.pid}/mountinfo"),
        "host: dying cgroups": dying_cgroups,
        "host: network namespaces": lambda: objects("net_namespace"),
        "host: pid namespaces": lambda: objects("pid_namespace"),
        "host: inodes of the file system": lambda: used_inodes(engine.root),
        "host: memory per processor, B": per_processor,
    }
    found = {name: measure() for name, measure in measures.items()}
    return {name: value for name, value in found.items() if value is not None}


def standing(engine: Engine, cgroup: str) -> tuple[int, ...]:
    """What changes as long as somebody still clears away, quickly counted."""
    return (
        len(socket.if_nameindex()),
        cgroups(cgroup),
        inodes(engine.root),
        inodes(engine.run),
        entries("fd", (engine.pid, *engine.supervisors)),
    )


class Remains(NamedTuple):
    """What became of one count. `exceeded`: it grows more than it may."""

    name: str
    first: int
    last: int
    slope: Slope
    exceeded: bool


def judge(
    work: Sequence[int], samples: Sequence[Mapping[str, int]], *, shared: bool = False
) -> list[Remains]:
    """Each count's line over the starts done when its sample was taken.

    `shared`: others work on this host, what is counted there is told and not judged.
    """
    starts = work[-1] - work[0]
    found = []
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        line, limit = slope(work, values), LIMITS[name]
        over = limit.exceeded(line, starts) and not (shared and limit.host)
        found.append(Remains(name, values[0], values[-1], line, over))
    return found


# -- of processes ------------------------------------------------------------------------------


def anonymous(pids: Iterable[int]) -> int:
    """Bytes of memory that belong to these processes alone: no file's, no shared pages."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += sum(int(found) for found in re.findall(r"^Anonymous:\s+(\d+) kB$", text, re.M))
    return total * KIB


def entries(what: str, pids: Iterable[int]) -> int:
    """How many descriptors (`fd`) or threads (`task`) they have."""
    return sum(len(os.listdir(f"/proc/{pid}/{what}")) for pid in pids)


def below(pids: Collection[int]) -> set[int]:
    """Processes that are children of these, zombies too."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has just ended
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) in pids:
                found.add(int(name))
    return found


def namespaces(pids: Iterable[int]) -> int:
    """Namespaces that their descriptors keep."""
    found = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # it was closed just now
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if NAMESPACE.fullmatch(target):
                    found.add(target)
    return len(found)


def processor(pids: Iterable[int]) -> float:
    """Processor seconds they have spent so far, and their children that they waited for."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime stime cutime cstime, see proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def lines(path: str) -> int:
    return len(Path(path).read_text().splitlines())


# -- of the engine's places --------------------------------------------------------------------


def inodes(root: Path) -> int:
    """Files and directories below."""
    return sum(len(files) + len(directories) for _, directories, files in os.walk(root))


def cgroups(part: str, root: str = "/sys/fs/cgroup") -> int:
    return sum(part in directory for directory, _, _ in os.walk(root))


def elements() -> int:
    """Elements of all sets and maps of this network namespace."""
    listed = subprocess.run(
        ["nft", "-j", "list", "ruleset"], capture_output=True, check=True, text=True
    )
    found = 0
    for entry in json.loads(listed.stdout)["nftables"]:
        for kind in ("set", "map"):
            found += len(entry.get(kind, {}).get("elem", []))
    return found


def connections() -> int | None:
    path = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    return int(path.read_text()) if path.exists() else None


# -- of the host -------------------------------------------------------------------------------


def dying_cgroups(root: str = "/sys/fs/cgroup") -> int | None:
    """v1: memory groups without a directory that something still refers to; v2: by cgroup.stat."""
    for line in Path("/proc/cgroups").read_text().splitlines():
        if line.startswith("memory"):
            there = sum(1 for _ in os.walk(f"{root}/memory"))
            if there:
                return max(0, int(line.split()[2]) - there)
    told = Path(f"{root}/cgroup.stat")
    found = told.exists() and re.search(r"nr_dying_descendants (\d+)", told.read_text())
    return int(found[1]) if found else None


def objects(cache: str) -> int | None:
    """Objects of one kind in the kernel; None where its caches are not told, or merged.

    Source: slabinfo(5).
    """
    try:
        text = Path("/proc/slabinfo").read_text()
    except OSError:
        return None
    found = re.search(rf"^{cache}\s+(\d+)", text, re.M)
    return int(found[1]) if found else None


def used_inodes(place: Path) -> int | None:
    """None where the file system does not count them."""
    told = os.statvfs(place)
    return told.f_files - told.f_ffree if told.f_files else None


def per_processor() -> int | None:
    """The kernel's memory that each processor has a copy of: a cgroup's counters among it."""
    found = re.search(r"^Percpu:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    return int(found[1]) * KIB if found else None
