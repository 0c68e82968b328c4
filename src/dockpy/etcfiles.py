"""Text of the files every container is given: /etc/hosts, /etc/hostname, /etc/resolv.conf.

Facts (resolv.conf(5), systemd-resolved.service(8)):
- Without a `nameserver` line a program asks 127.0.0.1. Of `search` and `domain` lines the last
  counts; options of several lines add up.
- In a container with a network of its own, the host's loopback addresses are the container's. A
  host whose only server is 127.0.0.53 runs systemd-resolved, which writes the servers it asks
  itself to /run/systemd/resolve/resolv.conf. For a host with another server on its loopback
  (dnsmasq, unbound) there is no such list.
- With `ndots:0` a name without a dot is asked for as it is before any search domain is tried; so a
  container's name cannot be hidden by a domain that answers everything.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from dockpy.errors import UsageError

RESOLV = "/etc/resolv.conf"
SYSTEMD_RESOLV = "/run/systemd/resolve/resolv.conf"
HOST_GATEWAY = "host-gateway"
_LOCAL = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def hosts(
    hostname: str,
    domainname: str,
    extra: Sequence[str],
    address: str = "127.0.1.1",
    *,
    addresses: Sequence[str] = (),
    aliases: Sequence[str] = (),
    gateways: Sequence[str] = (),
) -> str:
    """`extra`: NAME:ADDRESS or NAME=ADDRESS pairs as --add-host gives them.

    `address` is the container's own; `addresses` are all of them when there are several. They have
    its `aliases` as well. The address `host-gateway` stands for each of `gateways`, the host as
    the container sees it. Raises UsageError for a pair that is none.
    """
    lines = [_LOCAL]
    names = [f"{hostname}.{domainname}", hostname] if domainname else [hostname]
    own = " ".join(dict.fromkeys([*names, *aliases]))
    lines += [f"{each}\t{own}\n" for each in addresses or (address,)]
    for pair in extra:
        name, values = _extra_host(pair, gateways)
        lines += [f"{value}\t{name}\n" for value in values]
    return "".join(lines)


def _extra_host(pair: str, gateways: Sequence[str]) -> tuple[str, Sequence[str]]:
    name, sign, value = re.fullmatch(r"([^:=]*)([:=]?)(.*)", pair, re.DOTALL).groups()  # type: ignore[union-attr]
    if not (name and sign and value) or re.search(r"[\s#]", name):
        raise UsageError(f"bad host entry {pair!r}; write NAME:ADDRESS")
    if value == HOST_GATEWAY:
        if not gateways:
            raise UsageError(f"{pair}: a container without a network has no way to the host")
        return name, gateways
    value = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if not _is_address(value):
        raise UsageError(
            f"bad host entry {pair!r}; write NAME:ADDRESS, and {value!r} is no address"
        )
    return name, [value]


def resolv(
    host_text: str,
    dns: Sequence[str],
    search: Sequence[str],
    options: Sequence[str] = (),
    *,
    resolver: Sequence[str] = (),
    own_network: bool = False,
    systemd_text: str = "",
    fallback: Sequence[str] = (),
) -> str:
    """The host's own text, unless something else is asked for or it would not work.

    `dns`, `search`, `options`: what --dns, --dns-search and --dns-opt gave; search "." is none.
    An option replaces the host's of the same name, the others are kept.
    `resolver`: addresses of the network's resolver; then it is the only server, whatever else is
    given (it asks the others itself), and `ndots:0` holds unless `options` say otherwise.
    `own_network`: the container does not share the host's network. Servers on the host's loopback
    or on one of its links (fe80::) are left out then. When none remain, those of `systemd_text`
    are taken (the text of SYSTEMD_RESOLV, "" without such a file); then `fallback`.
    """
    servers = list(resolver or dns or nameservers(host_text))
    if own_network and not dns and not resolver:
        servers = _reachable(servers) or _reachable(nameservers(systemd_text)) or list(fallback)
    unchanged = servers == nameservers(host_text)
    if unchanged and not search and not options:
        return host_text
    kept = _words(host_text, "options")
    if resolver:
        kept = [*(each for each in kept if _option(each) != "ndots"), "ndots:0"]
    given = {_option(each) for each in options}
    kept = [each for each in kept if _option(each) not in given]
    domains = list(search) if search else _search(host_text)
    lines = [f"nameserver {server}" for server in servers]
    if domains and domains != ["."]:
        lines.append("search " + " ".join(domains))
    if kept or options:
        lines.append("options " + " ".join(dict.fromkeys([*kept, *options])))
    sorting = _words(host_text, "sortlist")
    if sorting:
        lines.append("sortlist " + " ".join(sorting))
    return "".join(f"{line}\n" for line in lines)


def asks_itself(host_text: str, systemd_text: str) -> bool:
    """Whether a host has servers, and all of them on its loopback or one of its links.

    Arguments as for `resolv`. Containers cannot ask those; only the engine can, for them.
    """
    servers = nameservers(host_text)
    return bool(servers) and not _reachable([*servers, *nameservers(systemd_text)])


def nameservers(text: str) -> list[str]:
    """The addresses of `nameserver` lines, in their order; what is no address is left out."""
    found = [line[1] for line in _lines(text, "nameserver") if len(line) > 1]
    return [each for each in dict.fromkeys(found) if _is_address(each)]


def _search(text: str) -> list[str]:
    last = [line[1:] for line in _lines(text, "search", "domain")][-1:]
    return last[0] if last else []


def _words(text: str, keyword: str) -> list[str]:
    return [word for line in _lines(text, keyword) for word in line[1:]]


def _lines(text: str, *keywords: str) -> list[list[str]]:
    """Lines of those kinds, in words. A comment has its sign at the line's begin."""
    return [words for line in text.splitlines() if (words := line.split()) and words[0] in keywords]


def _option(text: str) -> str:
    return text.partition(":")[0]


def _reachable(servers: Iterable[str]) -> list[str]:
    """Those that mean the same from a network of one's own."""
    parsed = [(each, ipaddress.ip_address(each)) for each in servers]
    return [
        each
        for each, known in parsed
        if not (known.is_loopback or known.is_link_local or known.is_unspecified)
    ]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
