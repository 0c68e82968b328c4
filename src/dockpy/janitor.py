"""Threads that clean up after ended containers, off everybody's path.

Jobs with one key are done in the order they were put; those of different containers beside each
other, for most of a job is waiting: for the kernel, and for the interpreter's turn.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

Job = Callable[[], object]


class Janitor:
    """Runs jobs; costs nothing while there are none. `lanes`: how many at once."""

    def __init__(self, lanes: int = 1) -> None:
        self._lanes = [_Lane(f"janitor-{number}") for number in range(lanes)]

    def put(self, job: Job, key: str = "") -> None:
        """Queue a job; never blocks. A job that raises is logged, the next ones go on."""
        for lane in self._lanes:  # all at once: how many threads there are is no surprise
            lane.begin()
        self._lanes[hash(key) % len(self._lanes)].put(job)

    def wait_below(self, depth: int, timeout: float = 10.0) -> None:
        """Block until fewer than `depth` jobs wait in each lane; at most `timeout` seconds each."""
        for lane in self._lanes:
            lane.wait_below(depth, timeout)

    def drain(self) -> None:
        """Block until every job put so far is done."""
        for lane in self._lanes:
            lane.drain()

    def close(self) -> None:
        """Do what is queued and end the threads."""
        for lane in self._lanes:
            lane.close()

    @property
    def backlog(self) -> int:
        """Jobs that wait."""
        return sum(len(lane.jobs) for lane in self._lanes)


class _Lane:
    """Jobs one after the other. Who waits for room is woken one by one: a crowd of threads that
    all look, and mostly wait again, would take the processor from the jobs."""

    def __init__(self, name: str) -> None:
        self.jobs: deque[Job] = deque()
        self._name = name
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._depths: deque[int] = deque()
        """What those want who wait for room."""
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def put(self, job: Job) -> None:
        with self._lock:
            self.jobs.append(job)
            if not self._busy:
                self._wanted.notify()

    def wait_below(self, depth: int, timeout: float) -> None:
        if len(self.jobs) < depth:
            return
        with self._lock:
            self._depths.append(depth)
            self._room.wait_for(lambda: len(self.jobs) < depth, timeout)
            self._depths.remove(depth)
            if self._depths and len(self.jobs) < max(self._depths):
                self._room.notify()

    def drain(self) -> None:
        with self._lock:
            self._idle.wait_for(lambda: not self.jobs and not self._busy)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wanted.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                if not self.jobs:
                    self._idle.notify_all()
                self._wanted.wait_for(lambda: self.jobs or self._closed)
                if not self.jobs:
                    return
                job = self.jobs.popleft()
                self._busy = True
                if self._depths and len(self.jobs) < max(self._depths):
                    self._room.notify()
            try:
                job()
            except Exception:
                log.exception("clean-up failed")
