"""What an administrator says about registries: mirrors, plain HTTP, certificates, patience.

Read from a JSON file, `/etc/dockpy/registries.json` unless DOCKPY_REGISTRIES names another:

    {"default-registry": "registry.example",
     "registry-mirrors": ["https://mirror.example"],
     "mirrors": {"registry.example": ["https://mirror.example/prefix"]},
     "insecure-registries": ["registry.example:5000", "10.0.0.0/8"]}

`registry-mirrors` and `insecure-registries` are spelled as in Docker's daemon.json and mean the
same: mirrors of the default registry, and registries whose certificate need not be right and that
may speak plain HTTP. This is the only module that names hosts of the outside world: short names
mean Docker's own registry, which is a part of the grammar of image names.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockpy.errors import RequestError

DEFAULT_REGISTRY = "docker.io"
"""The host that names without a host belong to."""
DEFAULT_ENDPOINT = "registry-1.docker.io"
"""Where that host's registry answers."""
DEFAULT_ALIASES = ("index.docker.io",)
"""Other names of the same host."""
DEFAULT_CREDENTIALS = "https://index.docker.io/v1/"
"""The name of that host's entry in Docker's config.json."""
OFFICIAL = "library"
"""Where the default registry keeps names of one part."""

FILE = "/etc/dockpy/registries.json"
CERTIFICATES = ("/etc/dockpy/certs.d", "/etc/docker/certs.d")

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often. All times are seconds.

    `silence`: of a server that owes us bytes; `connect`: for one address; `attempts`: in a row
    without any progress; `backoff`: before the second attempt, doubled up to `backoff_limit`;
    `retry_after_limit`: the longest wait a server may ask for; a transfer slower than `slowest`
    bytes a second over `slow_time` counts as silent.
    """

    connect: float = 15.0
    silence: float = 60.0
    attempts: int = 5
    backoff: float = 0.5
    backoff_limit: float = 15.0
    retry_after_limit: float = 120.0
    slowest: int = 256
    slow_time: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a registry may send, in bytes, and how much goes on at once.

    `blob`: one compressed layer; `unpacked`: one layer's tar stream or file data.
    """

    manifest: int = 4 * _MIB
    answer: int = 4 * _MIB
    blob: int = 64 << 30
    unpacked: int = 256 << 30
    downloads: int = 4
    uploads: int = 4
    redirects: int = 8
    pages: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Everything of the above; immutable."""

    default_registry: str = DEFAULT_REGISTRY
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    insecure: tuple[str, ...] = ()
    certificates: tuple[str, ...] = CERTIFICATES
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where proxies are named."""
    file: str = FILE
    """Where all this stands, for messages."""
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=Limits)

    def endpoint_of(self, host: str) -> str:
        """The host and port where a registry's protocol is spoken."""
        return DEFAULT_ENDPOINT if host == DEFAULT_REGISTRY else host

    def is_insecure(self, host: str) -> bool:
        """Whether `host[:port]` may do without a right certificate: the list has it, with or
        without its port, or a network it is in."""
        name = host_name(host)
        if host in self.insecure or name in self.insecure:
            return True
        address = as_address(name)
        return address is not None and any(
            address in network for network in map(as_network, self.insecure) if network is not None
        )

    @property
    def how_to_trust(self) -> str:
        """What an administrator does who wants a registry as it is."""
        return f"list it in insecure-registries in {self.file} and start the daemon again"

    def may_be_plain(self, host: str) -> bool:
        """Whether `host[:port]` may speak plain HTTP: it is insecure, or this very machine."""
        return is_loopback(host) or self.is_insecure(host)


def load(environment: Mapping[str, str] | None = None) -> RegistrySettings:
    """The settings of this machine. RequestError names what is wrong with the file."""
    values = os.environ if environment is None else environment
    named = values.get("DOCKPY_REGISTRIES", "")
    path = Path(named or FILE)
    try:
        text = path.read_text()
    except FileNotFoundError:
        if named:
            raise RequestError(f"{path}: there is no such file (DOCKPY_REGISTRIES)") from None
        text = "{}"
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path), values)


def parse(text: str, where: str, environment: Mapping[str, str]) -> RegistrySettings:
    """Settings from the file's text. RequestError; names nobody knows are errors too."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RequestError(f"{where}: not JSON: {error}") from error
    known = {"default-registry", "registry-mirrors", "mirrors", "insecure-registries", "certs.d"}
    if not isinstance(values, dict) or (unknown := sorted(set(values) - known)):
        what = f"unknown name {unknown[0]!r}" if isinstance(values, dict) else "not an object"
        raise RequestError(f"{where}: {what}; known are {', '.join(sorted(known))}")
    default = values.get("default-registry", DEFAULT_REGISTRY)
    if not isinstance(default, str) or not default:
        raise RequestError(f"{where}: default-registry is not a host")
    mirrors = values.get("mirrors", {})
    if not isinstance(mirrors, dict):
        raise RequestError(f"{where}: mirrors is not an object of lists")
    named = {host: _texts(one, where, f"mirrors.{host}") for host, one in mirrors.items()}
    general = _texts(values.get("registry-mirrors", []), where, "registry-mirrors")
    if general:
        named[default] = (*named.get(default, ()), *general)
    for mirror in (one for each in named.values() for one in each):
        if not mirror.startswith(("https://", "http://")):
            raise RequestError(
                f"{where}: mirror {mirror!r} does not begin with https:// or http://"
            )
    certificates = _texts(values.get("certs.d", list(CERTIFICATES)), where, "certs.d")
    return RegistrySettings(
        default_registry=default,
        mirrors=named,
        insecure=_texts(values.get("insecure-registries", []), where, "insecure-registries"),
        certificates=certificates,
        environment=dict(environment),
        file=where,
    )


def _texts(value: object, where: str, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise RequestError(f"{where}: {name} is not a list of texts")
    return tuple(value)


def host_name(host: str) -> str:
    """`host[:port]` without the port and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine: localhost (RFC 6761 6.3), 127/8 or ::1."""
    name = host_name(host).lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = as_address(name)
    return address is not None and address.is_loopback


def as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def as_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if "/" not in text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
