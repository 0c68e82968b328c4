"""save and load beside docker and podman, of one image made of a root file system.

    python -m benchmarks.archives --rootfs TAR [--rounds N] [--work DIR] [--json FILE]

All contestants take turns in every round, on a warm page cache. dockpy's are calls of the store, in
this process, which wait for the disk; the others are whole commands. Before each load the image is
removed, after which ext4 makes files slowly for minutes: so all work on a tmpfs unless told.
`cat | load` is through a pipe, where an archive has to be unpacked before it is read. Needs root. A
missing peer is named and skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers
from benchmarks.samples import Samples, table
from dockpy.graph import Graph
from dockpy.image_archive.loading import load
from dockpy.image_archive.saving import Selected, save
from dockpy.model import Config, Image
from dockpy.records import Flusher, Trash

NAME = "localhost/bench:1"


class Ours:
    """A store of its own."""

    def __init__(self, root: Path, archive: Path) -> None:
        root.mkdir()
        self.flusher, self.trash = Flusher(), Trash(root)
        self.graph = Graph(root, self.flusher, self.trash)
        with open(archive, "rb") as source:
            self.image: Image = self.graph.import_archive(
                source.fileno(), config=Config(cmd=("/bin/true",))
            )

    def save(self, to: Path) -> None:
        out = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            save(self.graph, [Selected(self.image, (NAME,))], out)
        finally:
            os.close(out)

    def load(self, archive: Path) -> None:
        with open(archive, "rb") as source:
            load(self.graph, source.fileno())

    def load_piped(self, archive: Path) -> None:
        with subprocess.Popen(["cat", str(archive)], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            load(self.graph, cat.stdout.fileno())

    def remove(self) -> None:
        self.graph.delete(self.image.id)
        self.trash.wait()

    def close(self) -> None:
        self.trash.close()
        self.flusher.close()


def run(command: list[str]) -> None:
    """Raises with what the command said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()[-300:]}")


def measure(
    directory: Path, archive: Path, docker: list[str] | None, rounds: int
) -> dict[str, list[Samples]]:
    """The figures: of save, and of load."""
    ours = Ours(directory / "ours", archive)
    made = directory / "made.tar"
    ours.save(made)
    podman = peers.podman(directory)
    saves: dict[str, Callable[[], None]] = {"dockpy save": lambda: ours.save(directory / "out.tar")}
    loads: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "dockpy load": (ours.remove, lambda: ours.load(made)),
        "dockpy cat | load": (ours.remove, lambda: ours.load_piped(made)),
    }
    for name, command in (("docker", docker), ("podman", podman)):
        if command is None:
            print(f"{name} is not here")
            continue
        run([*command, "load", "-i", str(made)])
        begin = [*command, "save", "-o", str(directory / f"{name}.tar"), NAME]
        remove = [*command, "rmi", "-f", NAME]
        take = [*command, "load", "-i", str(made)]

        def save_it(begin: list[str] = begin) -> None:
            Path(begin[-2]).unlink(missing_ok=True)
            run(begin)

        saves[f"{name} save"] = save_it
        loads[f"{name} load"] = (
            lambda remove=remove: run(remove),  # type: ignore[misc]
            lambda take=take: run(take),  # type: ignore[misc]
        )
    found = {"save": [Samples(one) for one in saves], "load": [Samples(one) for one in loads]}
    for _ in range(rounds):
        for samples, action in zip(found["save"], saves.values(), strict=True):
            took(samples, action)
        for samples, (prepare, action) in zip(found["load"], loads.values(), strict=True):
            prepare()
            took(samples, action)
    ours.close()
    return found


def took(samples: Samples, action: Callable[[], None]) -> None:
    began = time.perf_counter()
    action()
    samples.values.append((time.perf_counter() - began) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rootfs", type=Path, required=True, help="a root file system, as tar")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="dockpy-bench-", dir=options.work) as name,
        peers.docker(Path(name)) as docker,
    ):
        directory = Path(name)
        found = measure(directory, options.rootfs, docker, options.rounds)
        load_now = ", ".join(f"{one:.2f}" for one in os.getloadavg())
        print(f"{os.cpu_count()} cores, load {load_now}")
        for title, rows in found.items():
            print(table(title, rows, rows[0]))
    if options.json:
        records = [samples.record() for rows in found.values() for samples in rows]
        options.json.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
