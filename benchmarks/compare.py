"""dockpy beside the kernel's floor and every installed peer, interleaved in one run, all of them in
a network namespace of their own.

    python -m benchmarks.compare [--short] [--json FILE] [--rootfs TAR] [PART ...]

Parts: start, cli, clients, burst, streams, density, runtimes, exec. Needs root. A missing peer is
named and skipped. The exit status is not zero only when a ratio measured in this run is far beyond
its promise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import commands, density, execs, peers, runtimes
from benchmarks.bench import FLOORS, Bench, base_archive, in_threads, one_start, stop_daemon
from benchmarks.density import memory_of
from benchmarks.samples import Samples
from dockpy import Config, Runtime, Streams

__all__ = ["base_archive", "memory_of", "one_start", "stop_daemon"]

LIMIT = 3.0
"""The ratio over the floor at which CI fails; the promise is 2.0, the rest is room for noise."""


def start(bench: Bench) -> None:
    """Through the Python API, logs on, at gaps of 0 and 100 ms, with each network."""
    rounds = 3 if bench.short else 6
    for gap in (0, 100):
        each = 20 if not bench.short else 6 if gap else 10
        for network, floors in FLOORS.items():
            floor = Samples(f"floor mounts {floors.partition('=')[0]} cgroup")
            ours, published = Samples(f"dockpy API, {network}"), Samples("dockpy API, bridge, -p")
            for _ in range(5):
                one_start(bench.runtime, network)
            for turn in range(rounds):
                floor.values += bench.floor.times(
                    bench.tree, each, "mounts", floors, "cgroup", f"gap={gap}"
                )
                for number in range(each):
                    time.sleep(gap / 1e3)
                    ours.values.append(one_start(bench.runtime, network))
                    if network == "bridge":
                        time.sleep(gap / 1e3)
                        port = f"{20000 + turn * each + number}:80"
                        published.values.append(one_start(bench.runtime, network, (port,)))
            rows = [floor, ours, published] if published.values else [floor, ours]
            bench.show(f"create+start+wait+remove, {network}, gap {gap} ms", rows, floor)
            ratio = ours.median / floor.median
            if ratio > LIMIT:
                bench.failures.append(f"start, {network}, gap {gap} ms is {ratio:.2f} x floor")


def _start(runtime: Runtime, network: str, _: int) -> None:
    one_start(runtime, network)


def burst(bench: Bench) -> None:
    """Starts a second through the API from 8 threads, and the floor's from as many processes."""
    each = 25 if bench.short else 100
    rows = []
    for network, floors in FLOORS.items():
        floor = Samples(f"8 floors, {network}", unit="/s")
        began = time.perf_counter()
        bench.floor.together(bench.tree, 8, each, "mounts", floors, "cgroup")
        floor.values.append(8 * each / (time.perf_counter() - began))
        began = time.perf_counter()
        in_threads(partial(_start, bench.runtime, network), 8 * each, 8)
        rate = 8 * each / (time.perf_counter() - began)
        rows += [floor, Samples(f"dockpy API, 8 threads, {network}", [rate], "/s")]
    bench.show("starts a second", rows, rows[0])


def streams(bench: Bench) -> None:
    """Output to the log, to an attached client, and read back, in MB/s of 100-byte lines."""
    size = (100 if bench.short else 400) * 1_000_000
    rounds = 1 if bench.short else 3
    rows = [
        Samples("plain pipe", unit="MB/s"),
        Samples("dockpy, to the log", unit="MB/s"),
        Samples("dockpy, attached, logged", unit="MB/s"),
        Samples("dockpy, log read back", unit="MB/s"),
    ]
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(f"yes {'x' * 99} | head -c {size} | cat >/dev/null", shell=True, check=True)
        rows[0].values.append(size / 1e6 / (time.perf_counter() - began))
        logged = bench.runtime.create(Config(image="base", cmd=("/lines", str(size))))
        began = time.perf_counter()
        logged.start()
        logged.wait()
        rows[1].values.append(size / 1e6 / (time.perf_counter() - began))
        rows[3].values.append(size / 1e6 / read_back(logged.copy_log, size))
        bench.runtime.destroy(logged)
        attached = bench.runtime.create(Config(image="base", cmd=("/lines", str(size))))
        reader, writer = os.pipe()
        began = time.perf_counter()
        ends = attached.start([Streams(stdout=writer)])
        os.close(writer)
        subprocess.run(["cat"], stdin=reader, stdout=subprocess.DEVNULL, check=True)
        ends[0].wait()
        rows[2].values.append(size / 1e6 / (time.perf_counter() - began))
        os.close(reader)
        attached.wait()
        bench.runtime.destroy(attached)
    bench.show(f"streams, {size // 1_000_000} MB of 100-byte lines", rows, rows[0])


def read_back(copy_log: Callable[..., None], size: int) -> float:
    """Seconds to copy a log of `size` bytes of output through a pipe."""
    reader, writer = os.pipe()
    began = time.perf_counter()
    with subprocess.Popen(["wc", "-c"], stdin=reader, stdout=subprocess.PIPE) as count:
        os.close(reader)
        copy_log(writer, -1)
        os.close(writer)
        output = count.communicate()[0]
    took = time.perf_counter() - began
    if int(output) != size:
        raise RuntimeError(f"the log gave {int(output)} bytes of {size}")
    return took


PARTS: dict[str, Callable[[Bench], None]] = {
    "start": start,
    "burst": burst,
    "streams": streams,
    "density": density.density,
    "cli": commands.cli,
    "clients": commands.clients,
    "runtimes": runtimes.runtimes,
    "exec": execs.execs,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--rootfs")
    options = parser.parse_args()
    peers.own_network()
    print(
        f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}, "
        f"Python {platform.python_version()}"
    )
    with peers.scratch() as directory:
        bench = Bench(directory, base_archive(directory, options.rootfs), options.short)
        try:
            for name in options.parts or PARTS:
                PARTS[name](bench)
        finally:
            bench.runtime.close()
    if options.json:
        Path(options.json).write_text(json.dumps(bench.results, indent=1))
    for failure in bench.failures:
        print(f"too slow: {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
