"""Published ports as texts and values. Pure: no socket is opened here.

What -p takes (docker run(1), "Publish or expose port"; `[::1]` as in RFC 3986):

    80                        container port 80 on a free port of every host address
    8080:80                   host port 8080 on every address
    0:80  :80                 as 80
    127.0.0.1:8080:80         on that address alone; `[::1]:8080:80` for IPv6
    127.0.0.1::80             a free port on that address
    8000-8010:80              the first free port of the range
    8000-8010:7000-7010       port by port; both ranges are of one length
    80/udp  8080:80/sctp      tcp unless said otherwise
    published=8080,target=80,protocol=tcp      the long form
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dockpy.errors import NotFound, UsageError

PROTOCOLS: Mapping[str, int] = {"tcp": 6, "udp": 17, "sctp": 132}
"""Their numbers (IANA)."""
HIGHEST = 65535
ANY = ("", "0.0.0.0", "::")
"""Host addresses that stand for all: of both versions, of IPv4, of IPv6."""

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Binding:
    """What is asked for: one container port on a host port between `first` and `last`.

    `first` 0: any that is free. `address` "": every address of the host, IPv6 too where the
    container has an address of it.
    """

    port: int
    protocol: str = "tcp"
    address: str = ""
    first: int = 0
    last: int = 0

    @property
    def key(self) -> str:
        """`80/tcp`, as `port` and inspect name it."""
        return f"{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Published:
    """What was given: one host port that leads to one container port."""

    port: int
    protocol: str
    address: str
    host_port: int

    @property
    def key(self) -> str:
        return f"{self.port}/{self.protocol}"

    def addresses(self, *, ipv6: bool) -> tuple[str, ...]:
        """The host addresses it answers on, as `port` shows them."""
        if self.address:
            return (self.address,)
        return ("0.0.0.0", "::") if ipv6 else ("0.0.0.0",)


# -- parsing -----------------------------------------------------------------------------------


def parse_publish(text: str) -> tuple[Binding, ...]:
    """The bindings of one -p. UsageError says what is wrong with it."""
    if "=" in text:
        return _parse_words(text)
    spec, protocol = _split_protocol(text)
    address, spec = _split_address(spec, text)
    host, colon, container = spec.rpartition(":")
    if not colon and address:
        raise UsageError(f"{text!r}: an address wants two colons behind it: {address}:PORT:PORT")
    ports = _parse_range(container, text, lowest=1)
    hosts = _parse_range(host, text, lowest=0) if host else (0, 0)
    return _pair(ports, hosts, address, protocol, text)


def parse_expose(text: str) -> tuple[str, ...]:
    """`80`, `80/udp` or `7000-7002` as `number/protocol` each."""
    spec, protocol = _split_protocol(text)
    first, last = _parse_range(spec, text, lowest=1)
    return tuple(f"{port}/{protocol}" for port in range(first, last + 1))


def parse_key(text: str) -> tuple[int, str]:
    """`80` or `80/udp`: what `port CONTAINER PORT` takes."""
    spec, protocol = _split_protocol(text)
    first, last = _parse_range(spec, text, lowest=1)
    if first != last:
        raise UsageError(f"{text!r}: one port expected, such as 80/tcp")
    return first, protocol


def spec_text(one: Binding) -> str:
    """The shortest -p that parses to it again; what a container's record keeps."""
    host = "" if not one.first else str(one.first)
    if one.last > one.first:
        host += f"-{one.last}"
    address = f"[{one.address}]" if ":" in one.address else one.address
    front = f"{address}:{host}:" if address else f"{host}:" if host else ""
    return f"{front}{one.port}/{one.protocol}"


def bindings(
    specs: Iterable[str], exposed: Iterable[str] = (), *, publish_all: bool = False
) -> tuple[Binding, ...]:
    """What a container's -p ask for, each once; with -P also the exposed ports no -p names."""
    found = dict.fromkeys(one for spec in specs for one in parse_publish(spec))
    if publish_all:
        named = {one.key for one in found}
        for text in exposed:
            port, protocol = parse_key(text)
            if f"{port}/{protocol}" not in named:
                found[Binding(port, protocol)] = None
    return tuple(found)


def _split_protocol(text: str) -> tuple[str, str]:
    spec, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise UsageError(f"{text!r}: the protocol is one of {', '.join(PROTOCOLS)}")
    return spec, protocol


def _split_address(spec: str, text: str) -> tuple[str, str]:
    """The host address, "" for none, and what is behind its colon."""
    if spec.startswith("["):
        address, bracket, rest = spec[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise UsageError(f"{text!r}: [ADDRESS]:PORT:PORT expected")
        return _parse_address(address, text), rest[1:]
    if spec.count(":") < 2:
        return "", spec
    # `::1:8080:80` without brackets: the two last colons separate ports.
    address, host, container = spec.rsplit(":", 2)
    return _parse_address(address, text) if address else "", f"{host}:{container}"


def _parse_address(text: str, whole: str) -> str:
    try:
        found = ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(
            f"{whole!r}: {text!r} is not an IP address; names are not looked up"
        ) from error
    if found.is_multicast or "%" in text:
        raise UsageError(f"{whole!r}: nothing can be published on {text}")
    # ::ffff:127.0.0.1 is another spelling of 127.0.0.1: no packet has it (RFC 4291, 2.5.5.2).
    return str(getattr(found, "ipv4_mapped", None) or found)


def _parse_range(text: str, whole: str, *, lowest: int) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        subject = repr(text) if text == whole else f"{whole!r}: {text!r}"
        raise UsageError(f"{subject} is not a port such as 80 or a range such as 80-90")
    first, last = int(match[1]), int(match[2] or match[1])
    if not (lowest <= first <= HIGHEST and last <= HIGHEST):
        raise UsageError(f"{whole!r}: ports go from 1 to {HIGHEST}")
    if first > last:
        raise UsageError(f"{whole!r}: the range {text} goes backwards")
    if first == 0 < last:
        raise UsageError(f"{whole!r}: a range begins at 1 or above")
    return first, last


def _pair(
    ports: tuple[int, int], hosts: tuple[int, int], address: str, protocol: str, text: str
) -> tuple[Binding, ...]:
    count = ports[1] - ports[0] + 1
    if hosts == (0, 0):
        return tuple(Binding(ports[0] + n, protocol, address) for n in range(count))
    if count == 1:
        return (Binding(ports[0], protocol, address, *hosts),)
    if hosts[1] - hosts[0] + 1 != count:
        raise UsageError(f"{text!r}: both ranges must have the same length")
    return tuple(
        Binding(ports[0] + n, protocol, address, hosts[0] + n, hosts[0] + n) for n in range(count)
    )


def _parse_words(text: str) -> tuple[Binding, ...]:
    """published=8080,target=80,protocol=tcp,mode=host,host_ip=127.0.0.1"""
    words: dict[str, str] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        known = {"target", "published", "protocol", "mode", "host_ip", "name", "app_protocol"}
        if not equals or key.strip().lower() not in known:
            raise UsageError(f"{text!r}: {word!r} is none of target=, published=, protocol=")
        words[key.strip().lower()] = value.strip()
    if "target" not in words:
        raise UsageError(f"{text!r}: target=PORT is missing")
    if words.get("mode", "host") not in ("host", "ingress"):
        raise UsageError(f"{text!r}: the mode is host or ingress")
    _, protocol = _split_protocol(f"/{words.get('protocol', 'tcp')}")
    address = _parse_address(words["host_ip"], text) if words.get("host_ip") else ""
    ports = _parse_range(words["target"], text, lowest=1)
    hosts = _parse_range(words.get("published") or "0", text, lowest=0)
    return _pair(ports, hosts, address, protocol, text)


# -- showing -----------------------------------------------------------------------------------


def host_text(address: str, port: int) -> str:
    """`0.0.0.0:8080`, `[::]:8080`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def port_lines(published: Sequence[Published], *, ipv6: bool = False) -> list[str]:
    """What `port CONTAINER` prints, in the order of container ports."""
    return [
        f"{one.key} -> {host_text(address, one.host_port)}"
        for one in sorted(published, key=_order)
        for address in one.addresses(ipv6=ipv6)
    ]


def lookup(published: Sequence[Published], wanted: str, *, ipv6: bool = False) -> list[str]:
    """What `port CONTAINER PORT[/PROTO]` prints; NotFound when that port is not published."""
    port, protocol = parse_key(wanted)
    found = [
        host_text(address, one.host_port)
        for one in sorted(published, key=_order)
        if (one.port, one.protocol) == (port, protocol)
        for address in one.addresses(ipv6=ipv6)
    ]
    if not found:
        raise NotFound("published port", f"{port}/{protocol}")
    return found


def numbers(published: Sequence[Published], wanted: str) -> list[str]:
    """The host's ports alone that lead to that port, each once; NotFound when there is none."""
    lookup(published, wanted)
    port, protocol = parse_key(wanted)
    return list(
        dict.fromkeys(
            str(one.host_port)
            for one in sorted(published, key=_order)
            if (one.port, one.protocol) == (port, protocol)
        )
    )


def column(
    published: Sequence[Published], exposed: Iterable[str] = (), *, ipv6: bool = False
) -> str:
    """The PORTS column of `ps`: runs of ports are joined, as Docker joins them."""
    parts: list[str] = []
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for one in sorted(published, key=_order):
        for address in one.addresses(ipv6=ipv6):
            groups.setdefault((address, one.protocol), []).append((one.host_port, one.port))
    for (address, protocol), pairs in groups.items():
        for host, port, length in _runs(sorted(pairs)):
            hosts = f"{host}-{host + length}" if length else str(host)
            shown = f"{address}:{hosts}" if ":" not in address else f"[{address}]:{hosts}"
            parts.append(f"{shown}->{_span(port, length)}/{protocol}")
    taken = {one.key for one in published}
    bare: dict[str, list[tuple[int, int]]] = {}
    for text in exposed:
        port, protocol = parse_key(text)
        if f"{port}/{protocol}" not in taken:
            bare.setdefault(protocol, []).append((port, port))
    for protocol, pairs in bare.items():
        parts += [f"{_span(port, length)}/{protocol}" for _, port, length in _runs(sorted(pairs))]
    return ", ".join(parts)


def port_map(
    published: Sequence[Published], exposed: Iterable[str] = (), *, ipv6: bool = False
) -> dict[str, list[dict[str, str]] | None]:
    """NetworkSettings.Ports of inspect: exposed ports that are not published have null."""
    found: dict[str, list[dict[str, str]] | None] = {}
    for one in sorted(published, key=_order):
        entries = found.setdefault(one.key, [])
        assert entries is not None
        entries += [
            {"HostIp": address, "HostPort": str(one.host_port)}
            for address in one.addresses(ipv6=ipv6)
        ]
    for text in exposed:
        port, protocol = parse_key(text)
        found.setdefault(f"{port}/{protocol}", None)
    return dict(sorted(found.items()))


def binding_map(asked: Iterable[Binding]) -> dict[str, list[dict[str, str]]]:
    """HostConfig.PortBindings of inspect: what -p asked for."""
    found: dict[str, list[dict[str, str]]] = {}
    for one in asked:
        host = "" if not one.first else str(one.first)
        if one.last > one.first:
            host += f"-{one.last}"
        found.setdefault(one.key, []).append({"HostIp": one.address, "HostPort": host})
    return dict(sorted(found.items()))


def _order(one: Published) -> tuple[int, str, str, int]:
    return one.port, one.protocol, one.address, one.host_port


def _runs(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(host port, container port, further ports) of runs in which both grow by one."""
    found: list[tuple[int, int, int]] = []
    for host, port in pairs:
        if found and (host, port) == (
            found[-1][0] + found[-1][2] + 1,
            found[-1][1] + found[-1][2] + 1,
        ):
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + 1)
        else:
            found.append((host, port, 0))
    return found


def _span(first: int, further: int) -> str:
    return f"{first}-{first + further}" if further else str(first)
