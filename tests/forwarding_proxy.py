"""A proxy for tests: CONNECT tunnels and plain forwarding, over real sockets of this machine.

Names mean what the test says they mean (`places`), so a registry can have a name that nobody but
the proxy knows: what reaches it by that name went through the proxy.
"""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit


@dataclass
class ForwardingProxy:
    """What it was asked, as (request line, headers), and how it answers."""

    port: int
    places: dict[str, str]
    """`host:port` as clients say it, to `host:port` of this machine."""
    user: str = ""
    """`name:password` that clients must show; "" for everybody."""
    refuses: Mapping[str, int] = field(default_factory=dict)
    """Method to the status it is refused with."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lines(self, method: str) -> list[str]:
        """The request lines of a method."""
        return [line for line, _ in list(self.asked) if line.startswith(f"{method} ")]

    def verdict(self, method: str, headers: Mapping[str, str]) -> int:
        """200, or the status to refuse with."""
        wanted = f"Basic {base64.b64encode(self.user.encode()).decode()}" if self.user else ""
        if wanted and headers.get("proxy-authorization") != wanted:
            return 407
        return self.refuses.get(method, 200)


@contextmanager
def forwarding_proxy(
    places: dict[str, str], user: str = "", refuses: Mapping[str, int] | None = None
) -> Iterator[ForwardingProxy]:
    """A proxy on a free port; ended with its threads and connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = ForwardingProxy(server.getsockname()[1], places, user, refuses or {})
        open_sockets: set[socket.socket] = set()
        threads: list[threading.Thread] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    thread = threading.Thread(target=_serve, args=(proxy, client, open_sockets))
                    threads.append(thread)
                    thread.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield proxy
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for one in list(open_sockets):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def _serve(proxy: ForwardingProxy, client: socket.socket, opened: set[socket.socket]) -> None:
    """One connection: a request's head decides, then bytes go both ways until one side ends.

    A plain request is the only one of its connection: the server is asked to close it.
    """
    opened.add(client)
    try:
        with client, client.makefile("rb") as reader, suppress(OSError, ValueError):
            line, headers, head = _head(reader)
            if not line:
                return
            proxy.asked.append((line, headers))
            method, target, _ = line.split()
            name = target if method == "CONNECT" else urlsplit(target).netloc
            status = proxy.verdict(method, headers)
            place = proxy.places.get(name if ":" in name else f"{name}:80")
            if status == 200 and place is None:
                status = 502
            if status != 200 or place is None:
                page = b"<html>no</html>"
                client.sendall(
                    b"HTTP/1.1 %d No\r\nProxy-Authenticate: Basic realm=p\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (status, len(page), page)
                )
                return
            host, _, port = place.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                opened.add(there)
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    there.sendall(_direct(head))
                back = threading.Thread(target=_copy, args=(there, client))
                back.start()
                while piece := reader.read1(65536):
                    there.sendall(piece)
                with suppress(OSError):
                    there.shutdown(socket.SHUT_WR)
                back.join()
    finally:
        opened.discard(client)


def _head(reader: BinaryIO) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers by their names in lower case, and all of it as it came."""
    lines: list[bytes] = []
    while (line := reader.readline()).strip():
        lines.append(line)
    pairs = [one.decode().partition(":") for one in lines[1:]]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    first = lines[0].decode().strip() if lines else ""
    return first, headers, b"".join(lines) + b"\r\n"


def _direct(head: bytes) -> bytes:
    """A head for the server itself: its path only, nothing that was for the proxy."""
    lines = head.split(b"\r\n")
    method, target, version = lines[0].split(b" ", 2)
    parts = urlsplit(target.decode())
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    ours = (b"proxy-authorization:", b"connection:")
    kept = [one for one in lines[1:] if one and not one.lower().startswith(ours)]
    first = b" ".join([method, path.encode(), version])
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
