"""A small engine for the tests of the command line: containers that do as they are told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from dockpy.cli import main
from dockpy.cli.engine import Engine
from dockpy.cli.session import Session
from dockpy.container import Record
from dockpy.errors import (
    Conflict,
    DockpyError,
    NoSuchContainer,
    NoSuchImage,
    NotFound,
    RegistryError,
)
from dockpy.model import Config, Image, State, Status
from dockpy.network.values import Lease, Network, Wish
from dockpy.references import parse
from dockpy.registry.pull import Pulled
from dockpy.registry.push import Pushed
from dockpy.registry.settings import RegistrySettings
from dockpy.settings import command, merge
from dockpy.supervision import AttachmentEnd, Streams
from dockpy.trace import OFF, Trace

NOW = 1_790_000_000.0


def make_image(number: int = 1, **values: Any) -> Image:
    digit = f"{number:x}"
    defaults: dict[str, Any] = {
        "id": digit * 64,
        "layers": (digit * 64,),
        "diff_ids": (digit * 64,),
        "created": NOW - 3600 * number,
        "config": Config(),
        "architecture": "amd64",
        "size": 117_000_000,
    }
    return Image(**(defaults | values))


class FakeAttachment:
    number = 1

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self._done = threading.Event()
        self._end = AttachmentEnd.CLOSED

    def wait(self, timeout: float | None = None) -> AttachmentEnd:
        if not self._done.wait(10 if timeout is None else timeout):
            raise TimeoutError
        return self._end

    def close(self) -> None:
        self.finish(AttachmentEnd.CLOSED)

    def finish(self, end: AttachmentEnd) -> None:
        if not self._done.is_set():
            self._end = end
            self._done.set()


class FakeContainer:
    """`behave` is called in a thread of its own when it starts; by default it ends with 0."""

    def __init__(self, engine: FakeEngine, record: Record, state: State) -> None:
        self.engine = engine
        self.record = record
        self.state = state
        self.calls: list[tuple[Any, ...]] = []
        self.sizes: list[tuple[int, int]] = []
        self.sized = threading.Event()
        self.attachments: list[FakeAttachment] = []
        self._callbacks: list[Callable[[object], None]] = []
        self.log_calls: list[dict[str, Any]] = []

    id = property(lambda self: self.record.id)
    short_id = property(lambda self: self.record.id[:12])
    name = property(lambda self: self.record.name)
    created = property(lambda self: self.record.created)
    config = property(lambda self: self.record.config)
    image_name = property(lambda self: self.record.image_name)
    path = property(lambda self: command(self.record.config)[0])
    args = property(lambda self: command(self.record.config)[1:])
    directory = property(lambda self: self.engine.root / "containers" / self.record.id)

    def start(self, attach: Sequence[Streams] = (), *, trace: Trace = OFF) -> list[FakeAttachment]:
        if self.engine.start_error is not None:
            raise self.engine.start_error
        self.calls.append(("start",))
        self.state = State(status=Status.RUNNING, pid=1, started_at=NOW)
        self.attachments += [FakeAttachment(one) for one in attach]
        threading.Thread(target=self.engine.behave, args=(self,)).start()
        return self.attachments

    def end(self, code: int = 0) -> None:
        """The program ends."""
        self.state = replace(self.state, status=Status.EXITED, exit_code=code, finished_at=NOW)
        for callback in self._callbacks:
            callback(self)
        for attachment in self.attachments:
            attachment.finish(AttachmentEnd.ENDED)

    def attach(self, streams: Streams) -> FakeAttachment:
        attachment = FakeAttachment(streams)
        self.attachments.append(attachment)
        threading.Thread(target=self.engine.behave, args=(self,)).start()
        return attachment

    def _require_running(self) -> None:
        if not self.state.running:
            raise Conflict(f"container {self.name} is not running")

    def stop(self, timeout: float | None = None) -> None:
        self.calls.append(("stop", timeout))
        if self.state.running:
            self.end(143)

    def kill(self, number: int = 9) -> None:
        self._require_running()
        self.calls.append(("kill", number))
        self.engine.on_kill(self, number)

    def restart(self, timeout: float | None = None) -> None:
        self.calls.append(("restart", timeout))

    def wait(self, timeout: float | None = None) -> int:
        return self.state.exit_code

    def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))
        self.sized.set()

    def on_exit(self, callback: Callable[[object], None]) -> None:
        if self.state.running:
            self._callbacks.append(callback)
        else:
            callback(self)

    def copy_log(self, stdout: int, stderr: int, **selection: Any) -> None:
        self.log_calls.append(selection)
        os.write(stdout, b"out\n")
        os.write(stderr, b"err\n")
        self.engine.on_log(self, selection)


def end_at_once(container: FakeContainer) -> None:
    container.end(0)


@dataclass
class FakeGraph:
    images: dict[str, Image] = field(default_factory=dict)

    def get(self, reference: str) -> Image:
        for image_id, image in self.images.items():
            if image_id.startswith(reference.removeprefix("sha256:")):
                return image
        raise NoSuchImage(reference)

    def all(self) -> list[Image]:
        return list(self.images.values())

    def by_parent(self) -> dict[str, list[Image]]:
        found: dict[str, list[Image]] = {}
        for image in self.images.values():
            if image.parent:
                found.setdefault(image.parent, []).append(image)
        return found

    def directory_names(self, image: Image) -> list[Path]:
        return [Path("/layers") / layer for layer in reversed(image.layers)]

    def steady_users(self) -> AbstractContextManager[None]:
        return nullcontext()

    def delete(self, reference: str) -> None:
        del self.images[self.get(reference).id]


@dataclass
class FakeTags:
    graph: FakeGraph
    names: dict[str, str] = field(default_factory=dict)

    def set(self, repository: str, tag: str, reference: str, force: bool = False) -> None:
        self.names[f"{repository}:{tag or 'latest'}"] = self.lookup_image(reference).id

    def lookup_image(self, name: str) -> Image:
        if len(name.removeprefix("sha256:")) == 64:
            return self.graph.get(name)
        reference = parse(name)
        full = f"{self.kept(reference.repository)}:{reference.tag or 'latest'}"
        if full in self.names:
            return self.graph.get(self.names[full])
        return self.graph.get(name)

    def kept(self, repository: str) -> str:
        return parse(repository).repository.removeprefix("default.example/")

    def by_id(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, image_id in sorted(self.names.items()):
            found.setdefault(image_id, []).append(name)
        return found

    def delete(self, repository: str, tag: str = "") -> list[str]:
        del self.names[f"{repository}:{tag}"]
        return [f"{repository}:{tag}"]


@dataclass(frozen=True)
class FakeInfo:
    version: str = "0.1.0"
    root: str = "/var/lib/dockpy"
    run: str = "/run/dockpy"
    containers: int = 3
    running: int = 1
    images: int = 2
    supervisors: tuple[int, ...] = (11, 12)
    kernel: str = "6.18"
    architecture: str = "x86_64"
    cpus: int = 2
    memory: int = 4 << 30
    cgroup: str = "hybrid"
    dying_networks: int = 0
    warnings: tuple[str, ...] = ("a warning",)


class FakeRegistries:
    """Nothing can be pulled."""

    settings = RegistrySettings()

    def pull_image(self, name: str, *_: object, **_options: object) -> Pulled:
        raise RegistryError("cannot reach the registry")

    def pull_repository(self, name: str, *_: object, **_options: object) -> list[Pulled]:
        raise RegistryError("cannot reach the registry")

    def push_image(self, name: str, *_: object, **_options: object) -> Pushed:
        raise RegistryError("cannot reach the registry")

    def push_repository(self, name: str, *_: object, **_options: object) -> list[Pushed]:
        raise RegistryError("cannot reach the registry")

    def sweep(self) -> None:
        pass

    def digest(self, image_id: str, repository: str) -> str:
        return "sha256:" + image_id[::-1] if repository.startswith("team/") else ""

    def digests(self, image_id: str) -> list[str]:
        return [f"team/app@{self.digest(image_id, 'team/app')}"] if image_id[0] == "2" else []

    def login(self, registry: str, *_: object) -> str:
        raise RegistryError("cannot reach the registry")


@dataclass
class FakeNetworks:
    """Networks by name; `leases` is what running containers have."""

    made: dict[str, Network] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    joined: dict[str, list[str]] = field(default_factory=dict)

    def all(self) -> list[Network]:
        return list(self.made.values())

    def get(self, reference: str) -> Network:
        if reference == "bridge" and "bridge" not in self.made:
            self.made["bridge"] = Network(
                id="b" * 64, name="bridge", bridge="dockpy0", subnet="172.30.0.0/16"
            )
        for one in self.made.values():
            if one.name == reference or one.id.startswith(reference):
                return one
        raise NotFound("network", reference)

    def create(self, name: str, **asked: Any) -> Network:
        asked["subnet"] = asked["subnet"] or "10.216.0.0/22"
        number = "0123456789"[len(self.made)]
        self.made[name] = Network(
            id=number * 64, name=name, bridge=f"dpy-{number * 6}", created=NOW, **asked
        )
        return self.made[name]

    def remove(self, network: Network) -> None:
        if self.users(network):
            raise Conflict(f"network {network.name} is in use")
        del self.made[network.name]

    def users(self, network: Network) -> list[str]:
        return [
            container
            for container, lease in self.leases.items()
            if any(one.network == network.id for one in lease.endpoints)
        ]

    def members(self, network: Network) -> list[str]:
        return [one for one, names in self.joined.items() if network.name in names]

    def lease(self, container: str) -> Lease | None:
        return self.leases.get(container)


@dataclass
class FakeEngine:
    """`base` is an image; created containers are numbered from a."""

    root: Path = Path("/var/lib/dockpy")
    run: Path = Path("/run/dockpy")
    graph: FakeGraph = field(default_factory=FakeGraph)
    containers: list[FakeContainer] = field(default_factory=list)
    destroyed: list[str] = field(default_factory=list)
    gone: dict[str, int] = field(default_factory=dict)
    imported: list[tuple[bytes, str, str, Config | None, str]] = field(default_factory=list)
    start_error: DockpyError | None = None
    behave: Callable[[FakeContainer], None] = end_at_once
    on_kill: Callable[[FakeContainer, int], None] = lambda _container, _number: None
    on_log: Callable[[FakeContainer, dict[str, Any]], None] = lambda _container, _selection: None
    registries: FakeRegistries = field(default_factory=FakeRegistries)
    networks: FakeNetworks = field(default_factory=FakeNetworks)
    tags: FakeTags = field(init=False)

    def __post_init__(self) -> None:
        base = make_image(1)
        self.graph.images[base.id] = base
        self.tags = FakeTags(self.graph, {"base:latest": base.id})

    def create(
        self, config: Config, name: str | None = None, *, trace: Trace = OFF
    ) -> FakeContainer:
        image = self.tags.lookup_image(config.image)
        merged = merge(image.config, config)
        command(merged)
        identifier = "abcdef0123456789"[len(self.containers)] * 64
        chosen = name or f"name{len(self.containers)}"
        record = Record(
            identifier, chosen, NOW + len(self.containers), merged, image.id, config.image
        )
        container = FakeContainer(self, record, State())
        self.containers.append(container)
        return container

    def get(self, reference: str) -> FakeContainer:
        for container in self.containers:
            if container.name == reference or container.id.startswith(reference):
                return container
        raise NoSuchContainer(reference)

    def exit_code_of(self, identifier: str) -> int | None:
        return self.gone.get(identifier)

    def list(self) -> Sequence[FakeContainer]:
        return sorted(self.containers, key=lambda one: one.created, reverse=True)

    def destroy(self, container: Any, *, force: bool = False) -> None:
        if container.state.running and not force:
            raise Conflict("it is running")
        self.containers.remove(container)
        self.destroyed.append(container.id)

    def import_image(
        self,
        source: BinaryIO | int,
        repository: str = "",
        tag: str = "",
        *,
        config: Config | None = None,
        comment: str = "",
    ) -> Image:
        data = os.read(source, 1 << 16) if isinstance(source, int) else source.read()
        self.imported.append((data, repository, tag, config, comment))
        return make_image(2)

    def containers_of(self, image: Image) -> Sequence[FakeContainer]:
        return [one for one in self.containers if one.record.image_id == image.id]

    def join_network(self, container: FakeContainer, network: Network, wish: Wish) -> None:
        self.networks.joined.setdefault(container.id, []).append(network.name)

    def leave_network(self, container: FakeContainer, network: Network) -> None:
        self.networks.joined[container.id].remove(network.name)

    def info(self) -> FakeInfo:
        return FakeInfo()


@dataclass
class Caller:
    """A caller of commands whose output ends in files."""

    engine: FakeEngine
    directory: Path
    stdin: int = -1
    stdin_tty: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    window: tuple[int, int] = (0, 0)
    raw: list[bool] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    session: Session | None = None

    @contextmanager
    def opened(self) -> Iterator[Session]:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        stdout = os.open(self.directory / ".stdout", flags, 0o600)
        stderr = os.open(self.directory / ".stderr", flags, 0o600)
        cwd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.session = Session(
            runtime=cast(Engine, self.engine),  # as much of one as the commands tested here use
            stdin=self.stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=self.env,
            uid=os.geteuid(),
            gid=os.getegid(),
            stdin_tty=self.stdin_tty,
            window=self.window,
            set_raw=self.raw.append,
            leave=self.left.append,
        )
        try:
            yield self.session
        finally:
            for descriptor in (stdout, stderr, cwd):
                os.close(descriptor)

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        with self.opened() as session:
            code = main.run(session, argv)
        return (
            code,
            (self.directory / ".stdout").read_text(),
            (self.directory / ".stderr").read_text(),
        )
