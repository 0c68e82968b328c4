"""What a start costs beside the layers of its image and the ports published already, and what the
end of a log costs beside its length.

    python -m benchmarks.scaling [--short] [--rootfs TAR] [--json FILE]

Needs root. The containers among which another one starts are in `benchmarks.density`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import base_archive, one_start
from benchmarks.figures import group_record
from benchmarks.logs import write_log
from benchmarks.samples import Samples, table
from dockpy import Config, Runtime
from dockpy.container import Container
from dockpy.logs import NAME, copy_log

FIRST_PORT = 20_000
LINES = 10
WRITES = ("/bin/sh", "-c", ": > /written")
"""Its overlay is not used again: each start mounts one."""
Group = tuple[str, list[Samples]]


def small_layer(number: int) -> bytes:
    """A layer of one file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        content = f"{number}\n".encode()
        entry = tarfile.TarInfo(f"layer-{number}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def save_layered(target: Path, root: Path, name: str, layers: int) -> None:
    """A docker archive of an image with so many layers, the lowest one a root file system."""
    streams = [root.read_bytes(), *(small_layer(number) for number in range(1, layers))]
    digests = [hashlib.sha256(one).hexdigest() for one in streams]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one}" for one in digests]},
    }
    files = {f"{one}.tar": stream for one, stream in zip(digests, streams, strict=True)}
    listed = {"Config": "config.json", "RepoTags": [f"{name}:latest"], "Layers": [*files]}
    files["config.json"] = json.dumps(config).encode()
    files["manifest.json"] = json.dumps([listed]).encode()
    with tarfile.open(target, "w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def beside_layers(
    runtime: Runtime, directory: Path, root: Path, rounds: int, counts: Sequence[int]
) -> Group:
    rows = [Samples(f"{count} layers" if count > 1 else "1 layer") for count in counts]
    for count in counts:
        archive = directory / "layered.tar"
        save_layered(archive, root, f"of{count}", count)
        with open(archive, "rb") as source:
            runtime.load(source)
        one_start(runtime, image=f"of{count}", cmd=WRITES)
    for _ in range(rounds):
        for count, row in zip(counts, rows, strict=True):
            row.values.append(one_start(runtime, image=f"of{count}", cmd=WRITES))
    return "a start beside the layers of its image", rows


def beside_ports(runtime: Runtime, rounds: int, counts: Sequence[int]) -> Group:
    """Each holder publishes 100 ports."""
    rows: list[Samples] = []
    holders: list[Container] = []
    for count in counts:
        while len(holders) * 100 < count:
            first = FIRST_PORT + 100 * len(holders)
            ports = f"{first}-{first + 99}:{first}-{first + 99}"
            holder = runtime.create(
                Config(image="of1", cmd=("/bin/sleep", "3600"), port_specs=(ports,))
            )
            holder.start()
            holders.append(holder)
        row = Samples(f"{count} ports published")
        row.values += [
            one_start(runtime, ports=("19999:80",), image="of1", cmd=WRITES) for _ in range(rounds)
        ]
        rows.append(row)
    for holder in holders:
        runtime.destroy(holder, force=True)
    return "a start with a published port beside those of others", rows


def beside_lines(directory: Path, rounds: int, sizes: Sequence[int]) -> Group:
    """The last lines of a log, to /dev/null."""
    rows = [Samples(f"{size} MB", unit="us") for size in sizes]
    sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for size in sizes:
        (directory / str(size)).mkdir()
        write_log(directory / str(size) / NAME, size * 1_000_000)
    for _ in range(rounds):
        for size, row in zip(sizes, rows, strict=True):
            began = time.perf_counter()
            copy_log(directory / str(size), sink, sink, tail=LINES)
            row.values.append((time.perf_counter() - began) * 1e6)
    os.close(sink)
    return f"the last {LINES} lines of a log of so many bytes of messages", rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rootfs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = 10 if options.short else 40
    print(f"Linux {platform.release()}, {os.cpu_count()} cpus, load {os.getloadavg()[0]:.2f}")
    directory = Path(tempfile.mkdtemp(prefix="dockpy-scaling-", dir="/var/tmp"))
    groups: list[Group] = []
    try:
        root = base_archive(directory, options.rootfs)
        with Runtime(directory / "state", run=directory / "run") as runtime:
            layers = (1, 16, 100) if options.short else (1, 16, 64, 127, 400)
            groups.append(beside_layers(runtime, directory, root, rounds, layers))
            ports = (0, 100) if options.short else (0, 100, 1000)
            groups.append(beside_ports(runtime, rounds, ports))
        groups.append(
            beside_lines(directory, rounds, (1, 10, 100) if options.short else (1, 10, 100, 400))
        )
    finally:
        shutil.rmtree(directory)
    for title, rows in groups:
        print(table(title, rows, rows[0]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([group_record(*one, one[1][0]) for one in groups]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
