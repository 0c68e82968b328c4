"""TCP connections of clients of a resolver (RFC 7766): each message behind its length.

A client may send several queries without waiting, and gets the answers as they come. Connections
are bounded for each client and in all; a new one takes the place of the one that was idle longest
(of the same client, or of the client that has the most), so that nobody keeps others out by
opening many. What is sent slowly, or not read, ends by a time-out.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Hashable

from dockpy.network.eventloop import READ, WRITE, EventLoop, Timer

PER_CLIENT, IN_ALL = 8, 128
IDLE = 10.0
"""Seconds without a whole query or an answer after which a connection is closed. Longer than any
query is under way."""
UNANSWERED, UNREAD = 16, 128 << 10
"""Queries under way, and bytes of answers not taken, at which a connection is not read further."""
Reply = Callable[[bytes], None]
Serve = Callable[[Hashable, bytes, Reply], bool]
"""Called with client, message, and where its answer goes; False: not worth an answer."""


class Connections:
    """All connections, those used last at the end. For the thread of its loop."""

    def __init__(self, loop: EventLoop, serve: Serve) -> None:
        self.loop = loop
        self.serve = serve
        self._all: dict[_Connection, None] = {}
        self._counts: Counter[Hashable] = Counter()

    def add(self, accepted: socket.socket, client: Hashable) -> None:
        """Serve an accepted, non-blocking connection."""
        if self._counts[client] >= PER_CLIENT:
            self._close_idlest(client)
        elif len(self._all) >= IN_ALL:
            self._close_idlest(max(self._counts, key=lambda one: self._counts[one]))
        connection = _Connection(self, accepted, client)
        self._all[connection] = None
        self._counts[client] += 1
        connection.open()

    def spare_one(self) -> bool:
        """Close the one idle longest, for its descriptor; False when there is none."""
        for connection in self._all:
            connection.close()
            return True
        return False

    def forget(self, belongs: Callable[[Hashable], bool]) -> None:
        """Close the connections of those clients."""
        for connection in tuple(self._all):
            if belongs(connection.client):
                connection.close()

    def _close_idlest(self, client: Hashable) -> None:
        next(each for each in self._all if each.client == client).close()

    def used(self, connection: _Connection) -> None:
        self._all[connection] = self._all.pop(connection)

    def closed(self, connection: _Connection) -> None:
        del self._all[connection]
        self._counts[connection.client] -= 1
        if not self._counts[connection.client]:
            del self._counts[connection.client]


class _Connection:
    def __init__(self, owner: Connections, accepted: socket.socket, client: Hashable) -> None:
        self.client = client
        self._owner = owner
        self._socket = accepted
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._unanswered = 0
        self._open = True
        self._ended = False
        """The client sends no more; it may still wait for answers."""
        self._timer: Timer | None = None

    def open(self) -> None:
        self._used()
        self._wait()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        self._owner.loop.forget(self._socket)
        self._owner.closed(self)

    def _used(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._owner.loop.after(IDLE, self.close)
        self._owner.used(self)

    def _full(self) -> bool:
        return self._unanswered >= UNANSWERED or len(self._outbox) >= UNREAD

    def _wait(self) -> None:
        """For what is possible and wanted now."""
        if not self._open:
            return
        events = WRITE if self._outbox else 0
        if not self._ended and not self._full():
            events |= READ
        if events:
            self._owner.loop.watch(self._socket, events, self._ready)
        elif self._ended and not self._unanswered:
            self.close()
        else:
            self._owner.loop.pause(self._socket)

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE and self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
                self._used()
            if events & READ:
                data = self._socket.recv(65536)
                self._inbox += data
                self._ended = not data
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._serve()
        self._wait()

    def _serve(self) -> None:
        while self._open and not self._full() and len(self._inbox) >= 2:
            size = int.from_bytes(self._inbox[:2], "big") + 2
            if len(self._inbox) < size:
                return
            message = bytes(self._inbox[2:size])
            del self._inbox[:size]
            self._unanswered += 1
            self._used()
            if not self._owner.serve(self.client, message, self._reply):
                self.close()

    def _reply(self, data: bytes) -> None:
        """Called once for each query, maybe after the connection is gone."""
        self._unanswered -= 1
        if not self._open:
            return
        self._outbox += len(data).to_bytes(2, "big") + data
        with contextlib.suppress(OSError):  # an error shows again when it is waited for
            del self._outbox[: self._socket.send(self._outbox)]
        self._used()
        self._owner.loop.after(0, self._go_on)

    def _go_on(self) -> None:
        """Read on, after the answer that made place for it."""
        self._serve()
        self._wait()
