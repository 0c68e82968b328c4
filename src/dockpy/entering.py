"""From an exec to a running process: one more program in a container that runs.

As `assembly`, it gathers descriptors and decisions into a plan; here the namespaces are there
already and are entered. The program gets the container's isolation: its cgroup, capabilities,
filter and limits, unless it is privileged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dockpy import mounts
from dockpy.assembly import Assembler, Pile, Theirs, identify, make_streams
from dockpy.capabilities import mask as capability_mask
from dockpy.cgroups import Cgroup
from dockpy.errors import Conflict, KernelError, RequestError
from dockpy.model import Config
from dockpy.settings import command, environment
from dockpy.start import EnterSpec, enter_plan
from dockpy.supervision import (
    Attachment,
    Run,
    StartRequest,
    Streams,
    Supervision,
    has_ended,
    root_of,
)

TRACERS = ("SYS_PTRACE",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The program, and the container's run it goes into."""

    id: str
    run: Run
    cgroup: Cgroup
    hostname: str
    inside: Config
    """The container's own configuration."""
    config: Config
    """The program's."""
    privileged: bool
    watched: bool
    """A program with all capabilities was put there before."""


def enter(
    assembler: Assembler, supervision: Supervision, entry: Entry, attach: Sequence[Streams]
) -> tuple[Run, list[Attachment]]:
    """Execute it; blocks until the kernel does. On any error nothing is left of it.

    Raises Conflict when the container has ended, CommandNotFound, CannotExecute, KernelError.
    """
    config = entry.config
    with Pile() as pile:
        root = pile.add(root_of(entry.run))
        identity = identify(config.user, root)
        slots = [pile.add(os.dup(entry.run.pidfd)), root]

        def slot(descriptor: int) -> int | None:
            if descriptor < 0:
                return None
            slots.append(descriptor)
            return len(slots) - 1

        join = entry.cgroup.join()
        tasks = tuple(range(len(slots), len(slots) + len(join.tasks)))
        slots += [pile.add(descriptor) for descriptor in join.tasks]
        directory = -1 if join.directory is None else pile.add(join.directory)
        theirs, ours = streams_in(pile, config, root)
        inside = assembler.capabilities(entry.inside)
        capabilities = assembler.available if entry.privileged else inside
        tracers = capability_mask(TRACERS, ("ALL",), False, available=assembler.available)
        plan = enter_plan(
            EnterSpec(
                container_slot=0,
                root_slot=1,
                own_memory=entry.watched or bool(inside & tracers),
                argv=command(config),
                env=environment(config, entry.hostname, identity.home),
                cwd=config.working_dir or "/",
                uid=identity.uid,
                gid=identity.gid,
                groups=identity.groups,
                tty_slot=slot(theirs.tty),
                stdin_slot=slot(theirs.stdin),
                stdout_slot=slot(theirs.stdout),
                stderr_slot=slot(theirs.stderr),
                cgroup_tasks_slots=tasks,
                capabilities=capabilities,
                seccomp=None
                if entry.privileged
                else assembler.filters.get(config.seccomp, capabilities),
                no_new_privileges=config.no_new_privileges,
                rlimits=assembler.rlimits(config),
                oom_score_adj=config.oom_score_adj,
            )
        )
        request = StartRequest(
            container=entry.id,
            plan=plan.pack(),
            slots=slots,
            streams=ours,
            cgroup=directory,
            stdin_once=True,
        )
        outcome, attachments = supervision.start(request, attach)
        if not isinstance(outcome, tuple):
            return outcome, attachments
        if has_ended(entry.run):
            raise Conflict("the container has ended; start it first")
        raise plan.error(*outcome)


def streams_in(pile: Pile, config: Config, root: int) -> tuple[Theirs, tuple[int, int, int, int]]:
    """The program's ends and the pump's; a terminal is one of the container's own."""
    if not config.tty:
        return make_streams(pile, config)
    try:
        master, slave = mounts.terminal_in(root)
    except (OSError, KernelError) as error:
        raise RequestError(
            "the container has no /dev/pts with a free terminal; leave out -t"
        ) from error
    return Theirs(tty=pile.add(slave)), (-1, -1, -1, pile.add(master))
