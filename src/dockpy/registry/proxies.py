"""Which proxy a connection goes through, by the environment, and what its refusals mean. Pure.

HTTPS_PROXY, HTTP_PROXY and NO_PROXY in either case, upper case first, as Go's `httpproxy` package
reads them. An entry of NO_PROXY is `*`, a network, an address, a host (it and all below it), or
`.suffix` or `*.suffix` (what is below it only); all but networks may have a port.
This machine is never reached through a proxy.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from dockpy.errors import RequestError
from dockpy.registry.settings import as_address, as_network, is_loopback


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy; `authorization` is the value of Proxy-Authorization, "" for none.

    `variable`: the one of the environment that names it, as people write it.
    """

    host: str
    port: int
    authorization: str = ""
    variable: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.address!r})"

    @property
    def address(self) -> str:
        """`host:port`, without the name and the password."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def refusal(self, status: int, target: str) -> str:
        """What it means, and what to do, that the proxy answers so about `target`, a host."""
        match status:
            case 401 | 407 if self.authorization:  # 401: tinyproxy's
                return (
                    f"the proxy {self.address} does not accept the name and the password of "
                    f"{self.variable}; correct them in the daemon's environment and restart it"
                )
            case 407:
                return (
                    f"the proxy {self.address} wants a name and a password; restart the daemon "
                    f"with {self.variable}=http://NAME:PASSWORD@{self.address}"
                )
            case 403:
                return (
                    f"the proxy {self.address} does not allow {target}; have it allowed there, or "
                    "list it in NO_PROXY of the daemon's environment"
                )
            case _:
                return f"the proxy {self.address} answers {status} for {target}"


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for a URL's scheme, host (without brackets) and port; None for none.

    RequestError when the environment names a proxy that cannot be used.
    """
    if is_loopback(f"[{host}]" if ":" in host else host):
        return None
    text = named(f"{scheme}_proxy", environment).strip()
    if not text or excluded(host, port, named("no_proxy", environment)):
        return None
    variable = f"{scheme.upper()}_PROXY"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        number = parts.port or 80
    except ValueError:
        parts, number = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname or not number:
        raise RequestError(
            f"{variable} is not http://HOST:PORT; correct or unset it in the daemon's environment"
        )
    authorization = ""
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"Basic {base64.b64encode(secret).decode()}"
    return Proxy(parts.hostname, number, authorization, variable)


def named(name: str, environment: Mapping[str, str]) -> str:
    """A variable in upper or lower case."""
    return environment.get(name.upper(), "") or environment.get(name, "")


def excluded(host: str, port: int, text: str) -> bool:
    """Whether NO_PROXY's text covers a host (without brackets) and port."""
    name = host.lower().rstrip(".")
    return any(_covers(one.strip().lower(), name, port) for one in text.split(","))


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = as_address(host)
    network = as_network(entry)
    if network is not None:
        return address is not None and address in network
    name, number = _taken_apart(entry)
    if not name or (number is not None and number != port):
        return False
    listed = as_address(name)
    if listed is not None:
        return listed == address
    suffix = name.removeprefix("*")
    return host.endswith(suffix) if suffix.startswith(".") else f".{host}".endswith(f".{suffix}")


def _taken_apart(entry: str) -> tuple[str, int | None]:
    """Host, without brackets, and port of an entry; None for no port."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        number = rest.removeprefix(":")
        return name, int(number) if number.isdecimal() else None
    name, colon, number = entry.rpartition(":")
    if colon and ":" not in name and number.isdecimal():
        return name, int(number)
    return entry, None
