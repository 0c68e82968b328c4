"""dockpy's part of the host's cgroups: one parent group, one group for each container below it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path

from dockpy.cgroups import files
from dockpy.cgroups.group import Cgroup, existing_group, new_group, recipe
from dockpy.cgroups.hierarchies import Hierarchies
from dockpy.cgroups.limits import Host, Limits
from dockpy.cgroups.parent import SHARED, Parent, make_parent
from dockpy.devices import requested_rules
from dockpy.errors import NotFound, RequestError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class CgroupTree:
    """Makes, finds and lists containers' groups. Safe to use from several threads."""

    def __init__(self, hierarchies: Hierarchies, parent: str = "dockpy") -> None:
        """`parent`: the group's path below each hierarchy's top. Raises RequestError for a bad one.

        Nothing is made before `prepare`.
        """
        self.hierarchies = hierarchies
        self.parent = parent.strip("/")
        if not all(NAME.fullmatch(part) for part in self.parent.split("/")):
            raise RequestError(f"cgroup parent {parent!r}: give a path such as dockpy or a/b")
        self._lock = threading.Lock()
        self._prepared: Parent | None = None

    def prepare(self) -> None:
        """Make the parent groups ready; done once, later calls return at once.

        Raises RequestError when there is no writable cgroup file system, KernelError when the
        kernel refuses (EPERM, EROFS: not root, or a container without its own cgroups).
        """
        with self._lock:
            if self._prepared is None:
                self._prepared = make_parent(self.hierarchies, self.parent)

    @property
    def host(self) -> Host:
        """What limits can be had here, and why others cannot."""
        return self._ready().host

    @property
    def kind(self) -> str:
        """`v1`, `v2` or `hybrid`."""
        return self.hierarchies.kind

    def check(self, limits: Limits) -> None:
        """Raise what `create` would raise for these limits, and make nothing."""
        recipe(self._ready(), limits)
        if limits.devices:
            requested_rules(limits.devices)

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Make the groups of a container; empty ones of that name are replaced.

        Raises RequestError for limits that cannot be, KernelError (EEXIST, EBUSY: a group of that
        name has processes). Nothing is left behind on failure.
        """
        return new_group(self._ready(), _checked(name), limits)

    def open(self, name: str) -> Cgroup:
        """The groups of a container that exist already. Raises NotFound if there is none."""
        parent = self._ready()
        _checked(name)
        found = [each for each in parent.branches() if files.exists(each.fd, name)]
        if not found:
            raise NotFound("cgroup", f"{self.parent}/{name}")
        return existing_group(parent, name, found)

    def names(self) -> list[str]:
        """Containers with a group in any hierarchy, sorted; half-made ones are listed too."""
        found: set[str] = set()
        for branch in self._ready().branches():
            found.update(_children(branch.directory))
        return sorted(found)

    def close(self) -> None:
        """Remove the parent groups if no container is in them, and close their descriptors.

        With containers in them the groups stay as they are, and `prepare` finds them again.
        """
        with self._lock:
            parent, self._prepared = self._prepared, None
        if parent is None:
            return
        try:
            directories = [branch.directory for branch in parent.branches()]
            if not any(map(_children, directories)):
                for directory in directories:
                    _remove(directory, parent.made)
        finally:
            parent.close()

    def _ready(self) -> Parent:
        if self._prepared is None:
            self.prepare()
        parent = self._prepared
        if parent is None:
            raise RequestError("the cgroup tree was closed")
        return parent


def _children(directory: Path) -> set[str]:
    """Names of the containers' groups in one hierarchy; none when the parent itself is gone."""
    try:
        with os.scandir(directory) as entries:
            found = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()
    return {name for name in found if NAME.fullmatch(name)}


def _remove(directory: Path, made: tuple[Path, ...]) -> None:
    """Remove an empty parent group, and those above it that were made for it."""
    for path in (directory / SHARED, directory, *reversed(made)):
        if directory in {path, path.parent} or path in directory.parents:
            with contextlib.suppress(OSError):
                path.rmdir()


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise RequestError(f"cgroup name {name!r}: letters, digits, _ . - only")
    return name
