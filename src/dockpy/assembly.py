"""From a container to a running process: gathers descriptors and decisions into a plan.

Everything here runs in the engine's process; the plan runs in the child. Descriptors made on the
way lie on a `Pile` that closes what the run does not keep. Nothing waits for a disk flush, and
nothing is looked up by name inside the container's root except through `mounts.open_in_root`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from dockpy import mounts, stdio
from dockpy._process import close_all
from dockpy.capabilities import DEFAULT
from dockpy.capabilities import mask as capability_mask
from dockpy.cgroups import Cgroup, CgroupTree, Limits
from dockpy.devices import parse_device
from dockpy.errors import KernelError, RequestError, SupervisorLost
from dockpy.model import Bind, Config
from dockpy.plan import Plan
from dockpy.seccomp import FilterCache
from dockpy.settings import command, environment
from dockpy.signals import parse_signal
from dockpy.spares import UPPER, WORK, Spare, spare_of
from dockpy.spawn import Network
from dockpy.start import DEVICES, BindMount, StartSpec, start_plan
from dockpy.supervision import Attachment, Run, StartRequest, Streams, Supervision
from dockpy.trace import DAEMON, OFF, Trace
from dockpy.ulimits import resource_number
from dockpy.users import Identity, resolve

OWN_DEVICES = frozenset(f"/dev/{name}" for name, _, _ in DEVICES) | {"/dev/console", "/dev/ptmx"}
OWN_DIRECTORIES = ("/dev/pts/", "/dev/shm/", "/dev/mqueue/")
"""What every container has of its own in /dev."""
LOG = "container.log"
ATTEMPTS = 8
"""How often a start is tried when supervisors die under it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two tries: when all supervisors were killed at once, a try costs no time and may
meet one after the other that nobody knows to be dead yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where one container lives on this host."""

    id: str
    config: Config
    lowers: Sequence[Path]
    directory: str
    files: Sequence[tuple[str, str]]
    """Names below /etc and texts of the container's own files."""
    files_directory: str
    """Where they are written: on a tmpfs."""
    hostname: str
    network: Network | Literal["none", "host"] = "none"
    """A namespace with all that belongs in it, the caller's; `none`: the child makes one."""
    identity: Identity | None = None
    """Known already (same image, same user, nothing written yet): no look-up."""
    gripless: bool = False
    """See `Assembler.leaves_no_grip`."""
    spare: Spare | None = None
    """Its overlay, mounted already; the start's from now on."""


@dataclass(slots=True)
class Started:
    """What a start gave: the run, the callers' attachments and what must be released at the end."""

    run: Run
    attachments: list[Attachment]
    cgroup: Cgroup
    root: int
    """Keeps the overlay mounted, so that its slow end is ours to schedule."""
    identity: Identity
    spare: Spare | None
    """The same mount, when another container may have it next."""


class Pile:
    """Descriptors to close unless they are taken off again."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def add(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def take(self, descriptor: int) -> int:
        self._descriptors.remove(descriptor)
        return descriptor

    def __enter__(self) -> Pile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close_all(self._descriptors)
        self._descriptors.clear()


class Assembler:
    """Starts containers of one engine. Thread-safe; holds only what all starts share."""

    def __init__(
        self,
        supervision: Supervision,
        cgroups: CgroupTree,
        filters: FilterCache,
        *,
        available_capabilities: int,
        open_files: tuple[int, int],
        log_root: str,
    ) -> None:
        self._supervision = supervision
        self._cgroups = cgroups
        self.filters = filters
        self.available = available_capabilities
        """All that a privileged program gets."""
        self._open_files = open_files
        self._log_root = log_root
        self._init = -1
        self._clones = True
        """Whether this kernel clones a mount that is nowhere attached, as far as is known."""
        self._lock = threading.Lock()

    def start(self, site: Site, attach: Sequence[Streams], trace: Trace = OFF) -> Started:
        """Start one container. On any error nothing is left: no mount, cgroup or descriptor.

        When the supervisor dies on the way, whatever it had started is killed and undone as far as
        it is ours, and the start is tried again.
        """
        logged = log_size(site)
        for attempt in range(ATTEMPTS - 1):
            try:
                return self._start(site, attach, trace)
            except SupervisorLost:
                undo(site, logged)
                site = again(site)
                time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
        return self._start(site, attach, trace)

    def check(self, config: Config) -> None:
        """Refuse a configuration that no start could carry out, before anything is made."""
        capabilities = self.capabilities(config)
        self.filters.get(config.seccomp, capabilities)
        self.rlimits(config)
        for text in config.devices:
            parse_device(text)
        parse_signal(config.stop_signal or "TERM")
        self._cgroups.check(limits(config))
        for bind in config.binds:
            if not os.path.exists(bind.source):
                raise RequestError(f"mount source {bind.source} does not exist; create it first")

    def capabilities(self, config: Config) -> int:
        """The mask of a container's own program."""
        return capability_mask(
            config.cap_add, config.cap_drop, config.privileged, available=self.available
        )

    def close(self) -> None:
        if self._init >= 0:
            os.close(self._init)
            self._init = -1

    def _start(self, site: Site, attach: Sequence[Streams], trace: Trace) -> Started:
        config = site.config
        with Pile() as pile:
            if site.spare is not None:
                pile.add(site.spare.tree)
            # Before the mount, which leaves a trace on the disk: an engine that comes after ours
            # was killed sees by the empty cgroup that the program never ran.
            cgroup = self._cgroups.create(site.id, limits(config))
            trace.mark(DAEMON, "cgroups made")
            try:
                tree, spare, root = self._root(pile, site)
                trace.mark(DAEMON, "root mounted, detached")
                identity = site.identity or identify(config.user, root)
                trace.mark(DAEMON, "user looked up")
                plan, request = self._prepare(pile, site, root, identity, cgroup, trace)
                outcome, attachments = self._supervision.start(request, attach)
            except BaseException:
                with contextlib.suppress(KernelError):  # the first error is the one to tell
                    cgroup.kill()
                    cgroup.remove()
                raise
            if isinstance(outcome, tuple):
                with contextlib.suppress(KernelError):
                    cgroup.remove()
                raise plan.error(*outcome)
            return Started(outcome, attachments, cgroup, pile.take(tree), identity, spare)

    def _root(self, pile: Pile, site: Site) -> tuple[int, Spare | None, int]:
        """The overlay's mount, the same as a spare if it may become one, and the child's mount."""
        config = site.config
        if site.spare is not None:
            tree = site.spare.tree
            spare = site.spare if site.gripless else None
            site.spare.note_start()
            return tree, spare, pile.add(site.spare.clone())
        upper, work = f"{site.directory}/{UPPER}", f"{site.directory}/{WORK}"
        tree = mounts.overlay(site.lowers, upper, work, volatile=config.auto_remove)
        pile.add(tree)
        if not self._clones or not site.gripless:
            return tree, None, tree
        spare = spare_of(site.lowers, site.directory, tree, volatile=config.auto_remove)
        if spare is None:
            return tree, None, tree
        try:
            return tree, spare, pile.add(spare.clone())
        except KernelError as refusal:
            if refusal.errno != errno.EINVAL:
                raise
            self._clones = False
            return tree, None, tree

    def leaves_no_grip(self, config: Config, *, own_network: bool) -> bool:
        """Whether no process outside can get descriptors from a container's processes.

        They would have to meet at a socket: in a file they share, or by its abstract name in a
        network namespace they share. `own_network`: no other container is in its namespace so
        far, and neither is the host. Nor can its processes change what is set in that namespace.
        """
        return (
            not (config.privileged or config.binds or config.volumes or config.devices)
            and own_network
            and config.seccomp == "default"
            and not self.capabilities(config) & ~DEFAULT
        )

    def _prepare(
        self,
        pile: Pile,
        site: Site,
        root: int,
        identity: Identity,
        cgroup: Cgroup,
        trace: Trace,
    ) -> tuple[Plan, StartRequest]:
        config = site.config
        slots: list[int] = [root]

        def slot(descriptor: int) -> int:
            slots.append(descriptor)
            return len(slots) - 1

        join = cgroup.join()
        tasks = tuple(slot(pile.add(descriptor)) for descriptor in join.tasks)
        cgroup_directory = -1 if join.directory is None else pile.add(join.directory)
        trace.mark(DAEMON, "cgroups opened")
        theirs, ours = make_streams(pile, config)
        trace.mark(DAEMON, "streams made")
        binds = [
            BindMount(
                slot=slot(source),
                target=bind.target,
                read_only=bind.read_only,
                is_directory=is_directory,
                recursive=bind.recursive,
            )
            for bind, source, is_directory in open_binds(pile, site)
        ]
        trace.mark(DAEMON, "/etc files written, binds cloned")
        capabilities = self.capabilities(config)
        ready = site.network
        spec = StartSpec(
            root_slot=0,
            argv=command(config),
            env=environment(config, site.hostname, identity.home),
            cwd=config.working_dir or "/",
            uid=identity.uid,
            gid=identity.gid,
            groups=identity.groups,
            hostname=site.hostname,
            domainname=config.domainname,
            tty_slot=slot(theirs.tty) if theirs.tty >= 0 else None,
            devpts_slot=slot(theirs.devpts) if theirs.devpts >= 0 else None,
            stdin_slot=slot(theirs.stdin) if theirs.stdin >= 0 else None,
            stdout_slot=slot(theirs.stdout) if theirs.stdout >= 0 else None,
            stderr_slot=slot(theirs.stderr) if theirs.stderr >= 0 else None,
            cgroup_tasks_slots=tasks,
            network=slot(ready.namespace) if isinstance(ready, Network) else ready,
            sysfs_slot=slot(ready.sysfs)
            if isinstance(ready, Network) and ready.sysfs is not None
            else None,
            capabilities=capabilities,
            seccomp=self.filters.get(config.seccomp, capabilities),
            no_new_privileges=config.no_new_privileges,
            rlimits=self.rlimits(config),
            oom_score_adj=config.oom_score_adj,
            privileged=config.privileged,
            read_only=config.read_only,
            binds=tuple(binds),
            tmpfs=tuple(config.tmpfs.items()),
            shm_size=config.shm_size,
            devices=device_nodes(config),
            init_slot=slot(self._init_program()) if config.init else None,
            mount_cgroup=self._cgroups.kind == "v2" or config.cgroup_view,
            cgroup_binds=tuple((slot(tree), name) for name, tree in view_of(pile, cgroup))
            if config.cgroup_view and self._cgroups.kind != "v2"
            else (),
        )
        plan = start_plan(spec)
        packed = plan.pack()
        trace.mark(DAEMON, "plan built and packed")
        return plan, StartRequest(
            container=site.id,
            plan=packed,
            slots=slots,
            streams=ours,
            cgroup=cgroup_directory,
            log=(
                f"{self._log_root}/{site.id}/{LOG}",
                config.log_max_size,
                config.log_max_file,
            ),
            stdin_once=config.stdin_once,
            trace=trace,
            labels=plan.labels if trace.on else (),
        )

    def rlimits(self, config: Config) -> tuple[tuple[int, int, int], ...]:
        """The asked ones; open files otherwise as the engine found them, not as it raised them."""
        import resource

        asked = {
            resource_number(one.name): (resource_number(one.name), one.soft, one.hard)
            for one in config.ulimits
        }
        asked.setdefault(resource.RLIMIT_NOFILE, (resource.RLIMIT_NOFILE, *self._open_files))
        return tuple(asked.values())

    def _init_program(self) -> int:
        with self._lock:
            if self._init < 0:
                self._init = mounts.init_program()
            return self._init


@dataclass(slots=True)
class Theirs:
    """The container's ends of its streams, -1 for none."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    tty: int = -1
    devpts: int = -1


def make_streams(pile: Pile, config: Config) -> tuple[Theirs, tuple[int, int, int, int]]:
    """The container's ends and the pump's (stdin, stdout, stderr, terminal master)."""
    if config.tty:
        mount, master, slave = (pile.add(one) for one in mounts.devpts())
        return Theirs(tty=slave, devpts=mount), (-1, -1, -1, master)
    theirs = Theirs()
    stdin = -1
    if config.open_stdin:
        theirs.stdin, stdin = (pile.add(one) for one in stdio.pipe_pair())
    stdout, theirs.stdout = (pile.add(one) for one in stdio.pipe_pair())
    stderr, theirs.stderr = (pile.add(one) for one in stdio.pipe_pair())
    return theirs, (stdin, stdout, stderr, -1)


def open_binds(pile: Pile, site: Site) -> Iterable[tuple[Bind, int, bool]]:
    """Each bind with a detached mount of its source: the container's own files, then the user's."""
    taken = {one.target for one in site.config.binds}
    own = [(name, text) for name, text in site.files if f"/etc/{name}" not in taken]
    trees = mounts.small_files(site.files_directory, own)
    for tree in trees:
        pile.add(tree)
    for (name, _), tree in zip(own, trees, strict=True):
        yield Bind("", f"/etc/{name}"), tree, False
    for bind in site.config.binds:
        source, is_directory = clone_source(pile, bind)
        yield bind, pile.add(source), is_directory


def clone_source(pile: Pile, bind: Bind) -> tuple[int, bool]:
    """A detached mount of a bind's source, and whether it is a directory."""
    try:
        source = pile.add(os.open(bind.source, os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise RequestError(
                f"mount source {bind.source} does not exist; create it first"
            ) from error
        raise
    is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
    return (
        mounts.clone_tree(source, recursive=bind.recursive, read_only=bind.read_only),
        is_directory,
    )


def view_of(pile: Pile, cgroup: Cgroup) -> Iterable[tuple[str, int]]:
    """A container's own v1 groups: name and detached, read-only mount of each."""
    opened = [(name, pile.add(directory)) for name, directory in cgroup.open_view()]
    for name, directory in opened:
        yield name, pile.add(mounts.clone_tree(directory, recursive=False, read_only=True))


def log_size(site: Site) -> int:
    """Bytes in the container's log before this start."""
    try:
        return os.stat(f"{site.directory}/{LOG}").st_size
    except FileNotFoundError:
        return 0


def again(site: Site) -> Site:
    """For one more try: a sysfs that was made ahead can be attached once, a spare was closed."""
    network = site.network
    if isinstance(network, Network):
        network = Network(network.namespace, None)
    return replace(site, network=network, spare=None)


def undo(site: Site, logged: int) -> None:
    """Take back what a start whose supervisor died may have left: lines, and a disposable upper.

    The program may have run for a moment; what it did to its volumes stays, as after a crash.
    """
    log = f"{site.directory}/{LOG}"
    if log_size(site) > logged:
        os.truncate(log, logged)
    if site.config.auto_remove:  # mounted without flushing, an upper is good for one mount
        upper, work = f"{site.directory}/{UPPER}", f"{site.directory}/{WORK}"
        before = os.stat(upper)
        for tree in (upper, work):
            shutil.rmtree(tree)
            os.mkdir(tree, 0o700)
        os.chown(upper, before.st_uid, before.st_gid)
        os.chmod(upper, stat.S_IMODE(before.st_mode))


def identify(user: str, root: int) -> Identity:
    """Ids of `user` by the container's own files."""

    def open_file(path: str) -> BinaryIO | None:
        try:
            descriptor = mounts.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return os.fdopen(descriptor, "rb")

    return resolve(user, open_file)


def limits(config: Config) -> Limits:
    """The part of a configuration that cgroups enforce."""
    return Limits(
        memory=config.memory,
        memory_swap=config.memory_swap,
        memory_reservation=config.memory_reservation,
        cpus=config.cpus,
        cpu_shares=config.cpu_shares,
        cpuset_cpus=config.cpuset_cpus,
        cpuset_mems=config.cpuset_mems,
        pids=config.pids_limit,
        blkio_weight=config.blkio_weight,
        privileged=config.privileged,
        devices=config.devices,
    )


def device_nodes(config: Config) -> tuple[tuple[str, str, int, int, int], ...]:
    """Nodes to make in /dev: those asked for, and all of the host's for a privileged container."""
    nodes = {node[0]: node for text in config.devices for node in parse_device(text).nodes()}
    if config.privileged:
        for node in parse_device("/dev").nodes():
            if node[0] not in OWN_DEVICES and not node[0].startswith(OWN_DIRECTORIES):
                nodes.setdefault(node[0], node)
    return tuple(nodes.values())
