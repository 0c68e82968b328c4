"""Frozen values the layers hand to each other. No input or output, nothing read from the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

DEFAULT_TAG = "latest"
VERSION = "0.1.0"


class ChangeKind(Enum):
    """What happened to a path between an image and a container: `diff` prints the value."""

    MODIFY = "C"
    ADD = "A"
    DELETE = "D"


@dataclass(frozen=True, slots=True)
class Change:
    """One changed path; `path` is absolute inside the container."""

    path: str
    kind: ChangeKind


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path (or, with `source` absolute, any file) shown at `target` in the container."""

    source: str
    target: str
    read_only: bool = False
    recursive: bool = True


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit by its name without RLIMIT_, lower case; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """One more program for a running container. What is left out is as in the container.

    `privileged` gives it all capabilities and no filter; the namespaces are the container's still.
    """

    cmd: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    tty: bool = False
    open_stdin: bool = False
    privileged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a container is asked to be.

    The first group holds what an image can preset too; the second is the host's side. Sizes are
    bytes, times are seconds. `memory_swap` counts memory and swap together, -1 is no limit;
    0 or None everywhere means "not asked for".
    """

    image: str = ""
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    hostname: str = ""
    domainname: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    stop_timeout: int | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    blkio_weight: int = 0
    oom_score_adj: int = 0
    shm_size: int = 64 << 20
    ulimits: tuple[Ulimit, ...] = ()
    binds: tuple[Bind, ...] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    """All capabilities and devices, nothing masked. The command line adds seccomp="unconfined"."""
    seccomp: str = "default"
    """`default`, `unconfined`, or the JSON text of a profile."""
    no_new_privileges: bool = False
    devices: tuple[str, ...] = ()
    network_mode: str = "bridge"
    """`bridge`, `none`, `host`, `container:NAME`, or the name of a network."""
    network_aliases: tuple[str, ...] = ()
    ip_address: str = ""
    """Its IPv4 address in that network; "": any that is free."""
    mac_address: str = ""
    port_specs: tuple[str, ...] = ()
    """As -p takes them, such as `8080:80/tcp`."""
    publish_all: bool = False
    """Also publish every exposed port, on a free port of the host."""
    links: tuple[str, ...] = ()
    """`NAME:ALIAS`: a running container under another name, in /etc/hosts."""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    init: bool = False
    cgroup_view: bool = False
    """Its own cgroups at /sys/fs/cgroup, read-only, on cgroup v1 too; on pure v2 always so."""
    auto_remove: bool = False
    detach_keys: str = ""
    log_max_size: int = 0
    """Bytes after which the log rotates; 0: never."""
    log_max_file: int = 1

    def with_(self, **changes: object) -> Config:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


class Status(Enum):
    """Where in its life a container is; the value is what `inspect` shows."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One moment of a container's life. Times are seconds since the epoch, 0.0 for never.

    `exit_code` is the program's own, or 128+n when signal n killed it.
    """

    status: Status = Status.CREATED
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    supervisor: int = -1

    @property
    def running(self) -> bool:
        return self.status is Status.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as its OCI configuration describes it.

    `id` is the hex sha256 of the stored configuration bytes; `layers` are chain ids (hex sha256,
    OCI image spec "Layer ChainID"), lowest first; `config` holds the presets for `Config`.
    `size` is the sum of the unpacked layers in bytes.
    """

    id: str
    layers: tuple[str, ...]
    diff_ids: tuple[str, ...]
    created: float
    config: Config
    architecture: str = ""
    os: str = "linux"
    parent: str = ""
    comment: str = ""
    author: str = ""
    container: str = ""
    size: int = 0

    @property
    def short_id(self) -> str:
        return self.id[:12]
