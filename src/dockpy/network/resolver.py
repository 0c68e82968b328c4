"""The resolver of all user networks: names of containers, and the host's servers for the rest.

One thread serves every network, by UDP and TCP, on the network's gateway address. It lives in the
host's network namespace, so servers on the host's loopback (127.0.0.53) can be asked. What is
answered here, and what is passed on, is decided in `ownnames`.

Only addresses of the network's own range are listened to, so a neighbour on the host's link that
sends to the gateway's address is not served. Every client can fill its own share of the resolver,
and no more: see the limits in `upstream` and `dnsconnections`. Answers about containers need none
of them, and come as long as anything does.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dockpy.errors import Conflict, KernelError
from dockpy.network.dnsconnections import Connections
from dockpy.network.dnswire import Garbage, Malformed, Query, Rcode, answer, fitted, parse_query
from dockpy.network.eventloop import READ, EventLoop
from dockpy.network.hostports import hold, user_of
from dockpy.network.hostservers import HostServers
from dockpy.network.ownnames import Names, Range, own_answer
from dockpy.network.upstream import PORT, Upstream

log = logging.getLogger(__name__)

BATCH = 32
"""Datagrams of one network taken before the others have their turn."""
LONGEST_QUERY = 4096
RECEIVE_BUFFER = 1 << 20
"""Bytes of datagrams that wait, with the kernel's own for each: some thousand questions, which is a
fraction of a second's work. One that is lost is asked again after 5 seconds only."""
SO_RCVBUFFORCE = 33  # socket(7); not in every Python's socket module
BACKLOG = 128
WITHOUT_DESCRIPTORS = 0.5
"""Seconds in which no connection is taken when the process has no descriptor left for one."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """One address of one network."""

    network: str
    address: str
    within: Range
    internal: bool
    udp: socket.socket
    tcp: socket.socket


class _Client(NamedTuple):
    listener: _Listener
    address: str


class Resolver:
    """Answers on the networks it was told to listen on. Methods may be called from any thread."""

    def __init__(self, names: Names, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        """Nothing begins before the first `listen`: an engine without user networks has no
        thread. `resolv_conf`: where the host's servers stand; read anew when it changes."""
        self._names = names
        self._host = HostServers(resolv_conf)
        self._given: tuple[str, ...] | None = None
        self._lock = threading.Lock()
        self._loop: EventLoop | None = None
        self._closed = False
        self._listeners: list[_Listener] = []

    def listen(
        self, network: str, address: str, port: int = PORT, *, within: str, internal: bool
    ) -> None:
        """Answer on that address from now on, in the calling thread's network namespace.

        `within`: the range whose addresses may ask, such as 172.31.0.0/16. A network can have
        several addresses (IPv4 and IPv6), a call for each. The first call of all also decides in
        which namespace the host's servers are asked: its own.
        Raises Conflict when somebody has the port, naming the program; KernelError when the
        address is not there (EADDRNOTAVAIL). Then nothing is left behind.
        """
        known = ipaddress.ip_network(within, strict=False)
        udp = _bound("udp", network, address, port)
        try:
            tcp = _bound("tcp", network, address, port)
        except BaseException:
            udp.close()
            raise
        with contextlib.suppress(PermissionError):
            udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        # What a connection leaves behind (TIME_WAIT) must not keep the next engine from the port:
        # for that, connections have to inherit this. While we listen, nobody else can bind it.
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.listen(BACKLOG)
        listener = _Listener(network, address, known, internal, udp, tcp)
        try:
            self._begin(listener)
        except BaseException:
            udp.close()
            tcp.close()
            raise

    def listens(self, network: str) -> bool:
        """Whether questions of that network are answered."""
        return any(listener.network == network for listener in self._listeners)

    def forget(self, network: str) -> None:
        """Listen for that network no more, and drop what is under way for it.

        When this returns, its sockets are closed. No error when there are none.
        """
        with self._lock:
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call(lambda: self._end(lambda listener: listener.network == network))

    def servers(self, upstream: Sequence[str] | None) -> None:
        """Pass on to these addresses from now on; None: to the host's own servers again."""
        self._given = None if upstream is None else tuple(upstream)

    def close(self) -> None:
        """End everything, and the thread. Again is no error; `listen` afterwards is."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call(lambda: self._end(lambda _listener: True))
            loop.close()

    # -- in the loop's thread ----------------------------------------------------------------------

    def _begin(self, listener: _Listener) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the resolver is closed")
            if self._loop is None:
                self._loop = EventLoop("dockpy-resolver")
                self._upstream = Upstream(self._loop)
                self._connections = Connections(self._loop, self._serve_connection)
            loop = self._loop

            def begin() -> None:
                self._listeners.append(listener)
                loop.watch(listener.udp, READ, lambda _: self._datagrams(listener))
                loop.watch(listener.tcp, READ, lambda _: self._accept(loop, listener))

            loop.call(begin)

    def _end(self, chosen: Callable[[_Listener], bool]) -> None:
        ending = [listener for listener in self._listeners if chosen(listener)]
        self._listeners = [listener for listener in self._listeners if listener not in ending]

        def belongs(client: Hashable) -> bool:
            return isinstance(client, _Client) and client.listener in ending

        self._upstream.forget(belongs)
        self._connections.forget(belongs)
        loop = self._connections.loop
        for listener in ending:
            loop.forget(listener.udp)
            loop.forget(listener.tcp)

    def _datagrams(self, listener: _Listener) -> None:
        for _ in range(BATCH):
            try:
                data, place = listener.udp.recvfrom(LONGEST_QUERY)
            except OSError:  # none left, mostly
                return
            client = _client(listener, place)
            if client is not None:
                self._serve(client, data, _Datagram(listener.udp, place), tcp=False)

    def _accept(self, loop: EventLoop, listener: _Listener) -> None:
        try:
            accepted, place = listener.tcp.accept()
        except OSError as error:
            if error.errno in EXHAUSTED and not self._connections.spare_one():
                loop.pause(listener.tcp)
                loop.after(WITHOUT_DESCRIPTORS, lambda: self._accept_again(loop, listener))
            return
        client = _client(listener, place)
        if client is None:
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(accepted, client)

    def _accept_again(self, loop: EventLoop, listener: _Listener) -> None:
        if listener in self._listeners:
            loop.watch(listener.tcp, READ, lambda _: self._accept(loop, listener))

    def _serve_connection(
        self, client: Hashable, data: bytes, reply: Callable[[bytes], None]
    ) -> bool:
        assert isinstance(client, _Client)
        return self._serve(client, data, reply, tcp=True)

    def _serve(
        self, client: _Client, data: bytes, reply: Callable[[bytes], None], *, tcp: bool
    ) -> bool:
        """Answer a message now or later; False when none is due."""
        try:
            query = parse_query(data)
        except Garbage:
            return False
        except Malformed as refused:
            reply(refused.reply)
            return True

        def done(found: bytes | None) -> None:
            whole = answer(query, Rcode.SERVFAIL) if found is None else found
            reply(whole if tcp else fitted(query, whole))

        try:
            own = self._own(query, client)
            servers = self._asked(client) if own is None else ()
        except Exception:
            # The names are another module's; its mistake is one answer, not the thread's end.
            log.exception("no answer about %s on network %s", query.name, client.listener.network)
            own, servers = answer(query, Rcode.SERVFAIL), ()
        if own is not None:
            done(own)
        else:
            self._upstream.forward(query, client, servers, done, tcp=tcp)
        return True

    def _own(self, query: Query, client: _Client) -> bytes | None:
        listener = client.listener
        return own_answer(
            query,
            self._names,
            listener.network,
            client.address,
            listener.within,
            internal=listener.internal,
        )

    def _asked(self, client: _Client) -> list[str]:
        """Whom to ask for that client; never this resolver itself."""
        own = self._names.servers(client.listener.network, client.address)
        given = self._host.current() if self._given is None else self._given
        here = {listener.address for listener in self._listeners}
        return [server for server in own or given if server not in here]


class _Datagram:
    """Where the answer to a datagram goes."""

    __slots__ = ("_place", "_socket")

    def __init__(self, udp: socket.socket, place: Any) -> None:
        self._socket = udp
        self._place = place

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it asks again when the answer is lost
            self._socket.sendto(data, self._place)


def _client(listener: _Listener, place: tuple[Any, ...]) -> _Client | None:
    """Who asks; None for addresses outside the network."""
    address = ipaddress.ip_address(str(place[0]).partition("%")[0])
    return _Client(listener, str(address)) if address in listener.within else None


def _bound(protocol: str, network: str, address: str, port: int) -> socket.socket:
    try:
        made = hold(protocol, address, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            user = user_of(protocol, address, port) or "another program"
            raise Conflict(
                f"the resolver of network {network} cannot listen on {address} {protocol} port "
                f"{port}: {user} has it; make that program listen on its own addresses only"
            ) from error
        raise KernelError(
            f"listen for names of network {network}", error.errno or 0, f"{address}:{port}"
        ) from error
    assert made is not None  # every kernel has these protocols
    made.setblocking(False)
    return made
