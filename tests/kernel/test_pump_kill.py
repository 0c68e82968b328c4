"""The pump killed at every instruction of a batch: the log has each byte once, whatever was done.

A pump in a child process is stepped through one batch, instruction by instruction. Each time that
anything outlasting it has changed (journal, staging pipe, source, log) the whole of that is copied,
as a killed pump would leave it, and another pump goes on from the copy.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dockpy._copy import JOURNAL_SIZE, Pump
from patience import patient

pytestmark = pytest.mark.needs("root")

PTRACE_TRACEME, PTRACE_SINGLESTEP, PTRACE_SYSCALL = 0, 9, 24
SYS_PRCTL = {"x86_64": 157, "aarch64": 167}.get(platform.machine(), -1)
"""The loop's first system call."""
PAGE = 4096
MOST_STEPS = 200_000
KEY = 7

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.tee.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint]


@dataclass(frozen=True, slots=True)
class Left:
    """All that outlasts a killed pump."""

    journal: tuple[tuple[int, bytes], ...]
    """What was written of it, by offset: it is 300 MB of holes else."""
    staging: bytes
    source: bytes
    log: bytes

    @property
    def phase(self) -> int:
        return self.journal[0][1][0] if self.journal else 0


class World:
    """What supervisors inherit from each other, filled from a `Left`."""

    def __init__(self, left: Left, log: Path) -> None:
        self.staging = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.source: tuple[int, ...] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.journal = os.memfd_create("journal", os.MFD_CLOEXEC)
        self.log = log
        os.ftruncate(self.journal, JOURNAL_SIZE)
        for offset, data in left.journal:
            os.pwrite(self.journal, data, offset)
        for pipe, held in ((self.staging, left.staging), (self.source, left.source)):
            if held:
                os.write(pipe[1], held)
        log.write_bytes(left.log)

    def pump(self) -> Pump:
        pump = Pump(self.staging, self.journal)
        pump.add(
            KEY,
            stdin=-1,
            stdout=os.dup(self.source[0]),
            stderr=-1,
            tty=-1,
            log_path=bytes(self.log),
            log_max_size=0,
            log_max_file=1,
            stdin_once=False,
        )
        return pump

    def glance(self) -> tuple[bytes, int, int, int]:
        """What differs when anything does; cheap."""
        return (
            os.pread(self.journal, PAGE, 0),
            waiting_in(self.staging[0]),
            waiting_in(self.source[0]),
            os.stat(self.log).st_size,
        )

    def left(self) -> Left:
        return Left(
            tuple(extents(self.journal)),
            look(self.staging[0]),
            look(self.source[0]),
            self.log.read_bytes(),
        )

    def end_source(self, rest: bytes) -> None:
        """The program writes `rest` and ends."""
        reader, writer = self.source
        os.write(writer, rest)
        os.close(writer)
        self.source = (reader,)

    def close(self) -> None:
        for end in (*self.staging, *self.source, self.journal):
            os.close(end)


def extents(file: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each part that is no hole."""
    end = 0
    while True:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as none_left:
            if none_left.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, os.pread(file, end - start, start)


def waiting_in(pipe: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def look(pipe: int) -> bytes:
    """The bytes in a pipe, which stay there: tee(2)."""
    size = waiting_in(pipe)
    if size == 0:
        return b""
    reader, writer = os.pipe()
    try:
        assert _libc.tee(pipe, writer, size, 0) == size
        return os.read(reader, size)
    finally:
        os.close(reader)
        os.close(writer)


def trace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")


def syscall_of(pid: int) -> int:
    word = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return int(word) if word.lstrip("-").isdigit() else -1


def stopped(pid: int, *, may_rest: bool) -> bool:
    """Whether the child has taken its step; False when it sleeps and `may_rest`."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG if may_rest else 0)
        if found:
            assert os.WIFSTOPPED(status), f"the pump ended: {status:#x}"
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S":
            return False


def steps(world: World) -> Iterator[Left]:
    """Every different state that a pump leaves on its way through what is in the source."""
    pid = os.fork()
    if pid == 0:
        pump = world.pump()
        trace(PTRACE_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        pump.run()
        os._exit(1)
    try:
        while stopped(pid, may_rest=False) and syscall_of(pid) != SYS_PRCTL:
            trace(PTRACE_SYSCALL, pid)
        last = world.glance()
        yield world.left()
        over = False
        for _ in range(MOST_STEPS):
            trace(PTRACE_SINGLESTEP, pid)
            if not stopped(pid, may_rest=over):
                return
            now = world.glance()
            if now != last:
                last = now
                yield world.left()
            over = now[1:3] == (0, 0) and now[0][0] == 0
        raise AssertionError("the pump does not come to rest")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def finish(left: Left, log: Path, rest: bytes) -> str:
    """What the log says once another pump has gone on from there, and `rest` and the end came."""
    world = World(left, log)
    pump = world.pump()
    world.end_source(rest)
    thread = threading.Thread(target=pump.run)
    thread.start()
    deadline = time.monotonic() + patient(10)
    while (mine := pump.duplicates(KEY)[1]) >= 0 and time.monotonic() < deadline:
        os.close(mine)
        time.sleep(0.0005)
    pump.stop()
    thread.join()
    assert mine < 0, "the end of the source was not seen"
    world.close()
    return "".join(json.loads(line)["log"] for line in log.read_bytes().splitlines())


BEFORE, BATCH, REST = b"first \xe2", b"\x82\xac second\n\xff third \xc3", b"\xa4\n"
WHOLE = "first \u20ac second\n\ufffd third \u00e4\n"


@pytest.fixture
def begun(tmp_path: Path) -> Left:
    """A pump that has logged BEFORE, keeps the beginning of a character, and has BATCH to do."""
    world = World(Left((), b"", BEFORE, b""), tmp_path / "before")
    for left in steps(world):
        last = left
    world.close()
    assert (last.staging, last.source, last.phase) == (b"", b"", 0)
    return Left(last.journal, b"", BATCH, last.log)


def test_killed_at_any_instruction_nothing_is_lost_or_doubled(begun: Left, tmp_path: Path) -> None:
    world = World(begun, tmp_path / "log")
    phases = set()
    for number, left in enumerate(steps(world)):
        phases.add(left.phase)
        assert finish(left, tmp_path / "copy", REST) == WHOLE, f"state {number}: {left.phase}"
    world.close()
    assert phases == {0, 1, 2, 3, 4}


def test_killed_again_at_any_instruction_of_the_recovery(begun: Left, tmp_path: Path) -> None:
    """One state of each kind, the same in every run; all of them with DOCKPY_THOROUGH=1."""
    world = World(begun, tmp_path / "log")
    states = list(steps(world))
    world.close()
    if not os.environ.get("DOCKPY_THOROUGH"):
        states = list({(left.phase, bool(left.staging)): left for left in states}.values())
        assert {left.phase for left in states if left.staging} == {1, 2}
    for number, killed in enumerate(states):
        again = World(killed, tmp_path / "again")
        for left in steps(again):
            assert finish(left, tmp_path / "copy", REST) == WHOLE, f"state {number}, {left.phase}"
        again.close()
