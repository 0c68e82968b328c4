"""Published ports of dockpy and Docker: bytes a second and connections a second, by turns.

    python -m benchmarks.wire [--short] [--blocks N] [--json FILE]

From this host through localhost, and from a neighbour on its link through the host's address, each
engine as on a host of its own (`sites`). The same static server answers in containers of both;
Docker has its proxy, as it is installed.

What comes from a neighbour meets no proxy, and the whole cost is the kernel's. It is measured once
more with client and server on one processor: which ones the scheduler chooses changes a figure by
more than the engines do. Needs root. The same by common programs: `benchmarks.webs`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import peers
from benchmarks.neighbour import HOST, Neighbour
from benchmarks.sites import Figure, Server, compared, options, show

PIECE = bytes(1 << 20)
PORT = 80
ONE_PROCESSOR = {0}
ONE, MANY = "one connection", "connections"


class Wanted(NamedTuple):
    """What one site is asked to measure: `amount` is bytes or connections."""

    place: str
    what: str
    amount: int
    one_processor: bool = False

    @property
    def title(self) -> str:
        where = ", client and server on one processor" if self.one_processor else ""
        return f"{self.what} from {self.place}{where}"

    @property
    def unit(self) -> str:
        return "MB/s" if self.what == ONE else "/s"


def throughput(address: str, port: int, size: int) -> float:
    """MB/s of one connection that is read to its end."""
    with socket.create_connection((address, port)) as link:
        began = time.perf_counter()
        link.sendall(b"s")
        for _ in range(size // len(PIECE)):
            link.sendall(PIECE)
        link.shutdown(socket.SHUT_WR)
        if link.recv(1) != b"x":
            raise RuntimeError("the server did not answer")
        return size / 1e6 / (time.perf_counter() - began)


def connections(address: str, port: int, count: int) -> float:
    """Connections a second, one after the other, each with a question and an answer."""
    began = time.perf_counter()
    for _ in range(count):
        with socket.create_connection((address, port)) as link:
            link.sendall(b"e")
            if link.recv(1) != b"x":
                raise RuntimeError("the server did not answer")
    return count / (time.perf_counter() - began)


def sink(directory: Path) -> Server:
    """A root with the server alone."""
    tree = directory / "tree"
    tree.mkdir()
    source = Path(__file__).with_name("sink.c")
    subprocess.run(["cc", "-O2", "-static", "-o", str(tree / "sink"), str(source)], check=True)
    for name in ("dev", "proc", "sys", "etc"):
        (tree / name).mkdir()
    return Server.of(tree, ("/sink",), (PORT,))


def measured(wanted: Wanted, server: int, neighbour: Neighbour) -> list[Figure]:
    # What the site may use stays as it was.
    allowed = ONE_PROCESSOR if wanted.one_processor else os.sched_getaffinity(os.getppid())
    os.sched_setaffinity(server, allowed)
    measure = throughput if wanted.what == ONE else connections

    def work(address: str) -> float:
        os.sched_setaffinity(0, allowed)
        return measure(address, PORT, wanted.amount)

    here = wanted.place == "localhost"
    value = work("127.0.0.1") if here else neighbour.call(work, HOST)
    return [Figure(wanted.title, value, wanted.unit)]


def main() -> int:
    asked = options(__doc__)
    blocks = asked.blocks or (2 if asked.short else 8)
    rounds, size, count = (2, 256 << 20, 300) if asked.short else (6, 512 << 20, 2000)
    everything = [
        Wanted(place, what, amount, alone)
        for place, alone in (("localhost", False), ("a neighbour", False), ("a neighbour", True))
        for what, amount in ((ONE, size), (MANY, count))
    ]
    with peers.scratch() as directory:
        found = compared(
            directory, sink(directory), measured, everything, blocks=blocks, rounds=rounds
        )
    show(found, blocks, asked.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
