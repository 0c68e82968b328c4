"""Published ports of dockpy and Docker: bytes a second and connections a second, by turns.

    python -m benchmarks.wire [--short] [--blocks N] [--json FILE]

From this host through localhost, and from a neighbour on its link through the host's address. Each
engine has a process, a network namespace and a neighbour of its own: every packet meets the rules
of one engine alone, as on a host that has but one. The same static server answers in containers of
both; Docker has its proxy, as it is installed.

Where the server's pages lie in memory changes what it reads in a second by several hundredths, and
so does the processor the scheduler chooses. So containers are made anew for each of `--blocks`
blocks, and what comes from a neighbour, where no proxy is met and the whole cost is the kernel's,
is measured once more with client and server on one processor: there the figures of one engine lie
within a hundredth or two of each other. Both engines are asked in each turn, in random order, and
the last table has the ratios turn by turn: what slows the whole machine for a moment does not move
those. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks import peers
from benchmarks.promises import IN_TURN
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime

Found = TypeVar("Found")
HOST, NEIGHBOUR = "10.209.0.1", "10.209.0.2"
PIECE = bytes(1 << 20)
PORT = 18701
ONE_PROCESSOR = {0}
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
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


class Neighbour:
    """A network namespace on the host's link; what runs `inside` is there."""

    def __init__(self) -> None:
        self._libc = peers.libc()
        made = threading.Thread(target=self._make)
        made.start()
        made.join()
        place = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        for line in (
            "link add lan0 type veth peer name lan1",
            f"link set lan1 netns {place}",
            f"addr add {HOST}/24 dev lan0",
            "link set lan0 up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        for line in (f"addr add {NEIGHBOUR}/24 dev lan1", "link set lan1 up"):
            self.call(subprocess.run, ["ip", *line.split()], check=True)

    def _make(self) -> None:
        peers.unshare_network()
        self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def call(self, function: Callable[..., Found], *arguments: object, **named: object) -> Found:
        """Call it in a thread that is there."""
        found = list[Found]()

        def work() -> None:
            if self._libc.setns(self.descriptor, peers.CLONE_NEWNET):
                raise OSError("the neighbour's namespace cannot be entered")
            found.append(function(*arguments, **named))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0]


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


def image(directory: Path) -> Path:
    """A tar of a root with the server alone."""
    tree = directory / "tree"
    tree.mkdir()
    source = Path(__file__).with_name("sink.c")
    subprocess.run(["cc", "-O2", "-static", "-o", str(tree / "sink"), str(source)], check=True)
    for name in ("dev", "proc", "sys", "etc"):
        (tree / name).mkdir()
    target = directory / "sink.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(target), "."], check=True)
    return target


# -- one engine, in a process of its own -------------------------------------------------------

Serve = Callable[[], contextlib.AbstractContextManager[int]]
"""A new container that serves on `PORT`; gives its process."""


@contextlib.contextmanager
def dockpy(directory: Path, archive: Path) -> Iterator[Serve]:
    with Runtime(directory / "state", run=directory / "run") as runtime:
        with open(archive, "rb") as source:
            runtime.import_image(source, "sink")

        @contextlib.contextmanager
        def serve() -> Iterator[int]:
            config = Config(image="sink", cmd=("/sink",), port_specs=(f"{PORT}:80",))
            container = runtime.create(config)
            try:
                container.start()
                yield container.state.pid
            finally:
                runtime.destroy(container, force=True)

        yield serve


@contextlib.contextmanager
def docker(directory: Path, archive: Path) -> Iterator[Serve | None]:
    with peers.docker(directory, network=True) as command:
        if command is None:
            yield None
            return

        def told(*words: str) -> str:
            return subprocess.check_output([*command, *words], text=True).strip()

        told("import", str(archive), "sink")

        @contextlib.contextmanager
        def serve() -> Iterator[int]:
            container = told("run", "-d", "-p", f"{PORT}:80", "sink", "/sink")
            try:
                yield int(told("inspect", "-f", "{{.State.Pid}}", container))
            finally:
                told("rm", "-f", container)

        yield serve


ENGINES: dict[str, Callable[..., contextlib.AbstractContextManager[Serve | None]]] = {
    "docker": docker,
    "dockpy": dockpy,
}


def site(engine: str, directory: Path, archive: Path, ask: Connection) -> None:
    """Measure what is asked for until the other end closes; None asks for a new container.

    The client is a process of its own, made before the engine is here: it is the same for each.
    """
    peers.own_network()
    here, there = multiprocessing.Pipe()
    client = multiprocessing.get_context("fork").Process(target=clients, args=(there, here, ask))
    client.start()
    there.close()
    with ENGINES[engine](directory, archive) as serve:
        ask.send(serve is not None)
        while serve is not None:
            with serve() as server:
                time.sleep(0.5)
                ask.send(None)
                try:
                    while (wanted := ask.recv()) is not None:
                        here.send((wanted, server))
                        ask.send(here.recv())
                except EOFError:
                    break
    here.close()
    client.join()


def clients(ask: Connection, *others: Connection) -> None:
    """Measure for `site` until it closes its end; `others`: what came along with the fork."""
    for one in others:
        one.close()
    neighbour = Neighbour()
    with contextlib.suppress(EOFError):
        while True:
            wanted, server = ask.recv()
            ask.send(measured(wanted, server, neighbour))


def measured(wanted: Wanted, server: int, neighbour: Neighbour) -> float:
    # What the site may use stays as it was.
    allowed = ONE_PROCESSOR if wanted.one_processor else os.sched_getaffinity(os.getppid())
    os.sched_setaffinity(server, allowed)
    measure = throughput if wanted.what == ONE else connections

    def work(address: str) -> float:
        os.sched_setaffinity(0, allowed)
        return measure(address, PORT, wanted.amount)

    if wanted.place == "localhost":
        return work("127.0.0.1")
    return neighbour.call(work, HOST)


# -- all of them, by turns ---------------------------------------------------------------------


@contextlib.contextmanager
def sites(directory: Path) -> Iterator[dict[str, Connection]]:
    """The engines there are, each ready to be asked."""
    archive = image(directory)
    made, found = [], {}
    context = multiprocessing.get_context("spawn")
    try:
        for name in ENGINES:
            here, there = context.Pipe()
            place = directory / name
            place.mkdir()
            process = context.Process(target=site, args=(name, place, archive, there))
            process.start()
            there.close()
            made.append((process, here))
            if here.recv():
                here.recv()
                found[name] = here
            else:
                print(f"{name}: not installed or does not start here; skipped")
        yield found
    finally:
        for _, here in made:
            here.close()
        for process, _ in made:
            process.join()


def compared(all_wanted: list[Wanted], blocks: int, rounds: int) -> dict[str, list[Samples]]:
    """A row for each engine, by title."""
    with peers.scratch() as directory, sites(directory) as asked:
        rows = {
            one.title: {name: Samples(name, unit=one.unit) for name in asked} for one in all_wanted
        }
        for block in range(blocks):
            for end in asked.values() if block else ():
                end.send(None)
                end.recv()
            for one in all_wanted:
                for _ in range(rounds):
                    for name in random.sample([*asked], len(asked)):
                        asked[name].send(one)
                        rows[one.title][name].values.append(asked[name].recv())
    return {title: [*found.values()] for title, found in rows.items()}


def in_turn(results: Mapping[str, Sequence[Samples]]) -> list[Samples]:
    """A row for each title: how many times Docker's figure ours is, turn by turn."""
    found = []
    for title, rows in results.items():
        values = {row.name: row.values for row in rows}
        if len(values) == len(ENGINES):
            ratios = [
                ours / theirs
                for ours, theirs in zip(values["dockpy"], values["docker"], strict=True)
            ]
            found.append(Samples(title, ratios, "x"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--blocks", type=int, help="how often containers are made anew")
    parser.add_argument("--json")
    options = parser.parse_args()
    blocks = options.blocks or (2 if options.short else 8)
    rounds, size, count = (2, 256 << 20, 300) if options.short else (6, 512 << 20, 2000)
    print(
        f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}; "
        f"congestion control {CONGESTION.read_text().strip()}, {blocks} containers of each"
    )
    everything = [
        Wanted(place, what, amount, alone)
        for place, alone in (("localhost", False), ("a neighbour", False), ("a neighbour", True))
        for what, amount in ((ONE, size), (MANY, count))
    ]
    found = compared(everything, blocks, rounds)
    tables: list[tuple[str, list[Samples], Samples | None]]
    tables = [(title, rows, rows[0]) for title, rows in found.items()]
    if ratios := in_turn(found):
        tables.append((IN_TURN, ratios, None))
    results = []
    for title, rows, reference in tables:
        print(table(title, rows, reference))
        name = reference.name if reference else None
        records = [row.record() for row in rows]
        results.append({"title": title, "reference": name, "rows": records})
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
