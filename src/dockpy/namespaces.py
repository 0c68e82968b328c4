"""What takes long and is the same for every start is made ahead, by a thread that sleeps otherwise.

Making a network namespace is the longest single step of a start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from dockpy._process import close_all
from dockpy.errors import DockpyError
from dockpy.spawn import Network, make_network

log = logging.getLogger(__name__)
READY = 4
PAUSE = 0.02
"""Seconds after which one that was taken is replaced, while there are enough."""
MOST = 32
"""What is given back beyond that is let go of."""
QUIET = 1.0
"""Seconds without a `take` after which there are no more than were made ahead."""
T = TypeVar("T")


class ReadyPool(Generic[T]):
    """A few things made ahead. Thread-safe; its thread starts with the first `take`."""

    def __init__(
        self, name: str, make: Callable[[], T], drop: Callable[[T], object], ready: int = READY
    ) -> None:
        """`make` may raise DockpyError: nothing is then made ahead until the next `take`, and
        every start makes its own and tells its own error. `drop` ends what nobody took."""
        self._name = name
        self._make = make
        self._drop = drop
        self._most = ready
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._asked = 0.0

    def take(self) -> T | None:
        """One of them, from now on the caller's; None when none is ready."""
        with self._changed:
            self._begin()
            self._asked = time.monotonic()
            found = self._ready.popleft() if self._ready else None
            if len(self._ready) < self._most:
                self._changed.notify_all()
            return found

    def give(self, one: T) -> bool:
        """Take one back that is as it was; False: there are enough, it stays the caller's."""
        with self._changed:
            if self._closed or self._thread is None or len(self._ready) >= MOST:
                return False
            self._ready.append(one)
            if len(self._ready) == self._most + 1:
                self._changed.notify_all()
            return True

    @property
    def count(self) -> int:
        """How many are ready."""
        return len(self._ready)

    @property
    def full(self) -> bool:
        """Whether there are as many as there should be, or none was ever asked for."""
        return self._thread is None or len(self._ready) >= self._most

    @property
    def _low(self) -> bool:
        return 2 * len(self._ready) < self._most

    def begin(self) -> None:
        """Make the first ones now."""
        with self._changed:
            self._begin()

    def close(self) -> None:
        """Let go of those that are ready and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        while self._ready:
            self._drop(self._ready.popleft())

    def _begin(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._fill, name=self._name, daemon=True)
            self._thread.start()

    def _fill(self) -> None:
        while True:
            with self._changed:
                surplus = self._surplus()
                if not surplus and not self._closed:
                    # Not at once: the start that took one has the processors to itself.
                    self._changed.wait_for(lambda: self._low or self._closed, PAUSE)
                if self._closed:
                    return
                wanted = len(self._ready) < self._most
            for one in surplus:
                self._drop(one)
            if not wanted:
                continue
            try:
                made = self._make()
            except DockpyError as error:
                log.warning("no %s are made ahead: %s", self._name, error)
                with self._changed:
                    if not self._closed:
                        self._thread = None
                return
            with self._changed:
                self._ready.append(made)

    def _surplus(self) -> list[T]:
        """Wait until too few are ready, or until nobody has wanted the many that are."""
        while len(self._ready) >= self._most and not self._closed:
            many = len(self._ready) > self._most
            idle = self._asked + QUIET - time.monotonic()
            if many and idle <= 0:
                return [self._ready.popleft() for _ in range(len(self._ready) - self._most)]
            self._changed.wait(idle if many else None)
        return []


class NamespacePool(ReadyPool[Network]):
    """Empty network namespaces with loopback up, each with its sysfs."""

    def __init__(self, ready: int = READY) -> None:
        super().__init__("namespaces", make_network, drop_network, ready)


def drop_network(one: Network) -> None:
    """Close a namespace; what is in it goes with it."""
    close_all(one.descriptors())
