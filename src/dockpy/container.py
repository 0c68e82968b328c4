"""One container's life: its states and the moves between them.

A container holds its record and talks to the engine through `Engine`; it makes no mounts and knows
no supervisors beyond its own run. Every move is serialised by the container's own lock; the exit of
the program may come at any time, from another thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import struct
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Protocol

from dockpy.changes import change_lines, changes
from dockpy.errors import Conflict, RequestError
from dockpy.execution import Execution
from dockpy.logs import LogEntry, copy_log, read_log
from dockpy.model import Change, Config, Exec, Image, State, Status
from dockpy.mounts import overlay, overlay_view
from dockpy.packing import Packed, pack_layer, pack_tree
from dockpy.settings import command
from dockpy.signals import exit_code, parse_signal
from dockpy.supervision import Attachment, Run, Streams, root_of
from dockpy.trace import OFF, Trace
from dockpy.turns import Turns

log = logging.getLogger(__name__)

DEFAULT_STOP_TIMEOUT = 10.0
KILL_PATIENCE = 10.0
"""Seconds the kernel gets to end a container after SIGKILL before we say that it did not."""


@dataclass(frozen=True, slots=True)
class Record:
    """What never changes about a container."""

    id: str
    name: str
    created: float
    config: Config
    image_id: str
    image_name: str


@dataclass(frozen=True, slots=True)
class Root:
    """A container's files. `directory`: a descriptor of its root directory.

    `wanted`: a descriptor that becomes readable once others wait for these files to be let go of;
    -1: nobody will.
    """

    directory: int
    wanted: int


class Engine(Protocol):
    """What a container needs of the engine."""

    def launch(
        self, container: Container, attach: Sequence[Streams], trace: Trace = OFF
    ) -> tuple[Run, list[Attachment]]:
        """Start it; on failure nothing is left behind."""

    def ended(self, run: Run) -> bool:
        """The program is gone: tell whether the OOM killer was at work; must not block."""

    def execution(self, container: Container, run: Run, wanted: Exec) -> Execution:
        """One more program for this run, not started yet."""

    def frozen(self, run: Run) -> AbstractContextManager[None]:
        """A run's processes stand still while inside."""

    def writing(self, container: Container) -> AbstractContextManager[None]:
        """Its files are mounted and written inside, while it does not run: that is no start."""

    def lowers_of(self, container: Container) -> Sequence[Path]:
        """The directories below its upper, top-most first."""

    def settle(self, container: Container, run: Run) -> None:
        """Write the end down and release what the run held, in the background."""

    def keep_state(self, container: Container) -> None:
        """Write its state down, in the background."""

    def image_of(self, container: Container) -> Image:
        """The image it was made from."""

    def directory_of(self, container: Container) -> Path:
        """Where its record, log and files are."""


class Container:
    """A container of one engine. Thread-safe."""

    def __init__(self, engine: Engine, record: Record, state: State) -> None:
        self._engine = engine
        self.record = record
        self._state = state
        self._moves = Turns()
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._waiters: list[threading.Lock] = []
        self._callbacks: list[Callable[[Container], None]] = []
        self._pipes: dict[str, int] = {}
        self.released = threading.Event()
        self.released.set()
        self.exposed = False
        """Somebody outside has, or had, descriptors of its files: nobody else gets the same ones.

        Set before its directory is opened; who removed that one sees it.
        """

    # -- what it is ----------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def short_id(self) -> str:
        return self.record.id[:12]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def created(self) -> float:
        """Seconds since the epoch."""
        return self.record.created

    @property
    def config(self) -> Config:
        return self.record.config

    @property
    def path(self) -> str:
        """The program."""
        return command(self.config)[0]

    @property
    def args(self) -> tuple[str, ...]:
        """The program's arguments, without its own name."""
        return command(self.config)[1:]

    @property
    def image(self) -> Image:
        """The image it was made from; NoSuchImage when that was removed."""
        return self._engine.image_of(self)

    @property
    def image_name(self) -> str:
        """The image as the user named it."""
        return self.record.image_name

    @property
    def directory(self) -> Path:
        return self._engine.directory_of(self)

    @property
    def state(self) -> State:
        return self._state

    @property
    def attachments(self) -> list[Attachment]:
        """Clients connected to its streams just now."""
        run = self._run
        return list(run.attachments.values()) if run is not None else []

    # -- moves ---------------------------------------------------------------------------------

    def start(self, attach: Sequence[Streams] = (), *, trace: Trace = OFF) -> list[Attachment]:
        """Start the program; blocks until the kernel executes it.

        `attach` connects callers' streams before the first byte is written. `trace` gets the
        moments of the start, and of the program's end. Raises Conflict when it runs already,
        CommandNotFound or CannotExecute for the program, KernelError for a step the kernel refused;
        the container is then as it was, with the text in `state.error`.
        """
        with self._moves:
            if self._state.status is Status.RUNNING:
                raise Conflict(f"container {self.name} is running already")
            if self._state.status in (Status.REMOVING, Status.DEAD):
                raise Conflict(f"container {self.name} is being removed")
            self.released.wait()
            self._moves.alone()
            streams = [*attach, *self._own_streams()]
            try:
                run, attachments = self._engine.launch(self, streams, trace)
            except Exception as error:
                code = getattr(error, "exit_code", 125)
                self._state = replace(self._state, error=str(error), exit_code=code)
                self._engine.keep_state(self)
                raise
            finally:
                self._close_given_pipes()
            self._publish(run)
            return attachments[: len(attach)]

    def adopt(self, run: Run) -> None:
        """A run of an earlier engine's that still goes on, or whose end was not written down."""
        self._publish(run)

    def _publish(self, run: Run) -> None:
        self.released.clear()
        with self._lock:
            self._run = run
            self._state = State(
                status=Status.RUNNING,
                pid=run.pid,
                started_at=run.started,
                supervisor=run.supervisor.number,
            )
            over = run.status is not None
        if over:
            self.exited(run, run.status or 0, run.ended)

    def exited(self, run: Run, status: int, when: float) -> None:
        """The program ended. Called once per run by the engine, from any thread."""
        with self._lock:
            if self._run is not run or self._state.status is not Status.RUNNING:
                return  # `start` has not published it yet and will see it there
            self._state = replace(
                self._state,
                status=Status.EXITED,
                pid=0,
                exit_code=exit_code(status),
                oom_killed=self._engine.ended(run),
                finished_at=when,
                supervisor=-1,
            )
            waiters, self._waiters = self._waiters, []
            callbacks, self._callbacks = self._callbacks, []
        self._engine.settle(self, run)
        for waiter in waiters:
            waiter.release()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # this thread tells of all other containers too
                log.exception("who waited for the end of container %s failed", self.short_id)

    def wait(self, timeout: float | None = None) -> int:
        """Block until the program has ended and its output is logged; its exit code.

        Returns at once when it is not running. TimeoutError after `timeout` seconds.
        """
        with self._lock:
            if self._state.status is not Status.RUNNING:
                return self._state.exit_code
            waiter = threading.Lock()
            waiter.acquire()
            self._waiters.append(waiter)
        if not waiter.acquire(timeout=-1 if timeout is None else timeout):
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            raise TimeoutError(f"container {self.name} is still running")
        return self._state.exit_code

    def on_exit(self, callback: Callable[[Container], None]) -> None:
        """Call `callback` once when the program ends; at once when it is not running."""
        with self._lock:
            running = self._state.status is Status.RUNNING
            if running:
                self._callbacks.append(callback)
        if not running:
            callback(self)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; SIGKILL also waits for the end. Conflict when not running."""
        self._send(number)
        if number == signal.SIGKILL:
            try:
                self.wait(KILL_PATIENCE)
            except TimeoutError:
                raise Conflict(
                    f"container {self.name} did not end {KILL_PATIENCE:.0f} s after SIGKILL; "
                    "a process of it hangs in the kernel"
                ) from None

    def stop(self, timeout: float | None = None) -> None:
        """Ask the program to end, then kill it after `timeout` seconds.

        None: the container's own time-out, 10 s by default; negative: wait for ever. Returns at
        once when it is not running.
        """
        if not self._state.running:
            return
        if timeout is None:
            asked = self.config.stop_timeout
            timeout = DEFAULT_STOP_TIMEOUT if asked is None else float(asked)
        number = parse_signal(self.config.stop_signal or "TERM")
        try:
            self._send(number)
            self.wait(None if timeout < 0 else timeout)
        except TimeoutError:
            self.kill()
        except Conflict:
            return  # it ended by itself meanwhile

    @contextmanager
    def removal(self, *, force: bool) -> Iterator[None]:
        """Hold the container still while the engine removes it. Conflict when it runs."""
        with self._moves:
            if self._state.running:
                if not force:
                    raise Conflict(f"container {self.name} is running; stop it first or force it")
                try:
                    self.kill()
                except Conflict:
                    if self._state.running:  # else it ended by itself meanwhile
                        raise
            if self._state.status in (Status.REMOVING, Status.DEAD):
                raise Conflict(f"container {self.name} is being removed already")
            before = self._state
            self._state = replace(before, status=Status.REMOVING)
            try:
                yield
            except BaseException:
                self._state = before
                raise

    def restart(self, timeout: float | None = None) -> None:
        """Stop it, if it runs, and start it again."""
        self.stop(timeout)
        self.start()

    def _send(self, number: int) -> None:
        with self._lock:
            run = self._run
            if run is None or not self._state.running:
                raise Conflict(f"container {self.name} is not running")
            try:
                signal.pidfd_send_signal(run.pidfd, number)
            except ProcessLookupError:
                return

    # -- files ---------------------------------------------------------------------------------

    @contextmanager
    def steady(self, *, pause: bool = True) -> Iterator[None]:
        """Its files are read meanwhile: it is not removed, and with `pause` its processes wait.

        Conflict when it is being removed.
        """
        self.exposed = True
        with self._held():
            run = self._run if self._state.running else None
            with self._engine.frozen(run) if pause and run is not None else nullcontext():
                yield

    @contextmanager
    def _held(self) -> Iterator[int]:
        """No other move meanwhile; see `Turns.held`. Conflict when it is being removed."""
        with self._moves.held() as wanted:
            if self._state.status in (Status.REMOVING, Status.DEAD):
                raise Conflict(f"container {self.name} is being removed")
            yield wanted

    def changes(self) -> list[Change]:
        """What it added, changed and deleted, sorted by path. Exact when it does not run."""
        with self._layers() as (upper, *lowers):
            return changes(upper, lowers)

    def change_lines(self) -> bytes:
        """The same as text, a line `A /path` each, for who prints it."""
        with self._layers() as (upper, *lowers):
            return change_lines(upper, lowers)

    @contextmanager
    def _layers(self) -> Iterator[Sequence[int]]:
        """Descriptors of the directories its files are in, its own first."""
        self.exposed = True
        with contextlib.ExitStack() as opened:
            yield [
                opened.enter_context(directory(path))
                for path in (self.directory / "upper", *self._engine.lowers_of(self))
            ]

    def export(self, out: int) -> Packed:
        """Write all its files to a descriptor as tar, without what is mounted in it. Blocks.

        Not a snapshot: a program that runs may write meanwhile. Conflict when it is removed.
        """
        self.exposed = True
        self._check_files()
        view = overlay_view([self.directory / "upper", *self._engine.lowers_of(self)])
        try:
            with directory(f"/proc/self/fd/{view}") as root:
                packed = pack_tree(root, out, digest=False)
        finally:
            os.close(view)
        self._check_files()
        return packed

    @contextmanager
    def root(self, *, writable: bool) -> Iterator[Root]:
        """Its root directory: with what is mounted in it while it runs.

        While it is written to it is neither started nor removed. Who reads it as it runs holds up
        the next start, for the root stays mounted as long; nothing else. `Root.wanted` tells who
        might wait for ever. Conflict when it is being removed, or was while it was read.
        """
        self.exposed = True
        upper, work = self.directory / "upper", self.directory / "work"
        with contextlib.ExitStack() as opened:
            if writable:
                wanted = opened.enter_context(self._held())
                view = self._running_root()
                if view is None:
                    self.released.wait()
                    self._moves.alone()  # two mounts must not write to one upper
                    opened.enter_context(self._engine.writing(self))
                    view = overlay(self._engine.lowers_of(self), upper, work, volatile=False)
            else:
                sharing = opened.enter_context(contextlib.ExitStack())
                wanted = sharing.enter_context(self._moves.shared())
                view = self._running_root()
                if view is None:
                    sharing.close()
                    wanted = -1
                    self._check_files()
                    view = overlay_view([upper, *self._engine.lowers_of(self)])
            opened.callback(os.close, view)
            yield Root(view, wanted)
            self._check_files()

    def _running_root(self) -> int | None:
        """A descriptor of its root as it sees it; None when it does not run."""
        with self._lock:
            run = self._run if self._state.running else None
        if run is None:
            return None
        try:
            return root_of(run)
        except Conflict:  # it has ended and we are about to learn it
            self.wait(KILL_PATIENCE)
            return None

    def _check_files(self) -> None:
        """Conflict when its files are gone: what was read of them is not all."""
        if not (self.directory / "upper").exists():
            raise Conflict(f"container {self.name} is being removed")

    def export_rw(self, out: int) -> Packed:
        """Write what it changed to a descriptor, as an image's layer says it. Blocks."""
        self.exposed = True
        with directory(self.directory / "upper") as upper:
            return pack_layer(upper, out, digest=False)

    # -- streams -------------------------------------------------------------------------------

    def attach(self, streams: Streams) -> Attachment:
        """Connect a caller's streams to the running program."""
        with self._lock:
            if self._run is None or not self._state.running:
                raise Conflict(f"container {self.name} is not running; start it first")
            return self._run.attach(streams)

    def execute(self, wanted: Exec) -> Execution:
        """One more program beside the container's own, ready to start. Conflict: it must run."""
        with self._lock:
            if self._run is None or not self._state.running:
                raise Conflict(f"container {self.name} is not running; start it first")
            run = self._run
        return self._engine.execution(self, run, wanted)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size in characters; nothing happens without a terminal."""
        with self._lock:
            run = self._run
            if run is not None and self._state.running and run.tty >= 0:
                fcntl.ioctl(run.tty, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def stdin_pipe(self) -> FileIO:
        """A file to write the program's input to; before `start`, with `open_stdin`."""
        if not self.config.open_stdin:
            raise RequestError("the container was created without an open stdin")
        return FileIO(self._pipe("stdin"), "w")

    def stdout_pipe(self) -> FileIO:
        """A file to read the program's output from; before `start`. End of file is its end."""
        return FileIO(self._pipe("stdout"), "r")

    def stderr_pipe(self) -> FileIO:
        """As `stdout_pipe`, for standard error."""
        return FileIO(self._pipe("stderr"), "r")

    def _pipe(self, name: str) -> int:
        """The caller's end of a new pipe; ours is attached at the start."""
        if self._state.running:
            raise Conflict(f"container {self.name} is running; ask for pipes before it starts")
        if name in self._pipes:
            raise Conflict(f"the {name} pipe was handed out already")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        theirs, ours = (writer, reader) if name == "stdin" else (reader, writer)
        self._pipes[name] = ours
        return theirs

    def _own_streams(self) -> list[Streams]:
        if not self._pipes:
            return []
        return [
            Streams(
                self._pipes.get("stdin", -1),
                self._pipes.get("stdout", -1),
                self._pipes.get("stderr", -1),
            )
        ]

    def _close_given_pipes(self) -> None:
        for descriptor in self._pipes.values():
            os.close(descriptor)
        self._pipes.clear()

    def run(self) -> int:
        """Start it and wait for its end; the exit code."""
        self.start()
        return self.wait()

    def output(self) -> bytes:
        """Start it, wait for its end and return what it wrote to standard output."""
        with self.stdout_pipe() as stdout:
            self.start()
            return stdout.readall()

    # -- logs ----------------------------------------------------------------------------------

    def read_log(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: float | None = None,
        until: float | None = None,
        tail: int | None = None,
    ) -> Iterator[LogEntry]:
        """What it has written so far, oldest first; times are seconds since the epoch."""
        return read_log(
            self.directory, stdout=stdout, stderr=stderr, since=since, until=until, tail=tail
        )

    def copy_log(
        self,
        stdout: int,
        stderr: int,
        *,
        since: float | None = None,
        until: float | None = None,
        tail: int | None = None,
        timestamps: bool = False,
        follow: bool = False,
        stop: int | None = None,
    ) -> None:
        """Write the log to descriptors (-1: leave that stream out); blocks until done.

        `follow` goes on until the program has ended, or until `stop` becomes readable.
        """
        if not follow:
            copy_log(
                self.directory,
                stdout,
                stderr,
                since=since,
                until=until,
                tail=tail,
                timestamps=timestamps,
            )
            return
        done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        over = threading.Lock()
        closed = False

        def announce(_container: object) -> None:
            with over:
                if not closed:
                    os.eventfd_write(done, 1)

        self.on_exit(announce)
        either = select.epoll()
        try:
            either.register(done, select.EPOLLIN)
            if stop is not None:
                either.register(stop, select.EPOLLIN | select.EPOLLHUP)
            copy_log(
                self.directory,
                stdout,
                stderr,
                since=since,
                until=until,
                tail=tail,
                timestamps=timestamps,
                follow=either.fileno(),
            )
        finally:
            either.close()
            with over:
                closed = True
                os.close(done)


@contextmanager
def directory(path: str | Path) -> Iterator[int]:
    """A descriptor of a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
