"""Published ports of dockpy and Docker: bytes a second and connections a second, by turns.

    python -m benchmarks.wire [--short] [--json FILE]

From this host through localhost, and from a neighbour on its link through the host's address; both
in network namespaces of this program's own. The same static server answers in both engines'
containers; Docker has its proxy, as it is installed. From the neighbour no proxy is met, so there
the processor time of client and server is the whole cost, and is told too: it hardly changes with
what else the machine does. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks import peers
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime

Found = TypeVar("Found")
HOST, NEIGHBOUR = "10.209.0.1", "10.209.0.2"
PIECE = bytes(1 << 20)
PORTS = {"dockpy": 18701, "docker": 18702}


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


def processor_time(measure: Callable[[], float], server: int) -> tuple[float, float]:
    """What is measured, and processor seconds that it took this thread and the server."""
    before = time.thread_time() + used_by(server)
    found = measure()
    return found, time.thread_time() + used_by(server) - before


def used_by(pid: int) -> float:
    """Processor seconds of a process. Source: proc_pid_schedstat, the first field, nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


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


@contextlib.contextmanager
def servers(directory: Path, archive: Path) -> Iterator[dict[str, int]]:
    """The engines that serve, each on its port of `PORTS`, and their servers' processes."""
    with (
        Runtime(directory / "state", run=directory / "run") as runtime,
        peers.docker(directory, network=True) as docker,
    ):
        with open(archive, "rb") as source:
            runtime.import_image(source, "sink")
        ours = runtime.create(
            Config(image="sink", cmd=("/sink",), port_specs=(f"{PORTS['dockpy']}:80",))
        )
        ours.start()
        found = {"dockpy": ours.state.pid}
        if docker is None:
            print("docker: not installed or does not start here; skipped")
        else:
            subprocess.run([*docker, "import", archive, "sink"], check=True, capture_output=True)
            words = ["run", "-d", "-p", f"{PORTS['docker']}:80", "sink", "/sink"]
            run = subprocess.run([*docker, *words], check=True, capture_output=True, text=True)
            look = [*docker, "inspect", "-f", "{{.State.Pid}}", run.stdout.strip()]
            found["docker"] = int(subprocess.check_output(look, text=True))
        try:
            yield found
        finally:
            runtime.destroy(ours, force=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    peers.own_network()
    print(f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}")
    rounds, size, count = (2, 256 << 20, 300) if options.short else (6, 1 << 30, 2000)
    results = []
    with peers.scratch() as directory:
        neighbour = Neighbour()
        with servers(directory, image(directory)) as engines:
            time.sleep(1)
            for place, address in (("localhost", "127.0.0.1"), ("a neighbour", HOST)):
                for title, unit, measure, amount, cost in (
                    ("one connection", "MB/s", throughput, size, ("us/MB", size / 1e6)),
                    ("connections", "/s", connections, count, ("us", count)),
                ):
                    rows = {name: Samples(name, unit=unit) for name in reversed(engines)}
                    costs = {name: Samples(name, unit=cost[0]) for name in reversed(engines)}
                    for number in range(rounds):
                        names = list(rows) if number % 2 else list(reversed(rows))
                        for name in names:
                            work = partial(measure, address, PORTS[name], amount)
                            timed = partial(processor_time, work, engines[name])
                            value, spent = (
                                timed() if place == "localhost" else neighbour.call(timed)
                            )
                            rows[name].values.append(value)
                            costs[name].values.append(spent * 1e6 / cost[1])
                    tables = {f"{title} from {place}": rows}
                    if place != "localhost":
                        tables[f"processor time, {title} from {place}"] = costs
                    for heading, found in tables.items():
                        print(table(heading, [*found.values()], next(iter(found.values()))))
                        records = [row.record() for row in found.values()]
                        results.append({"title": heading, "rows": records})
                    sys.stdout.flush()
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
