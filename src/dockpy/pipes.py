"""Pipes that streams of files go through: their size decides how often both ends wait in turns."""

from __future__ import annotations

import contextlib
import fcntl

PIPE_SIZE = 1 << 20
"""Bytes; what anybody may ask for unless the host says less (pipe(7), pipe-max-size)."""


def widen(descriptor: int) -> None:
    """Let a pipe hold PIPE_SIZE bytes, if it holds less and may; nothing for other files.

    With the usual 64 KiB an export takes half as long again: writer and reader wake each other for
    every few pieces (benchmarks.images). Either end will do. Raises nothing.
    """
    with contextlib.suppress(OSError):  # no pipe, or more pipes than the user may have
        if fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) < PIPE_SIZE:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
