"""What a container's configuration asks of the network, and the files in its /etc that follow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dockpy import etcfiles
from dockpy.errors import RequestError, TornRecord, UsageError
from dockpy.model import Config
from dockpy.network.manager import Wanted
from dockpy.network.ports import bindings
from dockpy.network.values import BRIDGE, DEFAULT, HOST, NONE, Lease, Wish
from dockpy.records import read_json, write

SHARED = "container:"
FALLBACK = ("9.9.9.9", "1.1.1.1")
"""Public name servers, for a host that has none, or none that the engine could ask for it."""
FILE = "network.json"
"""In a container's run directory: what the network gave to its run."""


def shared_with(config: Config) -> str:
    """The container whose network it uses, as the user calls it; "" for none."""
    return config.network_mode.removeprefix(SHARED) if is_shared(config) else ""


def is_shared(config: Config) -> bool:
    return config.network_mode.startswith(SHARED)


def has_network(config: Config) -> bool:
    """Whether it has an address of its own."""
    return config.network_mode not in (NONE, HOST) and not is_shared(config)


def check(config: Config) -> None:
    """Refuse what cannot be together, before anything is made. UsageError."""
    bindings(config.port_specs, config.exposed_ports, publish_all=config.publish_all)
    mode = config.network_mode
    if is_shared(config) and not shared_with(config):
        raise UsageError("--network container: wants the name or id of a container behind it")
    if has_network(config):
        if mode in (BRIDGE, DEFAULT) and config.network_aliases:
            raise UsageError(
                "--network-alias works in networks that you made; see dockpy network create"
            )
        if mode in (BRIDGE, DEFAULT) and config.ip_address:
            raise UsageError("--ip works in networks that you made; see dockpy network create")
        return
    said = {
        "-p": config.port_specs,
        "--ip": config.ip_address,
        "--mac-address": config.mac_address,
        "--network-alias": config.network_aliases,
        "--link": config.links,
    }
    for flag, value in said.items():
        if value and not (flag == "-p" and mode == HOST):  # there every port is the host's
            raise UsageError(f"{flag} needs a network of the container's own, not {mode}")


@dataclass(frozen=True, slots=True)
class Link:
    """A container that another one calls by an alias, and where it is now."""

    alias: str
    name: str
    address: str


def links(config: Config, running: Callable[[str], tuple[str, str]]) -> tuple[Link, ...]:
    """The containers it is linked to. `running` gives name and address of one that runs."""
    found = []
    for text in config.links:
        reference, _, alias = text.partition(":")
        found.append(Link(alias or reference, *running(reference)))
    return tuple(found)


def wanted(config: Config, linked: Sequence[Link] = ()) -> Wanted:
    """What to ask of the network manager."""
    return Wanted(
        network=config.network_mode,
        wish=Wish(
            address=config.ip_address,
            hardware=config.mac_address,
            aliases=config.network_aliases,
        ),
        bindings=bindings(config.port_specs, config.exposed_ports, publish_all=config.publish_all),
        dns=config.dns,
        links=tuple((one.alias, one.name) for one in linked),
    )


def files(
    config: Config,
    hostname: str,
    lease: Lease,
    linked: Sequence[Link] = (),
    *,
    answering: Sequence[str] = (),
) -> tuple[tuple[str, str], ...]:
    """Names below /etc and texts of the container's own files.

    Without a network of its own it asks the host's name servers; with one of the user's, the
    engine's resolver there. `answering`: where that answers in the default network; it is asked
    when the host's own servers cannot be. Links are names of the resolver where it has names: a
    line in /etc/hosts would come first, and be wrong once the other container is started again.
    """
    first = lease.endpoints[0] if lease.endpoints else None
    gateways = first.gateways if first is not None else ()
    named = first is not None and first.named
    resolv = etcfiles.resolv(
        host_file(etcfiles.RESOLV),
        config.dns,
        config.dns_search,
        config.dns_options,
        resolver=gateways if named else (),
        own_network=first is not None,
        systemd_text=host_file(etcfiles.SYSTEMD_RESOLV) if first is not None else "",
        fallback=answering or FALLBACK,
    )
    lines = [
        f"{called}:{one.address}"
        for one in linked
        for called in dict.fromkeys((one.alias, one.name))
        if not named
    ]
    hosts = etcfiles.hosts(
        hostname,
        config.domainname,
        [*config.extra_hosts, *lines],
        addresses=lease.addresses,
        gateways=gateways,
    )
    return ("resolv.conf", resolv), ("hostname", f"{hostname}\n"), ("hosts", hosts)


def host_file(path: str) -> str:
    """A small file of the host; "" when it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 65536).decode(errors="replace")
    finally:
        os.close(descriptor)


def keep(directory: str, lease: Lease) -> None:
    """Write down what a run has, for the engine after this one. KernelError."""
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    write(f"{directory}/{FILE}", json.dumps(lease.to_json()).encode())


def kept(directory: Path) -> Lease | None:
    """What was written down; None without such a file. RequestError when it does not parse."""
    try:
        return Lease.from_json(read_json(directory / FILE))
    except FileNotFoundError:
        return None
    except (TornRecord, KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{directory / FILE}: {error}; its addresses are not known") from error
