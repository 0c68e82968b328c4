"""Tiny containers for kernel tests: a plan, a spawn, what the program said, how it ended."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dockpy import mounts
from dockpy.plan import Plan
from dockpy.spawn import Spawned, StepFailed, spawn
from dockpy.start import StartSpec, start_plan
from patience import patient

DEFAULT_CAPABILITIES = 0xA00405FB
"""Some set that every machine can give, capabilities(7)."""
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LONG = patient(20.0)
"""Seconds after which a test gives up: a hang, not a measurement."""

BARE = StartSpec(
    root_slot=0,
    argv=("/bin/true",),
    env=(PATH, "HOME=/root"),
    cwd="/",
    uid=0,
    gid=0,
    groups=(),
    hostname="tiny",
    domainname="",
    tty_slot=None,
    devpts_slot=None,
    stdin_slot=None,
    stdout_slot=None,
    stderr_slot=None,
    cgroup_tasks_slots=(),
    network="none",
    capabilities=DEFAULT_CAPABILITIES,
    seccomp=None,
    no_new_privileges=False,
    rlimits=(),
    oom_score_adj=0,
    privileged=False,
    read_only=False,
    binds=(),
    tmpfs=(),
    shm_size=1 << 20,
    devices=(),
    init_slot=None,
    mount_cgroup=False,
)


@dataclass(frozen=True)
class Ran:
    """What a program wrote (both streams) and its exit code, 128+n for signal n."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass
class Starts:
    """Makes roots over `base` below `work`, and runs programs in them."""

    base: Path
    work: Path
    open: list[int] = field(default_factory=list)
    children: list[Spawned] = field(default_factory=list)

    def layer(self) -> Path:
        """A fresh directory to put above the base."""
        return self._fresh("layer")

    def root(self, *layers: Path, volatile: bool = True) -> int:
        """A detached overlay root: `layers`, top-most first, over the base."""
        upper, work = self._fresh("upper"), self._fresh("work")
        descriptor = mounts.overlay([*layers, self.base], upper, work, volatile=volatile)
        self.open.append(descriptor)
        return descriptor

    def keep(self, descriptor: int) -> int:
        """A descriptor that is closed at the end of the test."""
        self.open.append(descriptor)
        return descriptor

    def spawn(self, spec: StartSpec, slots: Sequence[int]) -> Spawned:
        """Raises what the plan makes of a failed step. At the latest the test's end is its end."""
        child = spawn_plan(start_plan(spec), slots)
        self.children.append(child)
        return child

    def finish(self, child: Spawned, reader: int) -> Ran:
        """Read until the end, reap."""
        text = read_until(reader, None)
        self.children.remove(child)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        os.close(child.pidfd)
        return Ran(128 - code if code < 0 else code, text)

    def run(
        self, *argv: str, slots: Sequence[int] = (), root: int | None = None, **changes: object
    ) -> Ran:
        """Run a program (one word: a shell script) to its end. Slot 0 is the root, 1 the output."""
        if len(argv) == 1:
            argv = ("/bin/sh", "-c", argv[0])
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            spec = replace(BARE, argv=argv, stdout_slot=1, stderr_slot=1)
            spec = replace(spec, **changes)  # type: ignore[arg-type]
            own = self.root() if root is None else root
            try:
                child = self.spawn(spec, [own, writer, *slots])
            finally:
                os.close(writer)
            return self.finish(child, reader)
        finally:
            os.close(reader)

    def close(self) -> None:
        for child in self.children:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            os.close(child.pidfd)
        for descriptor in self.open:
            os.close(descriptor)

    def _fresh(self, kind: str) -> Path:
        path = self.work / f"{kind}{len(list(self.work.iterdir()))}"
        path.mkdir()
        return path


def spawn_plan(plan: Plan, slots: Sequence[int]) -> Spawned:
    """Spawn, with a failed step as the exception that the plan makes of it."""
    try:
        return spawn(plan.pack(), slots)
    except StepFailed as failure:
        raise plan.error(failure.index, failure.errno) from None


def read_until(reader: int, wanted: str | None) -> str:
    """What comes from `reader` until `wanted` does, or the end."""
    deadline = time.monotonic() + LONG
    text = b""
    while wanted is None or wanted.encode() not in text:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"no end of the program in {LONG} s; it said {text!r}")
        try:
            more = os.read(reader, 65536)
        except OSError:  # a terminal whose other end is closed says EIO
            break
        if not more:
            break
        text += more
    return text.decode(errors="replace")
