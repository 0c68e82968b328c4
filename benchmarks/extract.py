"""Unpacking a root file system beside GNU tar, and where the time goes.

    python -m benchmarks.extract (--tree DIR | --archive TAR) [--rounds N] [--work DIR] [--durable]

Contestants take turns, each into a fresh directory; everything is deleted at the end, because
creating files is slower for minutes after a mass delete. The canary is the time to create 5,000
small files in the same round: figures of rounds with unlike canaries do not compare. `--durable`
counts a syncfs(2) after each, as an import waits for; "as an import does it" keeps the skeleton and
begins to write back while it unpacks, which only then pays. Needs root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import zstandard

from benchmarks.samples import Samples, table
from dockpy._tar import Unpacker
from dockpy.archive import Budget, extract
from dockpy.compression import decoder, detect
from dockpy.records import Flusher

BUFFER = 512 << 10


def make_archives(tree: Path | None, archive: Path | None, work: Path) -> dict[str, Path]:
    """The same tar plain and compressed."""
    plain = work / "root.tar"
    if archive is not None:
        shutil.copyfile(archive, plain)
    else:
        subprocess.run(
            ["tar", "--numeric-owner", "--xattrs", "-C", str(tree), "-cf", str(plain), "."],
            check=True,
        )
    with open(work / "root.tar.gz", "wb") as packed:
        subprocess.run(["gzip", "-6", "-c", plain], stdout=packed, check=True)
    with open(plain, "rb") as source, open(work / "root.tar.zst", "wb") as packed:
        zstandard.ZstdCompressor(3).copy_stream(source, packed)
    return {"tar": plain, "tar.gz": work / "root.tar.gz", "tar.zst": work / "root.tar.zst"}


def ours(source: Path, target: Path) -> None:
    with open(source, "rb") as file:
        extract(file.fileno(), target)


def for_import(source: Path, target: Path) -> None:
    """With all that a layer's extraction does."""
    with open(source, "rb") as file, open(f"{target}.skeleton", "wb") as skeleton:
        extract(file.fileno(), target, skeleton=skeleton.fileno(), write_back=True)


def gnu_tar(source: Path, target: Path) -> None:
    target.mkdir()
    command = ["tar", "--numeric-owner", "--xattrs", "-xpf", str(source), "-C", str(target)]
    subprocess.run(command, check=True)


def decompress_only(source: Path, _: Path) -> None:
    with open(source, "rb", buffering=0) as file:
        stream = decoder(detect(file.read(512)), file)
        file.seek(0)
        buffer = memoryview(bytearray(BUFFER))
        while stream.readinto(buffer):
            pass


def hash_only(source: Path, _: Path) -> None:
    with open(source, "rb", buffering=0) as file:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(BUFFER))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])


def unpack_only(source: Path, target: Path) -> None:
    target.mkdir()
    fd = os.open(target, os.O_RDONLY)
    limits = Budget()
    unpacker = Unpacker(
        fd,
        max_bytes=limits.size,
        max_entries=limits.entries,
        max_path=limits.path,
        max_metadata=limits.metadata,
        whiteouts=True,
    )
    with open(source, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(BUFFER))
        while (count := file.readinto(buffer)) and unpacker.feed(buffer[:count]):
            pass
    if not unpacker.finish():
        raise RuntimeError(f"unpacking ended with problem {unpacker.problem}")
    unpacker.close()
    os.close(fd)


def canary(_: Path, target: Path) -> None:
    target.mkdir()
    for number in range(5000):
        with open(target / str(number), "wb", buffering=0) as file:
            file.write(b"canary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--tree", type=Path, help="a root file system to make the archives from")
    given.add_argument("--archive", type=Path, help="an uncompressed tar")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None, help="on the file system to measure")
    parser.add_argument("--durable", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        base = tempfile.mkdtemp(prefix="dockpy-extract-", dir=options.work or "/var/tmp")
        work = Path(base)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        archives = make_archives(options.tree, options.archive, work)
        flusher = Flusher()
        stack.callback(flusher.close)
        flusher.flush(work)
        measure(archives, work, options.rounds, flusher if options.durable else None)


def measure(archives: dict[str, Path], work: Path, rounds: int, flusher: Flusher | None) -> None:
    """Take the figures and print one table per compression."""
    runs: list[tuple[str, str, Callable[[Path, Path], None]]] = [
        ("all", "canary: 5,000 files", canary)
    ]
    for kind in archives:
        runs += [(kind, "GNU tar -x", gnu_tar), (kind, "dockpy extract", ours)]
        runs.append((kind, "  as an import does it", for_import))
        runs.append((kind, "  decompress alone", decompress_only))
    runs += [("tar", "  hash alone", hash_only), ("tar", "  unpack alone", unpack_only)]
    samples = {(kind, name): Samples(name) for kind, name, _ in runs}
    for number in range(rounds):
        turn = runs if number % 2 else runs[:1] + runs[:0:-1]
        for position, (kind, name, action) in enumerate(turn):
            source = archives.get(kind, work)
            target = work / f"{number}-{position}"
            began = time.perf_counter()
            action(source, target)
            if flusher is not None and target.exists():
                flusher.flush(work)
            samples[kind, name].values.append((time.perf_counter() - began) * 1e3)
            os.sync()  # what one wrote is not written back in the next one's time
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, durable: {flusher is not None}")
    print(table("all", [samples["all", "canary: 5,000 files"]]))
    for kind, path in archives.items():
        rows = [one for (of, _), one in samples.items() if of == kind]
        print(table(f"{kind}, {path.stat().st_size >> 20} MiB", rows, rows[0]))


if __name__ == "__main__":
    main()
