"""Reading a container's log back: json-file format, over rotated files, following on request."""

from __future__ import annotations

import calendar
import contextlib
import errno
import json
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dockpy._log import copy_entries, timestamp, watch
from dockpy.errors import KernelError

NAME = "container.log"
BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line (with its newline), or a part of one; `time` in seconds since the epoch."""

    stream: str
    time: float
    message: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading begins: files oldest first, the offset in the first one."""

    paths: tuple[Path, ...]
    offset: int


def log_files(directory: Path) -> list[Path]:
    """A container's log files, oldest first."""
    numbered: dict[int, Path] = {}
    for path in directory.glob(f"{NAME}*"):
        suffix = path.name.removeprefix(NAME)
        if not suffix:
            numbered[0] = path
        elif suffix[0] == "." and suffix[1:].isdecimal():
            numbered[int(suffix[1:])] = path
    return [numbered[number] for number in sorted(numbered, reverse=True)]


def read_log(
    directory: Path,
    *,
    stdout: bool = True,
    stderr: bool = True,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
) -> Iterator[LogEntry]:
    """Entries oldest first, as of now. A line torn by a crash is passed over."""
    wanted = {name for name, asked in (("stdout", stdout), ("stderr", stderr)) if asked}
    position = locate(directory, tail)
    offset = position.offset
    for path in position.paths:
        for line in lines_of(path, offset):
            entry = parse_entry(line)
            if entry is None or entry.stream not in wanted:
                continue
            if since is not None and entry.time < since:
                continue
            if until is not None and entry.time > until:
                return
            yield entry
        offset = 0


def lines_of(path: Path, offset: int) -> Iterator[bytes]:
    """Lines of a file from an offset on; none when it was rotated away meanwhile."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        yield from file


def parse_entry(line: bytes) -> LogEntry | None:
    """The entry in one line of a log, or None when it is not one."""
    try:
        values = json.loads(line.lstrip(b"\0"))
        return LogEntry(
            values["stream"],
            parse_time(values["time"]),
            values["log"].encode("utf-8", "surrogatepass"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def parse_time(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time in UTC; ValueError."""
    moment, _, fraction = text.rstrip("Z").partition(".")
    seconds = calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%S"))
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)


def format_time(moment: float | None) -> bytes:
    """A time as the log writes it; empty for None."""
    if moment is None:
        return b""
    seconds = int(moment // 1)
    return timestamp(seconds, int((moment - seconds) * 1e9)).encode()


def locate(directory: Path, tail: int | None) -> Position:
    """Where the last `tail` entries begin, read backwards from the end; None: the beginning."""
    paths = log_files(directory)
    if tail is None or not paths:
        return Position(tuple(paths), 0)
    missing = tail
    for index in range(len(paths) - 1, -1, -1):
        offset, found = _offset_of_last(paths[index], missing)
        missing -= found
        if missing <= 0:
            return Position(tuple(paths[index:]), offset)
    return Position(tuple(paths), 0)


def _offset_of_last(path: Path, lines: int) -> tuple[int, int]:
    """Offset of the last `lines` lines of a file, and how many there are up to that number."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        if lines <= 0:
            return size, 0
        found = 0
        while end > 0:
            begin = max(0, end - BLOCK)
            file.seek(begin)
            block = file.read(end - begin)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                if begin + at + 1 == size:
                    continue  # the newline that ends the last line
                found += 1
                if found == lines:
                    return begin + at + 1, lines
            end = begin
        return 0, found + 1 if size else 0
    return 0, 0


def copy_log(
    directory: Path,
    stdout: int,
    stderr: int,
    *,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
    timestamps: bool = False,
    follow: int | None = None,
) -> None:
    """Write the log's messages to descriptors, natively; -1 leaves that stream out.

    `follow` is a descriptor that becomes readable when no more will come: until then new entries
    are written as they arrive. Blocks on slow readers. BrokenPipeError when a reader has gone.
    """
    reader = _Reader(directory, stdout, stderr, format_time(since), format_time(until), timestamps)
    try:
        notices = _watch(directory) if follow is not None else -1
        try:
            reader.begin(locate(directory, tail))
            while not reader.read_all() and follow is not None:
                if _wait(notices, follow):
                    reader.read_all()
                    return
        finally:
            if notices >= 0:
                os.close(notices)
    finally:
        reader.close()


class _Reader:
    """Follows one log through its files."""

    def __init__(
        self, directory: Path, stdout: int, stderr: int, since: bytes, until: bytes, stamps: bool
    ) -> None:
        self._directory = directory
        self._ends = (stdout, stderr)
        self._since = since
        self._until = until
        self._stamps = stamps
        self._file = -1
        self._offset = 0

    def begin(self, position: Position) -> None:
        if position.paths:
            self._open(position.paths[0], position.offset)

    def read_all(self) -> bool:
        """Write what there is; True when the end asked for (`until`) is reached."""
        while True:
            if self._file < 0:
                files = log_files(self._directory)
                if not files or not self._open(files[0], 0):
                    return False
            if self._read_file():
                return True
            successor = self._successor()
            if successor is None:
                return False
            # It was complete before its successor began; one more look for what came meanwhile.
            if self._read_file():
                return True
            os.close(self._file)
            self._file = -1
            self._open(successor, 0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self, path: Path, offset: int) -> bool:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._file = -1
            return False
        self._offset = offset
        return True

    def _read_file(self) -> bool:
        if os.fstat(self._file).st_size < self._offset:
            self._offset = 0  # a log of one file was cut to make room
        os.lseek(self._file, self._offset, os.SEEK_SET)
        taken, over, err = copy_entries(
            self._file, *self._ends, self._since, self._until, self._stamps
        )
        self._offset += taken
        if err == errno.EPIPE:
            raise BrokenPipeError(err, os.strerror(err))
        if err:
            raise KernelError("copy log", err, str(self._directory / NAME))
        return over

    def _successor(self) -> Path | None:
        """The file after the one being read, if it was rotated."""
        ours = os.fstat(self._file)
        files = log_files(self._directory)
        for index, path in enumerate(files):
            try:
                there = os.stat(path)
            except FileNotFoundError:
                continue
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return files[index + 1] if index + 1 < len(files) else None
        return files[0] if files else None


def _watch(directory: Path) -> int:
    descriptor, err = watch(bytes(directory))
    if err:
        if descriptor >= 0:
            os.close(descriptor)
        raise KernelError("watch log", err, str(directory))
    return descriptor


def _wait(notices: int, follow: int) -> bool:
    """Block until the log may have grown; True when no more will come."""
    poller = select.poll()
    poller.register(notices, select.POLLIN)
    poller.register(follow, select.POLLIN)
    ready = dict(poller.poll())
    if notices in ready:
        os.read(notices, 4096)
    return follow in ready
