"""Starts the daemon for a client that found none: one daemon, however many clients ask at once.

Loaded in the client, and only then. Clients take turns by a lock in the run directory; who gets it
looks for a daemon again before it starts one. While the root has an owner none is started: that one
is coming up, or going, and a daemon that we start beside it would take over when the owner is ended
on purpose. The daemon leads a session of its own, without the caller's terminal, directory, cgroups
and most of its environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from dockpy.api import groups

PATIENCE = 30.0
"""Seconds a daemon may take until it answers: a cold disk and a slow machine need more than ten."""
TURN = 45.0
"""Seconds a client waits for its turn: more than one other may need."""
LOCKED = 1
"""Exit status of a daemon whose root belongs to another engine: perhaps one that is just ending."""
LOG_LIMIT = 4 << 20
"""Bytes of an old log that are kept."""
KEPT = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DOCKPY_REGISTRIES"}
)
"""What a daemon takes over of its first client's environment, beside proxies and certificates."""

Connection = TypeVar("Connection")


class CannotLaunch(Exception):
    """No daemon came up; the text is one line for the user."""


def launch(
    root: str, run: str, command: Sequence[str], reach: Callable[[], Connection]
) -> Connection:
    """What `reach` gives once a daemon of `root` answers; `command` starts one.

    `reach` raises OSError while there is none. Blocks at most TURN and PATIENCE seconds.
    Raises CannotLaunch.
    """
    try:
        os.makedirs(run, mode=0o700, exist_ok=True)
        lock = os.open(f"{run}/launch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotLaunch(f"cannot use the run directory {run}: {error.strerror}") from error
    try:
        connection = await_turn(lock, reach)
        return start(root, run, command, reach) if connection is None else connection
    finally:
        os.close(lock)


def await_turn(lock: int, reach: Callable[[], Connection]) -> Connection | None:
    """None once the lock is ours and there is still no daemon.

    Asks less and less often: fifty clients that ask all the time leave a slow machine none for the
    daemon.
    """
    deadline = time.monotonic() + TURN
    pause = 0.01
    while True:
        ours = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ours = False
        with contextlib.suppress(OSError):
            return reach()
        if ours:
            return None
        if time.monotonic() > deadline:
            raise CannotLaunch("another client is starting the daemon and does not get ahead")
        time.sleep(pause)
        pause = min(0.2, pause * 1.3)


def start(
    root: str, run: str, command: Sequence[str], reach: Callable[[], Connection]
) -> Connection:
    """Start daemons until one answers, its root is not just being let go of, or time is up."""
    deadline = time.monotonic() + PATIENCE
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the daemon's status
    while True:
        while (pid := owner(f"{root}/lock")) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                return reach()
            time.sleep(0.01)
        if pid:
            raise CannotLaunch(
                f"the engine with pid {pid} owns {root} and does not answer at {run}"
            )
        log = open_log(f"{run}/daemon.log")
        try:
            begin = os.fstat(log).st_size
            daemon = spawn(command, log)
            status: int | None = None
            while status is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    return reach()
                done, wait_status = os.waitpid(daemon, os.WNOHANG)
                status = os.waitstatus_to_exitcode(wait_status) if done else None
                time.sleep(0.01)
            why = last_line(log, begin)
        finally:
            os.close(log)
        if status is None:
            raise CannotLaunch(f"the daemon does not answer after {PATIENCE:.0f} s; see {run}")
        if status != LOCKED or time.monotonic() > deadline:
            why = why or f"it ended with {status}"
            raise CannotLaunch(f"the daemon did not start: {why}; {run}/daemon.log says more")
        time.sleep(0.1)


def owner(lock: str) -> int:
    """The pid of the process that holds an engine's lock; 0 when nobody does, or none can tell.

    Asked of /proc/locks (proc_locks(5)): to try the lock would refuse a daemon that comes up now.
    """
    try:
        found = os.stat(lock)
        with open("/proc/locks") as locks:
            lines = locks.read().splitlines()
    except OSError:
        return 0
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        match line.split():
            case [_, "FLOCK", _, "WRITE", pid, place, _, _] if place == device:
                return int(pid)
    return 0


def open_log(path: str) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        log = os.open(path, flags, 0o600)
        if os.fstat(log).st_size > LOG_LIMIT:
            os.ftruncate(log, 0)
    except OSError as error:
        raise CannotLaunch(f"cannot write {path}: {error.strerror}") from error
    return log


def spawn(command: Sequence[str], log: int) -> int:
    """The pid of a daemon with nothing of ours but its log."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 1 << 20)
        for stayed in groups.leave_all():
            os.write(2, f"dockpy: the daemon stays in its caller's cgroup {stayed}\n".encode())
        os.execve(command[0], list(command), environment(os.environ))
    except OSError as error:
        os.write(2, f"dockpy: cannot execute {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def environment(caller: Mapping[str, str]) -> dict[str, str]:
    """What the daemon gets of its caller's environment."""
    return {
        name: value
        for name, value in caller.items()
        if name in KEPT or name.lower().endswith("_proxy") or name.startswith("SSL_CERT_")
    }


def last_line(log: int, begin: int) -> str:
    """The last thing a daemon said since `begin`, without its own name."""
    size = os.fstat(log).st_size
    text = os.pread(log, 4096, max(begin, size - 4096)).decode(errors="replace")
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("dockpy: ") if lines else ""
