"""Output through the pump, beside a plain pipe: megabytes a second, 100-byte lines.

    python -m benchmarks.pump [--size MEGABYTES] [--rounds N] [--directory DIR]

The producer is `lines.c`, a program that only writes. Every contestant runs once a round, so that
what disturbs the machine disturbs all of them. `cpu` is what our side spent per gigabyte.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import group_record
from benchmarks.samples import Samples, table
from dockpy._copy import ATTACHMENT_CLOSED, EXITED, JOURNAL_SIZE, Pump

LINES = Path(__file__).with_name("lines.c")
CONTAINER, CLIENT = 1, 10


class Bench:
    """The producer's program, and a pump that runs."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self._program = directory / "lines"
        subprocess.run(["cc", "-O2", "-o", self._program, LINES], check=True)
        self._ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._journal = os.memfd_create("journal", os.MFD_CLOEXEC)
        os.ftruncate(self._journal, JOURNAL_SIZE)
        self._pump = Pump(self._ends, self._journal)
        self._thread = threading.Thread(target=self._pump.run)
        self._thread.start()

    def close(self) -> None:
        self._pump.stop()
        self._thread.join()
        del self._pump
        for end in (*self._ends, self._journal):
            os.close(end)

    def _produce(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self._program, str(self.size)], stdout=output)

    def plain_pipe(self) -> None:
        """Producer to a reader that looks at nothing."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        producer = self._produce(writer)
        os.close(writer)
        swallow(reader)
        producer.wait()

    def log_only(self) -> None:
        self._pumped(log=True, attached=False)

    def log_and_pipe(self) -> None:
        self._pumped(log=True, attached=True)

    def pipe_only(self) -> None:
        self._pumped(log=False, attached=True)

    def _pumped(self, *, log: bool, attached: bool) -> None:
        path = self.directory / "container.log"
        path.unlink(missing_ok=True)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._pump.add(
            CONTAINER,
            stdin=-1,
            stdout=reader,
            stderr=-1,
            tty=-1,
            log_path=bytes(path) if log else b"",
            log_max_size=0,
            log_max_file=1,
            stdin_once=False,
        )
        theirs = -1
        if attached:
            theirs, ours = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours, False)
            self._pump.attach(CONTAINER, CLIENT, stdin=-1, stdout=ours, stderr=-1, detach_keys=b"")
        producer = self._produce(writer)
        producer.returncode = 0  # the pump reaps it
        os.close(writer)
        self._pump.watch(CONTAINER, os.pidfd_open(producer.pid))
        if attached and swallow(theirs) != self.size:
            raise RuntimeError("bytes are missing at the client")
        wanted = {EXITED, ATTACHMENT_CLOSED} if attached else {EXITED}
        while wanted:
            select.select([self._pump.event_fd], [], [])
            wanted -= {event[0] for event in self._pump.events()}
        self._pump.remove(CONTAINER)


def swallow(reader: int) -> int:
    """Read to the end; how many bytes there were."""
    block = bytearray(1 << 16)
    total = 0
    while got := os.readv(reader, [block]):
        total += got
    os.close(reader)
    return total


def measure(bench: Bench, rounds: int) -> tuple[list[Samples], dict[str, float]]:
    contestants: dict[str, Callable[[], None]] = {
        "plain pipe": bench.plain_pipe,
        "dockpy, to the log": bench.log_only,
        "dockpy, to the log and a client's pipe": bench.log_and_pipe,
        "dockpy, to a client's pipe, no log": bench.pipe_only,
    }
    rows = {name: Samples(name, unit="MB/s") for name in contestants}
    spent = dict.fromkeys(contestants, 0.0)
    for _ in range(rounds):
        for name, run in contestants.items():
            before = resource.getrusage(resource.RUSAGE_SELF)
            began = time.perf_counter()
            run()
            took = time.perf_counter() - began
            after = resource.getrusage(resource.RUSAGE_SELF)
            rows[name].values.append(bench.size / took / 1e6)
            spent[name] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    share = rounds * bench.size / 1e9
    return list(rows.values()), {name: seconds / share for name, seconds in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=300, help="megabytes a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where the log is written; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dockpy-bench-", dir=arguments.directory) as name:
        bench = Bench(Path(name), arguments.size * 1_000_000)
        try:
            rows, spent = measure(bench, arguments.rounds)
        finally:
            bench.close()
    title = f"output, {arguments.size} MB of 100-byte lines"
    print(f"load {os.getloadavg()[0]:.1f}")
    print(table(title, rows, rows[0]))
    if arguments.json:
        arguments.json.write_text(json.dumps([group_record(title, rows, rows[0])]))
    print("  cpu seconds per GB: " + ", ".join(f"{n} {s:.2f}" for n, s in spent.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
