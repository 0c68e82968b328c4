"""A source of bytes whose reader does not wait any longer once somebody says stop."""

from __future__ import annotations

import io
import os
import select
from typing import TYPE_CHECKING

from dockpy.errors import Cancelled

if TYPE_CHECKING:
    from typing_extensions import Buffer


class StoppableSource(io.RawIOBase):
    """Reads a descriptor; Cancelled as soon as `stop` is readable, also while a read waits.

    Both descriptors stay the caller's. For one thread at a time.
    """

    def __init__(self, descriptor: int, stop: int) -> None:
        self._descriptor = descriptor
        self._stop = stop
        self._poll = select.poll()
        self._poll.register(stop, select.POLLIN)
        self._poll.register(descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while True:
            if any(number == self._stop for number, _ in self._poll.poll()):
                raise Cancelled("interrupted")
            try:
                return os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                continue  # another reader of the same pipe was quicker
