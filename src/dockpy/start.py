"""What a container's child does before its program runs: from a decided `StartSpec` to a `Plan`.

The rules, and where they come from: the paths that are masked and read-only are those of Docker's
current default (its `oci/defaults.go` as data); nodes and links in /dev those of the OCI runtime
spec, "Default Devices"; the order (cgroup before namespaces, mounts before pivot, identity last)
from capabilities(7), cgroup_namespaces(7), pivot_root(2) and seccomp(2). Pure.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from dockpy.errors import UsageError
from dockpy.plan import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    DIRECTORY,
    FILE,
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    REAL_DIRECTORY,
    Plan,
)

NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

READ_ONLY_PATHS = ("proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger")
MASKED_PATHS = (
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
)
DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
LINKS = (
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("/proc/kcore", "dev/core"),
    ("pts/ptmx", "dev/ptmx"),
)
_CLOSED = NOSUID | NODEV | NOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """A detached mount and where it goes in the container. `target` may lead through links."""

    slot: int
    target: str
    read_only: bool
    is_directory: bool
    recursive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is to be executed and as whom. Slots are indices of descriptors.

    `capabilities` is the mask for bounding, permitted and effective; `rlimits` are (resource
    number, soft, hard).
    """

    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    tty_slot: int | None
    stdin_slot: int | None
    stdout_slot: int | None
    stderr_slot: int | None
    cgroup_tasks_slots: tuple[int, ...]
    capabilities: int
    seccomp: bytes | None
    no_new_privileges: bool
    rlimits: tuple[tuple[int, int, int], ...]
    oom_score_adj: int
    init_slot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnterSpec(Program):
    """One more program in a container that runs: `container_slot` is the pidfd of its first, and
    `root_slot` that one's root directory.

    `own_memory`: a process in there may trace others, see `Plan.enter`.
    """

    container_slot: int
    root_slot: int
    own_memory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec(Program):
    """Everything decided, nothing left to look up.

    `devices` are (path, "c" or "b", major, minor, mode). `cgroup_binds` are (slot, name) of
    detached, read-only mounts of the container's own v1 groups, which appear as
    /sys/fs/cgroup/<name> when `mount_cgroup` says so; without any, and without v1 `tasks`, it is
    the v2 hierarchy.
    """

    root_slot: int
    hostname: str
    domainname: str
    devpts_slot: int | None
    network: Literal["none", "host"] | int
    sysfs_slot: int | None = None
    privileged: bool
    read_only: bool
    binds: tuple[BindMount, ...]
    tmpfs: tuple[tuple[str, str], ...]
    shm_size: int
    devices: tuple[tuple[str, str, int, int, int], ...]
    mount_cgroup: bool
    cgroup_binds: tuple[tuple[int, str], ...] = ()


# -- what is the same in every start, packed once ----------------------------------------------

_STANDARD = Plan()


def _standard(add: Callable[[Plan], None]) -> slice:
    """Where in `_STANDARD` the steps are that `add` appends."""
    before = len(_STANDARD.labels)
    add(_STANDARD)
    return slice(before, len(_STANDARD.labels))


def _device_directory(plan: Plan) -> None:
    """/dev: a tmpfs with the default nodes and links, and mount points."""
    plan.umask(0)
    plan.mount(
        "tmpfs",
        "dev",
        options=(("mode", "755"), ("size", "65536k")),
        attributes=NOSUID,
        create=REAL_DIRECTORY,
    )
    for name, major, minor in DEVICES:
        plan.node(f"dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for target, path in LINKS:
        plan.symlink(target, path)
    for name, mode in (("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o755)):
        plan.mkdir(f"dev/{name}", mode)
    plan.mount("mqueue", "dev/mqueue", attributes=_CLOSED)


def _closed_paths(plan: Plan) -> None:
    for path in READ_ONLY_PATHS:
        plan.read_only(path)
    for path in MASKED_PATHS:
        plan.mask(path)
    plan.mask_cpus()


_PROC = _standard(
    lambda plan: plan.mount("proc", "proc", attributes=_CLOSED, create=REAL_DIRECTORY)
)
_SYSFS = _standard(
    lambda plan: plan.mount("sysfs", "sys", attributes=_CLOSED | RDONLY, create=REAL_DIRECTORY)
)
_DEVICE_DIRECTORY = _standard(_device_directory)
_DEVPTS = _standard(
    lambda plan: plan.mount(
        "devpts",
        "dev/pts",
        options=(("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")),
        attributes=NOSUID | NOEXEC,
    )
)
_CLOSED_PATHS = _standard(_closed_paths)


# -- one start ---------------------------------------------------------------------------------


def start_plan(spec: StartSpec) -> Plan:
    """The steps of one start, in order. UsageError for a target or device that cannot be."""
    plan = Plan(NAMESPACES | (CLONE_NEWNET if spec.network == "none" else 0), _STANDARD)
    _join(plan, spec)
    plan.private_mounts()
    plan.root(spec.root_slot)
    plan.take(_STANDARD, _PROC)
    if spec.oom_score_adj:
        plan.write_file("proc/self/oom_score_adj", str(spec.oom_score_adj))
    _kernel_objects(plan, spec)
    _devices(plan, spec)
    _mounts(plan, spec)
    if not spec.privileged:
        plan.take(_STANDARD, _CLOSED_PATHS)
    if spec.cwd != "/":
        plan.make_directory(spec.cwd)
    if spec.read_only:
        plan.set_read_only("/")
    plan.pivot()
    _streams(plan, spec)
    _identity(plan, spec)
    return plan


def enter_plan(spec: EnterSpec) -> Plan:
    """The steps of one more program in a running container, in order."""
    plan = Plan()
    for slot in spec.cgroup_tasks_slots:
        plan.join_cgroup(slot)
    plan.enter(spec.container_slot, spec.root_slot, own_memory=spec.own_memory)
    if spec.oom_score_adj:
        plan.write_file("proc/self/oom_score_adj", str(spec.oom_score_adj))
    plan.session()
    plan.umask(0o022)
    _streams(plan, spec)
    _identity(plan, spec)
    return plan


def _join(plan: Plan, spec: StartSpec) -> None:
    for slot in spec.cgroup_tasks_slots:
        plan.join_cgroup(slot)
    plan.new_cgroup_namespace()
    if isinstance(spec.network, int):
        plan.join_namespace(spec.network, CLONE_NEWNET)
    elif spec.network == "none":
        plan.loopback()
    plan.session()
    plan.hostname(spec.hostname)
    if spec.domainname:
        plan.domainname(spec.domainname)


def _kernel_objects(plan: Plan, spec: StartSpec) -> None:
    """/sys and the cgroups in it."""
    if spec.privileged:
        plan.mount("sysfs", "sys", attributes=_CLOSED, create=REAL_DIRECTORY)
    elif spec.sysfs_slot is not None:
        plan.attach(spec.sysfs_slot, "sys", create=REAL_DIRECTORY)
    else:
        plan.take(_STANDARD, _SYSFS)
    if not spec.mount_cgroup:
        return
    if spec.cgroup_binds:
        plan.mount(
            "tmpfs",
            "sys/fs/cgroup",
            options=(("mode", "755"), ("size", "64k")),
            attributes=_CLOSED,
        )
        for slot, name in spec.cgroup_binds:
            plan.attach(slot, f"sys/fs/cgroup/{name}", create=DIRECTORY)
        plan.set_read_only("sys/fs/cgroup")
    elif not spec.cgroup_tasks_slots:
        writable = 0 if spec.privileged else RDONLY
        plan.mount("cgroup2", "sys/fs/cgroup", attributes=_CLOSED | writable)


def _devices(plan: Plan, spec: StartSpec) -> None:
    plan.take(_STANDARD, _DEVICE_DIRECTORY)
    if spec.devpts_slot is not None:
        plan.attach(spec.devpts_slot, "dev/pts", create=DIRECTORY)
    else:
        plan.take(_STANDARD, _DEVPTS)
    plan.mount(
        "tmpfs",
        "dev/shm",
        options=(("mode", "1777"), ("size", str(spec.shm_size))),
        attributes=_CLOSED,
    )
    made = {"dev"}
    for path, kind, major, minor, mode in spec.devices:
        _device(plan, made, path, kind, os.makedev(major, minor), mode)
    if spec.tty_slot is not None:
        plan.console(spec.tty_slot)
    plan.umask(0o022)


_TAKEN = frozenset(
    {f"dev/{name}" for name, _, _ in DEVICES}
    | {path for _, path in LINKS}
    | {"dev/pts", "dev/shm", "dev/mqueue", "dev/console"}
)


def _device(plan: Plan, made: set[str], path: str, kind: str, device: int, mode: int) -> None:
    """A device somebody asked for; it can only lie in /dev, the one place where devices work."""
    place = posixpath.normpath(f"/{path}").lstrip("/")
    if not place.startswith("dev/"):
        raise UsageError(f"device {path}: devices work below /dev only; name a path there")
    if place in _TAKEN:
        return  # every container has it, or its own instead
    parts = place.split("/")
    if f"{parts[0]}/{parts[1]}" in _TAKEN:
        raise UsageError(
            f"device {path}: /dev/{parts[1]} is a mount of its own; choose another path"
        )
    for depth in range(2, len(parts)):
        directory = "/".join(parts[:depth])
        if directory not in made:
            made.add(directory)
            plan.mkdir(directory, 0o755)
    plan.node(place, (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | mode, device)


def _mounts(plan: Plan, spec: StartSpec) -> None:
    """tmpfs and binds, outer ones first, else in the order given."""
    wanted: list[tuple[str, BindMount | str]] = [*spec.tmpfs]
    wanted += [(bind.target, bind) for bind in spec.binds]
    wanted.sort(key=lambda one: posixpath.normpath(one[0]).strip("/").count("/"))
    for target, what in wanted:
        if posixpath.normpath(f"/{target}").strip("/") == "":
            raise UsageError("nothing can be mounted on /; choose a directory in it")
        if isinstance(what, BindMount):
            plan.attach(what.slot, target, create=DIRECTORY if what.is_directory else FILE)
        else:
            settings, attributes = tmpfs_options(what)
            plan.mount("tmpfs", target, options=settings, attributes=attributes)


def _streams(plan: Plan, spec: Program) -> None:
    if spec.tty_slot is not None:
        plan.terminal(spec.tty_slot, spec.uid)
    else:
        slots = (spec.stdin_slot, spec.stdout_slot, spec.stderr_slot)
        stdin, stdout, stderr = (-1 if slot is None else slot for slot in slots)
        plan.streams(stdin, stdout, stderr, spec.uid)
    plan.close_descriptors(-1 if spec.init_slot is None else spec.init_slot)


def _identity(plan: Plan, spec: Program) -> None:
    """Limits, user, capabilities, filter, program: from here on ever less is allowed.

    Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go.
    """
    for resource, soft, hard in spec.rlimits:
        plan.limit(resource, soft, hard)
    if spec.no_new_privileges:
        plan.no_new_privileges()
    elif spec.seccomp is not None:
        plan.seccomp(spec.seccomp)
    plan.bound_capabilities(spec.capabilities)
    if spec.cwd != "/":
        plan.chdir(spec.cwd, early=True)
    plan.groups(spec.groups)
    plan.ids(spec.uid, spec.gid)
    plan.capabilities(spec.capabilities if spec.uid == 0 else 0)
    plan.chdir(spec.cwd)
    plan.reset_signals()
    if spec.no_new_privileges and spec.seccomp is not None:
        plan.seccomp(spec.seccomp)
    if spec.init_slot is not None:
        plan.execute_slot(("init", "--", *spec.argv), spec.env)
    else:
        plan.execute(spec.argv, spec.env, list(candidates(spec.argv[0], spec.env)))


def candidates(program: str, env: tuple[str, ...]) -> Iterator[str]:
    """Where a program may lie: itself when it has a slash, else below each entry of PATH.

    Source: execvp(3); an empty entry is the working directory.
    """
    if "/" in program or not program:
        yield program
        return
    path = next((entry[5:] for entry in env if entry.startswith("PATH=")), DEFAULT_PATH)
    for directory in (path or DEFAULT_PATH).split(":"):
        yield f"{directory or '.'}/{program}"


_ATTRIBUTES = {
    "ro": RDONLY,
    "nosuid": NOSUID,
    "nodev": NODEV,
    "noexec": NOEXEC,
    "noatime": 0x10,
    "strictatime": 0x20,
    "nodiratime": 0x80,
}
_CLEARED = {"rw": RDONLY, "suid": NOSUID, "dev": NODEV, "exec": NOEXEC}
_IGNORED = frozenset({"defaults", "async", "atime", "diratime", "relatime"})
_SETTINGS = frozenset(
    {"size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol", "inode32", "inode64"}
)


def tmpfs_options(text: str) -> tuple[list[tuple[str, str]], int]:
    """File system settings and mount attributes from `size=1m,ro,...`; noexec by default.

    UsageError for an option that tmpfs(5) does not have.
    """
    attributes = _CLOSED
    settings: dict[str, str] = {"mode": "1777"}
    for word in filter(None, text.split(",")):
        key, _, value = word.partition("=")
        if word in _ATTRIBUTES:
            attributes |= _ATTRIBUTES[word]
        elif word in _CLEARED:
            attributes &= ~_CLEARED[word]
        elif key in _SETTINGS:
            settings[key] = value
        elif word not in _IGNORED:
            raise UsageError(f"tmpfs has no option {word!r}; known: {', '.join(sorted(_SETTINGS))}")
    return list(settings.items()), attributes
