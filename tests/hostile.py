"""A target among things that must never change, and tar entries in few letters."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from dockpy import archive
from reference.tarblocks import header
from reference.untar import Snapshot, snapshot


class Scene:
    """A target directory below `base`, and beside it one of each thing an archive could harm."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.target = base / "target"
        outside = base / "outside"
        (outside / "dir").mkdir(parents=True)
        (outside / "secret").write_bytes(b"secret")
        os.chmod(outside / "secret", 0o600)
        (outside / "su").write_bytes(b"program")
        os.chmod(outside / "su", 0o4755)
        os.link(outside / "secret", outside / "dir" / "second-name")
        (outside / "link").symlink_to("secret")
        os.mkfifo(outside / "fifo")
        os.mknod(outside / "device", stat.S_IFBLK | 0o600, os.makedev(240, 77))
        self._before = self._rest()

    def _rest(self) -> Snapshot:
        return {
            path: values
            for path, values in snapshot(str(self.base)).items()
            if path != "." and not path.startswith("target")
        }

    def extract(
        self, data: bytes, *, by_hand: bool = False, **options: object
    ) -> archive.Extracted:
        return archive.extract(io.BytesIO(data), self.target, by_hand=by_hand, **options)  # type: ignore[arg-type]

    def merge(self, data: bytes) -> int:
        """Into the target as it is."""
        self.target.mkdir(exist_ok=True)
        directory = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return archive.extract_into(io.BytesIO(data), directory)
        finally:
            os.close(directory)

    def check_outside(self) -> None:
        assert self._rest() == self._before


def link(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", link=target)


def hard(name: bytes, target: bytes, **fields: int) -> bytes:
    return header(name, b"1", link=target, **fields)  # type: ignore[arg-type]


def folder(name: bytes, **fields: int) -> bytes:
    return header(name, b"5", mode=fields.pop("mode", 0o755), **fields)  # type: ignore[arg-type]


def device(name: bytes, kind: bytes = b"3", major: int = 1, minor: int = 3) -> bytes:
    return header(name, kind, mode=0o666, major=major, minor=minor)
