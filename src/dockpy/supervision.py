"""The daemon's side of its supervisors: starting them, asking them, replacing lost ones.

A supervisor is started as this process's child from a sealed memfd copy of the interpreter, so that
no container can reach a host file through /proc/self/exe. This process keeps duplicates of every
output pipe, terminal, pidfd and client descriptor, and is the child subreaper: when a supervisor is
killed, its containers become our children, and a new supervisor is handed everything. When this
process is killed, the next one finds the supervisors by their sockets in the run directory; they
keep their containers until the last one ends, new starts go to new supervisors.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from socket import AF_UNIX, SHUT_RDWR, SOCK_SEQPACKET, socket
from typing import Any, Protocol

from dockpy import stdio
from dockpy._copy import JOURNAL_SIZE
from dockpy.errors import Conflict, RequestError, SupervisorLost
from dockpy.messages import DESCRIPTOR_LIMIT, receive, send
from dockpy.trace import CHILD, DAEMON, OFF, PUMP, SUPERVISOR, Trace, from_epoch, steps_of_child

log = logging.getLogger(__name__)

CONTAINERS = "/containers"
PATIENCE = 10.0
"""Seconds a supervisor may take to come up, to tell what it has, and to leave."""
FAREWELL = 1.0
"""Seconds until the end of a supervisor is heard of that cannot be spoken to any more."""
LONGEST_PAUSE = 5.0
"""Seconds between attempts to replace a supervisor that dies again and again."""
NO_STREAMS = (-1, -1, -1, -1)
_MAIN = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from dockpy.supervisor import main; main(sys.argv[2:])"
)

_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3


class AttachmentEnd(Enum):
    """Why an attachment ended; the values are the pump's."""

    ENDED = 0
    DETACHED = 1
    BROKEN = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class Streams:
    """A caller's descriptors, -1 for none: duplicated, never closed for the caller."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    detach_keys: bytes = b""


class Attachment:
    """A client's streams on a running container."""

    def __init__(self, number: int, run: Run, descriptors: Sequence[int], keys: bytes) -> None:
        self.number = number
        self.run = run
        self.descriptors = tuple(descriptors)
        self.keys = keys
        self._done = threading.Event()
        self._end = AttachmentEnd.CLOSED

    def wait(self, timeout: float | None = None) -> AttachmentEnd:
        """Block until all is delivered or the client let go. TimeoutError after `timeout`."""
        if not self._done.wait(timeout):
            raise TimeoutError("the attachment is still open")
        return self._end

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def close(self) -> None:
        """Let go of the container; it goes on."""
        if not self._done.is_set():
            self.run.detach(self)

    def ended(self, end: AttachmentEnd) -> None:
        """Called by the supervision alone."""
        if self._done.is_set():
            return
        self._end = end
        for descriptor in self.descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        self._done.set()


@dataclass(slots=True, kw_only=True)
class StartRequest:
    """What a supervisor needs to start one container; descriptors stay the caller's.

    `streams` are the pump's ends: write end of stdin, read ends of stdout and stderr, or the
    master of the terminal. `slots` are the descriptors the plan refers to, in order. `labels` are
    the names of the plan's steps, for a trace that is on.
    """

    container: str
    plan: bytes
    slots: Sequence[int]
    streams: tuple[int, int, int, int]
    cgroup: int = -1
    log: tuple[str, int, int] = ("", 0, 1)
    stdin_once: bool = False
    trace: Trace = OFF
    labels: Sequence[str] = ()


class Exits(Protocol):
    """Who wants to know when containers end."""

    def container_exited(self, run: Run, status: int, when: float) -> None:
        """`status`: as wait(2) gives it; `when`: seconds since the epoch. Must not block."""

    def log_failed(self, run: Run, err: int) -> None:
        """The log cannot be written just now."""


@dataclass(slots=True, eq=False)
class Run:
    """One run of a container, from spawn to exit, as this process knows it."""

    key: int
    container: str
    supervisor: Supervisor
    pid: int
    pidfd: int
    streams: tuple[int, int, int, int]
    log: tuple[str, int, int]
    stdin_once: bool
    started: float = 0.0
    attachments: dict[int, Attachment] = field(default_factory=dict)
    status: int | None = None
    ended: float = 0.0
    settled: bool = False
    trace: Trace = OFF

    @contextmanager
    def _kept(self) -> Iterator[Supervisor]:
        """Its supervisor, which does not pass it on to a successor meanwhile."""
        while True:
            supervisor = self.supervisor
            with supervisor.moving:
                if self.supervisor is supervisor:
                    yield supervisor
                    return

    def attach(self, streams: Streams) -> Attachment:
        with self._kept() as supervisor:
            return supervisor.attach(self, streams)

    def detach(self, attachment: Attachment) -> None:
        with self._kept() as supervisor:
            supervisor.tell(("detach", attachment.number))

    def close_stdin(self) -> None:
        with self._kept() as supervisor:
            supervisor.tell(("stdin", self.key))

    @property
    def tty(self) -> int:
        return self.streams[3]

    def forget(self) -> None:
        """The exit is written down: drop everything, once slow clients have all their bytes."""
        self.settled = True
        self.forget_if_done()

    def forget_if_done(self) -> None:
        if self.settled and not self.attachments:
            with self._kept() as supervisor:
                supervisor.forget(self)


class _Reply:
    """One answer another thread will give."""

    __slots__ = ("_lock", "descriptors", "message")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.message: tuple[Any, ...] | None = None
        self.descriptors: list[int] = []

    def give(self, message: tuple[Any, ...] | None, descriptors: list[int]) -> None:
        self.message = message
        self.descriptors = descriptors
        self._lock.release()

    def wait(self, timeout: float = -1) -> tuple[Any, ...]:
        if not self._lock.acquire(timeout=timeout):
            raise SupervisorLost(f"a supervisor did not answer within {timeout:.0f} s")
        if self.message is None:
            raise SupervisorLost("the supervisor died before it answered")
        return self.message


class Supervisor:
    """A conversation with one supervisor process."""

    def __init__(
        self,
        number: int,
        path: Path,
        conversation: socket,
        supervision: Supervision,
        process: subprocess.Popen[bytes] | None,
    ) -> None:
        self.number = number
        self.path = path
        self.process = process
        self.pid = process.pid if process is not None else 0
        self.inheritance: list[int] = []
        self.runs: dict[int, Run] = {}
        self.moving = threading.RLock()
        """Held while runs pass on to a successor, and while something is said about one."""
        self.setbacks = 0
        """How many before it died young, one after the other."""
        self._since = time.monotonic()
        self._pidfd = -1
        self._socket = conversation
        self._supervision = supervision
        self._sequence = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._reported: list[Run] = []
        self._lock = threading.Lock()
        self._gone = False
        self._leaving = False
        self._reader = threading.Thread(target=self._read, name=f"supervisor-{number}", daemon=True)

    @property
    def alive(self) -> bool:
        """As far as is known."""
        return not self._gone

    @property
    def died_young(self) -> bool:
        return time.monotonic() - self._since < 1.0

    def listen(self) -> None:
        """Begin to read what it says."""
        self._reader.start()

    def tell(self, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Say something that has no answer; a lost supervisor is noticed by the reader."""
        try:
            send(self._socket, message, descriptors)
        except OSError:
            return

    def ask(
        self,
        name: str,
        arguments: tuple[Any, ...],
        descriptors: Sequence[int] = (),
        timeout: float = -1,
    ) -> tuple[tuple[Any, ...], list[int]]:
        """Send a request and block until its answer. SupervisorLost when it dies before that."""
        sequence = next(self._sequence)
        reply = _Reply()
        with self._lock:
            if self._gone:
                raise SupervisorLost("the supervisor is gone")
            self._replies[sequence] = reply
        try:
            send(self._socket, (name, sequence, *arguments), descriptors)
        except OSError as error:
            with self._lock:
                self._replies.pop(sequence, None)
            raise SupervisorLost("the supervisor is gone") from error
        return reply.wait(timeout), reply.descriptors

    def start(
        self, key: int, request: StartRequest, attach: Sequence[Streams]
    ) -> tuple[Run | tuple[int, int], list[Attachment]]:
        """Start a container: its run, or (step, errno) of what the kernel refused.

        After SupervisorLost nobody knows whether the program runs; who asked ends what is left.
        """
        run = Run(
            key,
            request.container,
            self,
            0,
            -1,
            _duplicates_to_keep(request.streams),
            request.log,
            request.stdin_once,
            trace=request.trace,
        )
        self.runs[key] = run
        try:
            parcel = _Parcel(request.slots)
            cgroup = parcel.add(request.cgroup)
            streams = parcel.add_all(request.streams)
            attachments = [self._supervision.open_attachment(run, ends) for ends in attach]
            described = [
                (one.number, parcel.add_all((*one.descriptors, -1)), one.keys)
                for one in attachments
            ]
            parcel.check()
            answer, _ = self.ask(
                "start",
                (
                    key,
                    request.container,
                    request.plan,
                    cgroup,
                    streams,
                    request.log,
                    request.stdin_once,
                    described,
                    len(request.slots),
                    request.trace.on,
                ),
                parcel.descriptors,
            )
        except BaseException:
            self.drop(run)
            raise
        if answer[0] == "failed":
            self.drop(run)
            return (answer[2], answer[3]), []
        if request.trace.on:
            noted, steps = answer[5:]
            request.trace.add(SUPERVISOR, noted)
            request.trace.add(CHILD, steps_of_child(steps, request.labels))
            request.trace.mark(DAEMON, "knows that it is started")
        return run, attachments

    def attach(self, run: Run, ends: Streams) -> Attachment:
        """Connect a client's streams; SupervisorLost never: a new supervisor gets them too."""
        attachment = self._supervision.open_attachment(run, ends)
        parcel = _Parcel(())
        streams = parcel.add_all((*attachment.descriptors, -1))
        self.tell(
            ("attach", run.key, attachment.number, streams, attachment.keys), parcel.descriptors
        )
        return attachment

    def forget(self, run: Run) -> None:
        self.tell(("forget", run.key))
        self.drop(run)
        self._supervision.done_with(self)

    def drop(self, run: Run) -> None:
        """Close what this process keeps for a run."""
        with self._lock:
            known = self.runs.pop(run.key, None)
        if known is not None:
            self._supervision.release(run, AttachmentEnd.CLOSED)

    def abandon(self) -> list[Run]:
        """What it had, now that it is dead. Starts without an answer are left to who asked."""
        with self._lock:
            runs = [run for run in self.runs.values() if run.pid]
            for run in runs:
                del self.runs[run.key]
        return runs

    def hand_over(self, run: Run) -> None:
        """Give a lost supervisor's container to this one, which has not said ready yet."""
        parcel = _Parcel(())
        pidfd = parcel.add(run.pidfd)
        streams = parcel.add_all(run.streams)
        for one in list(run.attachments.values()):
            if not one.descriptors:  # an earlier engine's: only the lost supervisor had them
                self._supervision.close_attachment(one.number, AttachmentEnd.BROKEN)
        described = [
            (one.number, parcel.add_all((*one.descriptors, -1)), one.keys)
            for one in run.attachments.values()
            if not one.done
        ]
        self.tell(
            (
                "adopt",
                run.key,
                run.container,
                run.pid,
                pidfd,
                streams,
                run.log,
                run.stdin_once,
                run.started,
                described,
            ),
            parcel.descriptors,
        )
        with self._lock:
            self.runs[run.key] = run
        run.supervisor = self

    def leave(self) -> None:
        """End the conversation and wait for its end; the process ends if it has no container."""
        self.retire()
        if self._reader is not threading.current_thread():
            self._reader.join()

    def retire(self) -> None:
        """End the conversation; never blocks."""
        self._leaving = True
        with suppress(OSError):
            self._socket.shutdown(SHUT_RDWR)

    def end(self) -> None:
        """Make sure that the process is gone: what it did not tell, nobody will."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        elif self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._await_end()
        self.path.unlink(missing_ok=True)

    def _await_end(self) -> bool:
        """Wait for the end of a process that some earlier engine started; False: it goes on."""
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        if not ended.poll(PATIENCE * 1000):
            return False
        with suppress(ChildProcessError):  # ours only if that engine was in this very process
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        return True

    def let_go(self) -> None:
        """Close all that this process has for it. Its reader calls it, last of all."""
        for run in list(self.runs.values()):
            self.drop(run)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        for descriptor in self.inheritance:
            os.close(descriptor)
        self.inheritance = []
        self._socket.close()

    # -- what it says --------------------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                got = receive(self._socket)
            except OSError:
                got = None
            if got is None:
                break
            try:
                self._dispatch(*got)
            except Exception:
                # One message that makes no sense must not cost us all the others.
                log.exception("supervisor %d said %s", self.number, got[0][0])
        with self._lock:
            self._gone = True
            waiting, self._replies = self._replies, {}
        for reply in waiting.values():
            reply.give(None, [])
        if self._leaving:
            self._left()
        else:
            self._supervision.lost(self)
        self.let_go()

    def _left(self) -> None:
        """The conversation is over because we ended it."""
        if self.runs:
            return  # it goes on without us
        ended = True
        if self.process is not None:
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                ended = False
        elif self._pidfd >= 0:
            ended = self._await_end()
        if not ended:
            log.warning("supervisor %d has nothing to do and does not leave", self.pid)
            return
        self.path.unlink(missing_ok=True)

    def _dispatch(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        name = message[0]
        if name == "exited":
            run = self.runs.get(message[1])
            if run is not None:
                self._exited(run, message[2], message[3])
            else:
                self.tell(("forget", message[1]))  # a start that was given up
        elif name == "closed":
            self._supervision.close_attachment(message[1], AttachmentEnd(message[2]))
        elif name == "started":
            self._started(message, descriptors)
        elif name == "failed":
            self._answer(message, descriptors)
        elif name == "eof":
            run = self.runs.get(message[1])
            if run is not None and run.streams[0] >= 0:
                stdin = run.streams[0]
                run.streams = (-1, *run.streams[1:])
                os.close(stdin)
        elif name == "logfail":
            run = self.runs.get(message[1])
            if run is not None:
                self._supervision.exits.log_failed(run, message[2])
        elif name == "running":
            self._running(message, descriptors)
        elif name == "listed":
            self.inheritance = descriptors
            self.pid = message[2]
            with suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
            self._answer(message, [])

    def _started(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        # Noted here, not by the thread that asked: the exit may be the very next message.
        _, sequence, key, pid, started, *_ = message
        run = self.runs.get(key)
        if run is None or not descriptors:  # given up meanwhile, or no descriptor was free
            for descriptor in descriptors:
                os.close(descriptor)
            with self._lock:
                reply = self._replies.pop(sequence, None)
            if reply is not None:
                reply.give(None, [])
            return
        run.pid, run.pidfd, run.started = pid, descriptors[0], started
        self._answer(message, [])

    def _answer(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        with self._lock:
            reply = self._replies.pop(message[1], None)
        if reply is not None:
            reply.give(message, descriptors)

    def _exited(self, run: Run, status: int, when: float) -> None:
        if status == -1:
            status = exit_status(run.pidfd, run.pid)
        run.ended = when
        run.status = status
        if run.trace.on:
            run.trace.at(from_epoch(when), PUMP, "program has ended, output is drained")
            run.trace.mark(DAEMON, "knows of the end")
        self._supervision.exits.container_exited(run, status, when)

    def _running(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        # Noted here, not by the thread that asked: its exit may be the very next message.
        _, key, container, pid, ends, written, once, numbers, status, ended, started = message
        taken = [descriptors[index] if index >= 0 else -1 for index in ends]
        run = Run(
            key,
            container,
            self,
            pid,
            taken[4],
            (taken[0], taken[1], taken[2], taken[3]),
            written,
            once,
            started,
        )
        for number in numbers:
            self._supervision.reopen_attachment(run, number)
        self.runs[key] = run
        self._reported.append(run)
        if status is not None:
            self._exited(run, status, ended)

    def running(self) -> list[Run]:
        """What it looks after: a new daemon learns what goes on. Nothing, where it has just ended.

        SupervisorLost: it is there and does not answer.
        """
        try:
            self.ask("list", (), timeout=PATIENCE)
        except SupervisorLost:
            self._reader.join(FAREWELL)  # its end is heard there, a moment later perhaps
            if self.alive:
                raise
        return self._reported


class Supervision:
    """All supervisors of one engine."""

    def __init__(self, run_directory: Path, containers: Path, count: int, exits: Exits) -> None:
        self.exits = exits
        self._run = run_directory
        self._containers = containers
        self._count = count
        self._fresh: list[Supervisor] = []
        self._old: list[Supervisor] = []
        self._keys = itertools.count(time.time_ns())
        self._turn = itertools.count()
        self._attachments: dict[int, Attachment] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._program = _sealed_interpreter()

    def open(self) -> None:
        """Start this engine's supervisors."""
        with self._changed:
            for _ in range(self._count):
                self._fresh.append(self._launch([], ()))

    def find(self) -> Iterator[Run]:
        """Runs of an earlier engine. Call before `open`.

        SupervisorLost: a supervisor is there and does not answer, so nobody knows what it has.
        """
        for path in sorted(self._run.glob("supervisor-*.sock")):
            conversation = socket(AF_UNIX, SOCK_SEQPACKET)
            try:
                conversation.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                conversation.close()
                path.unlink(missing_ok=True)
                continue
            except OSError:
                conversation.close()
                raise
            number = int(path.stem.rpartition("-")[2])
            supervisor = Supervisor(number, path, conversation, self, None)
            with self._changed:
                self._old.append(supervisor)
            supervisor.listen()
            yield from supervisor.running()
            self.done_with(supervisor)

    def start(
        self, request: StartRequest, attach: Sequence[Streams]
    ) -> tuple[Run | tuple[int, int], list[Attachment]]:
        """Start a container on the supervisor whose turn it is. SupervisorLost: try again.

        Blocks while all of them are being replaced, up to `PATIENCE`.
        """
        supervisor = self._next()
        if supervisor is None:
            with self._changed:
                self._changed.wait_for(lambda: self._next() is not None, PATIENCE)
            supervisor = self._next()
        if supervisor is None:
            raise SupervisorLost("no supervisor comes up; see what the daemon logs")
        return supervisor.start(next(self._keys), request, attach)

    def _next(self) -> Supervisor | None:
        turn = next(self._turn)
        fresh = self._fresh
        for index in range(len(fresh)):
            supervisor = fresh[(turn + index) % len(fresh)]
            if supervisor.alive:
                return supervisor
        return None

    def open_attachment(self, run: Run, ends: Streams) -> Attachment:
        descriptors = [
            stdio.as_foreign_input(ends.stdin) if ends.stdin >= 0 else -1,
            stdio.as_foreign_output(ends.stdout) if ends.stdout >= 0 else -1,
            stdio.as_foreign_output(ends.stderr) if ends.stderr >= 0 else -1,
        ]
        return self._register(Attachment(next(self._keys), run, descriptors, ends.detach_keys))

    def reopen_attachment(self, run: Run, number: int) -> Attachment:
        """An attachment an earlier engine made; its descriptors are the supervisor's alone."""
        return self._register(Attachment(number, run, (), b""))

    def _register(self, attachment: Attachment) -> Attachment:
        self._attachments[attachment.number] = attachment
        attachment.run.attachments[attachment.number] = attachment
        return attachment

    def close_attachment(self, number: int, end: AttachmentEnd) -> None:
        attachment = self._attachments.pop(number, None)
        if attachment is not None:
            attachment.run.attachments.pop(number, None)
            attachment.ended(end)
            attachment.run.forget_if_done()

    def release(self, run: Run, end: AttachmentEnd) -> None:
        """Close what this process keeps for a run that no supervisor has any more."""
        descriptors = (run.pidfd, *run.streams)
        run.streams = NO_STREAMS
        run.pidfd = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        for number in list(run.attachments):
            self.close_attachment(number, end)

    def lost(self, supervisor: Supervisor) -> None:
        """A supervisor died: a new one takes its containers over, at the same bytes."""
        supervisor.end()
        with supervisor.moving:
            runs = []
            for run in supervisor.abandon():
                if run.status is None:
                    runs.append(run)
                else:  # it was over, and logged; a slow client's last bytes died with the pump
                    self.release(run, AttachmentEnd.ENDED)
            with self._changed:
                fresh = supervisor in self._fresh
                if not fresh and not runs:
                    if supervisor in self._old:
                        self._old.remove(supervisor)
                    return
            log.warning("supervisor %d died; a new one takes over", supervisor.pid)
            self._succeed(supervisor, runs, fresh=fresh)

    def _succeed(self, supervisor: Supervisor, runs: Sequence[Run], *, fresh: bool) -> None:
        setbacks = supervisor.setbacks + 1 if supervisor.died_young else 0
        while True:
            if setbacks:
                time.sleep(min(LONGEST_PAUSE, 0.05 * 2 ** min(setbacks, 10)))
            try:
                with self._changed:
                    successor = self._launch(supervisor.inheritance, runs)
                    supervisor.inheritance = []
                    successor.setbacks = setbacks
                    mates = self._fresh if fresh else self._old
                    if supervisor in mates:
                        mates[mates.index(supervisor)] = successor
                    else:  # we are about to leave
                        mates.append(successor)
                    self._changed.notify_all()
                    return
            except OSError as error:
                log.warning("cannot start a supervisor: %s", error)
                setbacks += 1
            if self._closing:
                for run in runs:
                    self.release(run, AttachmentEnd.BROKEN)
                return

    def done_with(self, supervisor: Supervisor) -> None:
        """An earlier engine's supervisor leaves with its last container: it gets no new ones."""
        with self._changed:
            if supervisor not in self._old or supervisor.runs:
                return
            self._old.remove(supervisor)
        supervisor.retire()

    def close(self) -> None:
        """Let go of all supervisors; those with containers go on, the others end."""
        self._closing = True
        while True:
            with self._changed:
                group = [*self._fresh, *self._old]
            if not group:
                break
            for supervisor in group:
                supervisor.retire()
            for supervisor in group:
                supervisor.leave()  # one that had just died has a successor now
                with self._changed:
                    for mates in (self._fresh, self._old):
                        if supervisor in mates:
                            mates.remove(supervisor)
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    @property
    def pids(self) -> list[int]:
        with self._changed:
            return [one.pid for one in (*self._fresh, *self._old) if one.pid]

    def _launch(self, inheritance: Sequence[int], runs: Sequence[Run]) -> Supervisor:
        number = _free_number(self._run)
        path = self._run / f"supervisor-{number}.sock"
        inherited = list(inheritance) or _staging()
        listener = socket(AF_UNIX, SOCK_SEQPACKET)
        conversation = socket(AF_UNIX, SOCK_SEQPACKET)
        try:
            listener.bind(str(path))
            listener.listen(4)
            conversation.connect(str(path))
            process = self._spawn(listener.fileno(), inherited)
        except BaseException:
            conversation.close()
            path.unlink(missing_ok=True)
            for descriptor in set(inherited) - set(inheritance):
                os.close(descriptor)
            raise
        finally:
            listener.close()
        supervisor = Supervisor(number, path, conversation, self, process)
        supervisor.inheritance = inherited
        for run in runs:
            supervisor.hand_over(run)
        supervisor.listen()
        supervisor.tell(("ready",))
        return supervisor

    def _spawn(self, listener: int, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
        package = Path(__file__).resolve().parent.parent
        passed = (listener, *inherited)
        return subprocess.Popen(
            [
                sys.executable,
                "-IS",
                "-c",
                _MAIN,
                str(package),
                *(str(descriptor) for descriptor in passed),
                str(self._containers),
            ],
            executable=f"/proc/self/fd/{self._program}",
            pass_fds=(*passed, self._program),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )


class _Parcel:
    """Descriptors of one message, each named by its index."""

    def __init__(self, slots: Sequence[int]) -> None:
        self.descriptors = list(slots)

    def add(self, descriptor: int) -> int:
        if descriptor < 0:
            return -1
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1

    def add_all(self, descriptors: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.add(descriptor) for descriptor in descriptors)

    def check(self) -> None:
        """RequestError for more than a message carries, its own memfd counted."""
        if len(self.descriptors) >= DESCRIPTOR_LIMIT:
            raise RequestError(
                f"too many mounts and streams: {len(self.descriptors)} descriptors, "
                f"and one start takes {DESCRIPTOR_LIMIT - 1}; name fewer mounts"
            )


def root_of(run: Run) -> int:
    """A descriptor of a running container's root directory. Conflict when it has ended."""
    try:
        root = os.open(f"/proc/{run.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Conflict("the container has ended; start it first") from error
    if has_ended(run):  # then the number may be another process's by now
        os.close(root)
        raise Conflict("the container has ended; start it first")
    return root


def has_ended(run: Run) -> bool:
    poller = select.poll()
    try:
        poller.register(run.pidfd, select.POLLIN)
        return bool(poller.poll(0))
    except (OSError, ValueError):  # it was closed under our hands: the run is over
        return True


def exit_status(pidfd: int, pid: int) -> int:
    """How a process that its supervisor could not wait for ended, as wait(2) gives it.

    A child of ours (we are the subreaper) is reaped. One that was never ours is asked by
    PIDFD_GET_INFO, which Linux has since 6.15 and which knows once its parent has reaped it;
    before that its /proc/PID/stat does. Where both fail the answer is 255 << 8, an exit code of
    255, since the truth is gone. Source: ioctl_pidfd(2), proc_pid_stat(5).
    """
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        for found in (_exit_info(pidfd), _zombie_status(pidfd, pid), _exit_info(pidfd)):
            if found is not None:
                return found
        return 255 << 8
    if ended is None:
        return 255 << 8
    if ended.si_code == os.CLD_EXITED:
        return ended.si_status << 8
    return ended.si_status | (0x80 if ended.si_code == os.CLD_DUMPED else 0)


def _zombie_status(pidfd: int, pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        signal.pidfd_send_signal(pidfd, 0)  # still there, so it was its file
    except OSError:
        return None
    return int(fields[-1]) if fields[0] == "Z" else None


def _exit_info(pidfd: int) -> int | None:
    info = bytearray(64)
    info[0:8] = _PIDFD_INFO_EXIT.to_bytes(8, "little")
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
            return None
        raise
    if not int.from_bytes(info[0:8], "little") & _PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(info[60:64], "little", signed=True)


def _duplicates_to_keep(streams: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return tuple(  # type: ignore[return-value]
        fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) if end >= 0 else -1 for end in streams
    )


def _staging() -> list[int]:
    """A pipe and the journal's memory: where a batch of output waits while it is written."""
    staging = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    journal = os.memfd_create("dockpy-journal", os.MFD_CLOEXEC)
    os.ftruncate(journal, JOURNAL_SIZE)
    return [*staging, journal]


def _sealed_interpreter() -> int:
    """A memfd copy of this interpreter that nobody can write to."""
    program = os.memfd_create("dockpy-supervisor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with (
        open(os.path.realpath(sys.executable), "rb") as source,
        os.fdopen(os.dup(program), "wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    fcntl.fcntl(
        program,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
    )
    return program


def _free_number(directory: Path) -> int:
    return next(
        number
        for number in itertools.count()
        if not (directory / f"supervisor-{number}.sock").exists()
    )
