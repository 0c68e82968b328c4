"""Engines beside each other, each as on a host of its own: a process, a network namespace, and a
neighbour on its link. Every packet meets the rules of one engine alone.

`br_netfilter` sends bridged frames through iptables as well, which costs every packet. Docker loads
it, and from then on it is on in every network namespace; a host that has dockpy alone does not. In
a kernel that has it built in it is on everywhere, so each site sets it as its host would have it.
One more site has dockpy with it, as beside Docker, and one the same server without any engine: what
there is to be had.

Where the server's pages lie in memory changes what it reads in a second by several hundredths. So
containers are made anew for each block. All are asked in each turn, in random order, and `in_turn`
has the ratios turn by turn: what slows the whole machine for a moment does not move those.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import peers, promises
from benchmarks.figures import group_record
from benchmarks.neighbour import Neighbour
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime

CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
DOCKER, DOCKPY, BRIDGED_DOCKPY = "docker", "dockpy", "dockpy, br_netfilter on"
BARE = "no engine"


class Figure(NamedTuple):
    """One thing that was measured; `title` is the table it belongs to."""

    title: str
    value: float
    unit: str


class Server(NamedTuple):
    """What answers in the containers, and on which ports; they are the host's too."""

    archive: Path
    command: tuple[str, ...]
    ports: tuple[int, ...]

    @classmethod
    def of(cls, tree: Path, command: tuple[str, ...], ports: tuple[int, ...]) -> Server:
        """One whose root is that directory, packed beside it."""
        archive = tree.with_suffix(".tar")
        subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True)
        return cls(archive, command, ports)

    @property
    def published(self) -> tuple[str, ...]:
        return tuple(f"{port}:{port}" for port in self.ports)


Measure = Callable[[Any, int, Neighbour], Sequence[Figure]]
"""Measures what is asked for, given a server's process. A module's function: it goes by name."""
Serve = Callable[[], contextlib.AbstractContextManager[int]]
"""A new container that serves; gives its process."""


# -- the engines -------------------------------------------------------------------------------


@contextlib.contextmanager
def dockpy(directory: Path, server: Server) -> Iterator[Serve]:
    with Runtime(directory / "state", run=directory / "run") as runtime:
        with open(server.archive, "rb") as source:
            runtime.import_image(source, "server")

        @contextlib.contextmanager
        def serve() -> Iterator[int]:
            config = Config(image="server", cmd=server.command, port_specs=server.published)
            container = runtime.create(config)
            try:
                container.start()
                yield container.state.pid
            finally:
                runtime.destroy(container, force=True)

        yield serve


@contextlib.contextmanager
def docker(directory: Path, server: Server) -> Iterator[Serve | None]:
    with peers.docker(directory, network=True) as command:
        if command is None:
            yield None
            return

        def told(*words: str) -> str:
            return subprocess.check_output([*command, *words], text=True).strip()

        told("import", str(server.archive), "server")
        ports = [word for one in server.published for word in ("-p", one)]

        @contextlib.contextmanager
        def serve() -> Iterator[int]:
            container = told("run", "-d", *ports, "server", *server.command)
            try:
                yield int(told("inspect", "-f", "{{.State.Pid}}", container))
            finally:
                told("rm", "-f", container)

        yield serve


@contextlib.contextmanager
def bare(directory: Path, server: Server) -> Iterator[Serve]:
    root = directory / "root"
    root.mkdir()
    subprocess.run(["tar", "-C", str(root), "-xf", str(server.archive)], check=True)
    for name in ("null", "urandom"):
        os.mknod(root / "dev" / name, 0o666 | stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev)

    @contextlib.contextmanager
    def serve() -> Iterator[int]:
        words = ["chroot", str(root), *server.command]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, process_group=0)
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    yield serve


class Site(NamedTuple):
    """An engine, and whether bridged frames meet iptables where it is."""

    engine: Callable[[Path, Server], contextlib.AbstractContextManager[Serve | None]]
    bridged: bool


SITES = {
    DOCKER: Site(docker, True),
    DOCKPY: Site(dockpy, False),
    BRIDGED_DOCKPY: Site(dockpy, True),
    BARE: Site(bare, False),
}


# -- one site, in a process of its own ---------------------------------------------------------


def run_site(name: str, directory: Path, server: Server, measure: Measure, ask: Connection) -> None:
    """Measure what is asked for until the other end closes; None asks for a new container.

    The client is a process of its own, made before the engine is here: it is the same for each.
    """
    peers.own_network()
    site = SITES[name]
    if BRIDGED.exists():
        BRIDGED.write_text("01"[site.bridged])
    here, there = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    client = fork.Process(target=run_client, args=(measure, there, here, ask))
    client.start()
    there.close()
    try:
        serve_and_ask(site, directory, server, ask, here)
    finally:
        here.close()
        client.join()


def serve_and_ask(
    site: Site, directory: Path, server: Server, ask: Connection, client: Connection
) -> None:
    with site.engine(directory, server) as serve:
        ask.send(serve is not None)
        while serve is not None:
            with serve() as process:
                time.sleep(0.5)
                ask.send(None)
                try:
                    while (question := ask.recv()) is not None:
                        client.send((question, process))
                        ask.send(client.recv())
                except EOFError:
                    break


def run_client(measure: Measure, ask: Connection, *others: Connection) -> None:
    """Measure for `run_site` until it closes its end; `others`: what came along with the fork."""
    for one in others:
        one.close()
    neighbour = Neighbour()
    with contextlib.suppress(EOFError):
        while True:
            question, process = ask.recv()
            ask.send(measure(question, process, neighbour))


# -- all of them, by turns ---------------------------------------------------------------------


@contextlib.contextmanager
def sites(directory: Path, server: Server, measure: Measure) -> Iterator[dict[str, Connection]]:
    """The sites that can be had here, each ready to be asked."""
    made, found = [], {}
    context = multiprocessing.get_context("spawn")
    try:
        for name in [one for one in SITES if one != BRIDGED_DOCKPY or BRIDGED.exists()]:
            here, there = context.Pipe()
            place = directory / name.replace(" ", "-")
            place.mkdir()
            process = context.Process(target=run_site, args=(name, place, server, measure, there))
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


def compared(
    directory: Path,
    server: Server,
    measure: Measure,
    questions: Sequence[object],
    *,
    blocks: int,
    rounds: int,
) -> dict[str, list[Samples]]:
    """A row for each site, by title. Blocks: how often containers are made anew."""
    rows: dict[str, dict[str, Samples]] = {}
    with sites(directory, server, measure) as asked:
        for block in range(blocks):
            for end in asked.values() if block else ():
                end.send(None)
                end.recv()
            for question in questions:
                for _ in range(rounds):
                    one_turn(asked, question, rows)
    return {title: [*found.values()] for title, found in rows.items()}


def one_turn(
    asked: Mapping[str, Connection], question: object, rows: dict[str, dict[str, Samples]]
) -> None:
    for name in random.sample([*asked], len(asked)):
        asked[name].send(question)
        for title, value, unit in asked[name].recv():
            if title not in rows:
                rows[title] = {each: Samples(each, unit=unit) for each in asked}
            rows[title][name].values.append(value)


def in_turn(results: Mapping[str, Sequence[Samples]]) -> dict[str, list[Samples]]:
    """By what was compared: a row for each title, how many times Docker's figure ours is, turn by
    turn."""
    found: dict[str, list[Samples]] = {}
    for title, rows in results.items():
        values = {row.name: row.values for row in rows}
        theirs = values.pop(DOCKER, None)
        for name, ours in values.items() if theirs else ():
            ratios = [one / other for one, other in zip(ours, theirs or (), strict=True)]
            found.setdefault(promises.in_turn(name), []).append(Samples(title, ratios, "x"))
    return found


def options(says: str | None) -> argparse.Namespace:
    """What a benchmark of this kind can be asked for."""
    parser = argparse.ArgumentParser(description=says)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--blocks", type=int, help="how often containers are made anew")
    parser.add_argument("--json")
    return parser.parse_args()


def show(found: Mapping[str, Sequence[Samples]], blocks: int, target: str | None) -> None:
    """Print the tables and their ratios; write them to `target` when there is one."""
    print(
        f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}; "
        f"congestion control {CONGESTION.read_text().strip()}, {blocks} containers of each"
    )
    tables: list[tuple[str, Sequence[Samples], Samples | None]]
    tables = [(title, rows, rows[0]) for title, rows in found.items()]
    tables += [(title, rows, None) for title, rows in in_turn(found).items()]
    results = []
    for title, rows, reference in tables:
        print(table(title, rows, reference))
        results.append(group_record(title, rows, reference))
    if target:
        Path(target).write_text(json.dumps(results, indent=1))
