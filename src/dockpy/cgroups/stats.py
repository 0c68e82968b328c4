"""Counters of one group: the value, and the parsers of the kernel's texts (pure).

Sources: Documentation/admin-guide/cgroup-v2.rst (memory.stat, cpu.stat, io.stat),
cgroup-v1/{memory,cpuacct,blkio-controller}.rst.
"""

from __future__ import annotations

from dataclasses import dataclass

UNLIMITED_V1 = 1 << 62
"""v1 shows "no limit" as the largest page-aligned number, a little below 2**63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupStats:
    """One reading: bytes, nanoseconds, counts since the group was made; 0 for what is not known.

    A limit of 0 is no limit. `memory_inactive_file` is the part of `memory_usage` that the kernel
    drops first; `docker stats` shows the difference of the two. `memory_swap_limit` counts swap
    """

    memory_usage: int = 0
    memory_limit: int = 0
    memory_peak: int = 0
    memory_inactive_file: int = 0
    swap_usage: int = 0
    swap_limit: int = 0
    oom_kills: int = 0
    cpu_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    pids: int = 0
    pids_limit: int = 0
    blkio_read: int = 0
    blkio_write: int = 0


def number(text: str) -> int:
    """A file with one number; `max`, v1's huge number and "" (no such file) are 0."""
    stripped = text.strip()
    value = int(stripped) if stripped.isdecimal() else 0
    return 0 if value >= UNLIMITED_V1 else value


def table(text: str) -> dict[str, int]:
    """A file of `key value` lines; lines of any other shape are left out."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdecimal():
            found[key] = int(value)
    return found


def io_stat(text: str) -> tuple[int, int]:
    """(read, written) bytes over all devices in v2's io.stat."""
    read = written = 0
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if value.isdecimal():
                read += int(value) if key == "rbytes" else 0
                written += int(value) if key == "wbytes" else 0
    return read, written


def blkio_bytes(text: str) -> tuple[int, int]:
    """(read, written) bytes over all devices in v1's blkio.throttle.io_service_bytes."""
    read = written = 0
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2].isdecimal():
            read += int(words[2]) if words[1] == "Read" else 0
            written += int(words[2]) if words[1] == "Write" else 0
    return read, written
