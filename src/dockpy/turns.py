"""Whose turn it is with the files of a container.

Moves (start, remove, copy into) come one after the other. Who copies from a root that stays mounted
after its program ended shares it with other readers, and a start or a write on the same upper waits
for them: an upper must not be below two writable overlays at once.
Source: the kernel's Documentation/filesystems/overlayfs.rst, "Sharing and copying layers".

Both kinds may take as long as a client likes. So each gets a descriptor that tells it that others
wait; when to give way is its own decision.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Turns:
    """A lock that its holder may take again, and those who share what it protects. Thread-safe.

    `with turns:` is one's own turn.
    """

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._changed = threading.Condition()
        self._waiting = 0
        self._alone = 0
        self._holders: set[int] = set()
        self._sharers: set[int] = set()

    def __enter__(self) -> None:
        if self._turn.acquire(blocking=False):
            return
        with self._changed:
            self._waiting += 1
            tell(self._holders)
        try:
            self._turn.acquire()
        finally:
            with self._changed:
                self._waiting -= 1

    def __exit__(self, *_: object) -> None:
        self._turn.release()

    @contextmanager
    def held(self) -> Iterator[int]:
        """One's own turn for long: a descriptor, readable once somebody else wants a turn."""
        with self, self._told(self._holders) as wanted:
            with self._changed:
                if self._waiting:
                    tell({wanted})
            yield wanted

    @contextmanager
    def shared(self) -> Iterator[int]:
        """Beside others: a descriptor, readable once somebody waits in `alone`. Never blocks."""
        with self._told(self._sharers) as wanted:
            with self._changed:
                if self._alone:
                    tell({wanted})
            yield wanted

    def alone(self) -> None:
        """Wait, in one's own turn, until nobody shares."""
        with self._changed:
            self._alone += 1
            tell(self._sharers)
            try:
                self._changed.wait_for(lambda: not self._sharers)
            finally:
                self._alone -= 1

    @contextmanager
    def _told(self, group: set[int]) -> Iterator[int]:
        wanted = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with self._changed:
            group.add(wanted)
        try:
            yield wanted
        finally:
            with self._changed:
                group.remove(wanted)
                self._changed.notify_all()
            os.close(wanted)


def tell(descriptors: set[int]) -> None:
    """Make each of them readable."""
    for one in descriptors:
        with suppress(BlockingIOError):  # it is
            os.eventfd_write(one, 1)
