"""What programs, terminals and clients may do to a pump."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy._copy import ATTACHMENT_CLOSED, EXITED, JOURNAL_SIZE, STDIN_CLOSED, Pump
from dockpy.logs import NAME, copy_log, read_log
from patience import patient

ADDED = {"log_path": b"", "log_max_size": 0, "log_max_file": 1, "stdin_once": False}
NO_ENDS = {"stdin": -1, "stdout": -1, "stderr": -1, "tty": -1}


class Bench:
    """A pump in a thread, and the programs in it."""

    def __init__(self) -> None:
        self._ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._journal = os.memfd_create("journal", os.MFD_CLOEXEC)
        os.ftruncate(self._journal, JOURNAL_SIZE)
        self.pump = Pump(self._ends, self._journal)
        self._thread = threading.Thread(target=self.pump.run)
        self._thread.start()
        self.seen: list[tuple[int, int, int]] = []

    def wait_for(self, kind: int, subject: int) -> int:
        deadline = time.monotonic() + patient(10)
        while True:
            for one in self.seen:
                if one[:2] == (kind, subject):
                    return one[2]
            left = deadline - time.monotonic()
            assert left > 0, f"no event {kind} for {subject}; saw {self.seen}"
            select.select([self.pump.event_fd], [], [], left)
            self.seen += [one[:3] for one in self.pump.events()]

    def add(self, key: int, **given: object) -> None:
        self.pump.add(key, **(NO_ENDS | ADDED | given))  # type: ignore[arg-type]

    def watch(self, key: int, process: subprocess.Popen[bytes]) -> int:
        """The pump waits for it; a pidfd of our own."""
        process.returncode = 0
        pidfd = os.pidfd_open(process.pid)
        self.pump.watch(key, os.dup(pidfd))
        return pidfd

    def close(self) -> None:
        self.pump.stop()
        self._thread.join()
        del self.pump
        for end in (*self._ends, self._journal):
            os.close(end)


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.close()


def messages(log: Path) -> list[str]:
    return [json.loads(line)["log"] for line in log.read_bytes().splitlines()]


def eventually(what: str, true: object) -> None:
    deadline = time.monotonic() + patient(10)
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# -- lines -------------------------------------------------------------------------------------


def test_lines_that_arrive_in_pieces_are_whole_in_the_log(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    bench.add(1, stdout=reader, log_path=bytes(log))
    text = b"".join(b"line %d\n" % n for n in range(2000))
    for at in range(0, len(text), 100):
        os.write(writer, text[at : at + 100])
        if at % 1000 == 0:
            time.sleep(0.001)
    os.close(writer)
    eventually("all is logged", lambda: log.exists() and "line 1999\n" in messages(log))
    assert messages(log) == text.decode().splitlines(keepends=True)


def test_line_without_end_is_logged_when_the_output_is_closed(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    bench.add(1, stdout=reader, log_path=bytes(log))
    os.write(writer, b"whole\nno end")
    os.close(writer)
    eventually("it is logged", lambda: log.exists() and len(messages(log)) == 2)
    assert messages(log) == ["whole\n", "no end"]


def test_streams_have_unfinished_lines_of_their_own(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    out, to_out = os.pipe2(os.O_CLOEXEC)
    err, to_err = os.pipe2(os.O_CLOEXEC)
    bench.add(1, stdout=out, stderr=err, log_path=bytes(log))
    for at in range(5):
        os.write(to_out, b"o%d" % at)
        os.write(to_err, b"e%d" % at)
    os.write(to_out, b"\n")
    os.write(to_err, b"\n")
    os.close(to_out)
    os.close(to_err)
    eventually("both are logged", lambda: log.exists() and len(messages(log)) == 2)
    assert sorted(messages(log)) == ["e0e1e2e3e4\n", "o0o1o2o3o4\n"]


def test_torn_line_of_an_earlier_crash_is_cut_off(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    old = b'{"log":"old\\n","stream":"stdout","time":"2026-01-02T03:04:05.000000000Z"}\n'
    log.write_bytes(old + b'{"log":"torn' + b"\0" * 5000)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    bench.add(1, stdout=reader, log_path=bytes(log))
    os.write(writer, b"new\n")
    os.close(writer)
    eventually("it is logged", lambda: b"new" in log.read_bytes())
    assert messages(log) == ["old\n", "new\n"]


# -- exits -------------------------------------------------------------------------------------


def test_stranger_who_writes_to_the_output_does_not_hold_up_the_exit(
    bench: Bench, tmp_path: Path
) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    bench.add(1, stdout=reader, log_path=bytes(tmp_path / "log"), log_max_size=1 << 20)
    stranger = subprocess.Popen(["/usr/bin/yes"], stdout=writer)
    program = subprocess.Popen(["/bin/sh", "-c", "exit 3"], stdout=writer)
    os.close(writer)
    os.close(bench.watch(1, program))
    assert os.waitstatus_to_exitcode(bench.wait_for(EXITED, 1)) == 3
    assert stranger.wait(patient(10)) == -signal.SIGPIPE


def test_exit_status_can_be_asked_of_the_kernel_until_the_container_is_removed(
    bench: Bench,
) -> None:
    bench.add(1)
    pidfd = bench.watch(1, subprocess.Popen(["/bin/sh", "-c", "exit 5"]))
    assert os.waitstatus_to_exitcode(bench.wait_for(EXITED, 1)) == 5
    asked = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert asked is not None
    assert asked.si_status == 5
    bench.pump.remove(1)
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    os.close(pidfd)


def test_exit_is_told_before_a_slow_client_has_everything(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    size = 1_100_000  # more than the client's pipe holds when the pump has made it larger
    reader, writer = os.pipe2(os.O_CLOEXEC)
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    bench.add(1, stdout=reader, log_path=bytes(log))
    bench.pump.attach(1, 10, stdin=-1, stdout=ours, stderr=-1, detach_keys=b"")
    program = subprocess.Popen(["/usr/bin/head", "-c", str(size), "/dev/zero"], stdout=writer)
    os.close(writer)
    os.close(bench.watch(1, program))
    assert bench.wait_for(EXITED, 1) == 0
    assert sum(map(len, messages(log))) == size
    assert ATTACHMENT_CLOSED not in {one[0] for one in bench.seen}
    got = 0
    while chunk := os.read(theirs, 4096):
        got += len(chunk)
    os.close(theirs)
    assert got == size
    assert bench.wait_for(ATTACHMENT_CLOSED, 10) == 0


# -- input -------------------------------------------------------------------------------------


def test_client_learns_that_the_program_closed_its_input(bench: Bench) -> None:
    theirs, to_program = os.pipe2(os.O_CLOEXEC)
    from_client, client = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(from_client, False)
    bench.add(1, stdin=to_program)
    program = subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL)
    os.close(bench.watch(1, program))
    bench.pump.attach(1, 10, stdin=from_client, stdout=-1, stderr=-1, detach_keys=b"")
    os.close(theirs)
    os.write(client, b"nobody reads this\n")
    bench.wait_for(STDIN_CLOSED, 1)
    with pytest.raises(BrokenPipeError):
        os.write(client, b"nor this\n")
    assert EXITED not in {one[0] for one in bench.seen}
    os.kill(program.pid, signal.SIGKILL)
    bench.wait_for(EXITED, 1)
    os.close(client)


# -- terminals ---------------------------------------------------------------------------------


def woken(thread: int) -> int:
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(next(one for one in status.splitlines() if one.startswith("voluntary")).split()[1])


def test_terminal_closed_by_all_is_quiet_and_seen_when_opened_again(
    bench: Bench, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    bench.add(1, tty=master, log_path=bytes(log))
    os.write(slave, b"first\n")
    os.close(slave)
    eventually("it is logged", lambda: log.exists() and "first\r\n" in messages(log))
    pump_thread = bench._thread.native_id
    assert pump_thread is not None
    before = woken(pump_thread)
    time.sleep(0.3)
    assert woken(pump_thread) - before <= 2
    again = os.open(name, os.O_RDWR | os.O_NOCTTY)
    for n in range(3000):  # far more than a terminal holds
        os.write(again, b"again %d\n" % n)
    eventually("it is logged", lambda: messages(log)[-1] == "again 2999\r\n")
    assert messages(log)[1:] == [f"again {n}\r\n" for n in range(3000)]
    os.close(again)


def test_terminal_carries_input_and_output_and_its_end(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    master, slave = pty.openpty()
    from_client, client = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(from_client, False)
    bench.add(1, tty=master, log_path=bytes(log))
    script = "stty -echo; echo ready; read line; echo got $line; exit 4"
    program = subprocess.Popen(["/bin/sh", "-c", script], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.close(bench.watch(1, program))
    eventually("it is ready", lambda: log.exists() and "ready\r\n" in messages(log))
    bench.pump.attach(1, 10, stdin=from_client, stdout=-1, stderr=-1, detach_keys=b"")
    os.write(client, b"words\n")
    assert os.waitstatus_to_exitcode(bench.wait_for(EXITED, 1)) == 4
    assert "".join(messages(log)) == "ready\r\ngot words\r\n"
    os.close(client)


# -- many --------------------------------------------------------------------------------------


def test_a_thousand_idle_containers_cost_little_memory_and_no_time(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THOUSAND],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    memory, wakes = map(int, done.stdout.split())
    assert memory < 2048 * 1000
    assert wakes <= 2


THOUSAND = """
import os, threading, time
from dockpy._copy import JOURNAL_SIZE, Pump
from pathlib import Path
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
ends = os.pipe2(os.O_NONBLOCK)
journal = os.memfd_create("journal")
os.ftruncate(journal, JOURNAL_SIZE)
pump = Pump(ends, journal)
thread = threading.Thread(target=pump.run, daemon=True)
thread.start()
def told(name):
    lines = Path(f"/proc/self/task/{thread.native_id}/status").read_text().splitlines()
    return int(next(one for one in lines if one.startswith(name)).split()[1])
pipes = [os.pipe() for _ in range(1000)]
before = told("VmRSS")
for key, (reader, _) in enumerate(pipes):
    pump.add(key, stdin=-1, stdout=reader, stderr=-1, tty=-1, log_path=b"/nowhere/log",
             log_max_size=0, log_max_file=1, stdin_once=False)
memory = told("VmRSS") - before
wakes = told("voluntary_ctxt_switches")
time.sleep(0.5)
print(memory * 1024, told("voluntary_ctxt_switches") - wakes, flush=True)
os._exit(0)
"""


# -- following ---------------------------------------------------------------------------------


def test_follower_of_a_log_that_rotates_gets_every_line_once(bench: Bench, tmp_path: Path) -> None:
    count = 30_000
    reader, writer = os.pipe2(os.O_CLOEXEC)
    bench.add(
        1, stdout=reader, log_path=bytes(tmp_path / NAME), log_max_size=150_000, log_max_file=500
    )
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    over, end = os.pipe2(os.O_CLOEXEC)
    got = bytearray()

    def read() -> None:
        while chunk := os.read(theirs, 1 << 16):
            got.extend(chunk)

    def follow() -> None:
        copy_log(tmp_path, ours, -1, follow=over)
        os.close(ours)

    threads = [threading.Thread(target=one) for one in (read, follow)]
    for thread in threads:
        thread.start()
    program = subprocess.Popen(["/usr/bin/seq", "1", str(count)], stdout=writer)
    os.close(writer)
    os.close(bench.watch(1, program))
    bench.wait_for(EXITED, 1)
    os.close(end)
    for thread in threads:
        thread.join()
    expected = b"".join(b"%d\n" % n for n in range(1, count + 1))
    assert len(list(tmp_path.glob(f"{NAME}.*"))) > 5
    assert bytes(got) == expected
    assert b"".join(entry.message for entry in read_log(tmp_path)) == expected
    os.close(theirs)
    os.close(over)


def test_follower_notices_that_its_reader_has_gone(tmp_path: Path) -> None:
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    over, end = os.pipe2(os.O_CLOEXEC)
    raised: list[BaseException] = []

    def follow() -> None:
        try:
            copy_log(tmp_path, ours, -1, follow=over)
        except BrokenPipeError as error:
            raised.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    os.close(theirs)
    thread.join(patient(10))
    alive = thread.is_alive()
    os.close(end)
    thread.join()
    os.close(over)
    os.close(ours)
    assert not alive
    assert len(raised) == 1
