"""From limits asked for to values for files; pure. Knows v1 and v2 file names, opens nothing.

Sources: Documentation/admin-guide/cgroup-v1/{memory,cpusets,blkio-controller,pids}.rst,
Documentation/scheduler/sched-bwc.rst and Documentation/admin-guide/cgroup-v2.rst of Linux. The
meaning of memory_swap, cpus and cpu_shares is that of Docker's run options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dockpy.errors import RequestError

DEFAULT_PIDS = 4096
"""Tasks (threads count) a container may have when nothing else is asked."""
MINIMUM_MEMORY = 6 << 20
"""Bytes; below it a container cannot even start its first program reliably."""
PERIOD_US = 100_000
"""The kernel's own default CFS period, so v1 never has to be told it."""
MINIMUM_QUOTA_US = 1000
"""The kernel refuses less (sched-bwc.rst)."""
CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
LARGEST_CPU = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one container may use. Sizes are bytes; 0, "" and () mean "not asked for".

    `memory_swap` counts memory and swap together: 0 is twice the memory, -1 no limit. `pids`:
    None is `DEFAULT_PIDS`, 0 or less no limit. `devices` are `--device` texts, allowed on top of
    the default list; `privileged` allows every device.
    """

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None
    blkio_weight: int = 0
    privileged: bool = False
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """What the limits are checked against.

    `versions` says for memory, cpu, cpuset, pids and io (v1: blkio) in which hierarchy version
    the controller is at hand; `missing` says why, and what to do, for those that are not.
    """

    versions: Mapping[str, int]
    cpus: int
    cpu_numbers: frozenset[int] = frozenset()
    memory_nodes: frozenset[int] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """One write: the first of `files` that exists gets its value.

    `required` False: a kernel without the file is fine (nobody asked for this limit by name).
    """

    controller: str
    version: int
    files: tuple[tuple[str, str], ...]
    option: str
    required: bool = True


def check(limits: Limits, host: Host) -> None:
    """Refuse what cannot be done, with one line each. Raises RequestError."""
    _check_memory(limits)
    if limits.cpus < 0 or not math.isfinite(limits.cpus):
        raise RequestError(f"--cpus {limits.cpus}: give a number of CPUs above 0")
    if limits.cpus > host.cpus:
        raise RequestError(f"--cpus {limits.cpus:g}: this host has {host.cpus} CPUs")
    if limits.cpus and round(limits.cpus * PERIOD_US) < MINIMUM_QUOTA_US:
        raise RequestError(f"--cpus {limits.cpus:g}: the smallest share of a CPU is 0.01")
    if limits.cpu_shares and not 2 <= limits.cpu_shares <= 262144:
        raise RequestError(f"--cpu-shares {limits.cpu_shares}: give 2 to 262144")
    if limits.blkio_weight and not 10 <= limits.blkio_weight <= 1000:
        raise RequestError(f"--blkio-weight {limits.blkio_weight}: give 10 to 1000")
    _check_list("--cpuset-cpus", limits.cpuset_cpus, host.cpu_numbers, "CPUs")
    _check_list("--cpuset-mems", limits.cpuset_mems, host.memory_nodes, "memory nodes")


def settings(limits: Limits, host: Host) -> list[Setting]:
    """The writes for a new group, in order. Raises RequestError for a controller not at hand."""
    found = []
    for controller, option, required, v1, v2 in _wanted(limits):
        version = host.versions.get(controller)
        if version is None:
            if required:
                why = host.missing.get(controller, "this kernel was built or started without it")
                raise RequestError(f"{option} needs the {controller} cgroup controller: {why}")
            continue
        files = v1 if version == 1 else v2
        found.append(Setting(controller, version, files, option, required))
    return found


def raise_swap_first(order: list[Setting], current: int) -> list[Setting]:
    """`order` such that v1's rule "memory <= memory and swap" holds after every write.

    `current` is the memory-and-swap limit as it stands. Raising it comes before raising memory,
    lowering it after lowering memory.
    """
    swap = [each for each in order if each.files[0][0] == "memory.memsw.limit_in_bytes"]
    if swap and (int(swap[0].files[0][1]) == -1 or int(swap[0].files[0][1]) > current):
        return swap + [each for each in order if each not in swap]
    return order


def shares_to_weight(shares: int) -> int:
    """v1 cpu.shares (2..262144, default 1024) to v2 cpu.weight (1..10000, default 100).

    The quadratic in log2 through (2, 1), (1024, 100) and (262144, 10000) that runc 1.4 and crun
    1.23 use (ConvertCPUSharesToCgroupV2Value of opencontainers/cgroups); the linear one before it
    made the default 1024 into 39.
    """
    power = math.log2(shares)
    exponent = (power * power + 125 * power) / 612 - 7 / 34
    return math.ceil(round(10**exponent, 6))


def blkio_to_io_weight(weight: int) -> int:
    """v1 blkio.weight (10..1000) to v2 io.weight (1..10000), linear as the OCI runtimes do it."""
    return 1 + (weight - 10) * 9999 // 990


def parse_cpu_list(text: str) -> frozenset[int] | None:
    """The numbers in a kernel list like `0-3,7` (cpuset(7), List format); None if it is not one."""
    if not text:
        return frozenset()
    if not CPU_LIST.fullmatch(text):
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high < low or high >= LARGEST_CPU:
            return None
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def _check_memory(limits: Limits) -> None:
    memory, swap, reservation = limits.memory, limits.memory_swap, limits.memory_reservation
    if memory < 0 or reservation < 0 or swap < -1:
        raise RequestError("--memory: sizes are bytes above 0; only --memory-swap may be -1")
    if memory and memory < MINIMUM_MEMORY:
        raise RequestError(f"--memory {memory}: the smallest memory limit is 6 MiB")
    if swap > 0 and not memory:
        raise RequestError("--memory-swap needs --memory: it counts memory and swap together")
    if 0 < swap < memory:
        raise RequestError(
            f"--memory-swap {swap} is below --memory {memory}: it counts memory and swap together"
        )
    if reservation and memory and reservation > memory:
        raise RequestError(f"--memory-reservation {reservation} is above --memory {memory}")


def _check_list(option: str, text: str, available: frozenset[int], noun: str) -> None:
    if not text:
        return
    numbers = parse_cpu_list(text)
    if numbers is None:
        raise RequestError(f"{option} {text!r}: give a list such as 0-2,5")
    absent = sorted(numbers - available)
    if available and absent:
        there = ",".join(map(str, sorted(available)))
        raise RequestError(f"{option} {text}: no {absent[0]} here; available {noun}: {there}")


_Files = tuple[tuple[str, str], ...]


def _wanted(limits: Limits) -> Iterator[tuple[str, str, bool, _Files, _Files]]:
    """(controller, option, asked for by name, v1 files, v2 files) for each limit that is set."""
    v1: _Files
    v2: _Files
    if limits.memory:
        size = str(limits.memory)
        v1, v2 = (("memory.limit_in_bytes", size),), (("memory.max", size),)
        yield "memory", "--memory", True, v1, v2
    if limits.memory or limits.memory_swap:
        both = limits.memory_swap or 2 * limits.memory
        swap = "max" if both == -1 else str(both - limits.memory)
        v1, v2 = (("memory.memsw.limit_in_bytes", str(both)),), (("memory.swap.max", swap),)
        yield "memory", "--memory-swap", limits.memory_swap != 0, v1, v2
    if limits.memory_reservation:
        size = str(limits.memory_reservation)
        v1, v2 = (("memory.soft_limit_in_bytes", size),), (("memory.low", size),)
        yield "memory", "--memory-reservation", True, v1, v2
    if limits.cpu_shares:
        weight = str(shares_to_weight(limits.cpu_shares))
        v1, v2 = (("cpu.shares", str(limits.cpu_shares)),), (("cpu.weight", weight),)
        yield "cpu", "--cpu-shares", True, v1, v2
    if limits.cpus:
        quota = round(limits.cpus * PERIOD_US)
        v1, v2 = (("cpu.cfs_quota_us", str(quota)),), (("cpu.max", f"{quota} {PERIOD_US}"),)
        yield "cpu", "--cpus", True, v1, v2
    for option, file, text in (
        ("--cpuset-mems", "cpuset.mems", limits.cpuset_mems),
        ("--cpuset-cpus", "cpuset.cpus", limits.cpuset_cpus),
    ):
        if text:
            yield "cpuset", option, True, ((file, text),), ((file, text),)
    if limits.pids is None or limits.pids > 0:
        most = str(DEFAULT_PIDS if limits.pids is None else limits.pids)
        yield "pids", "--pids-limit", limits.pids is not None, *((("pids.max", most),),) * 2
    else:
        yield "pids", "--pids-limit", False, *((("pids.max", "max"),),) * 2
    if limits.blkio_weight:
        plain = str(limits.blkio_weight)
        v1 = (("blkio.weight", plain), ("blkio.bfq.weight", plain))
        scaled = str(blkio_to_io_weight(limits.blkio_weight))
        v2 = (("io.bfq.weight", plain), ("io.weight", scaled))
        yield "io", "--blkio-weight", True, v1, v2
