"""Which cgroup hierarchies this host has, read from its mount table.

Three kinds of hosts exist: v1 (one or more hierarchies, each with some controllers), pure v2 (one
hierarchy with all), and hybrid (controllers on v1 and a v2 hierarchy without them, or with the
rest). v1 controllers that share a hierarchy (`cpu,cpuacct`) have the same directory.
Sources: cgroups(7), proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
V1_CONTROLLERS = frozenset(
    {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc"}
    | {"net_cls", "net_prio", "perf_event", "pids", "rdma"}
)
ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """One cgroup line of the mount table; `controllers` is None for v2."""

    directory: Path
    root: str
    controllers: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Directories of the hierarchies: `v1` by controller, `v2` or None.

    `v2_controllers` are those the v2 hierarchy offers at its top (empty on most hybrid hosts).
    """

    v1: Mapping[str, Path]
    v2: Path | None
    v2_controllers: frozenset[str] = frozenset()

    @classmethod
    def detect(cls, root: Path = Path("/sys/fs/cgroup")) -> Hierarchies:
        """Read the calling process's mount table; mounts below `root` win over others.

        Mounts that are read-only are left out: nothing can be made there.
        Raises OSError when /proc is not mounted.
        """
        found = from_mountinfo(MOUNTINFO.read_text(errors="surrogateescape"), root)
        if found.v2 is None:
            return found
        try:
            offered = frozenset((found.v2 / "cgroup.controllers").read_text().split())
        except OSError:
            offered = frozenset()
        return cls(found.v1, found.v2, offered)

    @property
    def kind(self) -> str:
        """`v1`, `v2`, `hybrid` or `none`: one word for `info`."""
        if self.v2 is None:
            return "v1" if self.v1 else "none"
        return "hybrid" if self.v1 else "v2"


def from_mountinfo(text: str, root: Path = Path("/sys/fs/cgroup")) -> Hierarchies:
    """The hierarchies in a mount table, without what only the directories can tell."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for mount in sorted(_visible(text), key=lambda each: _rank(each, root)):
        if mount.controllers is None:
            v2 = v2 or mount.directory
            continue
        for controller in sorted(mount.controllers):
            v1.setdefault(controller, mount.directory)
    return Hierarchies(v1, v2)


def _visible(text: str) -> Iterator[CgroupMount]:
    """Writable cgroup mounts; of two at one place, the later hides the earlier."""
    last: dict[str, CgroupMount | None] = {}
    for line in text.splitlines():
        mount = _parse_line(line)
        if mount is not None:
            last.pop(mount[0], None)
            last[mount[0]] = mount[1]
    yield from (mount for mount in last.values() if mount is not None)


def _parse_line(line: str) -> tuple[str, CgroupMount | None] | None:
    """(mount point, cgroup mount or None for any other kind); None for an unreadable line."""
    before, separator, after = line.partition(" - ")
    fields, kind = before.split(" "), after.split(" ")
    if not separator or len(fields) < 6 or len(kind) < 3:
        return None
    point = _unescape(fields[4])
    read_only = "ro" in fields[5].split(",") or "ro" in kind[2].split(",")
    if kind[0] not in {"cgroup", "cgroup2"} or read_only:
        return point, None
    controllers = None
    if kind[0] == "cgroup":
        controllers = frozenset(kind[2].split(",")) & V1_CONTROLLERS
    return point, CgroupMount(Path(point), _unescape(fields[3]), controllers)


def _rank(mount: CgroupMount, root: Path) -> tuple[bool, bool, int]:
    """Sorts the mount to use first: below `root`, of a whole hierarchy, with the short path."""
    below = mount.directory == root or root in mount.directory.parents
    return not below, mount.root != "/", len(mount.directory.parts)


def _unescape(text: str) -> str:
    for code, character in ESCAPES.items():
        text = text.replace(code, character)
    return text
