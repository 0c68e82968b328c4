"""Ending work that moves bytes when its caller wants it: Ctrl-C, or a client that is gone.

Bytes go between descriptors without a look at the caller. So what ends the work is done to the
descriptors: a blocked read of a pipe is woken, a file that is read has ended, and what is written
to breaks like a pipe that nobody reads. Whoever reads or writes there cleans up as it does after
any failure, and `interruptible` makes one outcome of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from dockpy.cli.session import DEADLY, LEFT_BY_PIPE, ClientGone, Session
from dockpy.cli.transfers import Interrupted
from dockpy.errors import Cancelled, DockpyError
from dockpy.stoppable import StoppableSource

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Work:
    """Descriptors for work that can be interrupted; they are closed with it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._outputs: list[int] = []
        self._files: list[int] = []
        self._leaves = False
        self._closed = False
        self.stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable from the moment of the interruption on."""
        self.exit_code = 0
        """0 until it is interrupted; then what the command leaves with."""

    def output(self, descriptor: int, *, leaves: bool = False) -> int:
        """One to write to instead, which breaks. `leaves`: nothing has to be cleaned up after it,
        so the caller is let go at once, however long somebody does not read."""
        copy = os.dup(descriptor)
        with self._lock:
            self._outputs.append(copy)
            self._leaves = self._leaves or leaves
            if self.exit_code:
                self._cut()
        return copy

    def source(self, descriptor: int) -> BinaryIO | int:
        """One to read from instead: it ends early, or its reader is told."""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return cast("BinaryIO", StoppableSource(descriptor, self.stop))
        copy = os.dup(descriptor)
        with self._lock:
            self._files.append(copy)
            if self.exit_code:
                self._cut()
        return copy

    def body(self, source: BinaryIO) -> BinaryIO:
        """A source that is no descriptor: it is told at its next read. The caller is let go."""
        with self._lock:
            self._leaves = True
        return cast("BinaryIO", Body(source, self))

    def signal(self, number: int) -> None:
        if number in DEADLY:
            self._end(128 + number)

    def hang_up(self) -> None:
        self._end(LEFT_BY_PIPE)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for one in (*self._outputs, *self._files, self.stop):
                os.close(one)

    def _end(self, code: int) -> None:
        with self._lock:
            if self._closed or self.exit_code:
                return
            self.exit_code = code
            os.eventfd_write(self.stop, 1)
            self._cut()
            leaves = self._leaves
        if leaves:
            self._session.leave(code)

    def _cut(self) -> None:
        replace(self._outputs, writing=True)
        replace(self._files, writing=False)


class Body(io.RawIOBase):
    """What a source gives until its work is interrupted."""

    def __init__(self, source: BinaryIO, work: Work) -> None:
        self._source = source
        self._work = work

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        if self._work.exit_code:
            raise Cancelled("interrupted")
        view = memoryview(buffer)
        piece = self._source.read(len(view))
        view[: len(piece)] = piece
        return len(piece)


def replace(descriptors: list[int], *, writing: bool) -> None:
    """Make each of them an end of a pipe whose other end is gone: broken, or at its end."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    kept, other = (writer, reader) if writing else (reader, writer)
    os.close(other)
    for one in descriptors:
        os.dup2(kept, one, inheritable=False)
    os.close(kept)


@contextmanager
def interruptible(session: Session) -> Iterator[Work]:
    """Work that ends when its caller wants it. Raises Interrupted then, whatever came of it.

    Work that is done nevertheless counts as done. The command has to be `interruptible`.
    """
    with contextlib.closing(Work(session)) as work:
        try:
            with session.events.listening(signal=work.signal, hang_up=work.hang_up):
                yield work
        except (DockpyError, ClientGone) as failure:
            if work.exit_code:
                raise Interrupted(work.exit_code) from failure
            raise
