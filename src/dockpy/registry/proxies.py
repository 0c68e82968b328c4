"""Which proxy a connection goes through, by the environment. Pure.

HTTPS_PROXY, HTTP_PROXY and NO_PROXY in either case, as Go's `httpproxy` package reads them:
NO_PROXY lists hosts (with all below them), `.suffix`, addresses and networks, each perhaps with a
port, or is `*`.
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
    """A proxy; `authorization` is the value of Proxy-Authorization, "" for none."""

    host: str
    port: int
    authorization: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.host!r}, {self.port})"


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for a URL's scheme, host (without brackets) and port; None for none.

    RequestError when the environment names a proxy that cannot be used.
    """
    if is_loopback(f"[{host}]" if ":" in host else host):
        return None
    text = named(f"{scheme}_proxy", environment)
    if not text or excluded(host, port, named("no_proxy", environment)):
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        number = parts.port or 80
    except ValueError:
        number = 0
    if parts.scheme != "http" or not parts.hostname or not number:
        raise RequestError(f"{scheme.upper()}_PROXY is not http://HOST:PORT; correct or unset it")
    authorization = ""
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"Basic {base64.b64encode(secret).decode()}"
    return Proxy(parts.hostname, number, authorization)


def named(name: str, environment: Mapping[str, str]) -> str:
    """A variable in upper or lower case."""
    return environment.get(name.upper(), "") or environment.get(name, "")


def excluded(host: str, port: int, text: str) -> bool:
    """Whether NO_PROXY's text covers a host."""
    host = host.lower().rstrip(".")
    address = as_address(host)
    for entry in (one.strip().lower() for one in text.split(",")):
        if entry == "*":
            return True
        network = as_network(entry)
        if network is not None:
            if address is not None and address in network:
                return True
            continue
        name, colon, number = entry.rpartition(":")
        with_port = bool(colon) and number.isdigit() and ":" not in name
        if with_port and int(number) != port:
            continue
        name = (name if with_port else entry).removeprefix("*")
        if name and (host == name.removeprefix(".") or _below(host, name)):
            return True
    return False


def _below(host: str, entry: str) -> bool:
    return host.endswith(entry if entry.startswith(".") else f".{entry}")
