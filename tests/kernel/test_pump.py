"""The pump with real pipes and processes. Killed at any moment: test_pump_killed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy._copy import (
    ATTACHMENT_CLOSED,
    EXITED,
    JOURNAL_SIZE,
    LOG_FAILED,
    STDIN_CLOSED,
    Pump,
)
from dockpy.stdio import as_foreign_input, as_foreign_output
from patience import patient

NONE = {"stdin": -1, "stdout": -1, "stderr": -1, "tty": -1}
QUIET = {"log_path": b"", "log_max_size": 0, "log_max_file": 1, "stdin_once": False}


def staging() -> tuple[list[int], int]:
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    journal = os.memfd_create("journal", os.MFD_CLOEXEC)
    os.ftruncate(journal, JOURNAL_SIZE)
    return [*ends], journal


class Running:
    """A pump in a thread, with its events collected."""

    def __init__(self) -> None:
        self._ends, self._journal = staging()
        self.pump = Pump(self._ends, self._journal)
        self._thread = threading.Thread(target=self.pump.run)
        self._thread.start()
        self.seen: list[tuple[int, int, int]] = []

    def wait_for(self, kind: int, subject: int, timeout: float = 10.0) -> int:
        """The value of the event; other events are remembered."""
        deadline = time.monotonic() + patient(timeout)
        while True:
            for one in self.seen:
                if one[:2] == (kind, subject):
                    return one[2]
            left = deadline - time.monotonic()
            assert left > 0, f"no event {kind} for {subject}; saw {self.seen}"
            select.select([self.pump.event_fd], [], [], left)
            self.seen += [one[:3] for one in self.pump.events()]

    def start(self, key: int, command: list[str], log: Path | None, **more: object) -> None:
        """Run a program with its outputs (and input, if `stdin` is true) in the pump."""
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        in_read = in_write = -1
        if more.pop("stdin", False):
            in_read, in_write = os.pipe2(os.O_CLOEXEC)
        settings = QUIET | {"log_path": bytes(log) if log else b""} | more
        self.pump.add(
            key,
            stdin=in_write,
            stdout=out_read,
            stderr=err_read,
            tty=-1,
            **settings,  # type: ignore[arg-type]
        )
        process = subprocess.Popen(
            command,
            stdin=in_read if in_read >= 0 else subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
        )
        process.returncode = 0  # the pump reaps it
        self.pump.watch(key, os.pidfd_open(process.pid))
        for end in (out_write, err_write, in_read):
            if end >= 0:
                os.close(end)

    def close(self) -> None:
        self.pump.stop()
        self._thread.join()
        del self.pump
        for end in (*self._ends, self._journal):
            os.close(end)


@pytest.fixture
def running() -> Iterator[Running]:
    one = Running()
    yield one
    one.close()


def entries(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_bytes().splitlines()]


def logged(log: Path) -> None:
    """Wait for the first byte of a log."""
    deadline = time.monotonic() + patient(10)
    while not log.exists() or not log.stat().st_size:
        assert time.monotonic() < deadline, f"nothing came to {log}"
        time.sleep(0.01)


def settled(log: Path) -> bool:
    """Whether the log comes to whole lines: a line that did not fit is there for a moment."""
    deadline = time.monotonic() + patient(10)
    while time.monotonic() < deadline:
        try:
            return bool(entries(log))
        except ValueError:
            time.sleep(0.01)
    return False


def text(log: Path, stream: str = "stdout") -> str:
    return "".join(one["log"] for one in entries(log) if one["stream"] == stream)


def test_output_is_logged_whole_before_the_exit_is_announced(
    running: Running, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    running.start(1, ["/bin/sh", "-c", "seq 1 20000; echo problem >&2; exit 7"], log)
    assert os.waitstatus_to_exitcode(running.wait_for(EXITED, 1)) == 7
    assert text(log) == "".join(f"{n}\n" for n in range(1, 20001))
    assert text(log, "stderr") == "problem\n"


def test_death_by_signal_is_told_as_the_signal(running: Running) -> None:
    running.start(1, ["/bin/sh", "-c", "kill -9 $$"], None)
    assert os.waitstatus_to_exitcode(running.wait_for(EXITED, 1)) == -9


def test_prompt_without_newline_is_logged_at_once(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running.start(1, ["/bin/sh", "-c", "printf 'name? '; read x"], log, stdin=True)
    logged(log)
    assert [one["log"] for one in entries(log)] == ["name? "]
    running.pump.close_stdin(1)
    running.wait_for(EXITED, 1)


def test_character_cut_between_two_writes_stays_one_character(
    running: Running, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = (
        "import os,time; os.write(1, b'a\\xe2'); time.sleep(.1); "
        "os.write(1, b'\\x82'); time.sleep(.1); os.write(1, b'\\xacb\\n')"
    )
    running.start(1, [sys.executable, "-c", script], log)
    running.wait_for(EXITED, 1)
    assert text(log) == "a€b\n"


def test_character_never_finished_becomes_a_replacement_character_for_each_byte(
    running: Running, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    running.start(1, [sys.executable, "-c", "import os; os.write(1, b'a\\xe2\\x82')"], log)
    running.wait_for(EXITED, 1)
    assert text(log) == "a\ufffd\ufffd"


def test_attached_reader_gets_the_raw_bytes_and_its_end(running: Running, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    running.start(
        1, ["/bin/sh", "-c", "read x; printf '\\377\\001'; seq 1 50000"], None, stdin=True
    )
    here, there = os.pipe()
    running.pump.attach(
        1,
        10,
        stdin=as_foreign_input(here),
        stdout=as_foreign_output(writer),
        stderr=-1,
        detach_keys=b"",
    )
    os.close(writer)
    os.close(here)
    os.write(there, b"go\n")
    received = b""
    while chunk := os.read(reader, 65536):
        received += chunk
    assert received == b"\xff\x01" + b"".join(b"%d\n" % n for n in range(1, 50001))
    assert running.wait_for(ATTACHMENT_CLOSED, 10) == 0
    os.close(reader)
    os.close(there)


def test_end_of_input_reaches_the_program(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running.start(1, ["/bin/cat"], log, stdin=True)
    here, there = os.pipe()
    running.pump.attach(1, 10, stdin=as_foreign_input(here), stdout=-1, stderr=-1, detach_keys=b"")
    os.close(here)
    os.write(there, b"x\n")
    os.close(there)
    assert running.wait_for(EXITED, 1) == 0
    assert running.wait_for(STDIN_CLOSED, 1) == 0
    assert text(log) == "x\n"


def test_file_as_input_is_read_to_its_end(running: Running, tmp_path: Path) -> None:
    log, source = tmp_path / "log", tmp_path / "source"
    source.write_text("".join(f"{n}\n" for n in range(100000)))
    running.start(1, ["/usr/bin/wc", "-l"], log, stdin=True)
    running.pump.attach(
        1,
        10,
        stdin=os.open(source, os.O_RDONLY),
        stdout=-1,
        stderr=-1,
        detach_keys=b"",
    )
    assert running.wait_for(EXITED, 1) == 0
    assert text(log) == "100000\n"


@pytest.mark.parametrize(
    "pieces", [[b"ab\x10\x11cd"], [b"ab\x10", b"\x11cd"], [b"a", b"b\x10", b"\x11"]]
)
def test_detach_keys_are_seen_across_reads_and_the_program_goes_on(
    running: Running, tmp_path: Path, pieces: list[bytes]
) -> None:
    log = tmp_path / "log"
    running.start(1, ["/bin/cat"], log, stdin=True)
    here, there = os.pipe()
    running.pump.attach(
        1, 10, stdin=as_foreign_input(here), stdout=-1, stderr=-1, detach_keys=b"\x10\x11"
    )
    os.close(here)
    for piece in pieces:
        os.write(there, piece)
        time.sleep(0.02)
    assert running.wait_for(ATTACHMENT_CLOSED, 10) == 1
    os.close(there)
    assert not [one for one in running.seen if one[0] == EXITED]
    running.pump.close_stdin(1)
    assert running.wait_for(EXITED, 1) == 0
    assert text(log) == "ab"


def test_incomplete_detach_keys_are_passed_through(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running.start(1, ["/bin/cat"], log, stdin=True)
    here, there = os.pipe()
    running.pump.attach(
        1, 10, stdin=as_foreign_input(here), stdout=-1, stderr=-1, detach_keys=b"\x10\x10\x11"
    )
    os.close(here)
    os.write(there, b"\x10\x10\x10x\x10")
    os.close(there)
    running.wait_for(EXITED, 1)
    assert text(log) == "\x10\x10\x10x\x10"


def test_slow_reader_holds_up_its_own_container_only(running: Running, tmp_path: Path) -> None:
    slow_log, quick_log = tmp_path / "slow", tmp_path / "quick"
    reader, writer = os.pipe()
    running.start(1, ["/bin/sh", "-c", "read x; seq 1 1000000"], slow_log, stdin=True)
    here, there = os.pipe()
    running.pump.attach(
        1,
        10,
        stdin=as_foreign_input(here),
        stdout=as_foreign_output(writer),
        stderr=-1,
        detach_keys=b"",
    )
    os.close(here)
    os.close(writer)
    os.write(there, b"\n")
    running.start(2, ["/usr/bin/seq", "1", "200000"], quick_log)
    assert running.wait_for(EXITED, 2) == 0
    assert text(quick_log).endswith("\n200000\n")
    assert not [one for one in running.seen if one[:2] == (EXITED, 1)]
    received = 0
    while chunk := os.read(reader, 1 << 20):
        received += len(chunk)
    assert running.wait_for(EXITED, 1) == 0
    assert received == sum(len(str(n)) + 1 for n in range(1, 1000001))
    os.close(reader)
    os.close(there)


def test_reader_that_went_away_does_not_stop_the_program(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "log"
    reader, writer = os.pipe()
    running.start(1, ["/bin/sh", "-c", "read x; seq 1 100000"], log, stdin=True)
    running.pump.attach(
        1, 10, stdin=-1, stdout=as_foreign_output(writer), stderr=-1, detach_keys=b""
    )
    os.close(writer)
    os.close(reader)
    here, there = os.pipe()
    running.pump.attach(1, 11, stdin=as_foreign_input(here), stdout=-1, stderr=-1, detach_keys=b"")
    os.close(here)
    os.write(there, b"\n")
    assert running.wait_for(ATTACHMENT_CLOSED, 10) == 2
    assert running.wait_for(EXITED, 1) == 0
    assert text(log).endswith("\n100000\n")
    os.close(there)


def test_rotation_keeps_every_line_in_few_files(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    running.start(1, ["/usr/bin/seq", "1", "30000"], log, log_max_size=200_000, log_max_file=50)
    running.wait_for(EXITED, 1)
    files = sorted(tmp_path.glob("container.log.*"), key=lambda one: -int(one.suffix[1:]))
    assert len(files) > 3
    written = "".join(text(one) for one in [*files, log] if one.exists())
    assert written == "".join(f"{n}\n" for n in range(1, 30001))
    assert max(one.stat().st_size for one in files) < 1.5 * 200_000


@pytest.mark.parametrize(("script", "said"), [("", None), ("sleep 0.1", None), ("printf x", "x")])
def test_who_says_nothing_has_no_log(
    running: Running, tmp_path: Path, script: str, said: str | None
) -> None:
    log = tmp_path / "container.log"
    running.start(1, ["/bin/sh", "-c", script], log)
    running.wait_for(EXITED, 1)
    assert (text(log) if log.exists() else None) == said


def test_log_of_one_file_is_cut_when_it_is_full(running: Running, tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    running.start(1, ["/usr/bin/seq", "1", "30000"], log, log_max_size=100_000, log_max_file=1)
    running.wait_for(EXITED, 1)
    assert [one.name for one in tmp_path.iterdir()] == ["container.log"]
    assert log.stat().st_size < 3 * 100_000


def test_full_disk_tells_the_gap_and_other_containers_go_on(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    done = subprocess.run(
        ["unshare", "-m", sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "failed-28",
        "whole-lines",
        "other-complete",
        "first-kept",
        "gap-told",
    ]


FULL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from tests.kernel.test_pump import Running, entries, logged, settled, text
from dockpy._copy import EXITED, LOG_FAILED
top = Path(sys.argv[1])
small = top / "small"
small.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)], check=True)
one = Running()
hog = small / "hog"
hog.touch()
# What does not fit is lost by batches, and one of a pump that was late is larger than this disk:
# so a first line is logged before the rest comes.
script = "echo first; read x; seq 1 100000; while [ -e %s ]; do sleep .05; done; echo after" % hog
one.start(1, ["/bin/sh", "-c", script], small / "log", stdin=True)
logged(small / "log")
one.pump.close_stdin(1)
print("failed-%d" % one.wait_for(LOG_FAILED, 1))
print("whole-lines" if settled(small / "log") else "torn")
one.start(2, ["/usr/bin/seq", "1", "1000"], top / "other")
one.wait_for(EXITED, 2)
print("other-complete" if text(top / "other").endswith("1000\\n") else "other-lost")
subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
hog.unlink()
one.wait_for(EXITED, 1)
told = [one["log"] for one in entries(small / "log")]
print("first-kept" if told[0] == "first\\n" else told[0])
print("gap-told" if any("missing" in one for one in told) and told[-1] == "after\\n" else told)
one.close()
"""


def test_idle_containers_cost_no_cpu(running: Running) -> None:
    pipes = []
    for key in range(1, 301):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pipes.append(writer)
        running.pump.add(key, **{**NONE, "stdout": reader}, **QUIET)  # type: ignore[arg-type]
    switches = Path("/proc/self/task")
    threads = {path.name: path / "status" for path in switches.iterdir()}

    def woken() -> int:
        return sum(
            int(line.split()[1])
            for status in threads.values()
            for line in status.read_text().splitlines()
            if line.startswith("voluntary_ctxt")
        )

    me = threading.get_native_id()
    threads.pop(str(me))
    before = woken()
    time.sleep(0.5)
    assert woken() - before <= 2
    for writer in pipes:
        os.close(writer)


def test_removing_a_container_gives_its_descriptors_back(running: Running) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for key in range(1, 50):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        running.pump.add(key, **{**NONE, "stdout": reader}, **QUIET)  # type: ignore[arg-type]
        os.close(writer)
        running.pump.remove(key)
    assert len(os.listdir("/proc/self/fd")) == before
    assert LOG_FAILED not in {one[0] for one in running.pump.events()}
