"""Many containers that do nothing: the memory of each, by who holds it, and starts among them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.bench import FLOORS, Bench, one_start
from benchmarks.samples import Samples
from dockpy import Config, Container

KERNEL = {
    "Slab": "kernel: slab",
    "PageTables": "kernel: page tables",
    "KernelStack": "kernel: stacks",
    "Percpu": "kernel: per processor",
}
"""Lines of /proc/meminfo, see proc_meminfo(5), and what the table calls them."""
SETTLE = 1.0
"""Seconds before the kernel's memory is read: what ended is cleared away behind."""


def memory_of(pids: Iterable[int]) -> int:
    """Proportional set size of some processes in KiB."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return total


def kernel_memory() -> dict[str, int]:
    """The lines of `KERNEL` in KiB, for the whole machine."""
    text = Path("/proc/meminfo").read_text()
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return {title: int(found[line]) for line, title in KERNEL.items() if line in found}


def memory(bench: Bench, containers: Iterable[Container] = ()) -> dict[str, int]:
    """KiB by who holds it. The engine is in this process."""
    return {
        "engine (the daemon)": memory_of([os.getpid()]),
        "supervisors": memory_of(bench.runtime.info().supervisors),
        "the programs themselves": memory_of(one.state.pid for one in containers),
        **kernel_memory(),
    }


def per_container(before: Mapping[str, int], after: Mapping[str, int], count: int) -> list[Samples]:
    """The growth, divided by the containers, in KiB."""
    return [Samples(who, [(after[who] - before[who]) / count], "KiB") for who in before]


def density(bench: Bench) -> None:
    """Memory per idle container, start latency among them, and CPU use while idle."""
    counts = (0, 100) if bench.short else (0, 100, 1000)
    count = counts[-1]
    runtime = bench.runtime
    one_start(runtime)
    time.sleep(SETTLE)
    before = memory(bench)
    ours, floors, idle = list[Samples](), list[Samples](), list[Container]()
    try:
        for wanted in counts:
            while len(idle) < wanted:
                idle.append(runtime.create(Config(image="base", cmd=("/bin/sleep", "1000000"))))
                idle[-1].start()
            if wanted == count:
                time.sleep(SETTLE)
                after = memory(bench, idle)
            mine, floor = starts_among(bench, wanted)
            ours.append(mine)
            floors.append(floor)
        supervisors = runtime.info().supervisors
        ticks = sum(map(cpu_ticks, supervisors))
        time.sleep(2)
        used = sum(map(cpu_ticks, supervisors)) - ticks
    finally:
        for container in idle:
            runtime.destroy(container, force=True)
    bench.show("starts 50 ms apart among idle containers", ours, ours[0])
    bench.show("the floor's, in the same minute", floors, floors[0])
    bench.show(f"memory of each of {count} idle containers", per_container(before, after, count))
    cpu = Samples("supervisors' ticks in 2 idle s", [float(used)], "ticks")
    bench.show(f"{count} idle containers", [cpu])


def starts_among(bench: Bench, count: int) -> tuple[Samples, Samples]:
    """Our starts and the floor's while `count` containers run. With a gap between them: the kernel
    clears away after each start, for a time that grows with all there is, and on every core."""
    ours = Samples(f"start among {count}")
    floors = Samples(f"floor among {count}")
    for _ in range(20 if bench.short else 30):
        time.sleep(0.05)
        ours.values.append(one_start(bench.runtime))
        time.sleep(0.05)
        floors.values += bench.floor.times(bench.tree, 1, "mounts", FLOORS["bridge"], "cgroup")
    return ours, floors


def cpu_ticks(pid: int) -> int:
    """User and system time of a process in clock ticks. Source: proc(5), /proc/pid/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
