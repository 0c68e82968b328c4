"""Packing a tree or a container's upper beside GNU tar, and its changes beside find.

    python -m benchmarks.pack --tree DIR [--files N] [--deleted N] [--layers N] [--rounds N]

A container's upper is made over the tree: `--files` small files, three quarters of them in new
directories, and `--deleted` names of the tree deleted. `--layers` empty ones lie between. All
contestants take turns in every round, on a warm page cache; archives are written to a tmpfs. The
canary is the time to look at every name of the tree from Python. Needs root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.samples import Samples, table
from dockpy.changes import changes
from dockpy.packing import pack_layer, pack_tree

SPREAD = 150
"""Files in each new directory."""


def make_upper(tree: Path, upper: Path, files: int, deleted: int) -> None:
    """What a container leaves that wrote `files` small files and deleted some of the tree."""
    upper.mkdir()
    content = os.urandom(1000)
    for number in range(files):
        if number % 4:
            parent = upper / "var/lib/app" / str(number // SPREAD)
        else:
            parent = upper / "usr/share"
        copied_up(tree, upper, parent.relative_to(upper))
        with open(parent / f"file-{number}", "wb", buffering=0) as file:
            file.write(content[: 100 + number % 900])
    left = deleted
    for directory, _, names in os.walk(tree):
        for name in names[:left]:
            path = Path(directory, name).relative_to(tree)
            copied_up(tree, upper, path.parent)
            if not (upper / path).exists():
                os.mknod(upper / path, 0o20000, 0)
                left -= 1
    if left:
        raise SystemExit(f"{tree} has too few files to delete {deleted}")


def copied_up(tree: Path, upper: Path, path: Path) -> None:
    """The directories of `path` in the upper, as overlayfs makes them there."""
    for one in [*reversed(path.parents), path]:
        if not (upper / one).is_dir():
            (upper / one).mkdir()
            if (tree / one).is_dir():
                shutil.copystat(tree / one, upper / one)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def peak(action: Callable[[], object]) -> int:
    """By how many KiB the process grew at most while `action` ran in it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


class Contest:
    """The contestants over one tree and one upper. Each writes to `target` and says nothing."""

    def __init__(self, tree: Path, upper: Path, lowers: list[Path], target: Path) -> None:
        self.tree = tree
        self.upper = upper
        self.lowers = lowers
        self.target = target

    def canary(self) -> None:
        for directory, _, names in os.walk(self.tree):
            for name in names:
                os.lstat(f"{directory}/{name}")

    def find(self) -> None:
        subprocess.run(["find", str(self.upper)], stdout=subprocess.DEVNULL, check=True)

    def find_and_look(self) -> None:
        command = ["find", str(self.upper), "-printf", "%p %s %T@\\n"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    def diff(self) -> None:
        fds = [os.open(path, os.O_RDONLY) for path in (self.upper, *self.lowers)]
        changes(fds[0], fds[1:])
        for fd in fds:
            os.close(fd)

    def tar(self, path: Path) -> None:
        command = ["tar", "--numeric-owner", "-C", str(path), "-cf", str(self.target), "."]
        subprocess.run(command, check=True)

    def hash(self) -> None:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(512 << 10))
        with open(self.target, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])

    def layer(self, *, digest: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with opened(self.upper) as upper, opened(self.target, flags) as out:
            pack_layer(upper, out, digest=digest)

    def export(self, *, digest: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with opened(self.tree) as tree, opened(self.target, flags) as out:
            pack_tree(tree, out, digest=digest)


def measure(contest: Contest, rounds: int) -> None:
    """Take the figures and print one table per job."""
    jobs: dict[str, list[tuple[str, Callable[[], None]]]] = {
        "canary": [("lstat of every name", contest.canary)],
        "diff": [
            ("find", contest.find),
            ("find -printf size and time", contest.find_and_look),
            ("dockpy changes", contest.diff),
        ],
        "layer of the upper": [
            ("GNU tar -c", lambda: contest.tar(contest.upper)),
            ("  hash of that", contest.hash),
            ("dockpy pack_layer", lambda: contest.layer(digest=True)),
            ("  without hashing", lambda: contest.layer(digest=False)),
        ],
        "export of the tree": [
            ("GNU tar -c", lambda: contest.tar(contest.tree)),
            ("  hash of that", contest.hash),
            ("dockpy pack_tree", lambda: contest.export(digest=True)),
            ("  without hashing", lambda: contest.export(digest=False)),
        ],
    }
    samples = {(job, name): Samples(name) for job, runs in jobs.items() for name, _ in runs}
    for number in range(rounds + 1):
        for job, runs in jobs.items():
            for name, action in runs:
                began = time.perf_counter()
                action()
                if number:  # the first round warms the page cache
                    samples[job, name].values.append((time.perf_counter() - began) * 1e3)
        contest.target.unlink()
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}")
    for job, runs in jobs.items():
        rows = [samples[job, name] for name, _ in runs]
        print(table(job, rows, rows[0]))


def measure_memory(contest: Contest) -> None:
    """How much a job adds to the process, in a child that did nothing else before."""
    jobs = {
        "changes": contest.diff,
        "pack_layer": lambda: contest.layer(digest=True),
        "pack_tree": lambda: contest.export(digest=True),
    }
    for name, job in jobs.items():
        pid = os.fork()
        if pid == 0:
            threading.Thread(target=bool).start()
            print(f"{name}: {peak(job) / 1024:.1f} MiB above idle", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tree", type=Path, required=True, help="a root file system")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--deleted", type=int, default=2_000)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="dockpy-pack-", dir=options.work))
    with tempfile.TemporaryDirectory(prefix="dockpy-pack-", dir="/dev/shm") as memory:
        try:
            make_upper(options.tree, work / "upper", options.files, options.deleted)
            between = [work / f"layer-{number}" for number in range(options.layers)]
            for layer in between:
                layer.mkdir()
            lowers = [*between, options.tree]
            contest = Contest(options.tree, work / "upper", lowers, Path(memory, "archive.tar"))
            measure_memory(contest)
            measure(contest, options.rounds)
        finally:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
