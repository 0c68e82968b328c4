"""One thread that cleans up after ended containers, in order, off everybody's path."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)


class Janitor:
    """Runs jobs one after the other; costs nothing while there are none."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], object]) -> None:
        """Queue a job; never blocks. A job that raises is logged, the next ones go on."""
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="janitor", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_below(self, depth: int, timeout: float = 10.0) -> None:
        """Block until fewer than `depth` jobs wait, at most `timeout` seconds."""
        if len(self._jobs) < depth:
            return
        with self._changed:
            self._changed.wait_for(lambda: len(self._jobs) < depth, timeout)

    def drain(self) -> None:
        """Block until every job put so far is done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._busy)

    def close(self) -> None:
        """Do what is queued and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    @property
    def backlog(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._busy = True
            try:
                job()
            except Exception:
                log.exception("clean-up failed")
            with self._changed:
                self._busy = False
                self._changed.notify_all()
