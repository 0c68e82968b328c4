"""One more program in a running container, from its start to its end.

Not written down: it lives as long as the container's run at most, and a daemon that is replaced
meanwhile does not know it any more. It goes on then, and its output goes to who was connected.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import signal
import struct
import termios
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from dockpy.errors import Conflict
from dockpy.model import Config, Exec
from dockpy.names import generate_id
from dockpy.signals import exit_code
from dockpy.supervision import Attachment, Run, Streams

log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Who starts it: the engine, for one container's current run."""

    def __call__(
        self, execution: Execution, attach: Sequence[Streams]
    ) -> tuple[Run, list[Attachment]]: ...


class Execution:
    """A program beside a container's own. Thread-safe; starts once."""

    def __init__(self, launch: Launcher, wanted: Exec, config: Config) -> None:
        self.id = generate_id()
        self.wanted = wanted
        self.config = config
        """The container's configuration with this program's terminal, environment, user, ..."""
        self._launch = launch
        self._run: Run | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._exit_code = 0
        self._callbacks: list[Callable[[Execution], None]] = []

    @property
    def running(self) -> bool:
        return self._run is not None and not self._done.is_set()

    @property
    def pid(self) -> int:
        """As the host counts; 0 before the start."""
        return self._run.pid if self._run is not None else 0

    def start(self, attach: Sequence[Streams] = ()) -> list[Attachment]:
        """Execute the program; blocks until the kernel does.

        Raises CommandNotFound or CannotExecute for the program, Conflict when the container has
        ended, KernelError for a step the kernel refused.
        """
        if self._run is not None:
            raise Conflict("an exec starts once; make another one")
        self._run, attachments = self._launch(self, attach)
        return attachments

    def exited(self, status: int) -> None:
        """It ended with a wait status. Called once by the engine, from any thread."""
        with self._lock:
            self._exit_code = exit_code(status)
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # this thread tells of all containers too
                log.exception("who waited for the end of exec %s failed", self.id[:12])

    def wait(self, timeout: float | None = None) -> int:
        """Block until it has ended and its output is delivered; its exit code. TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError("the program is still running")
        return self._exit_code

    def on_exit(self, callback: Callable[[Execution], None]) -> None:
        """Call `callback` once when it ends; at once when it has."""
        with self._lock:
            ended = self._done.is_set()
            if not ended:
                self._callbacks.append(callback)
        if ended:
            callback(self)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal. Conflict when it does not run."""
        with self._lock:  # nobody closes the descriptor before `exited` was here
            if self._run is None or self._done.is_set():
                raise Conflict("the program is not running")
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._run.pidfd, number)

    def resize(self, rows: int, columns: int) -> None:
        """Set its terminal's size in characters; nothing happens without a terminal."""
        with self._lock:
            run = self._run
            if run is not None and not self._done.is_set() and run.tty >= 0:
                size = struct.pack("HHHH", rows, columns, 0, 0)
                fcntl.ioctl(run.tty, termios.TIOCSWINSZ, size)
