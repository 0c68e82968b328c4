"""Text of the files every container is given: /etc/hosts, /etc/hostname, /etc/resolv.conf."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from dockpy.errors import UsageError

_LOCAL = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def hosts(hostname: str, domainname: str, extra: Sequence[str], address: str = "127.0.1.1") -> str:
    """`extra`: NAME:ADDRESS pairs as --add-host gives them; `address` is the container's own."""
    lines = [_LOCAL]
    names = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    lines.append(f"{address}\t{names}\n")
    for pair in extra:
        name, colon, value = pair.partition(":")
        if not (name and colon and value):
            raise UsageError(f"bad host entry {pair!r}; write NAME:ADDRESS")
        lines.append(f"{value}\t{name}\n")
    return "".join(lines)


def resolv(host_text: str, dns: Sequence[str], search: Sequence[str]) -> str:
    """The host's own text, unless servers or search domains were given."""
    if not dns and not search:
        return host_text
    kept = [line for line in host_text.splitlines() if not line.startswith(("search", "domain"))]
    if dns:
        kept = [line for line in kept if not line.startswith("nameserver")]
    lines = [f"nameserver {server}" for server in dns]
    if search:
        lines.append("search " + " ".join(search))
    else:
        lines += [x for x in host_text.splitlines() if x.startswith(("search", "domain"))]
    return "\n".join([*lines, *kept]) + "\n"


def nameservers(text: str) -> list[str]:
    """The addresses of `nameserver` lines, in their order; what is no address is left out."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and _is_address(words[1]):
            found.append(words[1])
    return list(dict.fromkeys(found))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
