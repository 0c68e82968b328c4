"""network: the networks containers are in, and who is in which."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any

from dockpy.cli import filters as filtering
from dockpy.cli import options
from dockpy.cli.command import Operand, Option, Switch, command
from dockpy.cli.engine import Engine
from dockpy.cli.flags import parse_address, parse_label
from dockpy.cli.render import Listing, json_time, label_method, pretty_json
from dockpy.cli.session import Session
from dockpy.cli.template import Map, compile_template, to_json
from dockpy.errors import Conflict, DockpyError, NotFound, UsageError
from dockpy.network.addresses import parse_subnet, parse_subnet6
from dockpy.network.values import BRIDGE, HOST, NONE, RESERVED, Network, Wish

FILTERS = ("driver", "id", "label", "name", "type")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DRIVERS = {HOST: HOST, NONE: "null"}
NETWORKS = Listing(
    headers={
        "CreatedAt": "CREATED AT",
        "Driver": "DRIVER",
        "ID": "NETWORK ID",
        "IPv6": "IPV6",
        "Internal": "INTERNAL",
        "Labels": "LABELS",
        "Name": "NAME",
        "Scope": "SCOPE",
    },
    default="{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    quiet="ID",
)


def parse_driver(text: str) -> str:
    """`bridge`, the one driver there is."""
    if text != BRIDGE:
        raise UsageError("bridge expected; host and none are there for every container")
    return text


@command(
    "network create",
    "Make a network.\n\nContainers in it find each other by name. Its id is printed.",
    Switch("--attachable", help="Nothing: every network is"),
    Option("-d", "--driver", help="bridge", parse=parse_driver, metavar="DRIVER", default=BRIDGE),
    Option(
        "--gateway",
        help="The host's address in it (default: the first)",
        parse=parse_address,
        metavar="ADDRESS",
        multiple=True,
    ),
    Switch("--internal", help="No way out of it, and none in"),
    Switch("--ipv6", help="IPv6 too; without a range for it, a private one is chosen"),
    Option("--label", help="Set a label", parse=parse_label, metavar="KEY=VALUE", multiple=True),
    Option("--mtu", help="Largest packet in bytes", parse=int, metavar="N", default=0),
    Option(
        "--subnet",
        help="Range of its addresses, such as 10.9.0.0/22, and one of IPv6",
        metavar="RANGE",
        multiple=True,
    ),
    Switch("--no-masquerade", help="Containers go out under their own addresses"),
    Operand("name", "name"),
)
def create(
    session: Session,
    *,
    attachable: bool,
    driver: str,
    gateway: Sequence[str],
    internal: bool,
    ipv6: bool,
    label: Sequence[tuple[str, str]],
    mtu: int,
    subnet: Sequence[str],
    no_masquerade: bool,
    name: str,
) -> int:
    del attachable, driver
    if name in RESERVED:
        raise UsageError(f"{name!r} is a network that every engine has; choose another name")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"bad network name {name!r}: at most 64 letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit"
        )
    if mtu and not 576 <= mtu <= 65535:
        raise UsageError("--mtu is between 576 and 65535")
    four = [str(parse_subnet(one)) for one in subnet if ":" not in one]
    six = [str(parse_subnet6(one)) for one in subnet if ":" in one]
    gateways = [one for one in gateway if ":" not in one]
    if len(four) > 1 or len(six) > 1 or len(gateways) > 1:
        raise UsageError("one range and one gateway of each version at most")
    if len(gateways) != len(gateway):
        raise UsageError("--gateway: the IPv6 gateway is the first address of its range")
    if gateways and not four:
        raise UsageError("--gateway needs --subnet beside it")
    made = session.runtime.networks.create(
        name,
        subnet=four[0] if four else "",
        gateway=gateways[0] if gateways else "",
        subnet6=six[0] if six else private_range(name) if ipv6 else "",
        internal=internal,
        masquerade=not no_masquerade,
        mtu=mtu,
        labels=dict(label),
    )
    session.write(f"{made.id}\n")
    return 0


def private_range(name: str) -> str:
    """A private IPv6 range of its own (RFC 4193), by name and time."""
    digits = hashlib.sha256(f"{name} {time.time_ns()}".encode()).hexdigest()
    return f"fd{digits[:2]}:{digits[2:6]}:{digits[6:10]}::/64"


@command(
    "network ls",
    "List networks.",
    Option(
        "-f",
        "--filter",
        "filters",
        help=f"Only those that fit: {', '.join(FILTERS)}",
        parse=filtering.parse_filter,
        metavar="KEY=VALUE",
        multiple=True,
    ),
    Option(
        "--format",
        "form",
        help="table TEMPLATE, a Go template, or json",
        metavar="FORMAT",
        default="",
    ),
    Switch("--no-trunc", help="Do not shorten ids"),
    Switch("-q", "--quiet", help="Only ids"),
)
def ls(
    session: Session, *, filters: Sequence[tuple[str, str]], form: str, no_trunc: bool, quiet: bool
) -> int:
    wanted = filtering.group(filters, FILTERS)
    found = [one for one in networks(session.runtime) if fits(one, wanted)]
    rows = [row(one, shorten=not no_trunc) for one in sorted(found, key=lambda one: one.name)]
    session.write(NETWORKS.render(rows, form=form, quiet=quiet))
    return 0


def networks(engine: Engine) -> list[Network]:
    """All, with those every engine has."""
    engine.networks.get(BRIDGE)
    return [*engine.networks.all(), built_in(HOST), built_in(NONE)]


def built_in(name: str) -> Network:
    """`host` and `none` as networks; they are nowhere but in lists."""
    key = hashlib.sha256(f"dockpy network {name}".encode()).hexdigest()
    return Network(id=key, name=name, bridge="", subnet="")


def driver_of(network: Network) -> str:
    return DRIVERS.get(network.name, BRIDGE)


def fits(network: Network, wanted: filtering.Filters) -> bool:
    kind = "builtin" if network.name in RESERVED else "custom"
    return (
        ("name" not in wanted or filtering.matches_pattern(wanted["name"], network.name))
        and ("id" not in wanted or any(network.id.startswith(one) for one in wanted["id"]))
        and ("driver" not in wanted or driver_of(network) in wanted["driver"])
        and ("type" not in wanted or kind in wanted["type"])
        and filtering.matches_labels(wanted.get("label", ()), network.labels)
    )


def row(network: Network, *, shorten: bool) -> dict[str, Any]:
    """What a line of network ls can show."""
    return {
        "CreatedAt": json_time(network.created),
        "Driver": driver_of(network),
        "ID": network.id[:12] if shorten else network.id,
        "IPv6": str(bool(network.subnet6)).lower(),
        "Internal": str(network.internal).lower(),
        "Label": label_method(network.labels),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(network.labels.items())),
        "Name": network.name,
        "Scope": "local",
    }


def look_up(engine: Engine, name: str) -> Network:
    """A network, those every engine has among them. NotFound."""
    for one in (HOST, NONE):
        if name == one:
            return built_in(one)
    return engine.networks.get(name)


@command(
    "network inspect",
    "Show all about networks, as JSON.",
    options.format_(),
    Operand("names", "network", many=True),
)
def inspect(session: Session, *, names: tuple[str, ...], format: str | None) -> int:
    template = None if format in (None, "", "json") else compile_template(str(format))
    found: list[dict[str, Any]] = []
    errors: list[DockpyError] = []
    for name in names:
        try:
            found.append(values(session.runtime, look_up(session.runtime, name)))
        except DockpyError as missing:
            errors.append(missing)
    if template is not None:
        session.write("".join(f"{template.render(one)}\n" for one in found))
    elif format == "json":
        session.write("".join(f"{to_json(one)}\n" for one in found))
    elif found:
        session.write(pretty_json(found))
    for error in errors:
        session.error(f"dockpy: {error}")
    return 1 if errors else 0


def values(engine: Engine, network: Network) -> dict[str, Any]:
    """A network in the shape of `docker network inspect`."""
    ranges = []
    if network.subnet:
        first = next(network.segments())
        ranges.append({"Subnet": network.subnet, "Gateway": str(first.gateway)})
        if network.subnet6:
            ranges.append({"Subnet": network.subnet6, "Gateway": str(first.gateway6)})
    inside = {}
    for container in engine.list():
        lease = engine.networks.lease(container.id)
        for one in () if lease is None else lease.endpoints:
            if one.network == network.id:
                inside[container.id] = {
                    "Name": container.name,
                    "EndpointID": one.cable,
                    "MacAddress": one.hardware,
                    "IPv4Address": f"{one.address}/{one.prefix}",
                    "IPv6Address": f"{one.address6}/{one.prefix6}" if one.address6 else "",
                }
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": json_time(network.created),
        "Scope": "local",
        "Driver": driver_of(network),
        "EnableIPv6": bool(network.subnet6),
        "IPAM": {"Driver": "default", "Options": None, "Config": ranges},
        "Internal": network.internal,
        "Attachable": True,
        "Ingress": False,
        "Containers": Map(inside),
        "Options": Map({"com.docker.network.bridge.name": network.bridge})
        if network.bridge
        else Map(),
        "Labels": Map(network.labels),
    }


@command(
    "network rm",
    "Remove networks that nobody is in.",
    Switch("-f", "--force", help="One that is not there is no error"),
    Operand("names", "network", many=True),
)
def rm(session: Session, *, force: bool, names: tuple[str, ...]) -> int:
    failed = False
    for name in names:
        try:
            if name in (HOST, NONE):
                raise UsageError(f"network {name} is there for every container and stays")
            session.runtime.remove_network(session.runtime.networks.get(name))
        except NotFound as missing:
            failed = failed or not force
            if not force:
                session.error(f"dockpy: {missing}")
        except DockpyError as error:
            failed = True
            session.error(f"dockpy: {error}")
        else:
            session.write(f"{name}\n")
    return 1 if failed else 0


@command(
    "network connect",
    "Put a container into one more network.",
    Option("--alias", help="One more name for it there", metavar="NAME", multiple=True),
    Option("--ip", help="Its address there", parse=parse_address, metavar="ADDRESS", default=""),
    Operand("network", "network"),
    options.container(),
)
def connect(
    session: Session, *, alias: tuple[str, ...], ip: str, network: str, container: str
) -> int:
    found = session.runtime.get(container)
    wish = Wish(address=ip, aliases=alias)
    session.runtime.join_network(found, session.runtime.networks.get(network), wish)
    return 0


@command(
    "network disconnect",
    "Take a container out of a network.",
    Switch("-f", "--force", help="Nothing: it is always possible"),
    Operand("network", "network"),
    options.container(),
)
def disconnect(session: Session, *, force: bool, network: str, container: str) -> int:
    del force
    found = session.runtime.get(container)
    session.runtime.leave_network(found, session.runtime.networks.get(network))
    return 0


@command(
    "network prune",
    "Remove all networks that no container is in or wants.",
    Switch("-f", "--force", help="Nothing: there is no question"),
)
def prune(session: Session, *, force: bool) -> int:
    del force
    engine = session.runtime
    wanted = {one.config.network_mode for one in engine.list()}
    for one in engine.networks.all():
        if one.name in RESERVED or one.name in wanted or one.id in wanted:
            continue
        if engine.networks.members(one):
            continue
        try:
            engine.remove_network(one)
        except Conflict:  # somebody is in it
            continue
        session.write(f"{one.name}\n")
    return 0
