"""Queries that are passed on to other servers, and their answers.

Facts:
- Whoever guesses id and port of a query can answer it (RFC 5452). So every try has a socket of its
  own, connected to the server: the kernel draws its port and drops what comes from elsewhere. The
  id is drawn for each try too, and the question must match.
- glibc and musl wait 5 seconds for an answer (resolv.conf(5), timeout). All tries end before, so
  that a client gets a SERVFAIL instead of silence.

A try that had no answer for a while is not given up when the next one begins: whichever answers
first counts. A server that was silent is asked last for some time. Nothing here waits: what is
under way is bounded for each client and in all, and when the total is reached, it is the client
with the most queries that loses its oldest.
"""

from __future__ import annotations

import errno
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence

from dockpy.network.dnswire import Query, Rcode, renumbered, reply_code
from dockpy.network.eventloop import READ, WRITE, EventLoop, Timer

PORT = 53
TRIES, PATIENCE = 3, 1.5
"""Tries of a query, and seconds between them; also how long the last one has."""
PER_CLIENT, IN_ALL = 64, 512
AVOIDED = 30.0
"""Seconds for which a silent server is asked after the others."""
NO_ANSWER = (Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED)
"""Codes after which another server is asked."""
LARGEST = 65535
Done = Callable[[bytes | None], None]


class Upstream:
    """Queries under way. For the thread of its loop."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._under_way: dict[Hashable, deque[_Forwarded]] = {}
        self._count = 0
        self._avoided: dict[str, float] = {}

    def forward(
        self, query: Query, client: Hashable, servers: Iterable[str], done: Done, *, tcp: bool
    ) -> None:
        """Ask the servers for it; `done` gets the answer under the query's own id.

        None instead of an answer: nobody gave one, there are no servers, or the client has too
        many queries under way. It is called once, maybe before this returns, and not at all
        after `forget`. A refusing answer is passed on when no server had a better one.
        """
        own = self._under_way.get(client, ())
        if len(own) >= PER_CLIENT:
            done(None)
            return
        if self._count >= IN_ALL:
            greedy = max(self._under_way.values(), key=len)
            if len(greedy) <= len(own):
                done(None)
                return
            greedy[0].end(None)
        now = time.monotonic()
        ordered = sorted(servers, key=lambda server: self._avoided.get(server, 0.0) > now)
        forwarded = _Forwarded(self, self._loop, query, client, ordered[:TRIES], done, tcp=tcp)
        self._under_way.setdefault(client, deque()).append(forwarded)
        self._count += 1
        forwarded.ask_next()

    def forget(self, belongs: Callable[[Hashable], bool]) -> None:
        """Drop the queries of those clients without a word."""
        for client in [client for client in self._under_way if belongs(client)]:
            for forwarded in tuple(self._under_way[client]):
                forwarded.drop()

    def ended(self, forwarded: _Forwarded) -> None:
        own = self._under_way[forwarded.client]
        own.remove(forwarded)
        self._count -= 1
        if not own:
            del self._under_way[forwarded.client]

    def silent(self, server: str) -> None:
        now = time.monotonic()
        if len(self._avoided) >= IN_ALL:
            self._avoided = {name: when for name, when in self._avoided.items() if when > now}
        if len(self._avoided) < IN_ALL:
            self._avoided[server] = now + AVOIDED

    def answered(self, server: str) -> None:
        self._avoided.pop(server, None)


class _Forwarded:
    """One query and its tries."""

    def __init__(
        self,
        upstream: Upstream,
        loop: EventLoop,
        query: Query,
        client: Hashable,
        servers: Sequence[str],
        done: Done,
        *,
        tcp: bool,
    ) -> None:
        self.client = client
        self.query = query
        self.loop = loop
        self._upstream = upstream
        self._kind = _TcpTry if tcp else _UdpTry
        self._servers = list(servers)
        """Whom to ask, next first; who was asked goes to the end."""
        self._deadline = time.monotonic() + TRIES * PATIENCE
        self._useless: set[str] = set()
        self._tries: list[_Try] = []
        self._refusal: bytes | None = None
        self._timer: Timer | None = None
        self._done: Done | None = done

    def ask_next(self) -> None:
        """Begin the next try; without one, wait for those under way until time is over."""
        if self._timer is not None:
            self._timer.cancel()
        while len(self._tries) < TRIES:
            server = next((each for each in self._servers if each not in self._useless), None)
            if server is None:
                break
            self._servers = [each for each in self._servers if each != server] + [server]
            try:
                self._tries.append(self._kind(self, server))
            except OSError:
                self._useless.add(server)
                continue
            self._timer = self.loop.after(PATIENCE, self._lost_patience)
            return
        left = self._deadline - time.monotonic()
        if left > 0 and any(each.server not in self._useless for each in self._tries):
            self._timer = self.loop.after(left, lambda: self.end(self._refusal))
        else:
            self.end(self._refusal)

    def _lost_patience(self) -> None:
        self._upstream.silent(self._tries[-1].server)
        self.ask_next()

    def heard(self, attempt: _Try, data: bytes) -> bool:
        """Whether the bytes are an answer to this query; then they had their effect."""
        rcode = reply_code(self.query, attempt.ident, data)
        if rcode is None:
            return False
        reply = renumbered(data, self.query.ident)
        self._upstream.answered(attempt.server)
        if rcode in NO_ANSWER:
            self._refusal = reply
            self.failed(attempt)
        else:
            self.end(reply)
        return True

    def failed(self, attempt: _Try) -> None:
        """The server of this try cannot help."""
        self.loop.forget(attempt.socket)
        if self._done is not None and attempt.server not in self._useless:
            self._useless.add(attempt.server)
            self.ask_next()

    def end(self, reply: bytes | None) -> None:
        done = self._done
        self.drop()
        if done is not None:
            done(reply)

    def drop(self) -> None:
        if self._done is None:
            return
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
        for each in self._tries:
            self.loop.forget(each.socket)
        self._upstream.ended(self)


class _Try:
    """One server asked once. OSError when it cannot even be sent."""

    kind = socket.SOCK_DGRAM

    def __init__(self, owner: _Forwarded, server: str) -> None:
        self.owner = owner
        self.server = server
        self.ident = secrets.randbelow(1 << 16)
        self.message = renumbered(owner.query.data, self.ident)
        family, _, _, _, place = socket.getaddrinfo(
            server, PORT, type=self.kind, flags=socket.AI_NUMERICHOST
        )[0]
        self.socket = socket.socket(family, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.begin(place)
        except BaseException:
            self.socket.close()
            raise

    def begin(self, place: tuple[object, ...]) -> None:
        raise NotImplementedError


class _UdpTry(_Try):
    def begin(self, place: tuple[object, ...]) -> None:
        self.socket.connect(place)
        self.socket.send(self.message)
        self.owner.loop.watch(self.socket, READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            data = self.socket.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:  # ECONNREFUSED and the like: told by ICMP
            self.owner.failed(self)
            return
        self.owner.heard(self, data)  # what is no answer is not heard; the next may be


class _TcpTry(_Try):
    kind = socket.SOCK_STREAM

    def begin(self, place: tuple[object, ...]) -> None:
        self._inbox = bytearray()
        self._outbox = len(self.message).to_bytes(2, "big") + self.message
        code = self.socket.connect_ex(place)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
        self.owner.loop.watch(self.socket, WRITE, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE:
                self._outbox = self._outbox[self.socket.send(self._outbox) :]
                if not self._outbox:
                    self.owner.loop.watch(self.socket, READ, self._ready)
                return
            data = self.socket.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self.owner.failed(self)
            return
        self._inbox += data
        size = int.from_bytes(self._inbox[:2], "big") + 2
        if not data or (
            len(self._inbox) >= max(size, 2 + 12)
            and not self.owner.heard(self, bytes(self._inbox[2:size]))
        ):
            self.owner.failed(self)
