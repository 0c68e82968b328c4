"""Images and changes beside the plain tools and the installed peers, interleaved in one run.

    python -m benchmarks.images --rootfs TAR [--files N] [--deleted N] [--rounds N] [--work DIR]
                                [--own-ext4 GIB] [--json FILE] [PART ...]

Parts, all unless named:

- import: the root file system as tar, tar.gz and tar.zst, made another one each round so that no
  store has it already. Two tables for each: what it takes with nothing flushed, and until it is on
  the disk. dockpy's import is on the disk when it returns (syncfs(2) of the store's file system,
  and its records); after all others a `sync -f` is counted. dockpy's extraction is told apart: it
  is the same work as `tar -x`, and the hash of the stream.
- diff, commit, export: of a container in which a shell wrote `--files` small files and deleted
  `--deleted` of the image's, in every engine the same; beside `find` over the upper, `tar -c |
  sha256sum` of it, and `tar -c` of the whole tree as the container sees it.
- memory: by how much a daemon that has just started grows at most, for each of these commands.

The canary is the time to create 20,000 files in a new directory, taken right before each of those
who create files: ext4 is much slower at that for minutes after as many were deleted. So everything
is deleted at the end, and figures with unlike canaries do not compare. `--own-ext4` makes a file
system for the run, in a sparse file in `--work`, where nothing was ever deleted. Needs root.

What came out: docs/images-performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.commit import CANARY, shell
from benchmarks.figures import group_record
from benchmarks.growing import Growing, growing
from benchmarks.image_engines import SCRIPT, CommandLine, Ours, last_words, others, run
from benchmarks.samples import Samples, table
from dockpy.archive import extract

LIMIT = 64 << 10
"""KiB that a command may add to an idle daemon."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """`flush`: what is still to do until it is on the disk; None where there is nothing."""

    act: Callable[[], object]
    flush: Callable[[], object] | None = None
    creates: bool = False


class Bench:
    """The rounds: everybody in turn, another one first each time.

    `settle` waits for what goes on in the background.
    """

    def __init__(self, directory: Path, rounds: int, settle: Callable[[], object]) -> None:
        self.directory = directory
        self.rounds = rounds
        self.settle = settle
        self.results: list[dict[str, object]] = []
        self.made = 0

    def fresh(self, name: str) -> Path:
        self.made += 1
        return self.directory / f"{name}-{self.made}"

    def canary(self) -> float:
        """Milliseconds."""
        place = self.fresh("canary")
        place.mkdir()
        began = time.perf_counter()
        for number in range(CANARY):
            os.close(os.open(place / str(number), os.O_WRONLY | os.O_CREAT, 0o600))
        return (time.perf_counter() - began) * 1e3

    def race(
        self,
        title: str,
        contestants: Mapping[str, Contestant],
        before_round: Callable[[], object] = lambda: None,
    ) -> None:
        """Times of all; the first named is what the others are compared with. Who fails is told and
        left out from there on; the first round warms the page cache."""
        at_once = {name: Samples(name) for name in contestants}
        durable = {name: Samples(name) for name in contestants}
        canaries = {name: Samples(name) for name, one in contestants.items() if one.creates}
        left = list(contestants)
        for turn in range(self.rounds + 1):
            before_round()
            first = turn % len(left)
            for name in (*left[first:], *left[:first]):
                found = self.times(contestants[name])
                if isinstance(found, str):
                    print(f"{name}: {found}; skipped")
                    left.remove(name)
                elif turn:
                    at_once[name].values.append(found[0])
                    durable[name].values.append(found[1])
                    if name in canaries:
                        canaries[name].values.append(found[2])
        rows = [one for name, one in at_once.items() if name in left]
        flushes = [one for name, one in durable.items() if name in left]
        if any(one.flush for one in contestants.values()):
            # Who flushes as it works has no figure without it.
            rows = [one for one in rows if contestants[one.name].flush]
            self.show(f"{title}, nothing flushed", rows)
            self.show(f"{title}, on the disk", flushes)
        else:
            self.show(title, rows)
        if canaries:
            self.show(f"  canary before each: {title}", [*canaries.values()])

    def times(self, one: Contestant) -> tuple[float, float, float] | str:
        """Milliseconds without the flush, with it, and of the canary before; or what went wrong."""
        canary = self.canary() if one.creates else 0.0
        self.settle()
        os.sync()
        try:
            began = time.perf_counter()
            one.act()
            acted = time.perf_counter()
            if one.flush:
                one.flush()
            ended = time.perf_counter()
        except subprocess.CalledProcessError as error:
            return last_words(error)
        return (acted - began) * 1e3, (ended - began) * 1e3, canary

    def show(self, title: str, rows: list[Samples]) -> None:
        rows = [row for row in rows if row.values]
        if not rows:
            return
        print(table(title, rows, rows[0]), flush=True)
        self.results.append(group_record(title, rows, rows[0]))


def untar(bench: Bench, archive: Path) -> None:
    target = bench.fresh("tree")
    target.mkdir()
    run(["tar", "--numeric-owner", "--xattrs", "-xpf", str(archive), "-C", str(target)])


def unpack(bench: Bench, archive: Path) -> None:
    with open(archive, "rb") as source:
        extract(source.fileno(), bench.fresh("tree"))


def imports(bench: Bench, ours: Ours, found: dict[str, list[str]], archives: list[Growing]) -> None:
    flush = partial(run, ["sync", "-f", str(bench.directory)])
    for archive in archives:
        path = archive.path
        contestants = {
            "tar -x": Contestant(partial(untar, bench, path), flush, creates=True),
            "dockpy extract": Contestant(partial(unpack, bench, path), flush, creates=True),
            "dockpy import": Contestant(partial(ours.import_, path), creates=True),
        }
        for name, command in found.items():
            words = [*command, "import", str(path)]
            contestants[f"{name} import"] = Contestant(partial(run, words), flush, creates=True)
        bench.race(f"import of a {archive.kind}", contestants, archive.renew)


def diffs(bench: Bench, ours: Ours, cli: CommandLine, found: dict[str, list[str]]) -> None:
    contestants = {
        "find": Contestant(partial(run, ["find", str(ours.upper)])),
        "dockpy changes": Contestant(ours.box.changes),
        "dockpy diff, command": Contestant(partial(cli.run, "diff", "box")),
        "  dockpy version, command": Contestant(partial(cli.run, "version")),
    }
    for name, command in found.items():
        contestants[f"{name} diff"] = Contestant(partial(run, [*command, "diff", "box"]))
    bench.race("diff", contestants)


def commits(bench: Bench, ours: Ours, found: dict[str, list[str]]) -> None:
    pack = f"tar --numeric-owner -C {ours.upper} -c . | sha256sum"
    contestants = {
        "tar -c | sha256sum": Contestant(partial(shell, pack)),
        "dockpy commit": Contestant(ours.commit),
    }
    for name, command in found.items():
        contestants[f"{name} commit"] = Contestant(partial(run, [*command, "commit", "box"]))
    bench.race("commit", contestants)


def exports(bench: Bench, ours: Ours, found: dict[str, list[str]]) -> None:
    """The tree for tar is a plain one, which is quicker to read than an overlay."""
    tree = bench.fresh("tree")
    tree.mkdir()
    ours.export(["tar", "--numeric-owner", "--xattrs", "-xp", "-C", str(tree)])
    os.sync()  # every engine's container has just written its files
    contestants = {
        "tar -c": Contestant(partial(shell, f"tar --numeric-owner -C {tree} -c . | cat")),
        "dockpy export": Contestant(ours.export),
    }
    for name, command in found.items():
        text = " ".join(command)
        contestants[f"{name} export"] = Contestant(partial(shell, f"{text} export box | cat"))
    bench.race("export", contestants)


def memory(bench: Bench, cli: CommandLine, archives: list[Growing]) -> list[str]:
    """One fresh daemon for each command; which commands took too much."""
    commands: dict[str, list[str]] = {}
    for archive in archives:
        archive.renew()
        commands[f"import of a {archive.kind}"] = ["import", str(archive.path)]
    commands["diff"] = ["diff", "box"]
    commands["commit"] = ["commit", "box"]
    commands["export"] = ["export", "-o", str(bench.fresh("export")), "box"]
    failures, rows = [], []
    print("memory of the daemon above idle")
    for name, words in commands.items():
        peak = cli.peak(*words)
        print(f"  {name:34} {peak / 1024:8.1f} MiB", flush=True)
        rows.append(Samples(name, [peak / 1024], "MiB"))
        if peak > LIMIT:
            failures.append(f"{name} took {peak >> 10} MiB above idle")
    bench.results.append(group_record("memory of the daemon above idle", rows, None))
    return failures


@contextlib.contextmanager
def own_ext4(directory: Path, size: int) -> Iterator[Path]:
    """A new file system of `size` GiB in a sparse file; 0: the directory itself."""
    if not size:
        yield directory
        return
    image, place = directory / "ext4", directory / "mounted"
    with open(image, "wb") as file:
        file.truncate(size << 30)
    place.mkdir()
    run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)])
    run(["mount", "-o", "loop", str(image), str(place)])
    try:
        yield place
    finally:
        run(["umount", "-l", str(place)])


PARTS = ("import", "diff", "commit", "export", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--rootfs", type=Path, required=True, help="a root file system, as tar")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--deleted", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--own-ext4", type=int, default=0, metavar="GIB")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.parts or PARTS
    script = SCRIPT.format(files=options.files, deleted=options.deleted)
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, archive {options.rootfs.stat().st_size >> 20} MiB")
    failures: list[str] = []
    with (
        peers.scratch(options.work) as scratch,
        own_ext4(scratch, options.own_ext4) as directory,
        contextlib.ExitStack() as stack,
    ):
        archives = growing(options.rootfs, directory)
        ours = Ours(directory, options.rootfs, script)
        stack.callback(ours.close)
        bench = Bench(directory, options.rounds, ours.runtime.graph.wait_unpacked)
        cli = CommandLine(directory, options.rootfs, script)
        stack.callback(cli.close)
        if not cli.installed:
            print("dockpy is not installed beside this Python: its commands start an interpreter")
        found = stack.enter_context(others(directory, options.rootfs, script))
        if "import" in parts:
            imports(bench, ours, found, archives)
        if "diff" in parts:
            diffs(bench, ours, cli, found)
        if "commit" in parts:
            commits(bench, ours, found)
        if "export" in parts:
            exports(bench, ours, found)
        if "memory" in parts:
            failures = memory(bench, cli, archives)
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=1))
    for failure in failures:
        print(f"too much memory: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
