"""Archives that say something else each time they are asked, so that no store has them already."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard

_BLOCK = 512


@dataclass
class Growing:
    """An archive whose last entry is another one after each `renew`.

    Of gzip and zstd the tail is a member, or frame, of its own.
    """

    kind: str
    path: Path
    body: int
    """Bytes that stay."""
    pack: Callable[[bytes], bytes]
    number: int = 0

    def renew(self) -> None:
        self.number += 1
        content = b"round %d\n" % self.number
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            info = tarfile.TarInfo("round")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        os.truncate(self.path, self.body)
        with open(self.path, "ab") as file:
            file.write(self.pack(made.getvalue()))


def growing(archive: Path, directory: Path) -> list[Growing]:
    """A tar archive plain, with gzip and with zstd, each in a file of its own in `directory`."""
    plain = directory / "root.tar"
    shutil.copyfile(archive, plain)
    with tarfile.open(archive, "r:") as tar:
        last = tar.getmembers()[-1]
    has_data = last.isreg()
    blocks = (last.size + _BLOCK - 1) // _BLOCK if has_data else 0
    os.truncate(plain, last.offset_data + blocks * _BLOCK)  # without the end mark
    with open(directory / "root.tar.gz", "wb") as packed:
        subprocess.run(["gzip", "-6", "-c", plain], stdout=packed, check=True)
    with open(plain, "rb") as source, open(directory / "root.tar.zst", "wb") as packed:
        zstandard.ZstdCompressor(3).copy_stream(source, packed)
    packers: dict[str, Callable[[bytes], bytes]] = {
        "tar": bytes,
        "tar.gz": gzip.compress,
        "tar.zst": zstandard.ZstdCompressor(3).compress,
    }
    made = []
    for kind, pack in packers.items():
        path = directory / f"root.{kind}"
        made.append(Growing(kind, path, path.stat().st_size, pack))
    return made
