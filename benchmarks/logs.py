"""A log read back, beside a plain pipe: megabytes of messages a second, 100-byte lines.

python -m benchmarks.logs [--size MEGABYTES] [--rounds N] [--directory DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import group_record
from benchmarks.samples import Samples, table
from dockpy._log import encode
from dockpy.logs import NAME, copy_log


def write_log(path: Path, size: int) -> None:
    """Lines as a pump writes them: `size` bytes of messages."""
    lines = b"x" * 99 + b"\n"
    block, _ = encode(lines * 10_000, b"stdout", False, 1_767_323_045, 123_456_789)
    with open(path, "wb") as file:
        for _ in range(size // 1_000_000):
            file.write(block)


def swallow(reader: int) -> int:
    """Read to the end; how many bytes there were."""
    block = bytearray(1 << 16)
    total = 0
    while got := os.readv(reader, [block]):
        total += got
    os.close(reader)
    return total


def through_pipe(size: int, write: Callable[[int], None]) -> None:
    """`write` into a pipe that somebody reads."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    total: list[int] = []
    thread = threading.Thread(target=lambda: total.append(swallow(reader)))
    thread.start()
    write(writer)
    os.close(writer)
    thread.join()
    if total != [size]:
        raise RuntimeError(f"{total} bytes arrived")


def plain(writer: int, size: int) -> None:
    block = b"x" * (1 << 16)
    left = size
    while left > 0:
        left -= os.write(writer, block[:left])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=300, help="megabytes of messages")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where the log is; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the rows")
    arguments = parser.parse_args()
    size = arguments.size * 1_000_000
    names = (
        "plain pipe",
        "dockpy copy_log to a pipe",
        "dockpy copy_log with times",
        "dockpy copy_log to /dev/null",
    )
    rows = {name: Samples(name, unit="MB/s") for name in names}
    with tempfile.TemporaryDirectory(prefix="dockpy-bench-", dir=arguments.directory) as name:
        directory = Path(name)
        write_log(directory / NAME, size)
        nowhere = os.open("/dev/null", os.O_WRONLY)
        runs: tuple[Callable[[], None], ...] = (
            lambda: through_pipe(size, lambda end: plain(end, size)),
            lambda: through_pipe(size, lambda end: copy_log(directory, end, -1)),
            lambda: through_pipe(
                size // 100 * 131, lambda end: copy_log(directory, end, -1, timestamps=True)
            ),
            lambda: copy_log(directory, nowhere, -1),
        )
        for _ in range(arguments.rounds):
            for row, run in zip(rows.values(), runs, strict=True):
                began = time.perf_counter()
                run()
                row.values.append(size / (time.perf_counter() - began) / 1e6)
        os.close(nowhere)
    title = f"{arguments.size} MB of messages read back"
    print(f"load {os.getloadavg()[0]:.1f}")
    print(table(title, list(rows.values()), rows["plain pipe"]))
    if arguments.json:
        record = group_record(title, rows.values(), rows["plain pipe"])
        arguments.json.write_text(json.dumps([record]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
