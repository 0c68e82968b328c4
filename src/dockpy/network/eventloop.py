"""One thread that waits for many sockets, with timers and work from other threads.

What runs in it must not block: one slow callback keeps all the others waiting. An exception of a
callback is written to the log and ends that callback alone.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

log = logging.getLogger(__name__)

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Result = TypeVar("Result")


class Timer:
    """Something to be done later, unless it is cancelled."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Callable[[], None]) -> None:
        self.when = when
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Without effect when it was done or cancelled already."""
        self.action = None


class EventLoop:
    """Callbacks for sockets; all methods but `call` and `close` are for its own thread.

    The thread begins with the loop, in the network namespace of the thread that makes it.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, READ)
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # -- from any thread --------------------------------------------------------------------------

    def call(self, action: Callable[[], Result]) -> Result:
        """Do it in the loop's thread, wait, and give its result or raise what it raised.

        RuntimeError after `close`.
        """
        if threading.current_thread() is self._thread:
            return action()
        future: Future[Result] = Future()

        def do() -> None:
            try:
                future.set_result(action())
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._closing:
                raise RuntimeError("the loop is closed")
            self._calls.append(do)
            os.eventfd_write(self._wake, 1)
        return future.result()

    def close(self) -> None:
        """End the thread and wait for it; work that was asked for before is done first.

        Sockets that are still watched stay open: they are their owners'. Again is no error.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._selector.close()
        os.close(self._wake)

    # -- in the loop's thread ---------------------------------------------------------------------

    def watch(self, watched: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        """Call back with what is ready whenever something is; once more for other events."""
        try:
            self._selector.modify(watched, events, callback)
        except KeyError:
            self._selector.register(watched, events, callback)

    def forget(self, watched: socket.socket) -> None:
        """Close it; it is not called back any more, not even for what was ready already."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(watched)
        watched.close()

    def pause(self, watched: socket.socket) -> None:
        """Not called back until it is watched again."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(watched)

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, action)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            ready = self._selector.select(self._patience())
            for key, events in ready:
                if key.fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif self._selector.get_map().get(key.fd) is key:
                    self._guarded(key.data, events)
            self._due()
            while self._calls:
                self._calls.popleft()()
            with self._lock:
                if self._closing and not self._calls:
                    return

    def _patience(self) -> float | None:
        """Seconds until the first timer."""
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.action is not None:
                action, timer.action = timer.action, None
                self._guarded(action)

    def _guarded(self, callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("%s: a callback failed", self._thread.name)
