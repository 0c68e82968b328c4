"""The engine: the only place where images, tags, cgroups, supervisors and containers meet."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from dockpy import _process, etcfiles
from dockpy.assembly import Assembler, Site, Started
from dockpy.capabilities import DEFAULT
from dockpy.cgroups import Cgroup, CgroupTree, Hierarchies
from dockpy.closing import LateCloser
from dockpy.container import Container, Record
from dockpy.errors import KernelError, Locked, NameInUse, NoSuchContainer, RequestError, TornRecord
from dockpy.graph import Graph
from dockpy.janitor import Janitor
from dockpy.model import VERSION, Config, Image, State, Status
from dockpy.names import generate_id, random_name, validate_name
from dockpy.namespaces import NamespacePool
from dockpy.records import Flusher, Trash, read_json, set_aside, write
from dockpy.seccomp import FilterCache
from dockpy.settings import command, from_json, merge, to_json
from dockpy.supervision import Attachment, Run, Streams, Supervision
from dockpy.supervisor import CONTAINERS
from dockpy.tags import TagStore
from dockpy.truncindex import TruncIndex
from dockpy.users import Identity

log = logging.getLogger(__name__)

Containers = list[Container]
Attachments = list[Attachment]
"""`Runtime` has a method called list."""

DEFAULT_ROOT = Path("/var/lib/dockpy")
DEFAULT_RUN = Path("/run/dockpy")
BACKLOG = 64
"""Ended containers whose clean-up may wait; `create` waits while there are more."""
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
        self._identities: dict[tuple[str, str], Identity] = {}
        self._gone: dict[str, int] = {}
        self._unwritten: dict[str, tuple[Container, Run]] = {}
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo:
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
            parent = cgroup_parent or cgroup_name(self.root)
            self.cgroups = CgroupTree(Hierarchies.detect(), parent)
            self.cgroups.prepare()
            undo.callback(self.cgroups.close)
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
            self._load()
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

    def create(self, config: Config, name: str | None = None) -> Container:
        """Make a container from `config.image`, ready to start.

        Raises NoSuchImage, NameInUse, RequestError for a configuration that cannot work.
        """
        image = self.tags.lookup_image(config.image)
        merged = merge(image.config, config)
        command(merged)
        self._assembler.check(merged)
        self._janitor.wait_below(BACKLOG)
        identifier = generate_id()
        with self._lock:
            chosen = self._choose_name(name)
            self._names[chosen] = identifier
        record = Record(identifier, chosen, time.time(), merged, image.id, config.image)
        try:
            directory = f"{self.root}/containers/{identifier}"
            os.mkdir(directory, 0o710)
            os.mkdir(f"{directory}/upper", 0o755)
            os.mkdir(f"{directory}/work", 0o700)
            self._write_record(record)
        except BaseException:
            with self._lock:
                del self._names[chosen]
            self._discard(record)
            raise
        container = Container(self, record, State())
        with self._lock:
            self._containers[identifier] = container
            self._ids.add(identifier)
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
        """Remove a container and what it wrote. Conflict when it runs, unless `force` kills it."""
        with container.removal(force=force):
            self._unregister(container)
            self._janitor.put(lambda: self._discard(container.record))

    def exit_code_of(self, identifier: str) -> int | None:
        """The exit code of a container removed by --rm a while ago; None: not known."""
        return self._gone.get(identifier)

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

    def launch(self, container: Container, attach: Sequence[Streams]) -> tuple[Run, Attachments]:
        """Start a container's program; on failure nothing is left."""
        record = container.record
        config = record.config
        image = self.graph.get(record.image_id)
        fresh = not container.state.started_at
        key = (image.id, config.user)
        hostname = config.hostname or (
            platform.node() if config.network_mode == "host" else record.id[:12]
        )
        files_directory = f"{self.run}/containers/{record.id}"
        site = Site(
            id=record.id,
            config=config,
            lowers=[*self.graph.lower_directories(image), self.root / "base"],
            directory=self.directory_of(container),
            files=self._files(record, hostname),
            files_directory=files_directory,
            hostname=hostname,
            identity=self._identities.get(key) if fresh else None,
        )
        try:
            started = self._assembler.start(site, attach)
        except BaseException:
            self._janitor.put(lambda: remove_files(files_directory, keep=("config.json",)))
            raise
        if fresh:
            self._identities[key] = started.identity
        self._held[started.run.key] = started
        return started.run, started.attachments

    def ended(self, run: Run) -> bool:
        """Whether the OOM killer ended processes of this run."""
        held = self._held.get(run.key)
        cgroup = held.cgroup if isinstance(held, Started) else held
        return cgroup is not None and cgroup.oom_kills() > 0

    def settle(self, container: Container, run: Run) -> None:
        """Write the end down and release what the run held, in the background."""
        if container.config.auto_remove:
            self._unregister(container)
            self._remember(container)
        self._janitor.put(lambda: self._settle(container, run))

    def image_of(self, container: Container) -> Image:
        return self.graph.get(container.record.image_id)

    def directory_of(self, container: Container) -> Path:
        return self.root / "containers" / container.record.id

    # -- what supervisors tell (supervision.Exits) ---------------------------------------------

    def container_exited(self, run: Run, status: int, when: float) -> None:
        container = self._containers.get(run.container)
        if container is None:
            self._janitor.put(run.forget)
        else:
            container.exited(run, status, when)

    def log_failed(self, run: Run, err: int) -> None:
        log.warning("log of container %s: %s", run.container[:12], os.strerror(err))

    # -- inside --------------------------------------------------------------------------------

    def _settle(self, container: Container, run: Run) -> None:
        record = container.record
        held = self._held.pop(run.key, None)
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

    def _let_go(self, record: Record, root: int) -> None:
        if record.id in self._containers:
            os.close(root)  # it may be started again, on the same upper
        else:
            self._closer.put(root)

    def _write_down(self, container: Container, run: Run) -> None:
        """Make the end durable, then let the supervisor forget it; on a full disk, later."""
        self._unwritten[container.id] = (container, run)
        for identifier, (ended, its_run) in list(self._unwritten.items()):
            if not ended.config.auto_remove and identifier in self._containers:
                try:
                    self._write_state(ended.record, ended.state)
                except KernelError as error:
                    log.warning("%s; the supervisor keeps the exit until there is room", error)
                    continue
            del self._unwritten[identifier]
            its_run.forget()

    def _unregister(self, container: Container) -> None:
        with self._lock:
            if self._containers.pop(container.id, None) is not None:
                self._ids.remove(container.id)
                self._names.pop(container.name, None)

    def _remember(self, container: Container) -> None:
        """Exit codes of the last removed containers, for a client that comes back for one."""
        self._gone[container.id] = container.state.exit_code
        while len(self._gone) > 1000:
            self._gone.pop(next(iter(self._gone)))

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
        for directory in (self.root, self.root / "containers", self.run, self.run / "containers"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            path.write_bytes(data)
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
        directory = self.root / "containers" / record.id
        if directory.exists():
            self._trash.discard(directory)
        remove_files(self.run / "containers" / record.id, keep=())

    # -- start-up ------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read every container's record; torn ones are named and set aside."""
        for directory in sorted((self.root / "containers").iterdir()):
            path = directory / "config.json"
            if not path.exists():
                path = self.run / "containers" / directory.name / "config.json"
            if not path.exists():
                if not list(directory.glob("config.json.*")):
                    self._trash.discard(directory)  # a create that never finished
                continue
            try:
                record = parse_record(path)
            except TornRecord as torn:
                self._warn(f"{torn}; set aside as {set_aside(path).name}")
                continue
            container = Container(self, record, self._last_state(directory))
            self._containers[record.id] = container
            self._names[record.name] = record.id
            self._ids.add(record.id)
        for directory in (self.run / "containers").iterdir():
            if directory.name not in self._containers:
                remove_files(directory, keep=())

    def _last_state(self, directory: Path) -> State:
        path = directory / "state.json"
        try:
            values = read_json(path)
            state = State(**(values | {"status": Status(values["status"])}))
        except FileNotFoundError:
            state = State()
        except (TornRecord, TypeError, ValueError, KeyError) as error:
            self._warn(f"{path}: {error}; set aside as {set_aside(path).name}")
            state = State()
        mounted = directory / "work" / "work"
        try:
            mounted_at = mounted.stat().st_mtime
        except FileNotFoundError:
            return state
        if state.status is Status.EXITED:
            return state
        # It was started, and neither a supervisor nor a record saw its end.
        return State(
            status=Status.EXITED,
            exit_code=LOST_WITH_HOST,
            error="it ran when the host went down; nobody saw its end",
            started_at=mounted_at,
            finished_at=mounted_at,
        )

    def _reconcile(self) -> None:
        """Bring records, supervisors and the kernel's leftovers together."""
        running: set[str] = set()
        for run, started_at in self._supervision.find():
            running.add(run.container)
            container = self._containers.get(run.container)
            if container is None:
                self._end_unknown(run)
                continue
            self._held[run.key] = self.cgroups.open(run.container)
            container.adopt(run, started_at)
        for name in self.cgroups.names():
            if name not in running:
                orphan = self.cgroups.open(name)
                orphan.kill()
                orphan.remove()
        for container in list(self._containers.values()):
            if container.config.auto_remove and container.id not in running:
                self._unregister(container)
                self._discard(container.record)

    def _end_unknown(self, run: Run) -> None:
        cgroup = self.cgroups.open(run.container)
        cgroup.kill()
        run.forget()

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning("%s", text)


def parse_record(path: Path) -> Record:
    """A container's record; TornRecord names the file when it is not one."""
    values = read_json(path)
    try:
        return Record(
            values["id"],
            values["name"],
            float(values["created"]),
            from_json(values["config"]),
            values["image"],
            values["image_name"],
        )
    except (KeyError, TypeError, ValueError) as error:
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
