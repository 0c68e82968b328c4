"""From a packed plan to a running process. Knows descriptors and failed steps; no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dockpy._clone import try_spawn


class StepFailed(Exception):
    """A step the kernel refused, in numbers; `Plan.error` turns them into words.

    `index` counts from 1; 0 is the clone itself.
    """

    def __init__(self, index: int, errno: int) -> None:
        super().__init__(index, errno)
        self.index = index
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process and its pidfd (close-on-exec, the caller's)."""

    pid: int
    pidfd: int


def spawn(plan: bytes, descriptors: Sequence[int], *, cgroup_fd: int | None = None) -> Spawned:
    """Clone a child that carries the plan out; blocks until it executes the program.

    `descriptors` are the plan's slots and stay the caller's; `cgroup_fd` is a v2 directory the
    child starts in. The GIL is released meanwhile. StepFailed: nothing is left of the child.
    ValueError: the bytes are no plan. Source: clone(2), notes on CLONE_VFORK and CLONE_INTO_CGROUP.
    """
    pid, pidfd, index, err = try_spawn(plan, descriptors, -1 if cgroup_fd is None else cgroup_fd)
    if pid == 0:
        raise StepFailed(index, err)
    return Spawned(pid, pidfd)
