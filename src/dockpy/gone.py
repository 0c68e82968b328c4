"""Exit codes of containers that are gone, for a client that comes back for one.

    <run>/gone    "<id> <exit code>" in each line, the newest last

On the tmpfs: that client may come back because the engine was killed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from dockpy.records import write

REMEMBERED = 1000
"""Removed containers whose exit codes are kept."""


class Gone:
    """The exit codes of the containers that were removed last. Thread-safe."""

    def __init__(self, run: Path) -> None:
        """Read what an earlier engine remembered; lines that make no sense are left out."""
        self._path = run / "gone"
        self._lock = threading.Lock()
        self._codes: dict[str, int] = {}
        self._lines = 0
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(errors="replace").splitlines()[-REMEMBERED:]:
                identifier, _, code = line.partition(" ")
                if code.isdigit():
                    self._codes[identifier] = int(code)
            self._write()

    def exit_code(self, identifier: str) -> int | None:
        """None: not known, or no more."""
        return self._codes.get(identifier)

    def remember(self, identifier: str, code: int) -> None:
        """Forgets the oldest when there are too many. On a full disk only this engine knows it."""
        with self._lock, contextlib.suppress(OSError):
            self._codes[identifier] = code
            while len(self._codes) > REMEMBERED:
                del self._codes[next(iter(self._codes))]
            self._lines += 1
            if self._lines > 8 * REMEMBERED:
                self._write()
            else:
                _append(self._path, f"{identifier} {code}\n".encode())

    def _write(self) -> None:
        lines = "".join(f"{identifier} {code}\n" for identifier, code in self._codes.items())
        write(self._path, lines.encode())
        self._lines = len(self._codes)


def _append(path: Path, line: bytes) -> None:
    """Add a line to a file in one piece, made if missing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
