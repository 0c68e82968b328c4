"""From a packed plan to a running process. Knows descriptors and failed steps; no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dockpy._clone import try_hold_mounts, try_network, try_spawn
from dockpy.errors import KernelError


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


def spawn(
    plan: bytes,
    descriptors: Sequence[int],
    *,
    cgroup_fd: int | None = None,
    moments: list[int] | None = None,
) -> Spawned:
    """Clone a child that carries the plan out; blocks until it executes the program.

    `descriptors` are the plan's slots and stay the caller's; `cgroup_fd` is a v2 directory the
    child starts in. `moments` gets when the child began, and when each step was done as far as it
    could be noted (up to the seccomp filter): nanoseconds of CLOCK_MONOTONIC. The GIL is released
    meanwhile. StepFailed: nothing is left of the child.
    ValueError: the bytes are no plan. A change of user makes the caller non-dumpable too, as the
    memory is shared until exec: setresuid(2), prctl(2).
    Source: clone(2), notes on CLONE_VFORK and CLONE_INTO_CGROUP.
    """
    cgroup = -1 if cgroup_fd is None else cgroup_fd
    pid, pidfd, index, err = try_spawn(plan, descriptors, cgroup, moments=moments)
    if pid == 0:
        raise StepFailed(index, err)
    return Spawned(pid, pidfd)


def hold_mounts(pidfd: int) -> int | None:
    """A descriptor that keeps a process's mounts after its end, None where that cannot be.

    While it is open, the process's exit does not wait for its mounts to be taken apart (0.2 ms);
    its close does that instead: do it in a thread that nobody waits for. Never blocks. None: the
    process is gone, or Linux is older than 6.11.
    """
    descriptor = try_hold_mounts(pidfd)
    return None if descriptor < 0 else descriptor


@dataclass(frozen=True, slots=True)
class Network:
    """A network namespace and its sysfs, read-only: descriptors (close-on-exec, the holder's)."""

    namespace: int
    sysfs: int | None
    """A detached mount; None where the kernel did not give one ahead."""

    def descriptors(self) -> tuple[int, ...]:
        return (self.namespace,) if self.sysfs is None else (self.namespace, self.sysfs)


def make_network() -> Network:
    """A new, empty network namespace with `lo` up, and its sysfs.

    Takes about 0.8 ms, a third of a start, and more the more of them there are: have some ready.
    The calling thread visits the namespace and comes back. Needs /proc. Raises KernelError.
    """
    namespace, sysfs, err = try_network()
    if namespace < 0:
        raise KernelError("make network namespace", err)
    return Network(namespace, None if sysfs < 0 else sysfs)
