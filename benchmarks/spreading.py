"""What making files costs after many were removed nearby: layers side by side, and spread.

    python -m benchmarks.spreading [--files N] [--rounds N] [--work DIRECTORY] [--own-ext4 GIB]

In every round, in turns: a tree of N empty files is made in a directory and removed again, then
made once more in the same directory. `side by side`: in a plain one; `spread`: in one that
`dockpy.block_groups` was told of, in a place that its `make_directory` takes. Processor seconds of
the thread that makes them, that taking included, so that neighbours and the disk count little. On
ext4 without a journal inodes that were removed in the last minutes are passed over one by one; with
a journal, and on other file systems, all rows should be alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

from benchmarks.images import own_ext4
from benchmarks.peers import scratch
from benchmarks.samples import Samples, table
from dockpy.block_groups import make_directory, spread

DIRECTORIES = 20


def make(parent: Path, files: int) -> tuple[Path, float]:
    """A new tree of empty files in a few directories, and the processor seconds it took."""
    began = time.thread_time()
    tree = make_directory(parent, "tree-")
    for place in range(DIRECTORIES):
        directory = tree / str(place)
        directory.mkdir()
        for number in range(files // DIRECTORIES):
            os.close(os.open(directory / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return tree, time.thread_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--own-ext4", type=int, default=0, metavar="GIB", help="see images")
    options = parser.parse_args()
    rows: dict[str, Samples] = {}
    with scratch(options.work) as place, own_ext4(place, options.own_ext4) as directory:
        parents = {"side by side": directory / "plain", "spread": directory / "spread"}
        for parent in parents.values():
            parent.mkdir()
        if not spread(parents["spread"]):
            print("this file system does not spread directories")
        for _ in range(options.rounds):
            for name, parent in parents.items():
                tree, first = make(parent, options.files)
                shutil.rmtree(tree)
                _, again = make(parent, options.files)
                for row, took in ((f"{name}, first", first), (f"{name}, after it went", again)):
                    rows.setdefault(row, Samples(row, unit="s")).values.append(took)
        found = list(rows.values())
        print(table(f"{options.files} new files: processor seconds", found, found[1]))


if __name__ == "__main__":
    main()
