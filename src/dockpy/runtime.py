"""The engine: the only place where images, tags, cgroups, supervisors and containers meet."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import hashlib
import json
import logging
import os
import platform
import resource
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from dockpy import _process, etcfiles
from dockpy.assembly import Assembler, Site, Started
from dockpy.capabilities import DEFAULT
from dockpy.cgroups import Cgroup, CgroupTree, Hierarchies
from dockpy.closing import LateCloser
from dockpy.committing import Commit, commit, stage_upper
from dockpy.container import Container, Record
from dockpy.entering import Entry, enter
from dockpy.errors import (
    Conflict,
    KernelError,
    Locked,
    NameInUse,
    NoSuchContainer,
    NotFound,
    RequestError,
    TornRecord,
)
from dockpy.execution import Execution
from dockpy.graph import Graph
from dockpy.image_archive.loading import Loaded, load
from dockpy.image_archive.saving import Selected, save
from dockpy.janitor import Janitor
from dockpy.model import DEFAULT_TAG, VERSION, Config, Exec, Image, State, Status
from dockpy.names import generate_id, random_name, validate_name
from dockpy.namespaces import NamespacePool
from dockpy.records import TEMPORARY, Flusher, Trash, read_json, set_aside, write
from dockpy.references import parse
from dockpy.registry import settings as registry_settings
from dockpy.registry.names import resolve
from dockpy.registry.service import Registries
from dockpy.seccomp import FilterCache
from dockpy.settings import command, from_json, merge, merge_environment, to_json
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

DEFAULT_ROOT = Path("/var/lib/dockpy")
DEFAULT_RUN = Path("/run/dockpy")
BACKLOG = 64
"""Ended containers whose clean-up may wait; `create` waits while there are more."""
REMEMBERED = 1000
"""Removed containers whose exit codes are kept, in the run directory's file `gone`."""
GONE = "gone"
WRITTEN = "written"
"""In a container's directory while files are copied into it and it does not run."""
LOST_WITH_HOST = 255
"""Exit code of a container that ran when the host went down: nobody saw its end."""


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
    warnings: tuple[str, ...]


class Runtime:
    """One engine over one state directory; its containers outlive it.

    `root` holds images and containers, `run` (a tmpfs) sockets and what need not survive a reboot.
    `supervisors`: how many processes parent the containers, one per core by default. Raises Locked
    when another engine owns `root`. The calling process is a child subreaper (prctl(2)) until
    `close`, so that containers of a killed supervisor stay ours. Thread-safe.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = DEFAULT_ROOT,
        *,
        run: str | os.PathLike[str] | None = None,
        supervisors: int | None = None,
        cgroup_parent: str | None = None,
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
        self._gone: dict[str, int] = {}
        self._gone_lines = 0
        self._before_mount: dict[str, State] = {}
        """While we start up: states of containers that may have run after they were written."""
        self._unwritten: dict[str, tuple[Container, Run]] = {}
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo, no_collection():
            self._prepare_directories()
            undo.callback(os.close, self._take_lock())
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
            self.graph = Graph(self.root, self._flusher, self._trash)
            self.tags = TagStore(self.root, self.graph, self._flusher)
            self.registries = Registries(
                self.root, self.graph, self.tags, self._flusher, registry_settings.load()
            )
            undo.callback(self.registries.close)
            self.tags.by_digest = self.registries.find
            parent = cgroup_parent or cgroup_name(self.root)
            self.cgroups = CgroupTree(Hierarchies.detect(), parent)
            self.cgroups.prepare()
            undo.callback(self.cgroups.close)
            undo.callback(self._release_held)
            self._closer = LateCloser()
            undo.callback(self._closer.close)
            self._janitor = Janitor()
            undo.callback(self._janitor.close)
            count = supervisors or len(os.sched_getaffinity(0))
            self._supervision = Supervision(self.run, self.root / "containers", count, self)
            undo.callback(self._supervision.close)
            filters = FilterCache()
            filters.get("default", DEFAULT)  # now, not in the first start
            namespaces = NamespacePool()
            undo.callback(namespaces.close)
            self._assembler = Assembler(
                self._supervision,
                self.cgroups,
                filters,
                namespaces,
                available_capabilities=own_capabilities(),
                open_files=open_files,
                log_root=CONTAINERS,
            )
            undo.callback(self._assembler.close)
            self._trash.sweep()
            self._check_images()
            self._load()
            self._load_gone()
            self._reconcile()
            self._supervision.open()
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
        self._assembler.check(merged)
        trace.mark(DAEMON, "image found, configuration checked")
        self._janitor.wait_below(BACKLOG)
        identifier = generate_id()
        with self._lock:
            chosen = self._choose_name(name)
            self._names[chosen] = identifier
        record = Record(identifier, chosen, time.time(), merged, image.id, config.image)
        try:
            self._make(record, image)
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
            self._discard_directory(container.record)
            self._unregister(container)
            self._janitor.put(lambda: self._discard(container.record))

    def exit_code_of(self, identifier: str) -> int | None:
        """The exit code of a container removed by --rm a while ago; None: not known."""
        return self._gone.get(identifier)

    def keep_state(self, container: Container) -> None:
        """Write a container's state down, in the background."""
        if not container.config.auto_remove:
            self._janitor.put(lambda: self._write_state_of(container))

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
            warnings=tuple(self.warnings),
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
        files_directory = f"{self.run}/containers/{record.id}"
        site = Site(
            id=record.id,
            config=config,
            lowers=self.lowers_of(container),
            directory=self.directory_of(container),
            files=self._files(record, hostname),
            files_directory=files_directory,
            hostname=hostname,
            identity=self._identities.get(key) if fresh else None,
        )
        if record.id in self._marked:
            self._unmark(record, None)
        if not fresh or container.state.error:
            # Older than any mount: nobody must take the last run's end for this one's.
            with contextlib.suppress(FileNotFoundError):
                os.utime(f"{site.directory}/state.json", ns=(0, 0))
        try:
            started = self._assembler.start(site, attach, trace)
        except BaseException:
            self._janitor.put(lambda: remove_files(files_directory, keep=("config.json",)))
            raise
        if fresh:
            self._identities[key] = started.identity
        self._held[started.run.key] = started
        return started.run, started.attachments

    @staticmethod
    def _hostname(record: Record) -> str:
        config = record.config
        return config.hostname or (
            platform.node() if config.network_mode == "host" else record.id[:12]
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
            self._remember(container)
            self._unregister(container)
        self._janitor.put(lambda: self._settle(container, run))

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
        if container.config.auto_remove:
            yield
            return
        write(self.root / "containers" / container.id / WRITTEN, b"")
        try:
            yield
        finally:
            self._unmark(container.record, container.state)

    def lowers_of(self, container: Container) -> Sequence[Path]:
        """The directories below a container's upper, top-most first."""
        return [*self.graph.lower_directories(container.image), self.root / "base"]

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
            self._janitor.put(lambda: self._end_of_unknown(run))
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
                rest.callback(self._discard, record)
            rest.callback(remove_files, self.run / "containers" / record.id, keep=())
            if isinstance(held, Started):
                rest.callback(held.cgroup.remove)
                rest.callback(self._let_go, record, held.root)
            elif held is not None:
                rest.callback(held.remove)
            rest.callback(self._write_down, container, run)

    def _release_held(self) -> None:
        """Close what is kept for containers that go on without this engine."""
        while self._held:
            _, held = self._held.popitem()
            if isinstance(held, Started):
                os.close(held.root)

    def _let_go(self, record: Record, root: int) -> None:
        if record.id in self._containers:
            os.close(root)  # it may be started again, on the same upper
        else:
            self._closer.put(root)

    def _write_down(self, container: Container, run: Run) -> None:
        """Make the end durable, then let the supervisor forget it; on a full disk, later."""
        self._unwritten[container.id] = (container, run)
        for identifier, (ended, its_run) in list(self._unwritten.items()):
            if self._write_state_of(ended) or identifier not in self._containers:
                self._unwritten.pop(identifier, None)
                its_run.forget()

    def _write_state_of(self, container: Container) -> bool:
        """False when the disk does not take it: a supervisor keeps an exit until there is room."""
        if container.config.auto_remove or container.id not in self._containers:
            return True
        try:
            self._write_state(container.record, container.state)
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

    def _remember(self, container: Container) -> None:
        """Exit codes of the last removed containers, for a client that comes back for one.

        Also on the tmpfs: that client may come back because this engine was killed.
        """
        self._gone[container.id] = container.state.exit_code
        while len(self._gone) > REMEMBERED:
            self._gone.pop(next(iter(self._gone)))
        line = f"{container.id} {container.state.exit_code}\n".encode()
        with contextlib.suppress(OSError):
            self._gone_lines += 1
            if self._gone_lines > 8 * REMEMBERED:
                self._write_gone()
            else:
                append(self.run / GONE, line)

    def _write_gone(self) -> None:
        lines = "".join(f"{identifier} {code}\n" for identifier, code in self._gone.items())
        write(self.run / GONE, lines.encode())
        self._gone_lines = len(self._gone)

    def _load_gone(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for line in (self.run / GONE).read_text(errors="replace").splitlines()[-REMEMBERED:]:
                identifier, _, code = line.partition(" ")
                if code.isdigit():
                    self._gone[identifier] = int(code)
            self._write_gone()

    def _selected(self, name: str) -> Selection:
        reference = parse(name) if not is_id(name) else None
        tags = {} if reference is None else self.tags.get(reference.repository)
        if reference is not None and not reference.tag and not reference.digest and tags:
            by_image: dict[str, list[str]] = {}
            for tag, image_id in sorted(tags.items()):
                by_image.setdefault(image_id, []).append(f"{reference.repository}:{tag}")
            return [Selected(self.graph.get(key), tuple(found)) for key, found in by_image.items()]
        image = self.tags.lookup_image(name)
        named = reference is not None and tags.get(reference.tag) == image.id
        return [Selected(image, (str(reference),) if named else ())]

    def _choose_name(self, asked: str | None) -> str:
        if asked is None:
            while (name := random_name()) in self._names:
                pass
            return name
        name = validate_name(asked.removeprefix("/"))
        if name in self._names:
            raise NameInUse(name, self._names[name])
        return name

    def _prepare_directories(self) -> None:
        for place in (self.root, self.run):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            (place / "containers").mkdir(mode=0o700, exist_ok=True)
        (self.root / "trash").mkdir(mode=0o700, exist_ok=True)  # now: a full disk needs it
        for unfinished in (*self.root.glob("base.*"), *self.root.glob(f"{TEMPORARY}*")):
            remove_unfinished(unfinished)
        base = self.root / "base"
        if not base.exists():
            fresh = self.root / f"base.{os.getpid()}"
            for name in ("dev", "proc", "sys", "etc"):
                (fresh / name).mkdir(parents=True, exist_ok=True)
            for name in ("hosts", "hostname", "resolv.conf"):
                (fresh / "etc" / name).touch()
            fresh.chmod(0o755)
            fresh.rename(base)

    def _take_lock(self) -> int:
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise Locked(str(self.root), int(owner) if owner.isdigit() else 0) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _make(self, record: Record, image: Image) -> None:
        """A container's directories and its record, the record last."""
        directory = f"{self.root}/containers/{record.id}"
        os.mkdir(directory, 0o710)
        # An overlay shows its upper's mode and owner as the root directory's.
        top = os.stat(next(iter(self.graph.lower_directories(image)), self.root / "base"))
        os.mkdir(f"{directory}/upper", 0o700)
        if top.st_uid or top.st_gid:
            os.chown(f"{directory}/upper", top.st_uid, top.st_gid)
        os.chmod(f"{directory}/upper", stat.S_IMODE(top.st_mode))
        os.mkdir(f"{directory}/work", 0o700)
        self._write_record(record)

    def _record_path(self, record: Record) -> Path:
        place = self.run if record.config.auto_remove else self.root
        return place / "containers" / record.id / "config.json"

    def _write_record(self, record: Record) -> None:
        path = self._record_path(record)
        data = json.dumps(
            {
                "id": record.id,
                "name": record.name,
                "created": record.created,
                "image": record.image_id,
                "image_name": record.image_name,
                "config": to_json(record.config),
            }
        ).encode()
        if record.config.auto_remove:
            os.mkdir(path.parent, 0o700)
            write(path, data)
        else:
            write(path, data, self._flusher)

    def _write_state(self, record: Record, state: State) -> None:
        values = asdict(state) | {"status": state.status.value}
        path = self.root / "containers" / record.id / "state.json"
        write(path, json.dumps(values).encode(), self._flusher)

    def _files(self, record: Record, hostname: str) -> tuple[tuple[str, str], ...]:
        """The container's own files in /etc, anew at each start."""
        config = record.config
        return (
            ("resolv.conf", etcfiles.resolv(host_resolv(), config.dns, config.dns_search)),
            ("hostname", f"{hostname}\n"),
            ("hosts", etcfiles.hosts(hostname, config.domainname, config.extra_hosts)),
        )

    def _discard(self, record: Record) -> None:
        unwritten = self._unwritten.pop(record.id, None)
        if unwritten is not None:
            unwritten[1].forget()
        self._discard_directory(record)
        remove_files(self.run / "containers" / record.id, keep=())

    def _discard_directory(self, record: Record) -> None:
        directory = self.root / "containers" / record.id
        if directory.exists():
            self._trash.discard(directory)

    # -- start-up ------------------------------------------------------------------------------

    def _check_images(self) -> None:
        """Put right what a crash left of images and names; say what could not be."""
        for finding in (*self.tags.findings, *self.graph.check()):
            if finding.repair == "removed":
                log.info("%s", finding)
            else:
                self._warn(str(finding))

    def _load(self) -> None:
        """Read every container's record; torn ones are named and set aside."""
        # Texts, not paths, and one look into each directory: there may be ten thousand.
        containers = f"{self.root}/containers"
        disposable = set(os.listdir(self.run / "containers"))
        for name in sorted(os.listdir(containers)):
            directory = f"{containers}/{name}"
            try:
                found = os.listdir(directory)
            except NotADirectoryError:
                continue  # not ours
            path = f"{directory}/config.json"
            if "config.json" not in found:
                path = f"{self.run}/containers/{name}/config.json"
                if name not in disposable or not os.path.exists(path):
                    if not any(one.startswith("config.json.") for one in found):
                        self._trash.discard(Path(directory))  # a create that never finished
                    continue
            try:
                record = parse_record(path, name)
            except TornRecord as torn:
                self._warn(f"{torn}; set aside as {set_aside(Path(path)).name}")
                continue
            for one in found:
                if one.startswith(TEMPORARY):
                    os.unlink(f"{directory}/{one}")
            marked = WRITTEN in found
            state = self._last_state(name, directory, written="state.json" in found, marked=marked)
            if marked:
                self._unmark(record, state)
            self._containers[name] = Container(self, record, state)
            self._ids.add(name)
        for name in disposable - self._containers.keys():
            remove_files(self.run / "containers" / name, keep=())

    def _unmark(self, record: Record, state: State | None) -> None:
        """Take the mark away; before that make the state newer than the mount that was no start.

        On a full disk the mark stays, until the next start or the next engine.
        """
        try:
            if state is not None:
                self._write_state(record, state)
        except KernelError as error:
            self._marked.add(record.id)
            log.warning("%s; tried again at the container's next start", error)
            return
        self._marked.discard(record.id)
        os.unlink(f"{self.root}/containers/{record.id}/{WRITTEN}")

    def _last_state(self, identifier: str, directory: str, *, written: bool, marked: bool) -> State:
        path = f"{directory}/state.json"
        state, written_at = State(), 0
        try:
            if written:
                written_at = os.stat(path).st_mtime_ns
                values = read_json(path)
                state = State(**(values | {"status": Status(values["status"])}))
        except (TornRecord, OSError, TypeError, ValueError, KeyError) as error:
            self._warn(f"{path}: {error}; set aside as {set_aside(Path(path)).name}")
            state, written_at = State(), 0
        try:
            # The kernel makes this directory when the root is mounted, that is at each start.
            mounted_at = os.stat(f"{directory}/work/work").st_mtime_ns
        except FileNotFoundError:
            return state
        if (marked or mounted_at <= written_at) and state.status is not Status.RUNNING:
            return state
        # It was started after that, and no record saw its end: a supervisor may have.
        self._before_mount[identifier] = state
        return State(
            status=Status.EXITED,
            exit_code=LOST_WITH_HOST,
            error="it ran when the host went down; nobody saw its end",
            started_at=mounted_at / 1e9,
            finished_at=mounted_at / 1e9,
        )

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
                container.adopt(run)
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
                remove_files(self.run / "containers" / container.id, keep=("config.json",))
        self._name_all()

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
                self._write_state(record, before)
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
            self._janitor.put(lambda: self._end_of_unknown(run))

    def _end_of_unknown(self, run: Run) -> None:
        held = self._held.pop(run.key, None)
        run.forget()
        if isinstance(held, Cgroup):
            held.remove()

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning("%s", text)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Nobody looks for garbage meanwhile, in the whole process.

    Among 10,000 records that are read in, the search takes as long as the reading.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def is_id(text: str) -> bool:
    """Whether a text is a whole image id, which no name can be."""
    digits = text.removeprefix("sha256:")
    return len(digits) == 64 and not set(digits) - set("0123456789abcdef")


def parse_record(path: str, identifier: str) -> Record:
    """The record of container `identifier`; TornRecord names the file when it is not one."""
    try:
        values = read_json(path)
        if values["id"] != identifier:
            raise TornRecord(str(path), f"is the record of another container, {values['id']!r}")
        return Record(
            values["id"],
            values["name"],
            float(values["created"]),
            from_json(values["config"]),
            values["image"],
            values["image_name"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TornRecord(str(path), f"not a container's record ({error!r})") from error


def remove_files(directory: str | Path, *, keep: Sequence[str]) -> None:
    """Remove a container's run directory, which holds plain files only."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        if name not in keep:
            os.unlink(f"{directory}/{name}")
    if not keep or not set(names) & set(keep):
        os.rmdir(directory)


def remove_unfinished(path: Path) -> None:
    """Remove what a killed engine was about to put in place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def append(path: Path, line: bytes) -> None:
    """Add a line to a file in one piece, made if missing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def run_directory(root: Path) -> Path:
    """Where an engine over `root` keeps its sockets, unless told."""
    if root == DEFAULT_ROOT:
        return DEFAULT_RUN
    return Path(f"/run/dockpy-{hashlib.sha256(bytes(root)).hexdigest()[:12]}")


def cgroup_name(root: Path) -> str:
    """The parent group of an engine over `root`, unless told."""
    if root == DEFAULT_ROOT:
        return "dockpy"
    return f"dockpy-{hashlib.sha256(bytes(root)).hexdigest()[:12]}"


def host_resolv() -> str:
    """The host's resolver settings; empty without any."""
    try:
        descriptor = os.open("/etc/resolv.conf", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 65536).decode(errors="replace")
    finally:
        os.close(descriptor)


def own_capabilities() -> int:
    """This process's bounding set: the most a privileged container can get."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16)
    return 0
