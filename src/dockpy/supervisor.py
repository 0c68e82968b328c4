"""The supervisor process: the parent of containers.

It spawns them, moves their bytes with one native pump, and keeps every exit until the daemon says
it is written down. It survives the daemon: it listens on a socket of its own and tells the next
daemon what runs and what ended. It knows descriptors and packed plans; nothing of images, names or
settings. After `main` has entered its private root, nothing may be imported: there is no file
system to import from.

Messages from the daemon (see `messages`):
    ready                                    adoption is complete, run the pump
    start   seq key id plan cgroup streams log stdin_once attachments slots traced
    adopt   key id pid streams log stdin_once started attachments
    attach  key attachment streams keys
    detach  attachment
    stdin   key                              close the container's stdin
    forget  key                              the exit is written down
    list    seq                              answered by one `running` per container, then `listed`
    quit                                     leave if no container is left
Messages to the daemon:
    started seq key pid time [moments steps] | failed seq step errno | exited key status time
    closed attachment why | logfail key errno | eof key | running ... | listed seq pid

`streams` are indices into the descriptors of the message, -1 for none. A start that is traced is
answered with what was done when (see `trace`): by us, and by the child's steps.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from socket import AF_UNIX, SHUT_RDWR, SOCK_SEQPACKET, socket
from typing import Any

from dockpy import _process
from dockpy._copy import (
    ATTACHMENT_CLOSED,
    EXITED,
    LOG_FAILED,
    STDIN_CLOSED,
    Pump,
)
from dockpy.messages import receive, send
from dockpy.spawn import StepFailed, hold_mounts, spawn
from dockpy.trace import OFF, SUPERVISOR, Trace

WORKERS = 4
"""Threads that spawn: each is stopped by its own vfork for the few milliseconds of a start."""
CONTAINERS = "/containers"
"""Where the supervisor's private root shows the directory of containers."""

Streams = tuple[int, int, int, int]
"""Descriptors of stdin, stdout, stderr and the terminal's master; -1 for none."""


@dataclass(slots=True)
class Record:
    """One container this process looks after."""

    id: str
    pid: int
    log: tuple[str, int, int]
    stdin_once: bool
    attachments: set[int] = field(default_factory=set)
    mounts: int | None = None
    """Keeps its mounts until the exit is written down: their slow end is then in nobody's way."""
    started: float = field(default_factory=time.time)
    status: int | None = None
    ended: float = 0.0


class Supervisor:
    """Answers one daemon at a time; goes on without one."""

    def __init__(self, listener: socket, pump: Pump, inheritance: Sequence[int]) -> None:
        self._listener = listener
        self._pump = pump
        self._inheritance = tuple(inheritance)
        self._records: dict[int, Record] = {}
        self._owner: dict[int, int] = {}
        self._lock = threading.Lock()
        self._daemon: socket | None = None
        self._leaving = False
        self._handlers: dict[str, Callable[..., None]] = {
            "start": self._start,
            "adopt": self._adopt,
            "attach": self._attach,
            "detach": self._detach,
            "stdin": self._stdin,
            "forget": self._forget,
            "list": self._list,
            "quit": self._quit,
        }

    # -- the life of the process ---------------------------------------------------------------

    def serve(self) -> None:
        """Accept daemons, one after the other, until there is nothing left to do."""
        first, _ = self._listener.accept()
        self._until_ready(first)
        for target in (self._pump.run, self._report):
            threading.Thread(target=target, daemon=True).start()
        conversation: socket | None = first
        while conversation is not None:
            self._converse(conversation)
            if not self._needed():
                return
            conversation = self._next_daemon()

    def _until_ready(self, daemon: socket) -> None:
        """Take over a lost supervisor's containers before the pump looks at its staging pipes."""
        self._daemon = daemon
        while (got := receive(daemon)) is not None:
            message, descriptors = got
            if message[0] == "ready":
                return
            self._handle(message, descriptors)

    def _converse(self, daemon: socket) -> None:
        """Serve one daemon until it leaves."""
        self._daemon = daemon
        workers = [
            threading.Thread(target=self._work, args=(daemon,), daemon=True)
            for _ in range(WORKERS - 1)
        ]
        for worker in workers:
            worker.start()
        self._work(daemon)
        for worker in workers:
            worker.join()
        self._daemon = None
        daemon.close()

    def _work(self, daemon: socket) -> None:
        while True:
            try:
                got = receive(daemon)
            except OSError:
                got = None
            except Exception as error:
                _complain("a message", error)
                got = None
            if got is None:
                with contextlib.suppress(OSError):
                    daemon.shutdown(SHUT_RDWR)  # a daemon that is still there sees it and acts
                return
            self._handle(*got)

    def _needed(self) -> bool:
        """Something runs, or an exit has not been written down yet."""
        return bool(self._records)

    def _next_daemon(self) -> socket | None:
        daemon, _ = self._listener.accept()
        return daemon

    def _handle(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        kept: set[int] = set()
        try:
            self._handlers[message[0]](descriptors, kept, *message[1:])
        except Exception as error:
            # One bad request must not end the parent of every other container.
            _complain(message[0], error)
            if message[0] == "start":
                _, seq, key, *_ = message
                self._drop(key)
                self._tell(("failed", seq, 0, getattr(error, "errno", None) or errno.EIO))
        finally:
            _process.close_all(one for one in descriptors if one not in kept)

    def _tell(self, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Say it to the daemon; without one it is found again by `list`."""
        daemon = self._daemon
        if daemon is not None:
            try:
                send(daemon, message, descriptors)
            except OSError:
                return

    # -- what the daemon asks ------------------------------------------------------------------

    def _start(
        self,
        descriptors: list[int],
        kept: set[int],
        seq: int,
        key: int,
        container: str,
        plan: bytes,
        cgroup: int,
        streams: Streams,
        log: tuple[str, int, int],
        stdin_once: bool,
        attachments: Sequence[tuple[int, Streams, bytes]],
        slots: int,
        traced: bool,
    ) -> None:
        trace = Trace() if traced else OFF
        steps: list[int] | None = [] if traced else None
        trace.mark(SUPERVISOR, "has the message")
        record = Record(container, 0, log, stdin_once)
        with self._lock:
            self._records[key] = record
        self._add(descriptors, kept, key, streams, record)
        for attachment, ends, keys in attachments:
            self._attach(descriptors, kept, key, attachment, ends, keys)
        trace.mark(SUPERVISOR, "streams given to the pump")
        try:
            spawned = spawn(
                plan,
                descriptors[:slots],
                cgroup_fd=None if cgroup < 0 else descriptors[cgroup],
                moments=steps,
            )
        except StepFailed as failure:
            self._drop(key)
            self._tell(("failed", seq, failure.index, failure.errno))
            return
        trace.mark(SUPERVISOR, "program is executed")
        record.pid = spawned.pid
        # What enters a container has no log of its own, and no mounts to end with.
        mounts = hold_mounts(spawned.pidfd) if log[0] else None
        record.mounts = None if mounts is None else _process.out_of_the_way(mounts)
        pidfd = _process.out_of_the_way(spawned.pidfd)
        noted: tuple[object, ...] = ()
        if traced:
            trace.mark(SUPERVISOR, "mounts held")
            noted = ([(when, what) for when, _, what in trace.moments], steps)
        self._tell(("started", seq, key, spawned.pid, record.started, *noted), [pidfd])
        self._pump.watch(key, pidfd)

    def _adopt(
        self,
        descriptors: list[int],
        kept: set[int],
        key: int,
        container: str,
        pid: int,
        pidfd: int,
        streams: Streams,
        log: tuple[str, int, int],
        stdin_once: bool,
        started: float,
        attachments: Sequence[tuple[int, Streams, bytes]],
    ) -> None:
        record = Record(container, pid, log, stdin_once, started=started)
        with self._lock:
            self._records[key] = record
        self._add(descriptors, kept, key, streams, record)
        for attachment, ends, keys in attachments:
            self._attach(descriptors, kept, key, attachment, ends, keys)
        descriptors[pidfd] = _process.out_of_the_way(descriptors[pidfd])
        kept.add(descriptors[pidfd])
        self._pump.watch(key, descriptors[pidfd])

    def _attach(
        self,
        descriptors: list[int],
        kept: set[int],
        key: int,
        attachment: int,
        ends: Streams,
        keys: bytes,
    ) -> None:
        stdin, stdout, stderr, _ = _take(descriptors, kept, ends)
        with self._lock:
            record = self._records.get(key)
            if record is not None:
                record.attachments.add(attachment)
                self._owner[attachment] = key
        if record is None:
            for descriptor in (stdin, stdout, stderr):
                if descriptor >= 0:
                    os.close(descriptor)
            self._tell(("closed", attachment, 0))
            return
        self._pump.attach(
            key, attachment, stdin=stdin, stdout=stdout, stderr=stderr, detach_keys=keys
        )

    def _detach(self, _descriptors: list[int], _kept: set[int], attachment: int) -> None:
        self._pump.detach(attachment)

    def _stdin(self, _descriptors: list[int], _kept: set[int], key: int) -> None:
        self._pump.close_stdin(key)

    def _forget(self, _descriptors: list[int], _kept: set[int], key: int) -> None:
        self._drop(key)

    def _list(self, _descriptors: list[int], _kept: set[int], seq: int) -> None:
        with self._lock:
            records = list(self._records.items())
        for key, record in records:
            if not record.pid:
                continue
            streams, descriptors = _present(self._pump.duplicates(key))
            try:
                # Said with the lock held: what happens to it from now on is said after this.
                with self._lock:
                    self._tell(
                        (
                            "running",
                            key,
                            record.id,
                            record.pid,
                            streams,
                            record.log,
                            record.stdin_once,
                            sorted(record.attachments),
                            record.status,
                            record.ended,
                            record.started,
                        ),
                        descriptors,
                    )
            finally:
                _process.close_all(descriptors)
        self._tell(("listed", seq, os.getpid()), self._inheritance)

    def _quit(self, _descriptors: list[int], _kept: set[int]) -> None:
        """The daemon is about to leave; nothing to do but to see it go."""

    # -- what the pump says --------------------------------------------------------------------

    def _report(self) -> None:
        """Hand the pump's events to the daemon, for ever."""
        poller = select.poll()
        poller.register(self._pump.event_fd, select.POLLIN)
        while True:
            poller.poll()
            for kind, subject, value, when in self._pump.events():
                if kind == EXITED:
                    self._ended(subject, value, when)
                elif kind == ATTACHMENT_CLOSED:
                    self._attachment_ended(subject)
                    self._tell(("closed", subject, value))
                elif kind == LOG_FAILED:
                    self._tell(("logfail", subject, value))
                elif kind == STDIN_CLOSED:
                    self._tell(("eof", subject))

    def _ended(self, key: int, status: int, when: float) -> None:
        with self._lock:
            record = self._records.get(key)
            if record is None:
                return
            record.status = status
            record.ended = when
        self._tell(("exited", key, status, when))

    def _attachment_ended(self, attachment: int) -> None:
        with self._lock:
            record = self._records.get(self._owner.pop(attachment, 0))
            if record is not None:
                record.attachments.discard(attachment)

    # -- bookkeeping ---------------------------------------------------------------------------

    def _add(
        self, descriptors: list[int], kept: set[int], key: int, streams: Streams, record: Record
    ) -> None:
        stdin, stdout, stderr, tty = _take(descriptors, kept, streams)
        path, max_size, max_file = record.log
        self._pump.add(
            key,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tty=tty,
            log_path=path.encode() if path else b"",
            log_max_size=max_size,
            log_max_file=max_file,
            stdin_once=record.stdin_once,
        )

    def _drop(self, key: int) -> None:
        with self._lock:
            record = self._records.pop(key, None)
            if record is not None:
                for attachment in record.attachments:
                    self._owner.pop(attachment, None)
        self._pump.remove(key)
        if record is not None and record.mounts is not None:
            os.close(record.mounts)


def _complain(what: str, error: Exception) -> None:
    print(f"supervisor {os.getpid()}: {what}: {error!r}", file=sys.stderr, flush=True)


def _take(descriptors: list[int], kept: set[int], ends: Streams) -> Streams:
    """The descriptors at these indices, from now on the pump's."""
    taken = [-1, -1, -1, -1]
    for place, index in enumerate(ends):
        if index >= 0:
            descriptors[index] = taken[place] = _process.out_of_the_way(descriptors[index])
    kept.update(descriptor for descriptor in taken if descriptor >= 0)
    return (taken[0], taken[1], taken[2], taken[3])


def _present(ends: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indices (-1 for none) and the descriptors they point to."""
    descriptors = [end for end in ends if end >= 0]
    return [descriptors.index(end) if end >= 0 else -1 for end in ends], descriptors


def main(arguments: Sequence[str]) -> None:
    """Be a supervisor. `arguments`: listener, three inherited descriptors, containers' folder."""
    listener = socket(AF_UNIX, SOCK_SEQPACKET, fileno=int(arguments[0]))
    inheritance = [int(text) for text in arguments[1:4]]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    _process.set_name(b"dockpy-super")
    _process.set_undumpable()
    step, err = _process.try_enter_private_root(
        os.fsencode(arguments[4]), os.fsencode(CONTAINERS.lstrip("/"))
    )
    if step:
        sys.exit(f"supervisor: {_process.ROOT_STEPS[step]}: {os.strerror(err)}")
    gc.collect()
    gc.freeze()
    Supervisor(listener, Pump(inheritance[:2], inheritance[2]), inheritance).serve()
    # Threads are stopped by leaving; there is nothing to unwind.
    os._exit(0)
