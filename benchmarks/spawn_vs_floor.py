"""What one spawn costs, beside the kernel's floor when its program is given.

    python -m benchmarks.spawn_vs_floor [--rounds N] [--each N] [--gap MS] [--floor PROGRAM]
                                        [--tree DIR] [--work DIR]

A start here is: upper and work directories, cgroups in every v1 controller, the overlay, the plan
built and packed, the spawn, the wait for /bin/true. No image, log, record or supervisor.
"ready" starts join a network namespace that was made before, and leave the end of their mounts to
after the wait. Contestants take turns. `--tree` is a root with /bin/true, /proc, /dev, /sys; a
busybox one is made by default. Floor is benchmarks/floor.c, run as
`floor N TREE WORK mounts net cgroup gap=MS`. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.samples import Samples, table
from dockpy import mounts
from dockpy.capabilities import DEFAULT
from dockpy.seccomp import FilterCache
from dockpy.spawn import Network, hold_mounts, make_network, spawn
from dockpy.start import StartSpec, start_plan

V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio")
CGROUPS = "/sys/fs/cgroup"

BARE = StartSpec(
    root_slot=0,
    argv=("/bin/true",),
    env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"),
    cwd="/",
    uid=0,
    gid=0,
    groups=(),
    hostname="bench",
    domainname="",
    tty_slot=None,
    devpts_slot=None,
    stdin_slot=None,
    stdout_slot=None,
    stderr_slot=None,
    cgroup_tasks_slots=(),
    network="none",
    capabilities=DEFAULT,
    seccomp=None,
    no_new_privileges=False,
    rlimits=((7, 1024, 4096),),
    oom_score_adj=0,
    privileged=False,
    read_only=False,
    binds=(),
    tmpfs=(),
    shm_size=64 << 20,
    devices=(),
    init_slot=None,
    mount_cgroup=False,
)


@dataclass
class Place:
    """Directories of one start."""

    upper: Path
    work: Path
    groups: list[str]


def copy_down(file: str, parent: str, group: str) -> None:
    """A new cpuset is empty until it is given its parent's value."""
    with open(f"{parent}/{file}", "rb", 0) as source, open(f"{group}/{file}", "wb", 0) as target:
        target.write(source.read())


@contextmanager
def place(work: Path, name: str) -> Iterator[Place]:
    """The directories' making is the caller's time, their removal nobody's."""
    directory = f"{work}/{name}"
    for path in (directory, f"{directory}/upper", f"{directory}/work"):
        os.mkdir(path)
    groups = []
    for controller in V1:
        parent = f"{CGROUPS}/{controller}"
        group = f"{parent}/dockpy-bench-{os.getpid()}-{name}"
        if not os.access(f"{parent}/tasks", os.F_OK):
            continue
        os.mkdir(group)
        groups.append(group)
        if controller == "cpuset":
            copy_down("cpuset.cpus", parent, group)
            copy_down("cpuset.mems", parent, group)
    try:
        yield Place(Path(directory, "upper"), Path(directory, "work"), groups)
    finally:
        for group in groups:
            os.rmdir(group)
        shutil.rmtree(directory)


def one_start(
    tree: Path, work: Path, name: str, spec: StartSpec, *, ready: bool = False
) -> tuple[float, float]:
    """Milliseconds of the whole start, and of the spawn alone."""
    network: Network | None = make_network() if ready else None
    began = time.perf_counter()
    with place(work, name) as here:
        fds = [mounts.overlay([tree], here.upper, here.work, volatile=True)]
        fds += [os.open(f"{group}/tasks", os.O_WRONLY | os.O_CLOEXEC) for group in here.groups]
        spec = replace(spec, cgroup_tasks_slots=tuple(range(1, len(fds))))
        if network is not None:
            spec = replace(spec, network=len(fds), sysfs_slot=len(fds) + 1)
            fds += network.descriptors()
        plan = start_plan(spec).pack()
        before = time.perf_counter()
        child = spawn(plan, fds)
        after = time.perf_counter()
        held = hold_mounts(child.pidfd) if ready else None
        for fd in fds:
            os.close(fd)
        status = os.waitpid(child.pid, 0)[1]
        ended = time.perf_counter()
        os.close(child.pidfd)
        if held is not None:
            os.close(held)
    if status:
        raise RuntimeError(f"/bin/true ended with status {status}")
    return (ended - began) * 1e3, (after - before) * 1e3


def floor_times(program: Path, tree: Path, work: Path, each: int, gap: int) -> list[float]:
    """The floor prints quantiles only: its median stands for each of the round's runs."""
    line = subprocess.run(
        [program, str(each), tree, work, "mounts", "net", "cgroup", f"gap={gap}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"p50 ([0-9.]+)", line)
    if found is None:
        raise RuntimeError(f"floor said {line!r}")
    return [float(found[1])]


def busybox_tree(directory: Path) -> Path:
    """A root of one static busybox."""
    for name in ("bin", "dev", "proc", "sys", "etc"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    (directory / "bin/true").symlink_to("busybox")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--gap", type=int, default=0, help="milliseconds before each start")
    parser.add_argument("--floor", type=Path)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--work", type=Path, help="on a file system that can hold an upper")
    asked = parser.parse_args()
    spec = replace(BARE, seccomp=FilterCache().get("default", DEFAULT))
    floor = Samples("floor mounts net cgroup (p50s)")
    contestants = (
        (Samples("start, wait included"), Samples("  of it: spawn until exec"), spec, False),
        (Samples("start, ready"), Samples("  of it: spawn until exec"), spec, True),
        (Samples("start, no filter"), Samples("  of it: spawn until exec"), BARE, False),
    )
    with tempfile.TemporaryDirectory(dir=asked.work, prefix="dockpy-bench-") as name:
        work = Path(name)
        tree = asked.tree or busybox_tree(work / "tree")
        for number in range(asked.rounds):
            if asked.floor:
                floor.values += floor_times(asked.floor, tree, work, asked.each, asked.gap)
            for whole, spawns, wanted, ready in contestants:
                for count in range(asked.each):
                    time.sleep(asked.gap / 1e3)
                    took = one_start(tree, work, f"{number}-{count}", wanted, ready=ready)
                    whole.values.append(took[0])
                    spawns.values.append(took[1])
    rows = [floor, *(row for one in contestants for row in one[:2])]
    print(table("one spawn", rows, floor if asked.floor else None))


if __name__ == "__main__":
    main()
