"""What the commands need of the engine: `dockpy.Runtime` has it, and so have the tests' fakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from dockpy.container import Record
from dockpy.graph import Layer
from dockpy.model import Config, Exec, Image, State
from dockpy.network.values import Lease, Network, Wish
from dockpy.registry.auth import Credentials
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.credentials import Asking
from dockpy.registry.progress import Listener
from dockpy.registry.pull import Pulled
from dockpy.registry.push import Pushed
from dockpy.registry.settings import RegistrySettings
from dockpy.supervision import AttachmentEnd, Streams
from dockpy.trace import Trace


class EngineAttachment(Protocol):
    """A caller's streams on a running container."""

    @property
    def number(self) -> int: ...

    def wait(self, timeout: float | None = None) -> AttachmentEnd: ...

    def close(self) -> None: ...


class EngineProgram(Protocol):
    """What runs, and may have somebody connected: a container, or an exec in it."""

    @property
    def id(self) -> str: ...

    @property
    def config(self) -> Config: ...

    def kill(self, number: int = ...) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def resize(self, rows: int, columns: int) -> None: ...

    def on_exit(self, callback: Callable[[object], None]) -> None: ...


class EngineExecution(EngineProgram, Protocol):
    """One more program in a container."""

    def start(self, attach: Sequence[Streams] = ()) -> Sequence[EngineAttachment]: ...


class EngineRoot(Protocol):
    """A container's files; see `dockpy.container.Root`."""

    @property
    def directory(self) -> int: ...

    @property
    def wanted(self) -> int: ...


class EngineContainer(EngineProgram, Protocol):
    """One container."""

    @property
    def short_id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def created(self) -> float: ...

    @property
    def path(self) -> str: ...

    @property
    def args(self) -> tuple[str, ...]: ...

    @property
    def state(self) -> State: ...

    @property
    def record(self) -> Record: ...

    @property
    def image_name(self) -> str: ...

    @property
    def directory(self) -> Path: ...

    @property
    def attachments(self) -> Sequence[EngineAttachment]: ...

    def start(
        self, attach: Sequence[Streams] = (), *, trace: Trace = ...
    ) -> Sequence[EngineAttachment]: ...

    def stop(self, timeout: float | None = None) -> None: ...

    def restart(self, timeout: float | None = None) -> None: ...

    def attach(self, streams: Streams) -> EngineAttachment: ...

    def execute(self, wanted: Exec) -> EngineExecution: ...

    def change_lines(self) -> bytes: ...

    def root(self, *, writable: bool) -> AbstractContextManager[EngineRoot]: ...

    def export(self, out: int) -> object: ...

    def copy_log(
        self,
        stdout: int,
        stderr: int,
        *,
        since: float | None = None,
        until: float | None = None,
        tail: int | None = None,
        timestamps: bool = False,
        follow: bool = False,
        stop: int | None = None,
    ) -> None: ...


class EngineGraph(Protocol):
    """The images."""

    def get(self, reference: str) -> Image: ...

    def all(self) -> Sequence[Image]: ...

    def by_parent(self) -> Mapping[str, Sequence[Image]]: ...

    def directory_names(self, image: Image) -> Sequence[Path]: ...

    def history(self, image: Image) -> Sequence[Image]: ...

    def configuration(self, image: Image) -> bytes: ...

    def layer(self, chain: str) -> Layer | None: ...

    def delete(self, reference: str) -> None: ...

    def steady_users(self) -> AbstractContextManager[None]: ...


class EngineTags(Protocol):
    """The names of images."""

    def set(self, repository: str, tag: str, reference: str, force: bool = False) -> None: ...

    def lookup_image(self, name: str) -> Image: ...

    def kept(self, repository: str) -> str: ...

    def by_id(self) -> Mapping[str, Sequence[str]]: ...

    def delete(self, repository: str, tag: str) -> Any: ...


class EngineRegistries(Protocol):
    """Images elsewhere."""

    @property
    def settings(self) -> RegistrySettings: ...

    def pull_image(
        self,
        name: str,
        credentials: Asking = ...,
        *,
        platform: str = "",
        listener: Listener = ...,
        cancellation: Cancellation | None = None,
    ) -> Pulled: ...

    def pull_repository(
        self,
        name: str,
        credentials: Asking = ...,
        *,
        platform: str = "",
        listener: Listener = ...,
        cancellation: Cancellation | None = None,
    ) -> Sequence[Pulled]: ...

    def push_image(
        self,
        name: str,
        credentials: Asking = ...,
        *,
        listener: Listener = ...,
        cancellation: Cancellation | None = None,
    ) -> Pushed: ...

    def push_repository(
        self,
        name: str,
        credentials: Asking = ...,
        *,
        listener: Listener = ...,
        cancellation: Cancellation | None = None,
    ) -> Sequence[Pushed]: ...

    def sweep(self) -> None: ...

    def digest(self, image_id: str, repository: str) -> str: ...

    def digests(self, image_id: str) -> Sequence[str]: ...

    def login(
        self, registry: str, credentials: Credentials, cancellation: Cancellation | None = None
    ) -> str: ...


class EngineNetworks(Protocol):
    """The networks."""

    def all(self) -> Sequence[Network]: ...

    def get(self, reference: str) -> Network: ...

    def create(
        self,
        name: str,
        *,
        subnet: str = "",
        gateway: str = "",
        subnet6: str = "",
        internal: bool = False,
        masquerade: bool = True,
        mtu: int = 0,
        labels: dict[str, str] | None = None,
    ) -> Network: ...

    def remove(self, network: Network) -> None: ...

    def users(self, network: Network) -> Sequence[str]: ...

    def members(self, network: Network) -> Sequence[str]: ...

    def lease(self, container: str) -> Lease | None: ...


class EngineLoaded(Protocol):
    """An image that was taken in, and its names."""

    @property
    def image(self) -> Image: ...

    @property
    def names(self) -> tuple[str, ...]: ...


class EngineInfo(Protocol):
    """Figures of one engine."""

    @property
    def version(self) -> str: ...

    @property
    def root(self) -> str: ...

    @property
    def run(self) -> str: ...

    @property
    def containers(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def images(self) -> int: ...

    @property
    def supervisors(self) -> tuple[int, ...]: ...

    @property
    def kernel(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def cpus(self) -> int: ...

    @property
    def memory(self) -> int: ...

    @property
    def cgroup(self) -> str: ...

    @property
    def dying_networks(self) -> int: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...


class Engine(Protocol):
    """The engine as the commands see it."""

    @property
    def graph(self) -> EngineGraph: ...

    @property
    def tags(self) -> EngineTags: ...

    @property
    def registries(self) -> EngineRegistries: ...

    @property
    def networks(self) -> EngineNetworks: ...

    @property
    def root(self) -> Path: ...

    @property
    def run(self) -> Path: ...

    def create(
        self, config: Config, name: str | None = None, *, trace: Trace = ...
    ) -> EngineContainer: ...

    def get(self, reference: str) -> EngineContainer: ...

    def exit_code_of(self, identifier: str) -> int | None: ...

    def list(self) -> Sequence[EngineContainer]: ...

    def destroy(self, container: Any, *, force: bool = False) -> None: ...

    def import_image(
        self,
        source: BinaryIO | int,
        repository: str = "",
        tag: str = "",
        *,
        config: Config | None = None,
        comment: str = "",
    ) -> Image: ...

    def commit(
        self,
        container: Any,
        repository: str = "",
        tag: str = "",
        *,
        comment: str = "",
        author: str = "",
        config: Config | None = None,
        pause: bool = True,
        stop: int = -1,
    ) -> Image: ...

    def save(self, names: Sequence[str], out: int) -> None: ...

    def load(self, source: BinaryIO | int) -> Sequence[EngineLoaded]: ...

    def containers_of(self, image: Image) -> Sequence[EngineContainer]: ...

    def join_network(self, container: Any, network: Network, wish: Wish) -> None: ...

    def leave_network(self, container: Any, network: Network) -> None: ...

    def remove_network(self, network: Network) -> None: ...

    def info(self) -> EngineInfo: ...
