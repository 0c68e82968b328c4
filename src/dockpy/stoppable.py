"""Bytes between descriptors, for who does not wait any longer once somebody says stop.

Two kinds of somebody: the caller, who wants the work ended, and others who wait until it is done.
For those nothing is given up as long as bytes flow, but soon when they do not: a pipe that nobody
writes to, or nobody reads, may stay so for ever.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from dockpy.errors import Cancelled, Conflict
from dockpy.pipes import widen

if TYPE_CHECKING:
    from typing_extensions import Buffer

SILENCE = 2.0
"""Seconds without a byte after which work that others wait for is given up."""
CHUNK = 1 << 18
"""Bytes moved at once."""
AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Patience:
    """Waits until a descriptor is ready.

    Cancelled as soon as `stop` is readable; Conflict once `wanted` is and the descriptor is not
    ready for `SILENCE`. -1 for those means never. All descriptors stay the caller's.
    """

    def __init__(self, descriptor: int, events: int, stop: int = -1, wanted: int = -1) -> None:
        self._stop = stop
        self._wanted = wanted
        self._poll = select.poll()
        self._poll.register(descriptor, events)
        for one in (stop, wanted):
            if one >= 0:
                self._poll.register(one, select.POLLIN)
        self._descriptor = descriptor
        self._limit: float | None = None

    def wait(self) -> None:
        while True:
            found = [number for number, _ in self._poll.poll(self._limit)]
            if self._stop in found:
                raise Cancelled("interrupted")
            if self._descriptor in found:
                return
            if not found:
                raise Conflict(
                    f"given up in the middle: no byte came or went for {SILENCE:.0f} s, and "
                    "another command waits for the container"
                )
            self._poll.unregister(self._wanted)  # it stays readable
            self._limit = SILENCE * 1000


class StoppableSource(io.RawIOBase):
    """Reads a descriptor with `Patience`. For one thread at a time."""

    def __init__(self, descriptor: int, stop: int = -1, wanted: int = -1) -> None:
        self._descriptor = descriptor
        self._stop = stop
        self._wanted = wanted
        self._patience = Patience(descriptor, select.POLLIN, stop, wanted)
        widen(descriptor)

    def readable(self) -> bool:
        return True

    def giving_way(self, wanted: int) -> StoppableSource:
        """The same for work that others may wait for."""
        return StoppableSource(self._descriptor, self._stop, wanted)

    def readinto(self, buffer: Buffer) -> int:
        while True:
            self._patience.wait()
            try:
                return os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                continue  # another reader of the same pipe was quicker


def move(pipe: int, out: int, *, stop: int = -1, wanted: int = -1) -> None:
    """All bytes of a pipe to a descriptor, with `Patience` for both. OSError as write(2).

    Blocks in no system call but for what takes its time itself, such as a disk.
    """
    kind = os.fstat(out).st_mode
    comes = Patience(pipe, select.POLLIN, stop, wanted)
    goes = Patience(out, select.POLLOUT, stop, wanted)
    if stat.S_ISFIFO(kind):
        widen(out)
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        while True:
            comes.wait()
            goes.wait()
            with suppress(BlockingIOError):  # another writer was quicker
                if not os.splice(pipe, out, CHUNK, flags=flags):
                    return
    with ExitStack() as opened:
        write: Callable[[memoryview], int] = partial(os.write, out)
        if stat.S_ISSOCK(kind):
            peer = opened.enter_context(socket.socket(fileno=os.dup(out)))
            write = lambda piece: peer.send(piece, AT_ONCE)  # noqa: E731
        while True:
            comes.wait()
            piece = memoryview(os.read(pipe, CHUNK))
            if not piece:
                return
            while piece:
                goes.wait()
                with suppress(BlockingIOError):
                    piece = piece[write(piece) :]
