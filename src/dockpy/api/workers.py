"""Threads that run commands: kept for the next one, as many as commands run at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)
IDLE = 16
"""Threads kept for the next commands; a new one costs 0.1 ms and a stack."""

Task = Callable[[], None]


class Workers:
    """Runs each task at once, in a thread of its own. Thread-safe.

    `stack`: bytes of address space for each thread; only what is used becomes memory.
    """

    def __init__(self, stack: int) -> None:
        self._stack = stack
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Task | None]] = []
        self._closed = False
        self._busy = 0
        self._quiet = threading.Condition(self._lock)

    @property
    def busy(self) -> int:
        """How many tasks run."""
        return self._busy

    def run(self, task: Task) -> None:
        """Begin a task; never waits for another one. RuntimeError when no thread can be had."""
        with self._lock:
            self._busy += 1
            inbox = self._idle.pop() if self._idle else None
        if inbox is not None:
            inbox.put(task)
            return
        inbox = SimpleQueue()
        inbox.put(task)
        before = threading.stack_size(self._stack)
        try:
            threading.Thread(target=self._work, args=(inbox,), name="command", daemon=True).start()
        except RuntimeError:
            self._done()
            raise
        finally:
            threading.stack_size(before)

    def close(self, patience: float) -> bool:
        """Let the threads go; waits `patience` seconds for tasks. False when some go on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            quiet = self._quiet.wait_for(lambda: self._busy == 0, patience)
        for inbox in idle:
            inbox.put(None)
        return quiet

    def _work(self, inbox: SimpleQueue[Task | None]) -> None:
        while (task := inbox.get()) is not None:
            try:
                task()
            except Exception:
                log.exception("a command failed in a way nobody foresaw")
            del task
            if not self._done(inbox):
                return

    def _done(self, inbox: SimpleQueue[Task | None] | None = None) -> bool:
        with self._lock:
            self._busy -= 1
            self._quiet.notify_all()
            if inbox is None or self._closed or len(self._idle) >= IDLE:
                return False
            self._idle.append(inbox)
            return True
