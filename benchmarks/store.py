"""A store of many images and containers: how long its engine starts, lists and finds.

    python -m benchmarks.store [--counts 10,1000,10000] [--rounds N] [--json FILE]

Each image has a layer of its own on a base that all share, a name, and a parent; each container
has ended. Needs root. The images are made by the store's own code without waiting for the disk.
The first start-up of each store, which finds no index and reads every record, is told apart.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from benchmarks import peers
from benchmarks.figures import group_record
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime
from dockpy.cli.engine import Engine
from dockpy.cli.main import run as run_command
from dockpy.cli.session import Session
from dockpy.graph import Graph
from dockpy.records import Flusher, Trash

LOOK_UPS = 1000


class Unhurried(Flusher):
    """Does not wait for the disk: this is about what comes after."""

    def wrote(self, path: Path | str) -> None:
        del path

    def flush(self, *trees: Path) -> None:
        del trees


def archive(name: str) -> io.BytesIO:
    """A layer of one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(name)
        tar.addfile(info, io.BytesIO(name.encode()))
    out.seek(0)
    return out


def fill(root: Path, run: Path, count: int) -> None:
    """A store of `count` images, names and ended containers."""
    root.mkdir()
    flusher, trash = Unhurried(), Trash(root)
    graph = Graph(root, flusher, trash)
    names: dict[str, dict[str, str]] = {}
    base = graph.register_layer(archive("base"))
    parent = ""
    for number in range(count):
        layer = graph.register_layer(archive(f"file{number}"), parent=base.chain_id)
        config = Config(
            cmd=("sh", "-c", f"echo {number}"),
            env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"),
            labels={"number": str(number)},
            working_dir="/srv",
        )
        image = graph.create(
            [base, layer], config, parent=parent if number % 10 else "", created=1e9 + number
        )
        base = replace(base, kept=False)
        parent = image.id
        names.setdefault(f"team/repository{number % 500}", {})[f"v{number}"] = image.id
    trash.close()
    (root / "repositories.json").write_text(json.dumps(names))
    with Runtime(root, run=run, supervisors=1) as runtime:
        for number in range(count):
            made = runtime.create(
                Config(
                    image=f"team/repository{number % 500}:v{number}",
                    hostname=f"host{number}",
                    env=("A=1", f"B={number}"),
                ),
                f"container{number}",
            )
            state = {"status": "exited", "exit_code": 0, "started_at": 1e9, "finished_at": 2e9}
            (made.directory / "state.json").write_text(json.dumps(state))


def command(runtime: Runtime, *argv: str) -> float:
    """Milliseconds of a command inside the engine; its output goes nowhere."""
    out, here = os.open(os.devnull, os.O_WRONLY), os.open("/", os.O_PATH)
    try:
        session = Session(
            runtime=cast(Engine, runtime), stdout=out, cwd=here, uid=os.geteuid(), gid=os.getegid()
        )
        began = time.perf_counter()
        if code := run_command(session, argv):
            raise SystemExit(f"{argv}: exit code {code}")
        return (time.perf_counter() - began) * 1e3
    finally:
        os.close(out)
        os.close(here)


def per_call(action: Callable[[str], object], values: Sequence[str]) -> float:
    """Microseconds of one call."""
    began = time.perf_counter()
    for value in values:
        action(value)
    return (time.perf_counter() - began) * 1e6 / len(values)


def measure(root: Path, run: Path, count: int, rounds: int) -> dict[str, Samples]:
    """The figures of one store, by job."""
    units = {
        "start-up": "ms",
        "first start-up": "ms",
        "images --all": "ms",
        "ps --all": "ms",
        "image by prefix": "us",
        "image by name": "us",
        "container by prefix": "us",
        "container by name": "us",
        "tag": "us",
    }
    jobs = {name: Samples(f"{name}, {count}", unit=unit) for name, unit in units.items()}

    def took(job: str, began: float) -> None:
        jobs[job].values.append((time.perf_counter() - began) * 1e3)

    for number in range(rounds + 1):
        began = time.perf_counter()
        with Runtime(root, run=run, supervisors=1) as runtime:
            took("start-up" if number else "first start-up", began)
            images, containers = runtime.graph.all(), runtime.list()
            if (len(images), len(containers), runtime.warnings) != (count, count, []):
                raise SystemExit(f"{root}: {len(images)} images, {runtime.warnings}")
            for job in ("images --all", "ps --all"):
                jobs[job].values.append(command(runtime, *job.split()))
            step = max(count // LOOK_UPS, 1)
            look_ups: dict[str, tuple[Callable[[str], object], list[str]]] = {
                "image by prefix": (
                    runtime.tags.lookup_image,
                    [one.id[:12] for one in images[::step]],
                ),
                "image by name": (
                    runtime.tags.lookup_image,
                    [f"team/repository{n % 500}:v{n}" for n in range(0, count, step)],
                ),
                "container by prefix": (runtime.get, [one.short_id for one in containers[::step]]),
                "container by name": (runtime.get, [one.name for one in containers[::step]]),
                "tag": (
                    partial(runtime.tags.set, "moving", reference=images[0].id),
                    [f"t{n}" for n in range(20)],
                ),
            }
            for job, (action, values) in look_ups.items():
                jobs[job].values.append(per_call(action, values))
            runtime.tags.delete("moving")
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--counts", default="10,1000,10000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [int(one) for one in options.counts.split(",")]
    with peers.scratch() as directory:
        found = []
        for count in counts:
            root, run = directory / f"store{count}", directory / f"run{count}"
            fill(root, run, count)
            found.append(measure(root, run, count, options.rounds))
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}; ratios to {counts[0]}")
    for job in found[0]:
        print(table(job, [one[job] for one in found], found[0][job]))
    if options.json:
        records = [
            group_record(job, [one[job] for one in found], found[0][job]) for job in found[0]
        ]
        options.json.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
