"""A pump that is killed at any moment: its successor goes on at the same bytes."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dockpy._copy import JOURNAL_SIZE, Pump
from patience import patient

LINES = 100_000
PRODUCER = f"""
import sys, time
for n in range({LINES}):
    sys.stdout.write(f"{{n}} \\u00e4\\u00f6\\u00fc\\u20ac\\n")
    if n % 3000 == 0:
        sys.stdout.flush()
        time.sleep(0.004)
"""
WHOLE = "".join(f"{n} äöü€\n" for n in range(LINES)).encode()

PUMP = """
import os, sys, threading, select
from dockpy._copy import Pump
first, second, journal, reader, most, *clients = map(int, sys.argv[2:])
pump = Pump([first, second], journal)
pump.add(7, stdin=-1, stdout=os.dup(reader), stderr=-1, tty=-1, log_path=os.fsencode(sys.argv[1]),
         log_max_size=most, log_max_file=1000, stdin_once=False)
for number, client in enumerate(clients, 100):
    pump.attach(7, number, stdin=-1, stdout=os.dup(client), stderr=-1, detach_keys=b"")
os.write(1, b"r")
threading.Thread(target=pump.run, daemon=True).start()
while pump.duplicates(7)[1] >= 0:
    select.select([], [], [], .02)
select.select([], [], [], .3)  # unfinished business of slow clients
os._exit(0)
"""


@dataclass
class Client:
    """Someone attached: the end a pump writes to, and what arrived when all is over."""

    end: int
    received: Callable[[], bytes]


def pipe_client(pause: float) -> Client:
    """A reader of a pipe; with a `pause` it is slower than the output."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    got = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            got.extend(chunk)
            if pause:
                select.select([], [], [], pause)

    thread = threading.Thread(target=read)
    thread.start()

    def received() -> bytes:
        os.close(writer)
        thread.join()
        os.close(reader)
        return bytes(got)

    return Client(writer, received)


def file_client(path: Path, flags: int) -> Client:
    end = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)

    def received() -> bytes:
        os.close(end)
        return path.read_bytes()

    return Client(end, received)


def run_with_kills(log: Path, clients: list[Client], chance: random.Random, most: int = 0) -> int:
    """Output through pumps that are killed one after the other; how many there were."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    journal = os.memfd_create("journal", os.MFD_CLOEXEC)
    os.ftruncate(journal, JOURNAL_SIZE)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    producer = subprocess.Popen([sys.executable, "-c", PRODUCER], stdout=writer)
    os.close(writer)
    inherited = [*ends, journal, reader, *(client.end for client in clients)]
    numbers = [*inherited[:4], most, *inherited[4:]]
    killed = 0
    while True:
        pump = subprocess.Popen(
            [sys.executable, "-IS", "-c", BARE + PUMP, str(log), *map(str, numbers)],
            pass_fds=inherited,
            stdout=subprocess.PIPE,
        )
        assert pump.stdout is not None
        with pump.stdout:
            assert pump.stdout.read(1) == b"r"
            over = producer.poll() is not None
            try:
                pump.wait(patient(30) if over else patient(chance.uniform(0.0, 0.05)))
                break
            except subprocess.TimeoutExpired:
                pump.send_signal(signal.SIGKILL)
                pump.wait()
        killed += 1
        assert killed < 400
    assert pump.returncode == 0
    for one in (*ends, journal, reader):
        os.close(one)
    return killed


BARE = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"


def logged(files: list[Path]) -> list[str]:
    return [json.loads(line)["log"] for file in files for line in file.read_bytes().splitlines()]


def test_log_and_every_client_have_each_byte_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    clients = [
        pipe_client(pause=0.0),
        pipe_client(pause=0.003),
        file_client(tmp_path / "file", os.O_TRUNC),
        file_client(tmp_path / "appended", os.O_APPEND),
    ]
    killed = run_with_kills(tmp_path / "log", clients, random.Random(seed))
    received = [client.received() for client in clients]
    assert killed >= 3
    assert "".join(logged([tmp_path / "log"])).encode() == WHOLE, f"seed {seed}"
    assert [len(one) for one in received] == [len(WHOLE)] * 4, f"seed {seed}"
    assert received == [WHOLE] * 4, f"seed {seed}"


def test_log_that_rotates_has_each_byte_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    log = tmp_path / "container.log"
    killed = run_with_kills(log, [], random.Random(seed), most=300_000)
    rotated = sorted(tmp_path.glob("container.log.*"), key=lambda one: -int(one.suffix[1:]))
    assert killed >= 3
    assert len(rotated) > 5
    assert "".join(logged([*rotated, log])).encode() == WHOLE, f"seed {seed}"


def test_pump_that_stops_leaves_half_a_character_to_the_next(tmp_path: Path) -> None:
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    journal = os.memfd_create("journal", os.MFD_CLOEXEC)
    os.ftruncate(journal, JOURNAL_SIZE)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    log = tmp_path / "log"
    for piece in (b"one \xe2", b"\x82", b"\xac line\n"):
        os.write(writer, piece)
        pump = Pump(ends, journal)
        pump.add(
            1,
            stdin=-1,
            stdout=os.dup(reader),
            stderr=-1,
            tty=-1,
            log_path=bytes(log),
            log_max_size=0,
            log_max_file=1,
            stdin_once=False,
        )
        thread = threading.Thread(target=pump.run)
        thread.start()
        while select.select([reader], [], [], 0)[0]:
            select.select([], [], [], 0.005)
        pump.stop()
        thread.join()
        del thread, pump
    for one in (*ends, journal, reader, writer):
        os.close(one)
    assert logged([log]) == ["one ", "\u20ac line\n"]


def test_journal_that_is_too_small_is_refused() -> None:
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    journal = os.memfd_create("journal", os.MFD_CLOEXEC)
    try:
        with pytest.raises(ValueError, match="journal needs"):
            Pump(ends, journal)
    finally:
        for one in (*ends, journal):
            os.close(one)
