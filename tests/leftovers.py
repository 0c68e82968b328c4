"""What a test may leave behind on the host, counted before and after it.

A count is a multiset of lines that a person can understand; what is there after a test and was not
before it is named in the failure. Ends of processes and of mounts take a moment, so the second
count is repeated for a short while before it is believed.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from patience import patient

GRACE = patient(8.0)
"""Seconds for the engine's background clean-up and the kernel's deferred one."""
STEP = 0.05
READY = ("descriptor of net:[N]", "descriptor of /")
DEFAULT = re.compile(r"link (dv[0-9a-f]{10}|dpy[0-9a-f]{8}|dockpy0(\.\d+)?)$")

Count = Counter[str]


def descriptors() -> Count:
    """Open descriptors of this process by what they are; pytest's own come and go with names."""
    found: Count = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        found[f"descriptor of {re.sub(r'[0-9]+', 'N', target)}"] += 1
    return found


def settled_descriptors() -> Count:
    """Descriptors without those of network namespaces and their sysfs: an engine has some ready,
    and makes others in their place a moment after one was taken."""
    return Counter({name: count for name, count in descriptors().items() if name not in READY})


def children() -> Count:
    """Children of every thread of this process, zombies included."""
    found: Count = Counter()
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except FileNotFoundError:
            continue
        for pid in pids:
            try:
                comm, state = _stat(pid)
                # Not the name it has just now: one that comes up gives itself another.
                program = _program(pid) if state != "Z" else ""
            except OSError:
                continue
            found[f"zombie {pid} ({comm})" if state == "Z" else f"child {pid} ({program})"] += 1
    return found


def _program(pid: str) -> str:
    """What a process executes; vfork(2) returns a moment before its arguments can be read."""
    for _ in range(20):
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        if program:
            return os.path.basename(program)
        time.sleep(0.005)
    return ""


def _stat(pid: str) -> tuple[str, str]:
    text = Path(f"/proc/{pid}/stat").read_text()
    comm, _, rest = text.partition("(")[2].rpartition(")")
    return comm, rest.split()[0]


def threads() -> Count:
    """Without the one that waits for spare mounts to be too old: it ends when there are none."""
    names = Counter(f"thread {thread.name}" for thread in threading.enumerate())
    del names["thread spares"]
    return names


def mounts() -> Count:
    """Mounts of the host's namespace by place and kind."""
    found: Count = Counter()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        found[f"mount of {after.split()[0]} on {before.split()[4]}"] += 1
    return found


def cgroups() -> Count:
    """cgroup directories with dockpy in the path, in every hierarchy."""
    found: Count = Counter()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] not in ("cgroup", "cgroup2"):
            continue
        top = before.split()[4]
        for directory, _, _ in os.walk(top):
            if "dockpy" in directory[len(top) :]:
                found[f"cgroup {directory}"] += 1
    return found


def links() -> Count:
    """Network links, without the default network's of an engine: they come with its first container
    and go with the engine."""
    return Counter({name: count for name, count in all_links().items() if not DEFAULT.match(name)})


def all_links() -> Count:
    return Counter(f"link {name}" for _, name in socket.if_nameindex())


def nft_tables() -> Count:
    """nftables tables with dockpy in the name; none where nft cannot be asked."""
    try:
        listed = subprocess.run(
            ["nft", "list", "tables"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return Counter()
    return Counter(line for line in listed.stdout.splitlines() if "dockpy" in line)


def run_entries() -> Count:
    """Files below /run/dockpy and run directories of engines over other roots."""
    return Counter(str(path) for top in Path("/run").glob("dockpy*") for path in (top, *walk(top)))


def walk(top: Path) -> list[Path]:
    return [Path(directory, name) for directory, _, names in os.walk(top) for name in names]


OWN: Mapping[str, Callable[[], Count]] = {
    "descriptors": settled_descriptors,
    "children": children,
    "threads": threads,
}
"""What this process alone changes."""
HOST: Mapping[str, Callable[[], Count]] = {
    "mounts": mounts,
    "cgroups": cgroups,
    "links": links,
    "run entries": run_entries,
}
"""What others change too: counted where nobody else runs dockpy (DOCKPY_COUNT_HOST=1)."""
MODULE: Mapping[str, Callable[[], Count]] = {"all descriptors": descriptors}
"""What an engine of this process has ready: counted around a whole module."""
SLOW: Mapping[str, Callable[[], Count]] = {"nft tables": nft_tables, "all links": all_links}
"""Of the host too, and made with the first container: counted around a whole module."""
COUNTS = {**OWN, **HOST, **MODULE, **SLOW}


def around_test(*, host: bool) -> dict[str, Count]:
    """The counts to take before each test."""
    return {name: count() for name, count in {**OWN, **(HOST if host else {})}.items()}


def around_module(*, host: bool) -> dict[str, Count]:
    """The counts to take before a module's first fixture: what its shared fixtures leave."""
    return {name: count() for name, count in (COUNTS if host else {**OWN, **MODULE}).items()}


def left(before: Mapping[str, Count]) -> list[str]:
    """What is there now and was not at `before`, once the grace is over; empty is good."""
    deadline = time.monotonic() + GRACE
    while True:
        now = {name: COUNTS[name]() for name in before}
        extra = [
            f"{line}" + (f" ({count} times)" if count > 1 else "")
            for name, counted in before.items()
            for line, count in sorted((now[name] - counted).items())
        ]
        if not extra or time.monotonic() > deadline:
            return extra
        time.sleep(STEP)
