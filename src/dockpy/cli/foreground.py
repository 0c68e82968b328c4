"""A caller connected to a container: streams, raw terminal, signals, window size, leaving."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dockpy.cli.engine import EngineAttachment, EngineContainer, EngineProgram
from dockpy.cli.session import DEADLY, LEFT_BY_PIPE, Session
from dockpy.errors import DockpyError, UsageError
from dockpy.model import Config
from dockpy.stdio import parse_detach_keys
from dockpy.supervision import AttachmentEnd, Streams
from dockpy.trace import DAEMON

log = logging.getLogger(__name__)
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"


def streams(session: Session, config: Config, wanted: Sequence[str], keys: str) -> Streams:
    """The caller's descriptors that are to be connected.

    Detach keys are looked for with a terminal only, as Docker does: a pipe may hold any bytes.
    A terminal has one output, so its bytes go to standard output.
    """
    chosen = keys or config.detach_keys or DEFAULT_DETACH_KEYS
    return Streams(
        stdin=session.stdin if "stdin" in wanted else -1,
        stdout=session.stdout if "stdout" in wanted else -1,
        stderr=session.stderr if "stderr" in wanted and not config.tty else -1,
        detach_keys=parse_detach_keys(chosen) if config.tty else b"",
    )


def require_terminal(session: Session, config: Config, wanted: Sequence[str]) -> None:
    """Refuse to connect a pipe to a container's terminal. UsageError, in Docker's words."""
    if config.tty and "stdin" in wanted and not session.stdin_tty:
        raise UsageError("the input device is not a TTY; leave out -t, or -i")


def start_connected(
    container: EngineProgram,
    start: Callable[[Sequence[Streams]], Sequence[EngineAttachment]],
    ends: Streams,
) -> EngineAttachment:
    """Start with the streams connected; without any, one that ends with the program."""
    if max(ends.stdin, ends.stdout, ends.stderr) < 0:
        start(())
        return NothingConnected(container)
    return start([ends])[0]


def attach_connected(container: EngineContainer, ends: Streams) -> EngineAttachment:
    """Attach; without any stream, something that ends with the program."""
    if max(ends.stdin, ends.stdout, ends.stderr) < 0:
        return NothingConnected(container)
    return container.attach(ends)


@contextmanager
def raw_terminal(session: Session, config: Config, wanted: Sequence[str]) -> Iterator[None]:
    """The caller's terminal passes every key through while inside."""
    if not (config.tty and "stdin" in wanted and session.stdin_tty):
        yield
        return
    session.set_raw(True)
    try:
        yield
    finally:
        session.set_raw(False)


def stay(
    session: Session,
    container: EngineProgram,
    connect: Callable[[], EngineAttachment],
    wanted: Sequence[str],
    *,
    sig_proxy: bool,
    redraw: bool = False,
    lasting: bool = True,
) -> int:
    """Connect, and stay until the program ends or the caller leaves; the exit code.

    Blocks. Leaves the container running after the detach keys (0), a broken output (141), a signal
    that is not passed on (128+n) and the client's end. `redraw` makes a program that has a
    terminal draw it anew. `lasting`: another daemon than this one will know it too.
    """
    config = container.config
    with raw_terminal(session, config, wanted):
        if "stdin" in wanted:
            session.takes_stdin()
        known_as = container.id if lasting else ""
        session.staying_with(known_as, sig_proxy, -1)
        attachment = connect()
        session.staying_with(known_as, sig_proxy, attachment.number)
        seat = _Seat(container, attachment, pass_on=sig_proxy and not config.tty)
        resize = container.resize if config.tty else ignore_size
        with session.events.listening(
            signal=seat.signal, resize=resize, hang_up=seat.leave_by_pipe
        ):
            if config.tty and all(session.window):
                rows, columns = session.window
                if redraw:
                    container.resize(rows + 1, columns + 1)
                container.resize(rows, columns)
            end = attachment.wait()
            session.trace.mark(DAEMON, "output delivered")
        if end is AttachmentEnd.ENDED:
            return container.wait()
        session.staying_with("", sig_proxy, -1)
        if end is AttachmentEnd.DETACHED:
            return 0
        return seat.exit_code or LEFT_BY_PIPE


def ignore_size(_rows: int, _columns: int) -> None:
    """A container without a terminal has no size."""


class NothingConnected:
    """Stands for the attachment of a caller all of whose streams are closed."""

    number = -1

    def __init__(self, container: EngineProgram) -> None:
        self._end = AttachmentEnd.ENDED
        self._done = threading.Event()
        container.on_exit(lambda _container: self._done.set())

    def wait(self, timeout: float | None = None) -> AttachmentEnd:
        if not self._done.wait(timeout):
            raise TimeoutError("the container is still running")
        return self._end

    def close(self) -> None:
        if not self._done.is_set():
            self._end = AttachmentEnd.CLOSED
            self._done.set()


class _Seat:
    """What the caller's signals do while it is connected."""

    def __init__(
        self, container: EngineProgram, attachment: EngineAttachment, *, pass_on: bool
    ) -> None:
        self.container = container
        self.attachment = attachment
        self.pass_on = pass_on
        self.exit_code = 0

    def signal(self, number: int) -> None:
        if self.pass_on:
            try:
                self.container.kill(number)
            except DockpyError as error:  # it has just ended, or the kernel knows no such signal
                log.debug("signal %d for %s: %s", number, self.container.id, error)
        elif number in DEADLY:
            self.exit_code = 128 + number
            self.attachment.close()

    def leave_by_pipe(self) -> None:
        self.exit_code = LEFT_BY_PIPE
        self.attachment.close()
