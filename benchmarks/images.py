"""Images and changes beside the plain tools and the installed peers, interleaved in one run.

    python -m benchmarks.images --rootfs TAR [--files N] [--deleted N] [--rounds N] [--json FILE]

import: a root file system as tar, tar.gz and tar.zst, beside `tar -x` of the same file followed by
a sync of what it wrote (an import is on the disk when it returns). diff, commit, export: of a
container in which a shell wrote `--files` small files and deleted `--deleted` of the image's, in
every engine the same; beside `find` over the upper, `tar -c | sha256sum` of it, and `tar -c` of the
whole tree.

The canary is the time to create 20,000 files in a new directory: ext4 is much slower at that for
minutes after as many were deleted, so everything is deleted at the end, and rounds with unlike
canaries do not compare. Memory is what this process, the engine, grew by. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.commit import CANARY, memory, shell
from benchmarks.extract import make_archives
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime

SCRIPT = """set -e
mkdir /data; i=0
while [ $i -lt {files} ]; do
  d=/data/$((i / 100)); [ $((i % 100)) -ne 0 ] || mkdir $d
  echo "file number $i, some bytes of text for it" >$d/$i; i=$((i + 1))
done
find /usr/share /usr/lib -type f | head -n {deleted} | xargs rm -f"""


class Ours:
    """An engine in this process, with the container that has changed much."""

    def __init__(self, directory: Path, rootfs: Path, script: str) -> None:
        self.runtime = Runtime(directory / "state", run=directory / "run")
        with open(rootfs, "rb") as archive:
            self.runtime.import_image(archive, "base")
        self.box = self.runtime.create(
            Config(image="base", cmd=("/bin/sh", "-c", script), network_mode="none"), "box"
        )
        if self.box.run():
            raise RuntimeError("the container that was to change files failed")
        self.upper = self.box.directory / "upper"
        self.number = 0

    def import_(self, archive: Path) -> None:
        with open(archive, "rb") as source:
            self.runtime.import_image(source)

    def commit(self) -> None:
        self.number += 1
        (self.upper / "round").write_text(str(self.number))  # another layer than before
        self.runtime.commit(self.box)

    def export(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            reader, writer = os.pipe()
            with subprocess.Popen(["cat"], stdin=reader, stdout=null):
                os.close(reader)
                self.box.export(writer)
                os.close(writer)
        finally:
            os.close(null)

    def close(self) -> None:
        self.runtime.graph.wait_unpacked()
        for container in self.runtime.list():
            self.runtime.destroy(container, force=True)
        self.runtime.close()


@contextlib.contextmanager
def engines(directory: Path, rootfs: Path, script: str) -> Iterator[dict[str, list[str]]]:
    """The peers that are here, each with its container `box` in the same state."""
    with peers.docker(directory) as docker:
        found = {}
        for name, command in (("docker", docker), ("podman", peers.podman(directory))):
            if command is None:
                print(f"{name}: not installed or does not start here; skipped")
                continue
            low = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
            words = ["run", "--network", "none", *(low if name == "podman" else [])]
            try:
                run([*command, "import", str(rootfs), "base"])
                run([*command, *words, "--name", "box", "base", "/bin/sh", "-c", script])
            except subprocess.CalledProcessError as error:
                print(f"{name}: {error.stderr.decode(errors='replace').strip()[-200:]}; skipped")
                continue
            found[name] = command
        yield found


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Bench:
    """The rounds: everybody in turn, another one first each time."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds
        self.results: list[dict[str, object]] = []
        self.made = 0

    def fresh(self, name: str) -> Path:
        self.made += 1
        return self.directory / f"{name}-{self.made}"

    def canary(self) -> None:
        place = self.fresh("canary")
        place.mkdir()
        for number in range(CANARY):
            os.close(os.open(place / str(number), os.O_WRONLY | os.O_CREAT, 0o600))

    def race(self, title: str, contestants: dict[str, Callable[[], object]]) -> None:
        """Times of all; the first named is what the others are compared with."""
        rows = {name: Samples(name) for name in contestants}
        grown = 0
        for turn in range(self.rounds + 1):
            order = list(contestants)
            order = order[turn % len(order) :] + order[: turn % len(order)]
            for name in order:
                os.sync()
                Path("/proc/self/clear_refs").write_text("5")
                before = memory("VmRSS")
                began = time.perf_counter()
                contestants[name]()
                took = (time.perf_counter() - began) * 1e3
                if turn:
                    rows[name].values.append(took)
                    if name.startswith("dockpy"):
                        grown = max(grown, memory("VmHWM") - before)
        print(table(title, [*rows.values()], next(iter(rows.values()))))
        print(f"  memory: {grown / 1024:.1f} MiB above idle", flush=True)
        self.results.append(
            {
                "title": title,
                "memory_kib": grown,
                "rows": [row.record() for row in rows.values()],
            }
        )


def untar(archive: Path, target: Path) -> None:
    target.mkdir()
    words = ["tar", "--numeric-owner", "--xattrs", "-xpf", str(archive), "-C", str(target)]
    subprocess.run(words, check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)


def unpack_fresh(bench: Bench, archive: Path) -> None:
    untar(archive, bench.fresh("tree"))


def measure(bench: Bench, ours: Ours, found: dict[str, list[str]], rootfs: Path) -> None:
    archives = make_archives(None, rootfs, bench.directory)
    for kind, archive in archives.items():
        contestants: dict[str, Callable[[], object]] = {
            "tar -x; sync": partial(unpack_fresh, bench, archive),
            "dockpy import": partial(ours.import_, archive),
        }
        for name, command in found.items():
            words = [*command, "import", str(archive)]
            contestants[f"{name} import"] = partial(run, words)
        contestants["canary"] = bench.canary
        bench.race(f"import of a {kind}", contestants)
    contestants = {
        "find": lambda: shell(f"find {ours.upper}"),
        "dockpy diff": lambda: [str(one) for one in ours.box.changes()],
    }
    for name, command in found.items():
        contestants[f"{name} diff"] = partial(run, [*command, "diff", "box"])
    bench.race("diff", contestants)
    contestants = {
        "tar -c | sha256sum": lambda: shell(
            f"tar --numeric-owner -C {ours.upper} -c . | sha256sum"
        ),
        "dockpy commit": ours.commit,
    }
    for name, command in found.items():
        contestants[f"{name} commit"] = partial(run, [*command, "commit", "box"])
    contestants["wait for its files"] = ours.runtime.graph.wait_unpacked
    bench.race("commit", contestants)
    tree = bench.fresh("tree")
    untar(rootfs, tree)
    shell(f"cp -a {ours.upper}/data {tree}/data")
    contestants = {
        "tar -c": lambda: shell(f"tar --numeric-owner -C {tree} -c . | cat"),
        "dockpy export": ours.export,
    }
    for name, command in found.items():
        text = " ".join(command)
        contestants[f"{name} export"] = partial(shell, f"{text} export box | cat")
    bench.race("export", contestants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rootfs", type=Path, required=True, help="a root file system, as tar")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--deleted", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    script = SCRIPT.format(files=options.files, deleted=options.deleted)
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, archive {options.rootfs.stat().st_size >> 20} MiB")
    with peers.scratch() as directory:
        bench = Bench(directory, options.rounds)
        ours = Ours(directory, options.rootfs, script)
        try:
            with engines(directory, options.rootfs, script) as found:
                measure(bench, ours, found, options.rootfs)
        finally:
            ours.close()
    if options.json:
        options.json.write_text(json.dumps(bench.results))


if __name__ == "__main__":
    main()
