"""Closes descriptors late and together.

The last descriptor of a writable overlay makes the kernel flush the whole file system below it. For
a container that was removed nobody waits for that, and one flush serves all that are closed right
after it.
"""

from __future__ import annotations

import os
import threading

DELAY = 0.3
"""Seconds for a group to gather."""
MOST = 64
"""A group of so many is closed at once."""
IDLE = 1.0
"""Seconds without work after which the thread ends."""


class LateCloser:
    """Takes descriptors; its thread ends when there is nothing to close."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, descriptor: int) -> None:
        """Close it soon; never blocks."""
        with self._changed:
            self._waiting.append(descriptor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="closer", daemon=True)
                self._thread.start()
            if len(self._waiting) == 1 or len(self._waiting) >= MOST:
                self._changed.notify_all()

    def close(self) -> None:
        """Close everything and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing, timeout=IDLE)
                if self._waiting and not self._closing:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= MOST or self._closing, timeout=DELAY
                    )
                group, self._waiting = self._waiting, []
                if not group:
                    self._thread = None
                    return
            for descriptor in group:
                os.close(descriptor)
