"""Small kernel files below a directory descriptor: one open, one read or write, one close."""

from __future__ import annotations

import os

LARGEST = 1 << 20
"""Bytes read at most; cgroup.procs of a large container is the only file that comes near."""


def read(directory: int, path: str) -> str:
    """The text of a file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        data = os.read(fd, 4096)
        if len(data) < 2048:
            return data.decode("ascii", "replace")
        chunks = [data]
        total = len(data)
        while total < LARGEST and (data := os.read(fd, 65536)):
            chunks.append(data)
            total += len(data)
        return b"".join(chunks).decode("ascii", "replace")
    finally:
        os.close(fd)


def read_or_empty(directory: int, path: str) -> str:
    """The text of a file, "" where it cannot be read: the host has no such counter."""
    try:
        return read(directory, path)
    except OSError:
        return ""


def write(directory: int, path: str, value: bytes) -> None:
    """Write `value` in one call, as these files want it. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def exists(directory: int, path: str) -> bool:
    return os.access(path, os.F_OK, dir_fd=directory)
