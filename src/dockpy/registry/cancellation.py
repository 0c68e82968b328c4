"""Ending what blocks, from another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from dockpy.errors import Cancelled


class Cancellation:
    """Whether a transfer was given up, and what wakes those who block for it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = threading.Event()
        self._wakers: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def cancelled(self) -> bool:
        return self._set.is_set()

    def cancel(self) -> None:
        """Give up: every waker is called once; returns at once."""
        with self._lock:
            self._set.set()
            wakers = list(self._wakers.values())
            self._wakers.clear()
        for wake in wakers:
            wake()

    def check(self) -> None:
        """Raises Cancelled when it was given up."""
        if self._set.is_set():
            raise Cancelled("cancelled")

    def sleep(self, seconds: float) -> None:
        """Raises Cancelled when it is given up meanwhile."""
        self._set.wait(seconds)
        self.check()

    def add(self, wake: Callable[[], None]) -> int:
        """Have `wake` called on `cancel` (at once when that has been); a number for `remove`."""
        with self._lock:
            self._next += 1
            number = self._next
            if not self._set.is_set():
                self._wakers[number] = wake
                return number
        wake()
        return number

    def remove(self, number: int) -> None:
        with self._lock:
            self._wakers.pop(number, None)

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """`wake` is called on `cancel` while inside. Raises Cancelled before, never after."""
        self.check()
        number = self.add(wake)
        try:
            yield
        finally:
            self.remove(number)
