"""Out of the cgroups of whoever starts the daemon, before it is the daemon.

A client may run in a user's session, in a service, or in a CI step with 100 MB: groups that are
limited, and killed as a whole when they are done. A daemon is everybody's, so one that a client
starts leaves for the outermost group there is, in every hierarchy. What it allocates is charged
there from its first page on (v1 does not move charges). Its supervisors are born there too.

A daemon that somebody starts (`dockpy daemon`), a service manager's unit among them, stays where it
was put: its place is somebody's decision.

Sources: cgroups(7), proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v2.rst. Loaded in the
client, which is why it reads the mount table by itself.
"""

from __future__ import annotations

import errno
import os

Hierarchy = frozenset[str]
"""v1 controllers and names as `name=systemd`; empty for v2."""
LEAF = "init"
"""Below an outermost v2 group that must have no processes itself; see cgroups/parent."""


def leave_all() -> list[str]:
    """Move this process to the outermost group of every hierarchy; why it stayed in some.

    On v1 each move waits up to 15 ms for the kernel. Never raises.
    """
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as table:
            tops = outermost(table.read())
        with open("/proc/self/cgroup", errors="surrogateescape") as table:
            places = inhabited(table.read())
    except OSError as error:
        return [f"{error.filename}: {error.strerror}"]
    stayed = []
    for hierarchy, place in places.items():
        if hierarchy not in tops:
            stayed.append(f"{place}: its hierarchy is not mounted, or read-only")
            continue
        directory, root = tops[hierarchy]
        if place == root:
            continue
        try:
            enter(directory)
        except OSError as error:
            stayed.append(f"{place}: {directory}: {error.strerror}")
    return stayed


def enter(directory: str) -> None:
    """Move this process into a group, or a leaf of it where it gives controllers to those below."""
    try:
        write(f"{directory}/cgroup.procs")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        os.makedirs(f"{directory}/{LEAF}", exist_ok=True)
        write(f"{directory}/{LEAF}/cgroup.procs")


def write(procs: str) -> None:
    descriptor = os.open(procs, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def outermost(mountinfo: str) -> dict[Hierarchy, tuple[str, str]]:
    """By hierarchy, where its outermost writable directory is, and which group that is. Pure."""
    found: dict[Hierarchy, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        options = kind[2].split(",")
        if "ro" in fields[5].split(",") or "ro" in options:
            continue
        hierarchy = frozenset() if kind[0] == "cgroup2" else subsystems(options)
        root, directory = unescaped(fields[3]), unescaped(fields[4])
        if hierarchy not in found or len(root) < len(found[hierarchy][1]):
            found[hierarchy] = directory, root
    return found


def inhabited(cgroup: str) -> dict[Hierarchy, str]:
    """By hierarchy, the group that /proc/PID/cgroup tells. Pure."""
    found: dict[Hierarchy, str] = {}
    for line in cgroup.splitlines():
        _, names, place = line.split(":", 2)
        found[frozenset(names.split(",")) if names else frozenset()] = place
    return found


def subsystems(options: list[str]) -> Hierarchy:
    """What /proc/PID/cgroup calls a v1 hierarchy, from its mount's options."""
    others = {"rw", "none", "xattr", "clone_children", "cpuset_v2_mode", "noprefix", "favordynmods"}
    return frozenset(
        one for one in options if one not in others and not one.startswith("release_agent=")
    )


def unescaped(text: str) -> str:
    for code, character in {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}.items():
        text = text.replace(code, character)
    return text
