"""The firewall: what entries cost, and what a packet pays for ports that others published.

    python -m benchmarks.firewall [--short] [--json FILE]

In network namespaces of this program's own: a host with a bridge, a container on it, a neighbour
on the host's link. Needs root. Connections are compared with rules as Docker makes them, one for
each port, by iptables; the port that is tried is the last of them. A datagram for the host
itself shows what the rules cost packets that are no container's: processor time of its sending, its
way through the kernel and its reading, by one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.figures import group_record
from benchmarks.neighbour import HOST, Neighbour
from benchmarks.samples import Samples, table
from dockpy.network.entries import Bridge, Cable
from dockpy.network.firewall import Firewall
from dockpy.network.ports import Published

BRIDGE = Bridge("fw0", "10.210.0.0/16")
GATEWAY, CONTAINER = "10.210.0.1", "10.210.0.2"
CABLE = Cable("fwc", "02:42:0a:d2:00:02", CONTAINER)
PORT, TRIED, MANY = 80, 29999, 1000
BATCH = 50
"""Datagrams under way at once: they fit a socket's buffer."""
ENTRIES = "one container's or port's entries"
MATCHED = "one connection through a published port"
RECEIVED = "one datagram from a neighbour to the host itself, processor time"
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: the connection ends at once, so that no port waits."""


class Container(Neighbour):
    """A network namespace on the bridge, with a server that takes connections and ends them."""

    def __init__(self) -> None:
        made = threading.Thread(target=self._make)
        made.start()
        made.join()
        self._libc = peers.libc()
        for line in (
            f"link add {BRIDGE.name} type bridge",
            f"addr add {GATEWAY}/16 dev {BRIDGE.name}",
            f"link set {BRIDGE.name} up",
            f"link add {CABLE.interface} type veth peer name fwi address {CABLE.hardware}",
            f"link set {CABLE.interface} master {BRIDGE.name} up",
            f"link set fwi netns /proc/self/fd/{self.descriptor}",
        ):
            words = ["ip", *line.split()]
            subprocess.run(words, check=True, pass_fds=(self.descriptor,))
        for line in (
            f"addr add {CONTAINER}/16 dev fwi",
            "link set fwi up",
            f"route add default via {GATEWAY}",
        ):
            self.call(subprocess.run, ["ip", *line.split()], check=True)
        server = self.call(socket.create_server, ("", PORT), backlog=512)
        assert isinstance(server, socket.socket)
        threading.Thread(target=self._serve, args=(server,), daemon=True).start()

    @staticmethod
    def _serve(server: socket.socket) -> None:
        while True:
            server.accept()[0].close()


def connections(count: int) -> float:
    """Milliseconds of one connection to the published port, on average over `count`."""
    began = time.perf_counter()
    for _ in range(count):
        with socket.create_connection((HOST, TRIED), 5) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return (time.perf_counter() - began) * 1000 / count


@contextlib.contextmanager
def ours(firewall: Firewall, count: int) -> Iterator[None]:
    """`count` published ports, the tried one last."""
    ports = [Published(PORT, "tcp", "", TRIED - number) for number in reversed(range(count))]
    firewall.publish(CONTAINER, ports, "all")
    try:
        yield
    finally:
        firewall.withdraw("all")


@contextlib.contextmanager
def rules(count: int) -> Iterator[None]:
    """The same as a chain of rules."""
    lines = [
        f"-A PUBLISHED -p tcp --dport {TRIED - number} -j DNAT --to-destination {CONTAINER}:{PORT}"
        for number in reversed(range(count))
    ]
    jump = "-A PREROUTING -m addrtype --dst-type LOCAL -j PUBLISHED"
    text = "\n".join(["*nat", ":PUBLISHED - [0:0]", jump, *lines, "COMMIT", ""])
    subprocess.run(["iptables-nft-restore"], input=text.encode(), check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables-nft", "-t", "nat", "-F"], check=True)
        subprocess.run(["iptables-nft", "-t", "nat", "-X"], check=True)


def matching(firewall: Firewall, neighbour: Neighbour, rounds: int, count: int) -> list[Samples]:
    contestants: Sequence[tuple[str, Callable[[], contextlib.AbstractContextManager[None]]]] = (
        ("dockpy, 1 published", lambda: ours(firewall, 1)),
        (f"dockpy, {MANY} published", lambda: ours(firewall, MANY)),
        ("iptables, 1 rule", lambda: rules(1)),
        (f"iptables, {MANY} rules", lambda: rules(MANY)),
    )
    found = [Samples(name) for name, _ in contestants]
    for number in range(rounds):
        # Another order each time: what a machine does meanwhile meets all of them.
        for at in range(len(contestants)):
            which = (at + number) % len(contestants)
            with contestants[which][1]():
                taken = neighbour.call(connections, count)
                assert isinstance(taken, float)
                found[which].values.append(taken)
    return found


def datagrams(sender: socket.socket, receiver: socket.socket, count: int) -> float:
    """Processor microseconds of one, on average over `count`."""
    began = time.thread_time()
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            sender.send(b"x")
        for _ in range(BATCH):
            receiver.recv(1)
    return (time.thread_time() - began) * 1e6 / (count // BATCH * BATCH)


@contextlib.contextmanager
def nothing(firewall: Firewall) -> Iterator[None]:
    """No rules of anybody."""
    firewall.close(remove=True)
    try:
        yield
    finally:
        opened(firewall)


@contextlib.contextmanager
def others(firewall: Firewall) -> Iterator[None]:
    """One rule of iptables, and none of ours."""
    with nothing(firewall), rules(1):
        yield


def receiving(firewall: Firewall, neighbour: Neighbour, rounds: int, count: int) -> list[Samples]:
    contestants: Sequence[tuple[str, Callable[[], contextlib.AbstractContextManager[None]]]] = (
        ("no rules", lambda: nothing(firewall)),
        ("iptables, 1 rule", lambda: others(firewall)),
        ("dockpy, 1 published", lambda: ours(firewall, 1)),
    )
    found = [Samples(name, unit="us") for name, _ in contestants]
    sender = neighbour.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    assert isinstance(sender, socket.socket)
    with sender, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((HOST, 0))
        receiver.settimeout(5)
        sender.connect(receiver.getsockname())
        for number in range(rounds * 4):
            for at in range(len(contestants)):
                which = (at + number) % len(contestants)
                with contestants[which][1]():
                    found[which].values.append(datagrams(sender, receiver, count * 2))
    return found


def entries(firewall: Firewall, present: int, count: int) -> list[Samples]:
    """Microseconds of one container's and one port's entries, among others that are there."""
    there = [
        Cable(
            f"fwx{n}", f"02:42:0a:d2:{n >> 8:02x}:{n & 255:02x}", f"10.210.{8 + n // 250}.{n % 250}"
        )
        for n in range(present)
    ]
    firewall.allow(*there)
    published = [Published(PORT, "tcp", "", 20000 + n) for n in range(present)]
    firewall.publish(CONTAINER, published, "others")
    one, port = Cable("fwy", "02:42:0a:d2:07:01", "10.210.7.1"), [Published(PORT, "tcp", "", 7)]
    steps: Sequence[tuple[str, Callable[[], object]]] = (
        ("allow", lambda: firewall.allow(one)),
        ("publish", lambda: firewall.publish(CONTAINER, port, "one")),
        ("withdraw", lambda: firewall.withdraw("one")),
        ("forget", lambda: firewall.forget(one)),
    )
    found = [Samples(f"{name}, {present} present", unit="us") for name, _ in steps]
    for _ in range(count):
        for sample, (_, step) in zip(found, steps, strict=True):
            began = time.perf_counter()
            step()
            sample.values.append((time.perf_counter() - began) * 1e6)
    firewall.withdraw("others")
    firewall.forget(*there)
    return found


def opened(firewall: Firewall) -> None:
    """Ready for the bridge and its one container."""
    firewall.open()
    firewall.attach(BRIDGE)
    firewall.allow(CABLE)
    firewall.accept_loopback(BRIDGE.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rounds, count = (2, 200) if given.short else (8, 1000)
    peers.own_network()
    print(f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}")
    neighbour, _container = Neighbour(), Container()
    firewall = Firewall("dockpy-bench")
    opened(firewall)
    try:
        costs = [*entries(firewall, 0, count), *entries(firewall, MANY, count)]
        print(table(ENTRIES, costs))
        matched = matching(firewall, neighbour, rounds, count)
        print(table(MATCHED, matched, matched[0]))
        received = receiving(firewall, neighbour, rounds, count)
        print(table(RECEIVED, received, received[1]))
    finally:
        firewall.close(remove=True)
    if given.json:
        records = [
            group_record(ENTRIES, costs, None),
            group_record(MATCHED, matched, matched[0]),
            group_record(RECEIVED, received, received[1]),
        ]
        given.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
