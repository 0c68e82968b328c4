"""Runtime.commit beside `tar -c | sha256sum` of the same files, and the first start afterwards.

    python -m benchmarks.commit --rootfs TAR [--files N] [--deleted N] [--rounds N] [--json FILE]

A container's upper is filled with `--files` small files and `--deleted` names of the image deleted,
see `benchmarks.pack`. All contestants take turns in every round, another one first each time, on a
warm page cache and a disk that has nothing to do. The commit is on the disk when it returns; of the
two peers one writes the stream to a file too, and waits for the disk. Each round changes a file,
since a layer that is in the store already would not be stored. The first start is create, start and
wait of /bin/true, begun when the commit returns: it waits until the layer's files are made. The
second is as any other.

The canary is the time to create 20,000 files in a new directory: ext4 is much slower at that for
minutes after as many were deleted. So everything is deleted at the end. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import group_record
from benchmarks.pack import make_upper
from benchmarks.samples import Samples, table
from dockpy import Config, Container, Image, Runtime

CANARY = 20_000
"""Files that the canary makes."""


class Contest:
    """An engine with a container that has written much, and the peers beside it."""

    def __init__(self, directory: Path, rootfs: Path, files: int, deleted: int) -> None:
        self.directory = directory
        self.runtime = Runtime(directory / "state", run=directory / "run")
        with open(rootfs, "rb") as archive:
            base = self.runtime.import_image(archive, "base")
        self.box: Container = self.runtime.create(Config(image="base", cmd=("/bin/true",)), "box")
        self.upper = self.box.directory / "upper"
        self.upper.rmdir()
        tree = self.runtime.graph.lower_directories(base)[0]
        make_upper(tree, self.upper, files, deleted)
        self.round = 0
        self.image: Image = base

    def prepare(self) -> None:
        """Another layer than before, and nothing on its way to the disk."""
        self.round += 1
        (self.upper / "round").write_text(str(self.round))
        os.sync()

    def canary(self) -> None:
        place = self.directory / f"canary-{self.round}"
        place.mkdir()
        for number in range(CANARY):
            os.close(os.open(place / str(number), os.O_WRONLY | os.O_CREAT, 0o600))

    def tar(self) -> None:
        shell(f"tar --numeric-owner -C {self.upper} -c . | sha256sum")

    def tar_to_disk(self) -> None:
        archive = self.directory / f"archive-{self.round}.tar"
        shell(f"tar --numeric-owner -C {self.upper} -c . | tee {archive} | sha256sum")
        shell(f"sync {archive}")

    def commit(self) -> None:
        self.image = self.runtime.commit(self.box, "made", str(self.round))

    def start(self) -> None:
        container = self.runtime.create(
            Config(image=self.image.id, cmd=("/bin/true",), network_mode="none")
        )
        code = container.run()
        self.runtime.destroy(container)
        if code:
            raise RuntimeError(f"/bin/true ended with {code}")

    def settle(self) -> None:
        """The background is done."""
        self.runtime.graph.wait_unpacked()

    def close(self) -> None:
        for container in self.runtime.list():
            self.runtime.destroy(container, force=True)
        self.runtime.close()


def shell(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)


def measure(contest: Contest, rounds: int) -> list[Samples]:
    """Everybody in every round; the first is not counted."""
    turns: list[dict[str, Callable[[], None]]] = [
        {"tar -c | sha256sum": contest.tar},
        {"tar -c | tee FILE | sha256sum; sync": contest.tar_to_disk},
        {
            "dockpy commit": contest.commit,
            "  first start then": contest.start,
            "  second start": contest.start,
        },
        {"canary": contest.canary},
    ]
    found = {name: Samples(name) for turn in turns for name in turn}
    for number in range(rounds + 1):
        contest.prepare()
        first = number % len(turns)  # who comes after the canary differs
        for turn in (*turns[first:], *turns[:first]):
            contest.settle()
            os.sync()
            for name, action in turn.items():
                began = time.perf_counter()
                action()
                if number:
                    found[name].values.append((time.perf_counter() - began) * 1e3)
    return list(found.values())


def peak(action: Callable[[], None]) -> int:
    """By how many KiB the process grew at most while `action` ran."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


def memory(name: str) -> int:
    """A figure of this process in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no {name} in /proc/self/status")
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rootfs", type=Path, required=True, help="a root file system, as tar")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--deleted", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dockpy-commit-", dir=options.work) as name:
        contest = Contest(Path(name), options.rootfs, options.files, options.deleted)
        try:
            rows = measure(contest, options.rounds)
            contest.prepare()
            grown = peak(contest.commit)
            unpacked = peak(contest.settle)
        finally:
            contest.close()
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}")
    title = f"commit of {options.files} files"
    print(table(title, rows, rows[0]))
    print(f"memory: {grown / 1024:.1f} MiB above idle, while unpacking {unpacked / 1024:.1f} MiB")
    if options.json:
        options.json.write_text(json.dumps([group_record(title, rows, rows[0])]))


if __name__ == "__main__":
    main()
