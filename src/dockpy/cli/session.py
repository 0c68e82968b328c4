"""Everything a command may touch: the engine, the caller's descriptors, and what the caller sends.

Whoever has a client (api/daemon) makes one `Session` per command and feeds its `events` from the
client's connection, from any thread; the command runs in a thread of its own:

    session = Session(runtime=..., stdin=fd, stdout=fd, stderr=fd, cwd=fd, env={...}, uid=..., ...,
                      set_raw=..., leave=...)
    code = main.run(session, argv)          # meanwhile session.events.signal(15), .resize(50, 80)

No command touches the process's own standard streams, environment or working directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dockpy.cli.engine import Engine
from dockpy.cli.rights import open_as, rights_of
from dockpy.errors import RequestError
from dockpy.trace import OFF, Trace

DEADLY = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Signals that end a client whose command does not ask for them."""
LEFT_BY_PIPE = 128 + signal.SIGPIPE


class ClientGone(Exception):
    """Nobody reads the caller's output any more; the command ends without a word."""


def _ignore_signal(_number: int) -> None:
    pass


def _ignore_resize(_rows: int, _columns: int) -> None:
    pass


def _ignore() -> None:
    pass


class Events:
    """What a client sends while its command runs: signals, window sizes, its own end.

    Signals are kept until the command says what it does with them: `listening` takes them,
    `let_go` leaves them to `leave`. Thread-safe. Handlers run in the thread that brings the news,
    one at a time, and never after `listening` is left.
    """

    def __init__(self, leave: Callable[[int], None] = lambda _code: None) -> None:
        self._leave = leave
        self._lock = threading.RLock()
        self._early: list[int] = []
        self._undecided = True
        self._on_signal: Callable[[int], None] | None = None
        self._on_resize: Callable[[int, int], None] = _ignore_resize
        self._on_hang_up: Callable[[], None] = _ignore
        self.gone = False
        """The client is no more; its descriptors may still be written to."""

    # -- for the client's connection -------------------------------------------------------------

    def signal(self, number: int) -> None:
        """The client got a signal."""
        with self._lock:
            if self._on_signal is not None:
                self._on_signal(number)
            elif self._undecided:
                self._early.append(number)
            elif number in DEADLY:
                self._leave(128 + number)

    def resize(self, rows: int, columns: int) -> None:
        """The client's window has a new size, in characters."""
        with self._lock:
            self._on_resize(rows, columns)

    def hang_up(self) -> None:
        """The client is gone."""
        with self._lock:
            self.gone = True
            self._on_hang_up()

    # -- for commands ----------------------------------------------------------------------------

    def let_go(self) -> None:
        """This command does not listen: a deadly signal ends the client, the command goes on."""
        with self._lock:
            self._undecided = False
            self._replay()

    @contextmanager
    def listening(
        self,
        *,
        signal: Callable[[int], None] = _ignore_signal,
        resize: Callable[[int, int], None] = _ignore_resize,
        hang_up: Callable[[], None] = _ignore,
    ) -> Iterator[None]:
        """Take what comes while inside; what came earlier is told first."""
        with self._lock:
            self._on_signal, self._on_resize, self._on_hang_up = signal, resize, hang_up
            self._replay()
            if self.gone:
                hang_up()
        try:
            yield
        finally:
            with self._lock:
                self._on_signal = None
                self._on_resize, self._on_hang_up = _ignore_resize, _ignore

    @contextmanager
    def interruption(self) -> Iterator[Interruption]:
        """Inside, a deadly signal or the client's end makes its descriptor readable."""
        with Interruption() as found, self.listening(signal=found.signal, hang_up=found.hang_up):
            yield found

    def _replay(self) -> None:
        early, self._early = self._early, []
        for number in early:
            self.signal(number)


class Interruption:
    """A descriptor that becomes readable when the caller wants the command to end."""

    def __init__(self) -> None:
        self.exit_code = 0
        """0 until it is interrupted; then what the command leaves with."""
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __enter__(self) -> Interruption:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.descriptor)

    def signal(self, number: int) -> None:
        if number in DEADLY:
            self._end(128 + number)

    def hang_up(self) -> None:
        self._end(LEFT_BY_PIPE)

    def _end(self, code: int) -> None:
        self.exit_code = self.exit_code or code
        os.eventfd_write(self.descriptor, 1)


@dataclass(slots=True, kw_only=True)
class Session:
    """One caller of one command.

    `stdin`, `stdout`, `stderr`: descriptors, -1 for a closed one; `cwd`: a directory descriptor.
    They stay the property of whoever made the session. `window`: rows and columns, (0, 0) when
    unknown. `set_raw` asks the client to switch its terminal to raw mode and back, and blocks until
    raw mode is on. `leave` tells the client to go away with an exit code while the command goes on.
    `staying_with` tells it the container in the foreground ("": none any more), whether signals are
    the container's, and the number of its attachment (-1: none yet), so that it can come back when
    the daemon dies; `takes_stdin`, that its input is wanted from now on. `trace` is OFF when the
    client could not show it; `show_trace`: it is to be shown.
    """

    runtime: Engine
    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    cwd: int
    env: Mapping[str, str] = field(default_factory=dict)
    uid: int
    gid: int
    groups: Sequence[int] = ()
    stdin_tty: bool = False
    stdout_tty: bool = False
    window: tuple[int, int] = (0, 0)
    set_raw: Callable[[bool], None] = lambda _on: None
    leave: Callable[[int], None] = lambda _code: None
    staying_with: Callable[[str, bool, int], None] = lambda _identifier, _proxy, _number: None
    takes_stdin: Callable[[], None] = lambda: None
    trace: Trace = OFF
    show_trace: bool = False
    events: Events = field(init=False)

    def __post_init__(self) -> None:
        self.events = Events(self.leave)

    def write(self, text: str) -> None:
        """To the caller's standard output. ClientGone when nobody reads it; blocks while full."""
        self.write_to(self.stdout, text)

    def error(self, text: str) -> None:
        """One line to the caller's standard error; nothing happens when nobody reads it."""
        try:
            self.write_to(self.stderr, text + "\n")
        except ClientGone:
            return

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
        """A descriptor of a file the caller named, with the caller's rights; close it.

        Relative paths start in the caller's directory. RequestError says why it cannot be opened.
        A directory is told here: the kernel opens it, and refuses the reading only.
        """
        try:
            descriptor = open_as(
                path, flags, mode, cwd=self.cwd, uid=self.uid, gid=self.gid, groups=self.groups
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise RequestError(f"cannot open {path}: {why}") from error
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RequestError(f"cannot open {path}: {os.strerror(errno.EISDIR)}")
        return descriptor

    def unlink(self, path: str) -> None:
        """Remove a file the caller named, if it is there and the caller may."""
        with (
            contextlib.suppress(OSError),
            rights_of(self.uid, self.gid, self.groups),
        ):
            os.unlink(path, dir_fd=self.cwd)

    def read_file(self, path: str, limit: int = 4 << 20) -> str:
        """The text of a file the caller named. RequestError also for more than `limit` bytes."""
        with os.fdopen(self.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            try:
                data = file.read(limit + 1)
            except OSError as error:
                raise RequestError(f"cannot read {path}: {error.strerror}") from error
        if data is None or len(data) > limit:
            raise RequestError(f"cannot read {path}: it has more than {limit} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"cannot read {path}: it is not UTF-8 text") from error

    def directory(self) -> str:
        """The caller's working directory as a path."""
        return os.readlink(f"/proc/self/fd/{self.cwd}")

    def write_to(self, descriptor: int, text: str) -> None:
        """To one of the caller's outputs. ClientGone when nobody reads it; blocks while full."""
        if descriptor < 0:
            return
        data = memoryview(text.encode(errors="surrogateescape"))
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                self._await_room(descriptor)
            except OSError as error:
                raise ClientGone from error

    def _await_room(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while not poll.poll(1000):
            if self.events.gone:
                raise ClientGone
