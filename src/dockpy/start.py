"""What a container's child does before its program runs: from a decided `StartSpec` to a `Plan`.

The rules, and where they come from: the paths that are masked and read-only are those of Docker's
current default (its `oci/defaults.go` as data); nodes and links in /dev those of the OCI runtime
spec, "Default Devices"; the order (cgroup before namespaces, mounts before pivot, identity last)
from capabilities(7), cgroup_namespaces(7), pivot_root(2) and seccomp(2). Pure.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dockpy.plan import (
    CLONE_NEWCGROUP,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """A detached mount and where it goes in the container."""

    slot: int
    target: str
    read_only: bool
    is_directory: bool
    recursive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """Everything decided, nothing left to look up. Slots are indices of descriptors.

    `capabilities` is the mask for bounding, permitted and effective; `rlimits` are (resource
    number, soft, hard); `devices` are (path, "c" or "b", major, minor, mode).
    """

    root_slot: int
    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    hostname: str
    domainname: str
    tty_slot: int | None
    devpts_slot: int | None
    stdin_slot: int | None
    stdout_slot: int | None
    stderr_slot: int | None
    cgroup_tasks_slots: tuple[int, ...]
    network: Literal["none", "host"] | int
    capabilities: int
    seccomp: bytes | None
    no_new_privileges: bool
    rlimits: tuple[tuple[int, int, int], ...]
    oom_score_adj: int
    privileged: bool
    read_only: bool
    binds: tuple[BindMount, ...]
    tmpfs: tuple[tuple[str, str], ...]
    shm_size: int
    devices: tuple[tuple[str, str, int, int, int], ...]
    init_slot: int | None
    mount_cgroup: bool


def start_plan(spec: StartSpec) -> Plan:
    """The steps of one start, in order."""
    plan = Plan(NAMESPACES | (CLONE_NEWNET if spec.network == "none" else 0))
    _join(plan, spec)
    plan.private_mounts()
    plan.root(spec.root_slot)
    _kernel_file_systems(plan, spec)
    _devices(plan, spec)
    for target, options in spec.tmpfs:
        settings, attributes = tmpfs_options(options)
        plan.mount("tmpfs", target, options=settings, attributes=attributes)
    for bind in spec.binds:
        plan.attach(bind.slot, bind.target, create=DIRECTORY if bind.is_directory else FILE)
    if not spec.privileged:
        for path in READ_ONLY_PATHS:
            plan.read_only(path)
        for path in MASKED_PATHS:
            plan.mask(path)
    if spec.read_only:
        plan.make_directory(spec.cwd)
        plan.root_read_only()
    plan.pivot()
    if not spec.read_only:
        plan.make_directory(spec.cwd)
    _identity(plan, spec)
    return plan


def _join(plan: Plan, spec: StartSpec) -> None:
    for slot in spec.cgroup_tasks_slots:
        plan.join_cgroup(slot)
    plan.unshare(CLONE_NEWCGROUP, "make a cgroup namespace")
    if isinstance(spec.network, int):
        plan.join_namespace(spec.network, CLONE_NEWNET)
    elif spec.network == "none":
        plan.loopback()
    plan.session()
    plan.hostname(spec.hostname)
    if spec.domainname:
        plan.domainname(spec.domainname)


def _kernel_file_systems(plan: Plan, spec: StartSpec) -> None:
    closed = NOSUID | NODEV | NOEXEC
    writable = 0 if spec.privileged else RDONLY
    plan.mount("proc", "proc", attributes=closed, create=REAL_DIRECTORY)
    if spec.oom_score_adj:
        plan.write_file("proc/self/oom_score_adj", str(spec.oom_score_adj))
    plan.mount("sysfs", "sys", attributes=closed | writable, create=REAL_DIRECTORY)
    if spec.mount_cgroup:
        plan.mount("cgroup2", "sys/fs/cgroup", attributes=closed | writable)


def _devices(plan: Plan, spec: StartSpec) -> None:
    closed = NOSUID | NODEV | NOEXEC
    plan.umask(0)
    plan.mount(
        "tmpfs",
        "dev",
        options=(("mode", "755"), ("size", "65536k")),
        attributes=NOSUID | NOEXEC,
        create=REAL_DIRECTORY,
    )
    for name, major, minor in DEVICES:
        plan.node(f"dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for target, path in LINKS:
        plan.symlink(target, path)
    for name, mode in (("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o755)):
        plan.mkdir(f"dev/{name}", mode)
    if spec.devpts_slot is not None:
        plan.attach(spec.devpts_slot, "dev/pts", create=DIRECTORY)
    else:
        options = (("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"))
        plan.mount("devpts", "dev/pts", options=options[1:], attributes=NOSUID | NOEXEC)
    plan.mount(
        "tmpfs",
        "dev/shm",
        options=(("mode", "1777"), ("size", str(spec.shm_size))),
        attributes=closed,
    )
    plan.mount("mqueue", "dev/mqueue", attributes=closed)
    for path, kind, major, minor, mode in spec.devices:
        _device(plan, path, kind, os.makedev(major, minor), mode)
    if spec.tty_slot is not None:
        plan.console()
    plan.umask(0o022)


def _device(plan: Plan, path: str, kind: str, device: int, mode: int) -> None:
    """A device somebody asked for; it can only lie in /dev, the one place where devices work."""
    below = path.strip("/").split("/")
    for depth in range(2, len(below)):
        plan.mkdir("/".join(below[:depth]), 0o755)
    plan.node("/".join(below), (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | mode, device)


def _identity(plan: Plan, spec: StartSpec) -> None:
    if spec.tty_slot is not None:
        plan.terminal(spec.tty_slot, spec.uid)
    else:
        plan.streams(
            -1 if spec.stdin_slot is None else spec.stdin_slot,
            -1 if spec.stdout_slot is None else spec.stdout_slot,
            -1 if spec.stderr_slot is None else spec.stderr_slot,
            spec.uid,
        )
    plan.close_descriptors()
    for resource, soft, hard in spec.rlimits:
        plan.limit(resource, soft, hard)
    if spec.no_new_privileges:
        plan.no_new_privileges()
    elif spec.seccomp is not None:
        plan.seccomp(spec.seccomp)
    plan.bound_capabilities(spec.capabilities)
    plan.groups(spec.groups)
    plan.ids(spec.uid, spec.gid)
    plan.capabilities(spec.capabilities if spec.uid == 0 else 0)
    plan.chdir(spec.cwd)
    plan.reset_signals()
    if spec.no_new_privileges and spec.seccomp is not None:
        plan.seccomp(spec.seccomp)
    if spec.init_slot is not None:
        plan.execute_slot(spec.init_slot, ("init", "--", *spec.argv), spec.env)
    else:
        plan.execute(spec.argv, spec.env, list(candidates(spec.argv[0], spec.env)))


def candidates(program: str, env: tuple[str, ...]) -> Iterator[str]:
    """Where a program may lie: itself when it has a slash, else below each entry of PATH."""
    if "/" in program:
        yield program
        return
    path = next((entry[5:] for entry in env if entry.startswith("PATH=")), DEFAULT_PATH)
    for directory in (path or DEFAULT_PATH).split(":"):
        yield f"{directory or '.'}/{program}"


_ATTRIBUTES = {"ro": RDONLY, "nosuid": NOSUID, "nodev": NODEV, "noexec": NOEXEC}
_CLEARED = {"rw": RDONLY, "suid": NOSUID, "dev": NODEV, "exec": NOEXEC}


def tmpfs_options(text: str) -> tuple[list[tuple[str, str]], int]:
    """File system settings and mount attributes from `size=1m,ro,...`; noexec by default."""
    attributes = NOSUID | NODEV | NOEXEC
    settings: dict[str, str] = {"mode": "1777"}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if key in _ATTRIBUTES:
            attributes |= _ATTRIBUTES[key]
        elif key in _CLEARED:
            attributes &= ~_CLEARED[key]
        elif equals:
            settings[key] = value
    return list(settings.items()), attributes
