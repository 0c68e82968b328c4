"""Network namespaces made ahead: making one is the longest single step of a start."""

from __future__ import annotations

import logging
import threading
from collections import deque

from dockpy._process import close_all
from dockpy.errors import KernelError
from dockpy.spawn import Network, make_network

log = logging.getLogger(__name__)
READY = 4


class NamespacePool:
    """A few empty network namespaces with loopback up, each with its sysfs. Thread-safe; its thread
    sleeps when full."""

    def __init__(self, ready: int = READY) -> None:
        self._most = ready
        self._ready: deque[Network] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def take(self) -> Network | None:
        """A namespace, from now on the caller's; None when none is ready, and one is made then."""
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._fill, name="namespaces", daemon=True)
                self._thread.start()
            found = self._ready.popleft() if self._ready else None
            self._changed.notify_all()
            return found

    def close(self) -> None:
        """Let go of those that are ready and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        while self._ready:
            close_all(self._ready.popleft().descriptors())

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._ready) < self._most or self._closed)
                if self._closed:
                    return
            try:
                made = make_network()
            except KernelError as error:
                # Every start then makes its own, and tells its own error.
                log.warning("no network namespaces are made ahead: %s", error)
                return
            with self._changed:
                self._ready.append(made)
