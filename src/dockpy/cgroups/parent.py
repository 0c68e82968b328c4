"""dockpy's parent group in every hierarchy: made ready once, held open by descriptors.

Rules of the outside world:
- v2 gives a child the controllers in its parent's cgroup.subtree_control, and refuses to write
  that file while processes live in the parent itself, except in the real root (cgroup-v2.rst, "No
  Internal Process Constraint"). Where dockpy's own process is in the way, as in a container whose
  cgroup namespace begins there, that group's processes are moved to a leaf `init` beside ours, as
  an init system in there would do. Where only others are in the way, the controller is missing.
- A new v1 cpuset has no CPUs and takes no process until it is given some; cgroup.clone_children on
  its parent copies the parent's (cgroup-v1/cpusets.rst).
- A v1 devices group can never allow what its parent denies (cgroup-v1/devices.rst). So the parent
  stays open, and a group `.default` beside the containers' has the default list: containers
  without devices of their own live in it together and need no group of their own there.
- On v2 the first program attached on the whole host patches kernel code (measured: 0.09 ms
  instead of 0.03 at every start that follows a quiet time): `.default` keeps one attached.
- A group costs 0.02 to 0.08 ms in a quiet host's first mkdir, in cpuset 0.25 ms: a container gets
  a group only where it needs a limit or a counter of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockpy import devices
from dockpy.cgroups import files
from dockpy.cgroups.hierarchies import Hierarchies
from dockpy.cgroups.limits import Host, Limits, parse_cpu_list
from dockpy.errors import KernelError, RequestError

CONTROLLERS = ("memory", "cpu", "pids", "io", "cpuset")
V1_NAMES = {"io": "blkio"}
SHARED = ".default"
"""The group beside the containers' own; no container name begins with a dot."""
EVACUATION_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Branch:
    """The parent group in one hierarchy. `fd` is its directory; `controllers` are v1 names."""

    directory: Path
    fd: int
    controllers: frozenset[str]


@dataclass(slots=True)
class Parent:
    """All branches, and what was found out about the host while they were made.

    `v1` has one entry for each controller; co-mounted controllers share the Branch. `always` are
    the branches in which every container has a group. `owners` says, by name, whose the groups
    are: a late `remove` of a container's last run must not take the groups of its next one.
    """

    v1: Mapping[str, Branch]
    v2: Branch | None
    host: Host
    always: tuple[Branch, ...]
    can_kill: bool
    can_freeze: bool
    made: tuple[Path, ...]
    v2_top: Path | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    owners: dict[str, object] = field(default_factory=dict)
    recipes: dict[Limits, object] = field(default_factory=dict)
    closed: bool = False
    cpuset_enabled: bool = False
    default_program: int = -1
    default_tasks: int = -1

    def branches(self) -> list[Branch]:
        """Every hierarchy once, v2 last."""
        found = list({branch.fd: branch for branch in self.v1.values()}.values())
        return found + ([self.v2] if self.v2 else [])

    def branch(self, controller: str) -> Branch | None:
        """Where the files of memory, cpu, pids, io or cpuset are."""
        version = self.host.versions.get(controller)
        if version is None:
            return None
        return self.v1[V1_NAMES.get(controller, controller)] if version == 1 else self.v2

    def enable_cpuset(self) -> None:
        """v2: turn cpuset on when the first container asks; off, every mkdir is quicker.

        Raises RequestError saying what stands against it.
        """
        with self.lock:
            if self.cpuset_enabled or self.v2 is None or self.v2_top is None:
                return
            failed = enable(self.v2_top, self.v2.directory, ("cpuset",))
            if failed:
                why = failed["cpuset"]
                raise RequestError(f"--cpuset-cpus needs the cpuset cgroup controller: {why}")
            self.cpuset_enabled = True

    def needs_device_program(self) -> bool:
        """Whether devices are ruled by programs on v2: v1's controller is not mounted here."""
        return self.v2 is not None and "devices" not in self.v1

    def close(self) -> None:
        """Close the descriptors; late calls of `Cgroup.remove` are refused from now on."""
        with self.lock:
            self.closed = True
            for branch in self.branches():
                os.close(branch.fd)
            for fd in (self.default_program, self.default_tasks):
                if fd >= 0:
                    os.close(fd)
            self.default_program = self.default_tasks = -1


def make_parent(hierarchies: Hierarchies, name: str) -> Parent:
    """Make the parent groups or find them made. Raises RequestError and KernelError.

    On failure no descriptor stays open; groups that were made stay (they are empty).
    """
    if hierarchies.kind == "none":
        raise RequestError(
            "no writable cgroup file system is mounted: mount one, "
            "as with `mount -t cgroup2 cgroup2 /sys/fs/cgroup`"
        )
    with contextlib.ExitStack() as undo:
        made: list[Path] = []
        v2: Branch | None = None
        missing: dict[str, str] = {}
        can_kill = can_freeze = False
        if hierarchies.v2 is not None:
            v2 = _make_branch(hierarchies.v2, name, frozenset(), made, undo)
            wanted = {"memory", "cpu", "pids", "io"} & hierarchies.v2_controllers
            on_v1 = {key for key in CONTROLLERS if V1_NAMES.get(key, key) in hierarchies.v1}
            missing = enable(hierarchies.v2, v2.directory, sorted(wanted - on_v1))
            can_kill = files.exists(v2.fd, "cgroup.kill")
            can_freeze = files.exists(v2.fd, "cgroup.freeze")
        used = {"memory", "cpu", "cpuacct", "pids", "blkio", "cpuset", "devices"}
        used |= set() if can_freeze else {"freezer"}
        v1 = _make_v1(hierarchies, used, name, made, undo)
        versions = _versions(hierarchies, frozenset(missing))
        parent = Parent(
            v1=v1,
            v2=v2,
            host=_host(versions, missing, v1, v2),
            always=_always(v1, v2, can_freeze=can_freeze),
            can_kill=can_kill,
            can_freeze=can_freeze,
            made=tuple(made),
            v2_top=hierarchies.v2,
            cpuset_enabled=versions.get("cpuset") == 1,
        )
        _share_default_devices(parent, undo)
        undo.pop_all()
    return parent


def enable(top: Path, parent: Path, wanted: Iterable[str]) -> dict[str, str]:
    """v2: pass controllers down from `top` to the children of `parent`.

    Each is tried by itself, so that one that is refused does not cost the others. Returns what
    could not be enabled, with the reason and what to do.
    """
    failed: dict[str, str] = {}
    levels = [top]
    for part in parent.relative_to(top).parts:
        levels.append(levels[-1] / part)
    for level in levels:
        enabled = (level / "cgroup.subtree_control").read_text().split()
        for controller in wanted:
            if controller in enabled or controller in failed:
                continue
            why = _why_occupied(level) or _enable_one(level, controller)
            if why:
                failed[controller] = why
    return failed


def _why_occupied(level: Path) -> str:
    """Reason why no controller may be enabled below the group, or "" when nothing is in the way.

    Asked before writing: with processes in it the kernel refuses memory and io, but takes cpu and
    pids and makes the group a threaded domain, below which no container can live.
    """
    if not (level / "cgroup.type").exists():  # the real root may have processes
        return ""
    for _ in range(EVACUATION_ROUNDS):
        processes = (level / "cgroup.procs").read_text().split()
        if not processes:
            return ""
        if str(os.getpid()) not in processes or not _evacuate(level, processes):
            break
    return f"processes live in {level} itself; move them into a group below it"


def _enable_one(level: Path, controller: str) -> str:
    """Reason of failure, or ""."""
    try:
        (level / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EINVAL}:
            return f"it is not delegated to {level}; with systemd: Delegate=yes for this unit"
        return f"{level}/cgroup.subtree_control: {error.strerror}"
    return ""


def _evacuate(level: Path, processes: Iterable[str]) -> bool:
    """Move the processes of a group, ours among them, to its leaf `init`."""
    try:
        leaf = level / "init"
        leaf.mkdir(exist_ok=True)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)
    except OSError:
        return False
    return True


def _make_v1(
    hierarchies: Hierarchies,
    used: set[str],
    name: str,
    made: list[Path],
    undo: contextlib.ExitStack,
) -> dict[str, Branch]:
    v1: dict[str, Branch] = {}
    for directory in sorted(set(hierarchies.v1.values())):
        names = frozenset(key for key, value in hierarchies.v1.items() if value == directory)
        if names.isdisjoint(used):
            continue
        branch = _make_branch(directory, name, names, made, undo)
        v1.update(dict.fromkeys(names, branch))
    return v1


def _make_branch(
    top: Path, name: str, controllers: frozenset[str], made: list[Path], undo: contextlib.ExitStack
) -> Branch:
    level = top
    for part in name.split("/"):
        level = level / part
        try:
            level.mkdir(mode=0o755)
            made.append(level)
        except FileExistsError:
            pass
        except OSError as error:
            raise KernelError("make parent cgroup", error.errno or 0, str(level)) from error
        try:
            if "cpuset" in controllers:
                _fill_cpuset(level)
            if "memory" in controllers:  # kernels before 5.11: limits reach groups made inside
                _write_if_different(level / "memory.use_hierarchy", "1")
        except OSError as error:
            raise KernelError("prepare parent cgroup", error.errno or 0, str(level)) from error
    fd = os.open(level, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return Branch(level, fd, controllers)


def _fill_cpuset(group: Path) -> None:
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not (group / file).read_text().strip():
            (group / file).write_text((group.parent / file).read_text())
    _write_if_different(group / "cgroup.clone_children", "1")


def _write_if_different(file: Path, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if file.read_text().strip() != value:
            with contextlib.suppress(PermissionError):
                file.write_text(value)


def _versions(hierarchies: Hierarchies, failed: frozenset[str]) -> dict[str, int]:
    versions = {}
    for controller in CONTROLLERS:
        if V1_NAMES.get(controller, controller) in hierarchies.v1:
            versions[controller] = 1
        elif controller in hierarchies.v2_controllers - failed:
            versions[controller] = 2
    return versions


def _host(
    versions: Mapping[str, int],
    missing: Mapping[str, str],
    v1: Mapping[str, Branch],
    v2: Branch | None,
) -> Host:
    cpus: frozenset[int] | None = frozenset()
    nodes: frozenset[int] | None = frozenset()
    if "cpuset" in v1:
        cpus = parse_cpu_list(files.read_or_empty(v1["cpuset"].fd, "cpuset.cpus").strip())
        nodes = parse_cpu_list(files.read_or_empty(v1["cpuset"].fd, "cpuset.mems").strip())
    elif v2 is not None:  # cpuset.*.effective of the nearest group that has the controller
        cpus = parse_cpu_list(_nearest(v2.directory, "cpuset.cpus.effective"))
        nodes = parse_cpu_list(_nearest(v2.directory, "cpuset.mems.effective"))
    return Host(versions, os.cpu_count() or 1, cpus or frozenset(), nodes or frozenset(), missing)


def _nearest(group: Path, file: str) -> str:
    for level in (group, *group.parents):
        with contextlib.suppress(OSError):
            return (level / file).read_text().strip()
    return ""


def _always(v1: Mapping[str, Branch], v2: Branch | None, *, can_freeze: bool) -> tuple[Branch, ...]:
    """Where each container has its own group.

    For limits and counters: memory, pids, blkio; cpu also so that containers share the CPU
    fairly. v2 counts CPU time without any controller (cpu.stat), so cpuacct is for hosts without
    it; likewise the freezer.
    """
    names = ["memory", "pids", "cpu", "blkio"]
    names += [] if v2 is not None else ["cpuacct"]
    names += [] if can_freeze else ["freezer"]
    found = {v1[name].fd: v1[name] for name in names if name in v1}
    return (*found.values(), *([v2] if v2 is not None else []))


def _share_default_devices(parent: Parent, undo: contextlib.ExitStack) -> None:
    branch = parent.v1.get("devices") or parent.v2
    if branch is None:
        return
    path = branch.directory / SHARED
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o755)
        if parent.needs_device_program():
            parent.default_program = devices.load(devices.program(devices.DEFAULT_RULES))
            undo.callback(os.close, parent.default_program)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                devices.replace(fd, parent.default_program)
            finally:
                os.close(fd)
        else:
            write_device_list(branch.fd, SHARED, devices.DEFAULT_RULES)
            parent.default_tasks = os.open(path / "tasks", os.O_WRONLY | os.O_CLOEXEC)
            undo.callback(os.close, parent.default_tasks)
    except OSError as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError("write default devices", error.errno or 0, str(path)) from error


def write_device_list(fd: int, group: str, rules: Iterable[devices.DeviceRule]) -> None:
    """v1: allow exactly `rules`. Raises OSError; some of the list may be written then.

    Deny-all first is the only way to drop rules; groups in use keep their open devices.
    """
    wanted = devices.merged(rules)
    listed = {line.strip() for line in files.read(fd, f"{group}/devices.list").splitlines()}
    if listed == {str(rule) for rule in wanted}:
        return
    files.write(fd, f"{group}/devices.deny", b"a")
    for rule in wanted:
        files.write(fd, f"{group}/devices.allow", str(rule).encode("ascii"))
