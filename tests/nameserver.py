"""A name server for tests: answers, refuses, lies or keeps silent, as told, and counts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from dockpy.network.dnswire import Query, Rcode, address_answer, answer, parse_query
from netns import Namespace

Answer = Callable[[Query], list[bytes]]
"""What is sent for a query, in its order; nothing: silence."""


class NameServer:
    """One server in a namespace, UDP and TCP, on port 53. What it heard is in `heard`."""

    def __init__(self, namespace: Namespace, address: str, behaviour: Answer) -> None:
        self.behaviour = behaviour
        self.heard: list[Query] = []
        self.ports: list[int] = []
        self._udp = namespace.datagrams(address, 53)
        self._tcp = namespace.listen(53, address)
        self._udp.settimeout(None)
        self._tcp.settimeout(None)
        self._threads = [
            threading.Thread(target=target) for target in (self._datagrams, self._connections)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for one in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # ends the wait of the thread
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def _datagrams(self) -> None:
        while True:
            data, place = self._udp.recvfrom(65535)
            if not place or not data:
                return
            query = parse_query(data)
            self.ports.append(place[1])
            self.heard.append(query)
            for each in self.behaviour(query):
                self._udp.sendto(each, place)

    def _connections(self) -> None:
        while True:
            try:
                accepted, _ = self._tcp.accept()
            except OSError:
                return
            with accepted:
                accepted.settimeout(5)
                size = int.from_bytes(accepted.recv(2), "big")
                query = parse_query(accepted.recv(size, socket.MSG_WAITALL))
                self.heard.append(query)
                for each in self.behaviour(query):
                    accepted.sendall(len(each).to_bytes(2, "big") + each)
                with contextlib.suppress(OSError):
                    accepted.recv(1)  # who is silent does not hang up either


@contextlib.contextmanager
def serving(namespace: Namespace, address: str, behaviour: Answer) -> Iterator[NameServer]:
    server = NameServer(namespace, address, behaviour)
    try:
        yield server
    finally:
        server.close()


def always(*addresses: str) -> Answer:
    """Every name has these addresses."""
    return lambda query: [address_answer(query, addresses, 60)]


def refusing(code: Rcode) -> Answer:
    return lambda query: [answer(query, code)]


def silent(query: Query) -> list[bytes]:
    return []
