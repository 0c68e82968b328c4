"""Output on its way: the log's encoder, the log read back, detach keys, the pump."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.hot.contest import Contest, repeated
from benchmarks.pump import Bench
from dockpy._copy import escapable_copy
from dockpy._log import copy_entries, encode
from reference import escapable, json_log

MOMENT = (1_767_323_045, 123_456_789)
LINES = b"".join(
    b'%06d a line of a program\'s output, with a "quote" in it\n' % n for n in range(800)
)
KEYS = b"\x10\x11"
TYPED = b"x" * (4 << 20)


def test_log_encode(contest: Contest) -> None:
    arguments = (LINES, b"stdout", False, *MOMENT)
    assert encode(*arguments) == json_log.encode(*arguments)
    contest(
        repeated(lambda: encode(*arguments), 100),
        lambda: json_log.encode(*arguments),
        against="tests/reference/json_log",
        rounds=15,
    )


def test_log_read_back(contest: Contest, memory: Path) -> None:
    entries, _ = encode(LINES * 4, b"stdout", False, *MOMENT)
    path = memory / "log"
    path.write_bytes(entries)
    with open(path, "rb") as source, open(os.devnull, "wb") as nowhere:

        def ours() -> None:
            source.seek(0)
            copy_entries(source.fileno(), nowhere.fileno(), -1, b"", b"", False, 0)

        contest(
            repeated(ours, 20),
            lambda: json_log.messages(path.read_bytes()),
            against="tests/reference/json_log",
            rounds=30,
        )


def through_pipe(data: bytes, copy: Callable[[int, int], object]) -> None:
    """`data` goes into a pipe, `copy` moves it to another one, which is read to the end."""
    source, feed = os.pipe()
    drain, target = os.pipe()

    def write() -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(feed, left) :]
        os.close(feed)

    def read() -> None:
        block = bytearray(1 << 16)
        while os.readv(drain, [block]):
            pass
        os.close(drain)

    threads = [threading.Thread(target=one) for one in (write, read)]
    for thread in threads:
        thread.start()
    copy(source, target)
    os.close(target)
    os.close(source)
    for thread in threads:
        thread.join()


def slow_copy(source: int, target: int) -> None:
    """By the reference, each read by itself: a key sequence across two reads goes unseen here."""
    while data := os.read(source, 1 << 16):
        passed, _ = escapable.copied(data, KEYS)
        os.write(target, passed)


def test_escapable_copy(contest: Contest) -> None:
    contest(
        lambda: through_pipe(TYPED, lambda source, target: escapable_copy(source, target, KEYS)),
        lambda: through_pipe(TYPED, slow_copy),
        against="os.read, search, os.write",
        rounds=25,
    )


@pytest.fixture
def pump(memory: Path) -> Iterator[Bench]:
    bench = Bench(memory, 60_000_000)
    yield bench
    bench.close()


@pytest.mark.parametrize("way", ["log_only", "log_and_pipe", "pipe_only"])
def test_pump(contest: Contest, pump: Bench, way: str) -> None:
    """What one byte costs this process; the program that writes them is another one."""
    ours: Callable[[], None] = getattr(pump, way)
    contest(ours, pump.plain_pipe, against="a plain pipe's reader", rounds=8)
