"""Reading a container's log back: json-file format, over rotated files, following on request."""

from __future__ import annotations

import calendar
import contextlib
import errno
import io
import json
import os
import select
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from dockpy._log import copy_entries, timestamp, watch
from dockpy.errors import KernelError

NAME = "container.log"
BLOCK = 1 << 16
BEGINNING = '{"log":"'


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line (with its newline), or a part of one; `time` in seconds since the epoch."""

    stream: str
    time: float
    message: bytes


Identity = tuple[int, int]
"""Device and inode: what stays of a log file when it is renamed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading begins: files oldest first, the offset in the first one."""

    files: tuple[BinaryIO, ...]
    offset: int


def log_files(directory: Path) -> list[tuple[Path, Identity]]:
    """A container's log files, oldest first, as they are at one moment."""
    before = _look(directory)
    while (now := _look(directory)) != before:
        before = now  # it is being rotated
    return now


def _look(directory: Path) -> list[tuple[Path, Identity]]:
    numbered: dict[int, tuple[Path, Identity]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            suffix = name.removeprefix(NAME)
            if name == suffix or (suffix and not (suffix[0] == "." and suffix[1:].isdecimal())):
                continue
            with contextlib.suppress(FileNotFoundError):
                path = directory / name
                numbered[int(suffix[1:] or 0)] = path, _identity(os.stat(path))
    return [numbered[number] for number in sorted(numbered, reverse=True)]


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _open(path: Path, wanted: Identity) -> BinaryIO | None:
    """The file, or None when another one has its name by now."""
    with contextlib.suppress(FileNotFoundError):
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0)
        if _identity(os.fstat(file.fileno())) == wanted:
            return file
        file.close()
    return None


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[list[BinaryIO]]:
    """All log files, oldest first: none twice and none left out, however they are rotated."""
    with contextlib.ExitStack() as stack:
        while True:
            files = []
            for path, identity in log_files(directory):
                file = _open(path, identity)
                if file is None:
                    break
                files.append(stack.enter_context(file))
            else:
                break
            stack.close()
        yield files


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
    with opened(directory) as files:
        place = locate(files, tail)
        offset = place.offset
        for file in place.files:
            file.seek(offset)
            offset = 0
            for line in io.BufferedReader(cast(io.RawIOBase, file), BLOCK):
                entry = parse_entry(line)
                if entry is None or entry.stream not in wanted:
                    continue
                if since is not None and entry.time < since:
                    continue
                if until is not None and entry.time > until:
                    return
                yield entry


def parse_entry(line: bytes) -> LogEntry | None:
    """The entry in one line of a log, or None when it is not one."""
    text = line.decode("utf-8", "replace").lstrip("\0")
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return _entry(text)
    # A torn line has the next one right behind it: what looks like a beginning is one.
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return _entry(text[text.rindex(BEGINNING, 1) :])
    return None


def _entry(text: str) -> LogEntry:
    values = json.loads(text)
    # Two escapes of UTF-16 are one character; half a pair is none.
    message = values["log"].encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return LogEntry(values["stream"], parse_time(values["time"]), message)


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


def locate(files: Sequence[BinaryIO], tail: int | None) -> Place:
    """Where the last `tail` entries begin, read backwards from the end; None: the beginning."""
    missing = tail
    if missing is None:
        return Place(tuple(files), 0)
    for index in range(len(files) - 1, -1, -1):
        offset, found = _offset_of_last(files[index], missing)
        missing -= found
        if missing <= 0:
            return Place(tuple(files[index:]), offset)
    return Place(tuple(files), 0)


def _offset_of_last(file: BinaryIO, lines: int) -> tuple[int, int]:
    """Offset of the last `lines` lines of a file, and how many there are up to that number."""
    size = end = file.seek(0, os.SEEK_END)
    if lines <= 0:
        return size, 0
    found = 0
    while end > 0:
        begin = max(0, end - BLOCK)
        block = os.pread(file.fileno(), end - begin, begin)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            if begin + at + 1 == size:
                continue  # the newline that ends the last line
            found += 1
            if found == lines:
                return begin + at + 1, lines
        end = begin
    return 0, found + 1 if size else 0


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
    are written as they arrive, then what is left. `timestamps` puts its time before every line.
    Blocks on slow readers. BrokenPipeError when a reader has gone, also while nothing is written.
    """
    with contextlib.ExitStack() as stack:
        # Watched before it is looked at: what is written between the two is noticed.
        notices = _watch(directory, stack) if follow is not None else -1
        lines = _Lines((stdout, stderr), format_time(since), format_time(until), timestamps)
        reader = _Reader(directory, lines)
        stack.callback(reader.close)
        with opened(directory) as files:
            place = locate(files, tail)
            # What is there now: the files keep what they have, wherever they are renamed to.
            reader.begin(place)
        if follow is None:
            reader.read_opened()
            return
        while not reader.read_all():
            if _wait(notices, follow, (stdout, stderr)):
                reader.read_all()
                return


class _Lines:
    """Where messages go, and which of them."""

    def __init__(self, ends: tuple[int, int], since: bytes, until: bytes, stamps: bool) -> None:
        self._ends = ends
        self._since = since
        self._until = until
        self._stamps = stamps
        self._inside = 0

    def copy(self, source: int) -> tuple[int, bool]:
        """Copy from a file's current offset on: bytes taken, whether `until` is reached."""
        taken, over, err, self._inside = copy_entries(
            source, *self._ends, self._since, self._until, self._stamps, self._inside
        )
        if err == errno.EPIPE:
            raise BrokenPipeError(err, os.strerror(err))
        if err:
            raise KernelError("copy log", err)
        return taken, over


class _Reader:
    """Goes through one log's files, and on to those that come."""

    def __init__(self, directory: Path, lines: _Lines) -> None:
        self._directory = directory
        self._lines = lines
        self._file: BinaryIO | None = None
        self._ahead: list[BinaryIO] = []
        self._offset = 0

    def begin(self, place: Place) -> None:
        self._ahead = [os.fdopen(os.dup(file.fileno()), "rb", buffering=0) for file in place.files]
        if self._ahead:
            self._file = self._ahead.pop(0)
            self._offset = place.offset

    def close(self) -> None:
        for file in (self._file, *self._ahead):
            if file is not None:
                file.close()

    def read_opened(self) -> bool:
        """Copy the files that are open, to their ends; True when `until` is reached."""
        while self._file is not None:
            if self._read_file():
                return True
            if not self._ahead:
                return False
            self._go_on(self._ahead.pop(0))
        return False

    def read_all(self) -> bool:
        """Copy all there is, also in files that are new; True when `until` is reached."""
        while True:
            if self.read_opened():
                return True
            successor = self._successor()
            if successor is None:
                return False
            # The file was complete before its successor began: one more look at it.
            if self._file is not None and self._read_file():
                successor.close()
                return True
            self._go_on(successor)

    def _go_on(self, file: BinaryIO) -> None:
        if self._file is not None:
            self._file.close()
        self._file = file
        self._offset = 0

    def _read_file(self) -> bool:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._offset:
            self._offset = 0  # a log of one file was cut to make room
        self._file.seek(self._offset)
        taken, over = self._lines.copy(self._file.fileno())
        self._offset += taken
        return over

    def _successor(self) -> BinaryIO | None:
        """The file after the one being read, if there is one."""
        while True:
            ours = None if self._file is None else _identity(os.fstat(self._file.fileno()))
            with contextlib.suppress(FileNotFoundError):
                if ours == _identity(os.stat(self._directory / NAME)):
                    return None
            files = log_files(self._directory)
            # Not among them: it was rotated away, and all there are come after it.
            after = next((i + 1 for i, (_, one) in enumerate(files) if one == ours), 0)
            if after == len(files):
                return None
            found = _open(*files[after])
            if found is not None:
                return found


def _watch(directory: Path, stack: contextlib.ExitStack) -> int:
    descriptor, err = watch(bytes(directory))
    if descriptor >= 0:
        stack.callback(os.close, descriptor)
    if err:
        raise KernelError("watch log", err, str(directory))
    return descriptor


def _wait(notices: int, follow: int, ends: Sequence[int]) -> bool:
    """Block until the log may have grown; True when no more will come."""
    poller = select.poll()
    poller.register(notices, select.POLLIN)
    poller.register(follow, select.POLLIN)
    for end in ends:
        if end >= 0 and end != follow:
            poller.register(end, 0)  # only that its reader has gone
    ready = dict(poller.poll())
    if notices in ready:
        os.read(notices, 1 << 16)
    if any(ready.get(end, 0) & (select.POLLERR | select.POLLHUP) for end in ends):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return follow in ready
