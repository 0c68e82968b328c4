"""HTTP/1.1 over connections that are kept: one request, one answer, no opinion about either.

On http.client and ssl of the standard library, see docs/decisions/0013-registry-transport.md. Every
blocking call ends when its `Cancellation` is cancelled (the socket is shut down), when the server
is silent for longer than `Patience.silence`, or sends so slowly that it is as good as silent.
Redirects, retries and credentials belong to `client`.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Protocol, cast
from urllib.parse import urlsplit

from dockpy.errors import RegistryError, RequestError
from dockpy.model import VERSION
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.connecting import (
    Broken,
    Origin,
    make_context,
    open_socket,
    readable,
    reason,
    refused_ours,
    shown,
    shut,
    state_of,
    tunnel,
    untrusted,
    without_tls,
)
from dockpy.registry.proxies import Proxy, proxy_for
from dockpy.registry.settings import Patience, RegistrySettings

IDLE_SECONDS = 20.0
"""How long a connection is kept for the next request; servers close theirs after a minute or so."""
IDLE_CONNECTIONS = 16
PIECE = 256 << 10
"""Bytes of a body that are sent at once."""


class Source(Protocol):
    """A body to send; 0 is its end."""

    def readinto(self, buffer: memoryview, /) -> int: ...


class _Stream(io.RawIOBase):
    """One answer's bytes; notices a server which is as good as silent."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._sock = sock
        self._patience = patience
        self._since = time.monotonic()
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._sock.recv_into(buffer)
        self._count += count
        now = time.monotonic()
        span = now - self._since
        if span >= self._patience.slow_time:
            if count and self._count < self._patience.slowest * span:
                raise TimeoutError(f"only {self._count} bytes in {span:.0f} s")
            self._since, self._count = now, 0
        return count


class _Socket:
    """What http.client needs of a socket."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self.sock = sock
        self._patience = patience

    def makefile(self, _mode: str) -> BinaryIO:
        """A reader of the next answer; closing it leaves the socket open."""
        return cast(BinaryIO, io.BufferedReader(_Stream(self.sock, self._patience), 64 << 10))

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close(self) -> None:
        """Nothing: http.client lets go of it before the last answer's body is read, when the server
        says that it is the last. `_Connection` closes it."""


class _Connection:
    """A connection to an origin; one request at a time."""

    def __init__(
        self, origin: Origin, sock: socket.socket, proxy: Proxy | None, patience: Patience
    ):
        self.origin = origin
        self.proxy = proxy
        self.raw = sock
        self.idle_since = 0.0
        self.http = http.client.HTTPConnection(origin.host, origin.port)
        self.http.auto_open = 0
        self.http.sock = _Socket(sock, patience)

    @property
    def dead(self) -> bool:
        """Whether the server has hung up, or says what nobody asked."""
        return readable(self.raw)

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self.raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.http.close()
        with contextlib.suppress(OSError):
            self.raw.close()


class Response:
    """An answer whose body is still to be read. Close it; use it as a context."""

    def __init__(
        self,
        transport: Transport,
        connection: _Connection,
        answer: http.client.HTTPResponse,
        url: str,
        cancellation: Cancellation,
    ) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.url = url
        self.proxy = connection.proxy
        """What passed the request on, and could answer itself: none under TLS."""
        self._transport = transport
        self._connection = connection
        self._answer = answer
        self._reader = answer.fp
        self._cancellation = cancellation
        self._waker = cancellation.add(connection.wake)
        self._closed = False

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def length(self) -> int | None:
        """Bytes of the body that are still to come, if the server told."""
        return self._answer.length

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))

    def readinto(self, buffer: memoryview) -> int:
        """Take what has come of the body, 0 at its end. Broken when it ends early; Cancelled."""
        try:
            count = self._read_some(buffer)
        except (OSError, http.client.HTTPException, ValueError) as failure:
            self._cancellation.check()
            raise Broken(f"{shown(self.url)}: {reason(failure)}", sent=True) from failure
        if not count and len(buffer):
            self._cancellation.check()
            left = self._answer.length
            if left:
                raise Broken(f"{shown(self.url)}: the answer ended {left} bytes early", sent=True)
        return count

    def _read_some(self, buffer: memoryview) -> int:
        """At most one system call, so that what came before a drop is not lost."""
        answer = self._answer
        if answer.isclosed():
            return 0
        if answer.chunked:
            piece = answer.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        wanted = len(buffer) if answer.length is None else min(len(buffer), answer.length)
        count = self._reader.readinto1(buffer[:wanted]) if wanted else 0
        if answer.length is not None:
            answer.length -= count
        return count

    def read(self, limit: int) -> bytes:
        """The whole body. RegistryError when it has more than `limit` bytes."""
        pieces = []
        left = limit + 1
        while left:
            buffer = bytearray(min(left, 64 << 10))
            count = self.readinto(memoryview(buffer))
            if not count:
                break
            pieces.append(bytes(buffer[:count]))
            left -= count
        if not left:
            raise RegistryError(f"{shown(self.url)}: the answer has more than {limit} bytes")
        return b"".join(pieces)

    def close(self) -> None:
        """Let the connection go; it is kept when the body was read to its end."""
        if self._closed:
            return
        self._closed = True
        self._cancellation.remove(self._waker)
        spent = self._answer.isclosed() or self._answer.length == 0
        keep = spent and not self._answer.will_close and not self._cancellation.cancelled
        self._answer.close()
        if keep:
            self._transport.keep(self._connection)
        else:
            self._connection.close()


class Transport:
    """All connections of one engine to registries. Thread-safe."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._users = 0
        self._contexts: dict[tuple[str, bool], tuple[object, ssl.SSLContext]] = {}

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Connections are kept between requests while anybody is inside."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = not self._users
            if last:
                self.close()

    def close(self) -> None:
        """Close the connections nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def request(
        self,
        method: str,
        url: str,
        cancellation: Cancellation,
        *,
        headers: Mapping[str, str],
        body: bytes | Source | None = None,
        length: int | None = None,
        verify: bool = True,
    ) -> Response:
        """Send a request and wait for the answer's head.

        `length`: bytes of a `Source`; None sends it in chunks. `verify` off takes any certificate.
        Raises Broken, Cancelled, and RegistryError for certificates that are not right.
        """
        origin = Origin.of(url)
        while True:
            cancellation.check()
            connection = self._take(origin)
            fresh = connection is None
            if connection is None:
                connection = self._connect(origin, verify, cancellation)
            try:
                return self._exchange(connection, method, url, headers, body, length, cancellation)
            except Broken:
                # The server may have closed a kept connection just when we wrote to it.
                if fresh or method not in ("GET", "HEAD"):
                    raise

    def _exchange(
        self,
        connection: _Connection,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Source | None,
        length: int | None,
        cancellation: Cancellation,
    ) -> Response:
        waker = cancellation.add(connection.wake)
        try:
            unsent: OSError | None = None
            try:
                send_head(connection, method, url, headers, body, length)
                if body is not None and not isinstance(body, bytes):
                    send_body(connection.http, body, length)
            except OSError as failure:
                unsent = failure  # the server may have answered before it hung up
            answer = connection.http.getresponse()
            if unsent is not None:
                answer.will_close = True
        except (OSError, http.client.HTTPException, ValueError) as failure:
            connection.close()
            cancellation.check()
            refused_ours(connection.origin, failure, self._settings)
            raise Broken(f"{shown(url)}: {reason(failure)}", sent=True) from failure
        except BaseException:
            connection.close()
            raise
        finally:
            cancellation.remove(waker)
        proxy = connection.proxy
        if proxy is not None and answer.status == 407:
            connection.close()
            raise Broken(proxy.refusal(407, connection.origin.address), final=True)
        return Response(self, connection, answer, url, cancellation)

    # -- connections ---------------------------------------------------------------------------

    def _take(self, origin: Origin) -> _Connection | None:
        now = time.monotonic()
        with self._lock:
            fresh = [one for one in self._idle if now - one.idle_since < IDLE_SECONDS]
            stale = [one for one in self._idle if now - one.idle_since >= IDLE_SECONDS]
            found = next((one for one in reversed(fresh) if one.origin == origin), None)
            if found is not None:
                fresh.remove(found)
            self._idle = fresh
        for connection in stale:
            connection.close()
        if found is not None and found.dead:
            found.close()
            return self._take(origin)
        return found

    def keep(self, connection: _Connection) -> None:
        """Have a connection ready for the next request to its origin."""
        connection.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            room = IDLE_CONNECTIONS if self._users else 0
            surplus = self._idle[: max(len(self._idle) - room, 0)]
            del self._idle[: len(surplus)]
        for one in surplus:
            one.close()

    def _connect(self, origin: Origin, verify: bool, cancellation: Cancellation) -> _Connection:
        proxy = proxy_for(origin.scheme, origin.host, origin.port, self._settings.environment)
        context = self._context(origin, verify) if origin.scheme == "https" else None
        patience = self._settings.patience
        sock = open_socket(origin, proxy, patience, cancellation)
        try:
            with cancellation.waking(lambda: shut(sock)):
                if context is not None:
                    if proxy is not None:
                        tunnel(sock, origin, proxy)
                    sock = context.wrap_socket(
                        sock, server_hostname=origin.host, do_handshake_on_connect=False
                    )
            if isinstance(sock, ssl.SSLSocket):
                with cancellation.waking(lambda: shut(sock)):
                    sock.do_handshake()
            sock.settimeout(patience.silence)
        except ssl.SSLCertVerificationError as failure:
            sock.close()
            raise RegistryError(untrusted(origin, failure, self._settings)) from failure
        except (OSError, ValueError) as failure:
            sock.close()
            cancellation.check()
            refused_ours(origin, failure, self._settings)
            plain = isinstance(failure, (ssl.SSLError, ConnectionResetError))
            if plain:
                what = without_tls(origin, failure, self._settings)
            else:
                what = f"{origin.address} cannot be reached: {reason(failure)}"
            raise Broken(what, plain=plain) from failure
        except BaseException:
            sock.close()
            raise
        return _Connection(origin, sock, proxy if context is None else None, patience)

    def _context(self, origin: Origin, verify: bool) -> ssl.SSLContext:
        directories = self._settings.certificates
        key = (origin.address, verify)
        state = state_of(origin.address, directories)
        with self._lock:
            known = self._contexts.get(key)
        if known is not None and known[0] == state:
            return known[1]
        context = make_context(origin.address, verify, directories)
        with self._lock:
            self._contexts[key] = state, context
        return context


def send_head(
    connection: _Connection,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | Source | None,
    length: int | None,
) -> None:
    """The request line, the headers, and the body when it is bytes."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    web = connection.http
    web.putrequest(
        method,
        f"http://{connection.origin.address}{target}" if connection.proxy else target,
        skip_host=True,
        skip_accept_encoding=True,
    )
    web.putheader("Host", connection.origin.address)
    web.putheader("User-Agent", f"dockpy/{VERSION}")
    if connection.proxy and connection.proxy.authorization:
        web.putheader("Proxy-Authorization", connection.proxy.authorization)
    for name, value in headers.items():
        web.putheader(name, value)
    if isinstance(body, bytes):
        web.putheader("Content-Length", str(len(body)))
        web.endheaders(body)
        return
    if body is not None:
        if length is None:
            web.putheader("Transfer-Encoding", "chunked")
        else:
            web.putheader("Content-Length", str(length))
    elif method in ("POST", "PUT", "PATCH"):
        web.putheader("Content-Length", "0")
    web.endheaders()


def send_body(web: http.client.HTTPConnection, body: Source, length: int | None) -> None:
    """A body piece by piece. OSError of the connection; what the source raises comes out."""
    buffer = memoryview(bytearray(PIECE))
    left = length
    while left is None or left > 0:
        count = body.readinto(buffer if left is None else buffer[:left])
        if count == 0:
            if left:
                raise RequestError(f"the body of a request ended {left} bytes early")
            break
        if left is None:
            web.send(b"%x\r\n" % count)
        else:
            left -= count
        web.send(buffer[:count])
        if left is None:
            web.send(b"\r\n")
    if left is None:
        web.send(b"0\r\n\r\n")
