"""The engine: the only place where images, tags, cgroups, supervisors and containers meet."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import platform
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from dockpy import _process, connecting
from dockpy.assembly import Assembler, Site, Started
from dockpy.capabilities import DEFAULT
from dockpy.cgroups import Cgroup, CgroupTree, Hierarchies
from dockpy.closing import LateCloser
from dockpy.committing import Commit, commit, stage_upper
from dockpy.container import Container, Record
from dockpy.container_files import ContainerFiles
from dockpy.entering import Entry, enter
from dockpy.errors import (
    Conflict,
    DockpyError,
    KernelError,
    NameInUse,
    NoSuchContainer,
    NotFound,
    RequestError,
)
from dockpy.execution import Execution
from dockpy.gone import Gone
from dockpy.graph import Graph, image_index
from dockpy.image_archive.loading import Loaded, load
from dockpy.image_archive.saving import Selected, save
from dockpy.janitor import Janitor
from dockpy.loading import Loading
from dockpy.model import DEFAULT_TAG, VERSION, Config, Exec, Image, State, Status
from dockpy.names import generate_id, random_name, validate_name
from dockpy.namespaces import NamespacePool
from dockpy.network.manager import Connection, NetworkManager
from dockpy.network.portalloc import PortInUse
from dockpy.network.values import HOST, Lease, Network, NetworkSettings, Owner, Wish
from dockpy.places import (
    DEFAULT_ROOT,
    cgroup_name,
    network_settings,
    prepare,
    run_directory,
    take_lock,
)
from dockpy.records import Flusher, Trash
from dockpy.references import parse
from dockpy.registry import settings as registry_settings
from dockpy.registry.names import resolve
from dockpy.registry.service import Registries
from dockpy.seccomp import FilterCache
from dockpy.settings import command, merge, merge_environment
from dockpy.spares import RECORD, Spares
from dockpy.spawn import Network as Namespace
from dockpy.supervision import Attachment, Run, Streams, Supervision
from dockpy.supervisor import CONTAINERS
from dockpy.tags import TagStore
from dockpy.trace import DAEMON, OFF, Trace
from dockpy.truncindex import TruncIndex
from dockpy.users import Identity

log = logging.getLogger(__name__)

Containers = list[Container]
Attachments = list[Attachment]
Selection = list[Selected]
"""`Runtime` has a method called list."""

NOTHING = Lease()
"""Of the network `none`."""
LANES = 2
"""Containers that are cleaned up after at once."""
BACKLOG = 64
"""Jobs of a lane's that may wait; `create` waits while there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What an engine looks after and what the host gives it."""

    version: str
    root: str
    run: str
    containers: int
    running: int
    images: int
    supervisors: tuple[int, ...]
    kernel: str
    architecture: str
    cpus: int
    memory: int
    cgroup: str
    backlog: int
    dying_networks: int
    """Cables of ended containers that the kernel still takes apart."""
    warnings: tuple[str, ...]


class Runtime:
    """One engine over one state directory; its containers outlive it.

    `root` holds images and containers, `run` (a tmpfs) sockets and what need not survive a reboot.
    `supervisors`: how many processes parent the containers, one per core by default. `network` is
    about the default network. Raises Locked when another engine owns `root`. The calling process is
    a child subreaper (prctl(2)) until `close`, so that containers of a killed supervisor stay ours.
    Thread-safe.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = DEFAULT_ROOT,
        *,
        run: str | os.PathLike[str] | None = None,
        supervisors: int | None = None,
        cgroup_parent: str | None = None,
        network: NetworkSettings | None = None,
    ) -> None:
        self.root = Path(os.path.abspath(root))
        self.run = Path(os.path.abspath(run)) if run is not None else run_directory(self.root)
        self.warnings: list[str] = []
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._ids = TruncIndex("container")
        self._held: dict[int, Started | Cgroup] = {}
        self._executions: dict[str, Execution] = {}
        self._watched: set[int] = set()
        """Runs in which a program has had all capabilities."""
        self._marked: set[str] = set()
        """Containers whose mark of a copy could not be taken away; see `writing`."""
        self._identities: dict[tuple[str, str], Identity] = {}
        self._before_mount: dict[str, State] = {}
        """While we start up: states of containers that may have run after they were written."""
        self._unwritten: dict[str, tuple[Container, Run]] = {}
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo, no_collection():
            undo.callback(os.close, take_lock(self.root))
            prepare(self.root, self.run)
            open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files[1], open_files[1]))
            undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, open_files)
            before, err = _process.set_child_subreaper(True)
            if err:
                raise KernelError("become child subreaper", err)
            undo.callback(_process.set_child_subreaper, before)
            self._flusher = Flusher()
            undo.callback(self._flusher.close)
            self._trash = Trash(self.root)
            undo.callback(self._trash.close)
            self._files = ContainerFiles(self.root, self.run, self._flusher, self._trash)
            undo.callback(self._files.close)
            images = image_index(self.root)
            loading = Loading(self.root, self.run, self._trash, self._warn, images)
            self.graph = Graph(self.root, self._flusher, self._trash, images)
            undo.callback(self.graph.close)
            self.tags = TagStore(self.root, self.graph, self._flusher)
            self.registries = Registries(
                self.root, self.graph, self.tags, self._flusher, registry_settings.load()
            )
            undo.callback(self.registries.close)
            self.tags.by_digest = self.registries.find
            self.tags.familiar = self.registries.familiar
            parent = cgroup_parent or cgroup_name(self.root)
            self.cgroups = CgroupTree(Hierarchies.detect(), parent)
            self.cgroups.prepare()
            undo.callback(self.cgroups.close)
            undo.callback(self._release_held)
            self._closer = LateCloser()
            undo.callback(self._closer.close)
            self._spares = Spares(self._trash, self._closer)
            undo.callback(self._spares.close)
            self.graph.deleted = self._spares.clear
            self._janitor = Janitor(LANES)
            undo.callback(self._janitor.close)
            count = supervisors or len(os.sched_getaffinity(0))
            self._supervision = Supervision(self.run, self.root / "containers", count, self)
            undo.callback(self._supervision.close)
            filters = FilterCache()
            filters.get("default", DEFAULT)  # now, not in the first start
            namespaces = NamespacePool()
            undo.callback(namespaces.close)
            self.networks = NetworkManager(
                self.root, network or network_settings(self.root), namespaces, self._flusher
            )
            undo.callback(self.networks.close)
            self._assembler = Assembler(
                self._supervision,
                self.cgroups,
                filters,
                available_capabilities=own_capabilities(),
                open_files=open_files,
                log_root=CONTAINERS,
            )
            undo.callback(self._assembler.close)
            self._trash.sweep()
            self._check_images()
            self._load(loading)
            self._gone = Gone(self.run)
            self._reconcile()
            self._supervision.open()
            self._janitor.put(lambda: self._save_indexes(loading))
            self._closing = undo.pop_all()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything; running containers go on and the next engine finds them."""
        self._janitor.drain()
        self._closing.close()

    # -- containers ----------------------------------------------------------------------------

    def create(self, config: Config, name: str | None = None, *, trace: Trace = OFF) -> Container:
        """Make a container from `config.image`, ready to start.

        Raises NoSuchImage, NameInUse, RequestError for a configuration that cannot work.
        """
        image = self.tags.lookup_image(config.image)
        merged = merge(image.config, config)
        command(merged)
        connecting.check(merged)
        if connecting.has_network(merged):
            self.networks.get(merged.network_mode)
        self._assembler.check(merged)
        trace.mark(DAEMON, "image found, configuration checked")
        self._janitor.wait_below(BACKLOG)
        identifier = generate_id()
        with self._lock:
            chosen = self._choose_name(name)
            self._names[chosen] = identifier
        record = Record(identifier, chosen, time.time(), merged, image.id, config.image)
        try:
            # An image without layers has what every root has.
            lowers = self._lowers(image)
            spare = self._spares.take(lowers, volatile=merged.auto_remove)
            try:
                self._files.make(record, os.stat(lowers[0]), spare)
            finally:
                if spare is not None and not self._spares.keep(identifier, spare):
                    self._spares.let_go(spare)
            trace.mark(DAEMON, "container's directories and record written")
            container = Container(self, record, State())
            with self.graph.steady_users():
                self.graph.get(image.id)  # it may have been removed meanwhile
                with self._lock:
                    self._containers[identifier] = container
                    self._ids.add(identifier)
        except BaseException as failure:
            with self._lock:
                del self._names[chosen]
            with contextlib.suppress(KernelError):  # the next start-up finds it without a record
                self._discard(record)
            if isinstance(failure, OSError) and not isinstance(failure, KernelError):
                raise KernelError(
                    "create container", failure.errno or errno.EIO, failure.filename
                ) from failure
            raise
        return container

    def get(self, reference: str) -> Container:
        """A container by id, name, or unique id prefix. NoSuchContainer, AmbiguousPrefix."""
        container = self._containers.get(reference)
        if container is not None:
            return container
        with self._lock:
            identifier = self._names.get(reference.removeprefix("/"))
        if identifier is None:
            identifier = self._ids.get(reference)
        try:
            return self._containers[identifier]
        except KeyError:
            raise NoSuchContainer(reference) from None

    def exists(self, reference: str) -> bool:
        try:
            self.get(reference)
        except RequestError:
            return False
        return True

    def list(self) -> Containers:
        """All containers, newest first."""
        with self._lock:
            containers = list(self._containers.values())
        return sorted(containers, key=lambda one: one.created, reverse=True)

    def destroy(self, container: Container, *, force: bool = False) -> None:
        """Remove a container and what it wrote. Conflict when it runs, unless `force` kills it.

        It is gone for good when this returns; its bytes are deleted in the background.
        """
        with container.removal(force=force):
            self._files.withdraw(container.record)
            self._unregister(container)
            self._janitor.put(lambda: self._remove(container), container.id)

    def exit_code_of(self, identifier: str) -> int | None:
        """The exit code of a container removed by --rm a while ago; None: not known."""
        return self._gone.exit_code(identifier)

    def keep_state(self, container: Container) -> None:
        """Write a container's state down, in the background."""
        if not container.config.auto_remove:
            self._janitor.put(lambda: self._write_state_of(container), container.id)

    # -- what containers changed ---------------------------------------------------------------

    def commit(
        self,
        container: Container,
        repository: str = "",
        tag: str = "",
        *,
        comment: str = "",
        author: str = "",
        config: Config | None = None,
        pause: bool = True,
        stop: int = -1,
    ) -> Image:
        """Make an image of a container's files, tagged if asked; blocks until it is on the disk.

        `config`: what containers of the image get when nothing is said, by default what this one
        has. `pause` stops the container's processes while its files are read. `stop`: a descriptor
        that ends it, with Cancelled, when it becomes readable; nothing is left then.
        """
        base = container.image
        with container.steady(pause=pause):
            staged = stage_upper(self.graph, container.directory / "upper", stop)
        said = Commit(
            config=config or container.config,
            command=command(container.config),
            comment=comment,
            author=author,
            container=container.id,
        )
        image = commit(self.graph, base, staged, said)
        if repository:
            self.tags.set(repository, tag or "latest", image.id, force=True)
        return image

    # -- networks ------------------------------------------------------------------------------

    def join_network(self, container: Container, network: Network, wish: Wish) -> None:
        """Put a container into one more network, now if it runs and at each start. Conflict."""
        config = container.config
        if not connecting.has_network(config):
            raise Conflict(
                f"container {container.name} has no network of its own but {config.network_mode}"
            )
        if network.default:
            raise Conflict("containers are in the default network from their start or never")
        if container.state.running:
            owner = Owner(container.id, container.name)
            lease = self.networks.join(owner, network, wish, container.state.pid)
            connecting.keep(f"{self.run}/containers/{container.id}", lease)
        self.networks.store.join(container.id, network, wish)

    def leave_network(self, container: Container, network: Network) -> None:
        """Take a container out of a network. Conflict: it is not in it."""
        joined = self.networks.store.leave(container.id, network)
        if container.state.running:
            lease = self.networks.part(Owner(container.id, container.name), network)
            connecting.keep(f"{self.run}/containers/{container.id}", lease)
        elif not joined:
            raise Conflict(
                f"container {container.name} was not put into network {network.name}; what "
                "--network said when it was made stays"
            )

    def remove_network(self, network: Network) -> None:
        """Remove a network nobody is in; who has just ended is waited for. Conflict."""
        if self.networks.users(network):
            self._janitor.drain()
        self.networks.remove(network)

    # -- images --------------------------------------------------------------------------------

    def import_image(
        self,
        source: BinaryIO | int,
        repository: str = "",
        tag: str = "",
        *,
        config: Config | None = None,
        comment: str = "",
    ) -> Image:
        """Make an image of one layer from a root file system archive, tagged if asked."""
        image = self.graph.import_archive(source, config=config or Config(), comment=comment)
        if repository:
            self.tags.set(repository, tag or "latest", image.id, force=True)
        return image

    def save(self, names: Sequence[str], out: int) -> None:
        """Write images, by name or id, to a descriptor as one archive; blocks as it does.

        A repository without a tag means all its names. Other engines read it too. NoSuchImage.
        """
        chosen: dict[str, Selected] = {}
        for one in (found for name in names for found in self._selected(name)):
            before = chosen.get(one.image.id)
            known = before.names if before is not None else ()
            chosen[one.image.id] = Selected(one.image, tuple(dict.fromkeys((*known, *one.names))))
        save(self.graph, list(chosen.values()), out)

    def load(self, source: BinaryIO | int) -> Sequence[Loaded]:
        """Take in the images of an archive that `save`, or another engine, wrote.

        Blocks until they are on the disk and named. Raises BadArchive, KernelError.
        """
        settings = self.registries.settings
        loaded = load(self.graph, source, lambda name: resolve(name, settings).familiar)
        for one in loaded:
            for name in one.names:
                reference = parse(name)
                self.tags.set(
                    reference.repository, reference.tag or DEFAULT_TAG, one.image.id, force=True
                )
        return loaded

    def containers_of(self, image: Image) -> Containers:
        """Containers made from an image."""
        return [one for one in self.list() if one.record.image_id == image.id]

    def info(self) -> Info:
        """Figures for people and for monitoring."""
        containers = self.list()
        return Info(
            version=VERSION,
            root=str(self.root),
            run=str(self.run),
            containers=len(containers),
            running=sum(1 for one in containers if one.state.running),
            images=len(self.graph.all()),
            supervisors=tuple(self._supervision.pids),
            kernel=platform.release(),
            architecture=platform.machine(),
            cpus=os.cpu_count() or 1,
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            cgroup=self.cgroups.kind,
            backlog=self._janitor.backlog,
            dying_networks=self.networks.dying(),
            warnings=(*self.warnings, *self.networks.warnings()),
        )

    # -- what containers ask (container.Engine) ------------------------------------------------

    def launch(
        self, container: Container, attach: Sequence[Streams], trace: Trace = OFF
    ) -> tuple[Run, Attachments]:
        """Start a container's program; on failure nothing is left."""
        record = container.record
        config = record.config
        image = self.graph.get(record.image_id)
        fresh = not container.state.started_at
        key = (image.id, config.user)
        hostname = self._hostname(record)
        shut = self._assembler.leaves_no_grip(
            config,
            own_network=config.network_mode != "host" and not connecting.is_shared(config),
        )
        linked = connecting.links(config, partial(self._linked, config)) if config.links else ()
        with self._network_of(record, linked, returnable=shut) as (network, lease):
            trace.mark(DAEMON, "network connected")
            site = Site(
                id=record.id,
                config=config,
                lowers=self.lowers_of(container),
                directory=f"{self.root}/containers/{record.id}",
                files=connecting.files(
                    config,
                    hostname,
                    lease,
                    linked,
                    answering=self.networks.answering(lease),
                ),
                files_directory=f"{self.run}/containers/{record.id}",
                network=network,
                hostname=hostname,
                identity=self._identities.get(key) if fresh else None,
                gripless=shut,
            )
            if record.id in self._marked:
                self._unmark(record, None)
            if not fresh or container.state.error:
                # Older than any mount: nobody must take the last run's end for this one's.
                with contextlib.suppress(FileNotFoundError):
                    os.utime(f"{site.directory}/state.json", ns=(0, 0))
            trace.mark(DAEMON, "layers found, texts of /etc made")
            site = replace(site, spare=self._spares.pop(record.id))
            started = self._assembler.start(site, attach, trace)
        if fresh:
            self._identities[key] = started.identity
        self._held[started.run.key] = started
        return started.run, started.attachments

    def _hostname(self, record: Record) -> str:
        config = record.config
        if config.hostname:
            return config.hostname
        if config.network_mode == "host":
            return platform.node()
        if connecting.is_shared(config):
            return self._hostname(self.get(connecting.shared_with(config)).record)
        return record.id[:12]

    @contextlib.contextmanager
    def _network_of(
        self, record: Record, linked: Sequence[connecting.Link], *, returnable: bool
    ) -> Iterator[tuple[Namespace | Literal["none", "host"], Lease]]:
        """The network of a start, given back when the start fails."""
        mode = record.config.network_mode
        connection = self._connect(record, linked, returnable=returnable)
        directory = f"{self.run}/containers/{record.id}"
        try:
            if connection is None:
                yield "host" if mode == "host" else "none", Lease()
            else:
                if connection.lease != NOTHING:
                    connecting.keep(directory, connection.lease)
                yield connection.namespace, connection.lease
        except BaseException:
            self.networks.disconnect(record.id)
            self._files.clear_run(record.id, keep=(RECORD,))  # now: it may be started again
            raise
        finally:
            if connection is not None:
                connection.close()

    def _connect(
        self, record: Record, linked: Sequence[connecting.Link], *, returnable: bool
    ) -> Connection | None:
        """The network of a start; None for `host`, and for `none` when nothing is ready."""
        config = record.config
        if connecting.is_shared(config):
            other = self.get(connecting.shared_with(config))
            if not other.state.running:
                raise Conflict(f"container {other.name} does not run; start it first")
            other.exposed = True  # by abstract sockets
            return self.networks.share(other.id, other.state.pid)
        if config.network_mode == HOST:
            return None
        if not connecting.has_network(config):
            return self.networks.isolate(record.id, returnable=returnable)
        owner, wanted = Owner(record.id, record.name), connecting.wanted(config, linked)
        try:
            return self.networks.connect(owner, wanted, returnable=returnable)
        except PortInUse:
            self._janitor.drain()  # by a container that has just ended, perhaps
            return self.networks.connect(owner, wanted, returnable=returnable)

    def _linked(self, config: Config, reference: str) -> tuple[str, str]:
        """Name and address of a container that one with this configuration is linked to."""
        other = self.get(reference)
        lease = self.networks.lease(other.id)
        if lease is None or not other.state.running:
            raise Conflict(f"container {other.name} does not run; start it first")
        network = self.networks.get(config.network_mode)
        for one in lease.endpoints:
            if one.network == network.id:
                return other.name, one.address
        raise Conflict(
            f"container {other.name} is not in network {network.name}; connect it first "
            f"(dockpy network connect {network.name} {other.name})"
        )

    def ended(self, run: Run) -> bool:
        """Whether the OOM killer ended processes of this run."""
        held = self._held.get(run.key)
        cgroup = held.cgroup if isinstance(held, Started) else held
        return cgroup is not None and cgroup.oom_kills() > 0

    def execution(self, container: Container, run: Run, wanted: Exec) -> Execution:
        """One more program for a container's run, not started yet."""
        config = container.config.with_(
            entrypoint=None,
            cmd=wanted.cmd,
            env=merge_environment(container.config.env, wanted.env),
            user=wanted.user or container.config.user,
            working_dir=wanted.working_dir or container.config.working_dir,
            tty=wanted.tty,
            open_stdin=wanted.open_stdin,
        )
        command(config)

        def launch(execution: Execution, attach: Sequence[Streams]) -> tuple[Run, list[Attachment]]:
            held = self._held.get(run.key)
            if held is None:
                raise Conflict(f"container {container.name} has ended; start it first")
            entry = Entry(
                id=execution.id,
                run=run,
                cgroup=held.cgroup if isinstance(held, Started) else held,
                hostname=self._hostname(container.record),
                inside=container.config,
                config=config,
                privileged=wanted.privileged,
                watched=run.key in self._watched,
            )
            if wanted.privileged:
                self._watched.add(run.key)
                container.exposed = True
            self._executions[execution.id] = execution
            try:
                return enter(self._assembler, self._supervision, entry, attach)
            except BaseException:
                del self._executions[execution.id]
                raise

        return Execution(launch, wanted, config)

    def settle(self, container: Container, run: Run) -> None:
        """Write the end down and release what the run held, in the background."""
        if container.config.auto_remove:
            self._gone.remember(container.id, container.state.exit_code)
            self._unregister(container)
        if not container.exposed:
            self.networks.reclaim(container.id)
        self._janitor.put(lambda: self._settle(container, run), container.id)

    @contextlib.contextmanager
    def frozen(self, run: Run) -> Iterator[None]:
        """The processes of a run stand still meanwhile. KernelError when they do not."""
        held = self._held.get(run.key)
        cgroup = held.cgroup if isinstance(held, Started) else held
        if cgroup is None:  # it has ended
            yield
            return
        try:
            cgroup.freeze()
            yield
        finally:
            cgroup.thaw()

    @contextlib.contextmanager
    def writing(self, container: Container) -> Iterator[None]:
        """Its files are mounted and written inside, while it does not run: that is no start.

        A mark says so to the next engine when this one is killed. KernelError: a full disk.
        """
        self._spares.unmount(container.id)
        if container.config.auto_remove:
            yield
            return
        self._files.mark(container.record)
        try:
            yield
        finally:
            self._unmark(container.record, container.state)

    def lowers_of(self, container: Container) -> Sequence[Path]:
        """The directories below a container's upper, top-most first."""
        return self._lowers(container.image)

    def image_of(self, container: Container) -> Image:
        return self.graph.get(container.record.image_id)

    def directory_of(self, container: Container) -> Path:
        return self.root / "containers" / container.record.id

    # -- what supervisors tell (supervision.Exits) ---------------------------------------------

    def container_exited(self, run: Run, status: int, when: float) -> None:
        container = self._containers.get(run.container)
        if (execution := self._executions.pop(run.container, None)) is not None:
            execution.exited(status)
            self._janitor.put(run.forget)
        elif container is None:
            self._janitor.put(lambda: self._end_of_unknown(run), run.container)
        else:
            container.exited(run, status, when)

    def log_failed(self, run: Run, err: int) -> None:
        log.warning("log of container %s: %s", run.container[:12], os.strerror(err))

    # -- inside --------------------------------------------------------------------------------

    def _settle(self, container: Container, run: Run) -> None:
        record = container.record
        held = self._held.pop(run.key, None)
        self._watched.discard(run.key)
        with contextlib.ExitStack() as rest:
            # Last first; each is done whatever the others meet.
            rest.callback(container.released.set)
            if record.config.auto_remove:
                rest.callback(self._remove, container)
            rest.callback(self._files.clear_run, record.id)
            if isinstance(held, Started):
                rest.callback(held.cgroup.remove)
                rest.callback(self._let_go, container, held)
            elif held is not None:
                rest.callback(held.remove)
            rest.callback(self._write_down, container, run)
            rest.callback(self.networks.disconnect, record.id)

    def _lowers(self, image: Image) -> Sequence[Path]:
        """The directories below the uppers of an image's containers, top-most first."""
        return [*self.graph.lower_directories(image), self.root / "base"]

    def _release_held(self) -> None:
        """Close what is kept for containers that go on without this engine."""
        while self._held:
            _, held = self._held.popitem()
            if isinstance(held, Started):
                os.close(held.root)

    def _let_go(self, container: Container, started: Started) -> None:
        record, spare = container.record, started.spare
        if spare is not None:
            spare.place = self._files.place(record)
            # One that is removed just now may be moved under our hands: that is looked at later.
            good = spare.untouched or self._removed(container)
            if good and self._spares.keep(record.id, spare):
                return
        if record.id in self._containers:
            os.close(started.root)  # it may be started again, on the same upper
        else:
            self._closer.put(started.root)

    def _write_down(self, container: Container, run: Run) -> None:
        """Make the end durable, then let the supervisor forget it; on a full disk, later."""
        self._unwritten[container.id] = (container, run)
        for identifier, (ended, its_run) in list(self._unwritten.items()):
            over = self._write_state_of(ended) or identifier not in self._containers
            if over and self._unwritten.pop(identifier, None) is not None:
                its_run.forget()

    def _write_state_of(self, container: Container) -> bool:
        """False when the disk does not take it: a supervisor keeps an exit until there is room."""
        if container.config.auto_remove or container.id not in self._containers:
            return True
        try:
            self._files.write_state(container.record, container.state)
        except KernelError as error:
            if not self._removed(container):  # else under our hands
                log.warning("%s; tried again when the next container ends", error)
            return False
        return True

    def _removed(self, container: Container) -> bool:
        return container.state.status is Status.REMOVING or container.id not in self._containers

    def _unregister(self, container: Container) -> None:
        with self._lock:
            if self._containers.pop(container.id, None) is not None:
                self._ids.remove(container.id)
                if self._names.get(container.name) == container.id:
                    del self._names[container.name]

    def _selected(self, name: str) -> Selection:
        reference = parse(name) if not is_id(name) else None
        repository = "" if reference is None else self.tags.kept(reference.repository)
        tags = self.tags.get(repository) if repository else {}
        if reference is not None and not reference.tag and not reference.digest and tags:
            by_image: dict[str, list[str]] = {}
            for tag, image_id in sorted(tags.items()):
                by_image.setdefault(image_id, []).append(f"{repository}:{tag}")
            return [Selected(self.graph.get(key), tuple(found)) for key, found in by_image.items()]
        image = self.tags.lookup_image(name)
        named = reference is not None and tags.get(reference.tag) == image.id
        return [Selected(image, (f"{repository}:{reference.tag}",) if reference and named else ())]

    def _choose_name(self, asked: str | None) -> str:
        if asked is None:
            while (name := random_name()) in self._names:
                pass
            return name
        name = validate_name(asked.removeprefix("/"))
        if name in self._names:
            raise NameInUse(name, self._names[name])
        return name

    def _remove(self, container: Container) -> None:
        """Discard what is left of a container; its directory is withdrawn before it is asked
        whether anybody has looked into that."""
        self._files.withdraw(container.record)
        self._discard(container.record, reusable=not container.exposed)

    def _discard(self, record: Record, *, reusable: bool = False) -> None:
        self.networks.store.forget(record.id)
        unwritten = self._unwritten.pop(record.id, None)
        if unwritten is not None:
            unwritten[1].forget()
        spare = self._spares.pop(record.id)
        if spare is not None and reusable:
            self._files.discard(record, lambda place: self._spares.give(spare, place))
        else:
            self._files.discard(record)
            if spare is not None:
                self._closer.put(spare.tree)
        self._files.clear_run(record.id)

    # -- start-up ------------------------------------------------------------------------------

    def _check_images(self) -> None:
        """Put right what a crash left of images and names; say what could not be."""
        for finding in (*self.tags.findings, *self.graph.check()):
            if finding.repair == "removed":
                log.info("%s", finding)
            else:
                self._warn(str(finding))

    def _load(self, loading: Loading) -> None:
        """Take in every container that has a record."""
        for found in loading.containers():
            record = found.record
            if found.before is not None:
                self._before_mount[record.id] = found.before
            if found.marked:
                self._unmark(record, found.state)
            self._containers[record.id] = Container(self, record, found.state)
        self._ids = TruncIndex("container", self._containers)
        for name in set(os.listdir(self.run / "containers")) - self._containers.keys():
            self._files.clear_run(name)

    def _save_indexes(self, loading: Loading) -> None:
        """For the next start-up: what this one had to read from many records."""
        self.graph.save_index()
        loading.save_index(self._flusher)

    def _unmark(self, record: Record, state: State | None) -> None:
        """Take the mark away; before that make the state newer than the mount that was no start.

        On a full disk the mark stays, until the next start or the next engine.
        """
        try:
            if state is not None:
                self._files.write_state(record, state)
        except KernelError as error:
            self._marked.add(record.id)
            log.warning("%s; tried again at the container's next start", error)
            return
        self._marked.discard(record.id)
        self._files.unmark(record)

    def _reconcile(self) -> None:
        """Bring records, supervisors and the kernel's leftovers together."""
        running: set[str] = set()
        for run in self._supervision.find():
            running.add(run.container)
            try:
                cgroup = self._held[run.key] = self.cgroups.open(run.container)
                cgroup.thaw()  # an engine that was killed while it committed left it frozen
            except NotFound:
                log.debug("container %s has no cgroup any more", run.container)
            container = self._containers.get(run.container)
            if container is None:
                self._end_unknown(run)
            else:
                self._adopt_network(container)  # before its end can be learnt, which gives it back
                container.adopt(run)
        self._settle_networks()
        for name in self.cgroups.names():
            if name not in running:
                self._end_orphan(name)
        self._before_mount.clear()
        with_files = set(os.listdir(self.run / "containers"))
        for container in list(self._containers.values()):
            if container.id in running:
                continue
            if container.config.auto_remove:
                self._unregister(container)
                self._discard(container.record)
            elif container.id in with_files:
                self._files.clear_run(container.id, keep=(RECORD,))
        self._name_all()

    def _adopt_network(self, container: Container) -> None:
        """Take over the addresses and ports of a container that runs already."""
        try:
            lease = connecting.kept(self.run / "containers" / container.id)
            if lease is not None:
                self.networks.adopt(Owner(container.id, container.name), lease)
        except DockpyError as error:
            self._warn(f"the network of container {container.name}: {error}")

    def _settle_networks(self) -> None:
        for finding in self.networks.store.findings:
            self._warn(finding)
        try:
            self.networks.settle()
        except KernelError as error:
            self._warn(str(error))

    def _end_orphan(self, name: str) -> None:
        """End what runs in a cgroup that no supervisor answers for."""
        orphan = self.cgroups.open(name)
        before = self._before_mount.get(name)
        try:
            if before is not None and not orphan.stats().cpu_ns and not orphan.processes():
                # The engine was killed before it had asked a supervisor for the start. Written
                # down, and so newer than the mount, since the cgroup that tells it goes now.
                record = self._containers[name].record
                self._containers[name] = Container(self, record, before)
                self._files.write_state(record, before)
            orphan.kill()
            orphan.remove()
        except KernelError as error:
            self._warn(f"a container's processes were left and do not end: {error}")

    def _name_all(self) -> None:
        """Give every container its name; of two with one name, which only a crash makes, the newer
        keeps it."""
        for container in sorted(self._containers.values(), key=lambda one: one.created):
            older = self._names.get(container.name)
            if older is not None:
                self._warn(
                    f"containers {older[:12]} and {container.short_id} are both called "
                    f"{container.name}; use the id of the first"
                )
            self._names[container.name] = container.id

    def _end_unknown(self, run: Run) -> None:
        """A run without a record, which was torn or removed: nobody could ever name it."""
        cgroup = self._held.get(run.key)
        if isinstance(cgroup, Cgroup):
            cgroup.kill()
        if run.status is not None:
            self._janitor.put(lambda: self._end_of_unknown(run), run.container)

    def _end_of_unknown(self, run: Run) -> None:
        run.forget()
        held = self._held.get(run.key)
        if isinstance(held, Cgroup):  # else its container was known a moment ago, see `_settle`
            del self._held[run.key]
            held.remove()

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning("%s", text)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Nobody looks for garbage meanwhile, in the whole process.

    Among 10,000 records that are read in, the search takes as long as the reading. What was made
    meanwhile counts as old at the end, or the first search afterwards would go through all of it.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if before:
            gc.enable()


def is_id(text: str) -> bool:
    """Whether a text is a whole image id, which no name can be."""
    digits = text.removeprefix("sha256:")
    return len(digits) == 64 and not set(digits) - set("0123456789abcdef")


def own_capabilities() -> int:
    """This process's bounding set: the most a privileged container can get."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16)
    return 0
