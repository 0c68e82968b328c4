"""Sockets to registries: found, connected, through a proxy, under TLS; and the words when not.

Every function that blocks ends when its `Cancellation` is cancelled: the socket is shut down.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dockpy.errors import RegistryError, RequestError
from dockpy.model import VERSION
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.proxies import Proxy
from dockpy.registry.settings import Patience, RegistrySettings

_HEAD_LIMIT = 64 << 10


class Broken(RegistryError):
    """A connection that failed, was refused or fell silent: trying again may help.

    `sent`: the request may have arrived. `plain`: the server does not speak TLS. `final`: only
    another way (another scheme, another mirror) may help, the same one will not.
    """

    def __init__(
        self, text: str, *, sent: bool = False, plain: bool = False, final: bool = False
    ) -> None:
        self.sent = sent
        self.plain = plain
        self.final = final
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes; two URLs of one origin may share credentials."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of a URL. RegistryError for what is none, or has a name and a password."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            host = (parts.hostname or "").encode("idna").decode()
        except ValueError:
            parts, host, port = urlsplit(""), "", 0
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise RegistryError(f"{shown(url)} is not a URL of http or https")
        return cls(parts.scheme, host, port)

    @property
    def address(self) -> str:
        """`host[:port]` as a Host header and a settings file have it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"


def shown(url: str) -> str:
    """A URL fit for people's eyes: without query, where signatures stand, and without user info."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address"
    text = f"{parts.scheme}://{host}{parts.path}"
    return "".join(one if one.isprintable() else "?" for one in text)[:200]


def open_socket(
    origin: Origin, proxy: Proxy | None, patience: Patience, cancellation: Cancellation
) -> socket.socket:
    """A socket connected to the origin, or to the proxy on the way to it; whichever address
    answers first in order. Broken, Cancelled."""
    host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
    name, advice = f"{host}:{port}", "check that it runs, the network and the proxy settings"
    if proxy is not None:
        name = f"the proxy {proxy.address}"
        advice = f"check that it runs, or correct {proxy.variable} in the daemon's environment"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as failure:
        why = failure.strerror if isinstance(failure, OSError) else str(failure)
        raise Broken(
            f"cannot find {name}: {why}; "
            + (advice if proxy else "check the name, the network and the proxy settings")
        ) from failure
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.settimeout(patience.connect)
            with cancellation.waking(lambda sock=sock: shut(sock)):  # type: ignore[misc]
                sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as failure:
            sock.close()
            cancellation.check()
            last = failure
        except BaseException:
            sock.close()
            raise
    why = reason(last) if last is not None else "it has no address"
    raise Broken(f"cannot reach {name}: {why}; {advice}")


def tunnel(sock: socket.socket, origin: Origin, proxy: Proxy) -> None:
    """Have a proxy connect us to the origin (RFC 9110 9.3.6). OSError, and Broken for a no."""
    target = (
        f"{origin.host}:{origin.port}"
        if ":" not in origin.host
        else f"[{origin.host}]:{origin.port}"
    )
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", f"User-Agent: dockpy/{VERSION}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)  # not one more: TLS begins right behind it
        if not byte or len(head) > _HEAD_LIMIT:
            raise OSError(f"the proxy {proxy.address} does not answer as a proxy")
        head += byte
    words = bytes(head).split(b"\r\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise OSError(f"the proxy {proxy.address} does not answer as a proxy")
    status = int(words[1])
    if status != 200:
        raise Broken(proxy.refusal(status, target), final=400 <= status < 500)


def make_context(address: str, verify: bool, directories: tuple[str, ...]) -> ssl.SSLContext:
    """TLS for a registry: the system's authorities, and what `certs.d/<host[:port]>/` adds.

    `*.crt` there are authorities, `NAME.cert` with `NAME.key` are ours to show. Source: Docker's
    documentation, "Verify repository client with certificates". RequestError names a bad file.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for directory in (Path(one) / address for one in directories):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            path = directory / name
            try:
                if name.endswith(".crt"):
                    context.load_verify_locations(path)
                elif name.endswith(".cert"):
                    context.load_cert_chain(path, path.with_suffix(".key"), password=_no_password)
            except (OSError, ValueError) as failure:
                raise RequestError(f"{path}: not a usable certificate: {failure}") from failure
    return context


def state_of(address: str, directories: Sequence[str]) -> object:
    """What changes when somebody changes a registry's certificates."""
    found = []
    for directory in directories:
        with contextlib.suppress(OSError), os.scandir(f"{directory}/{address}") as entries:
            found += sorted((one.path, one.stat().st_mtime_ns) for one in entries)
    return found


def _no_password() -> str:
    raise ValueError("its key is encrypted")


def untrusted(
    origin: Origin, failure: ssl.SSLCertVerificationError, settings: RegistrySettings
) -> str:
    """One line about a certificate that does not hold, and what to do.

    Sources: x509(3ssl) `X509_verify_cert_error_string` for the numbers.
    """
    place = _certificates(origin, settings)
    advice = {
        9: "see that the clock is right",
        10: "it must be renewed, unless the clock is wrong",
        62: "call the registry as its certificate does",
        64: "call the registry as its certificate does",
    }.get(failure.verify_code)
    if advice is None:
        advice = f"put its authority into {place}/ca.crt"
    why = failure.verify_message.rstrip(".")
    return (
        f"the certificate of {origin.address} is not trusted ({why}); {advice}, "
        f"or {settings.how_to_trust}"
    )


_OURS_REFUSED = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
"""A server's answers to a certificate of ours, or to none, as openssl calls them (RFC 8446 6.2)."""


def refused_ours(origin: Origin, failure: BaseException, settings: RegistrySettings) -> None:
    """RegistryError that says what to do when a server wants another certificate of ours."""
    if isinstance(failure, ssl.SSLError) and failure.reason in _OURS_REFUSED:
        place = _certificates(origin, settings)
        raise RegistryError(
            f"{origin.address} wants to see a certificate of ours that it trusts "
            f"({reason(failure)}); put it into {place}/client.cert and its key into "
            f"{place}/client.key"
        ) from failure


def _certificates(origin: Origin, settings: RegistrySettings) -> str:
    """Where an administrator puts certificates for a registry."""
    return f"{settings.certificates[0] if settings.certificates else 'certs.d'}/{origin.address}"


def without_tls(origin: Origin, failure: BaseException, settings: RegistrySettings) -> str:
    """One line about an answer that is not TLS, and what to do unless plain HTTP is tried next."""
    told = f"{origin.address} does not speak TLS, or not as we do: {reason(failure)}"
    if settings.may_be_plain(origin.address):
        return told
    return f"{told}; if plain HTTP is meant, {settings.how_to_trust}"


def reason(failure: BaseException) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(failure, TimeoutError):
        return (
            str(failure)
            if str(failure) and "timed out" not in str(failure)
            else "no answer in time"
        )
    if isinstance(failure, http.client.RemoteDisconnected):
        return "the server hung up without an answer"
    if isinstance(failure, http.client.BadStatusLine):
        return "the answer is not HTTP"
    if isinstance(failure, ssl.SSLError):
        return str(failure.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(failure, OSError):
        return failure.strerror or str(failure)
    return str(failure)[:200] or type(failure).__name__


def readable(sock: socket.socket) -> bool:
    """Whether a read would not block."""
    poll = select.poll()  # select(2) knows descriptors below 1024 only
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def shut(sock: socket.socket) -> None:
    """Wake whoever reads or writes; both end there."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
