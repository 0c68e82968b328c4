"""Work that is shared, files that grow, gzip by many threads, and what people see of it."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import random
import re
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest

from dockpy.cli.transfers import Display, Line, bar, picture
from dockpy.errors import Cancelled
from dockpy.registry import compressing
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.client import backoff
from dockpy.registry.connecting import Origin, shown
from dockpy.registry.growing import GrowingFile, GrowingReader
from dockpy.registry.passing import retry_after
from dockpy.registry.progress import (
    DOWNLOADING,
    EXISTS,
    PULLED,
    PULLING,
    Event,
    Meter,
    ProgressReader,
)
from dockpy.registry.settings import Patience
from dockpy.registry.sharing import Job, Jobs
from patience import patient

# -- shared work ---------------------------------------------------------------------------------


def test_who_asks_for_the_same_waits_for_the_same() -> None:
    disposed: list[str] = []
    jobs: Jobs[str] = Jobs("test", disposed.append)
    gate = threading.Event()
    runs: list[str] = []

    def work(job: Job[str]) -> None:
        runs.append(job.value)
        job.tell(Event("x", "going"))
        gate.wait(patient(5))

    seen: list[Event] = []
    first = jobs.join("k", lambda: "value", work)
    second = jobs.join("k", lambda: "other", work, seen.append)
    other = jobs.join("other", lambda: "another", work)
    assert (first.first, second.first, other.first) == (True, False, True)
    gate.set()
    assert {first.wait(Cancellation()), second.wait(Cancellation())} == {"value"}
    assert other.wait(Cancellation()) == "another"
    assert sorted(runs) == ["another", "value"]
    assert Event("x", "going") in seen
    first.leave()
    first.leave()
    assert disposed == []
    second.leave()
    other.leave()
    assert sorted(disposed) == ["another", "value"]
    jobs.close()


def test_a_job_that_nobody_wants_any_more_is_cancelled_and_disposed_of_once() -> None:
    disposed: list[str] = []
    jobs: Jobs[str] = Jobs("test", disposed.append)

    def work(job: Job[str]) -> None:
        job.cancellation.sleep(patient(30))

    tickets = [jobs.join("k", lambda: "value", work) for _ in range(2)]
    tickets[0].leave()
    assert not tickets[1].job.cancellation.cancelled
    tickets[1].leave()
    jobs.close()
    assert disposed == ["value"]


def test_a_job_that_failed_fails_for_all_and_is_tried_again_by_the_next() -> None:
    jobs: Jobs[str] = Jobs("test")
    gate = threading.Event()

    def fail(_job: Job[str]) -> None:
        gate.wait(patient(5))
        raise ValueError("no")

    tickets = [jobs.join("k", lambda: "value", fail) for _ in range(2)]
    gate.set()
    for ticket in tickets:
        with pytest.raises(ValueError, match="no"):
            ticket.wait(Cancellation())
    again = jobs.join("k", lambda: "value", lambda _job: None)
    assert again.first
    assert again.wait(Cancellation()) == "value"
    for ticket in (*tickets, again):
        ticket.leave()
    jobs.close()


def test_who_gives_up_does_not_wait() -> None:
    jobs: Jobs[str] = Jobs("test")
    ticket = jobs.join("k", lambda: "value", lambda job: job.cancellation.sleep(patient(30)))
    cancellation = Cancellation()
    threading.Timer(0.02, cancellation.cancel).start()
    with pytest.raises(Cancelled):
        ticket.wait(cancellation)
    ticket.leave()
    jobs.close()


# -- growing files -------------------------------------------------------------------------------


def test_a_reader_follows_a_file_that_grows_to_its_verified_end(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "f")
    found: list[bytes] = []

    def read() -> None:
        reader = GrowingReader(file, Cancellation())
        while piece := reader.read(3):
            found.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    for piece in (b"abcd", b"e", b"fgh"):
        file.append(piece)
    time.sleep(0.02)
    assert thread.is_alive()
    file.complete()
    thread.join()
    assert b"".join(found) == b"abcdefgh"
    assert GrowingReader(file, Cancellation(), start=5).read() == b"fgh"
    file.close()


def test_a_reader_gets_the_makers_failure_and_its_own_cancellation(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "f")
    file.append(b"half")
    cancelled = Cancellation()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        GrowingReader(file, cancelled).read()
    file.failed(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        GrowingReader(file, Cancellation()).read()
    file.close()


def test_a_progress_reader_tells_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    told: list[int] = []
    with open(tmp_path / "f", "rb", buffering=0) as source:
        reader = ProgressReader(source, told.append)
        while reader.read(4):
            pass
    assert told == [4, 8, 10, 10]


# -- compression ---------------------------------------------------------------------------------


def compress(data: bytes, place: Path, pieces: int = 1 << 16) -> bytes:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb", buffering=0) as out:
            for start in range(0, len(data), pieces):
                out.write(data[start : start + pieces])

    thread = threading.Thread(target=feed)
    thread.start()
    file = GrowingFile(place)
    digest = compressing.compress(reader, file)
    thread.join()
    os.close(reader)
    file.close()
    packed = place.read_bytes()
    assert digest == hashlib.sha256(packed).hexdigest()
    return packed


@pytest.mark.parametrize(
    "size", [0, 1, compressing.BLOCK - 1, compressing.BLOCK, compressing.BLOCK + 1, 7_654_321]
)
def test_compressed_streams_are_one_gzip_member_of_the_same_bytes(
    tmp_path: Path, size: int
) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    packed = compress(data, tmp_path / "f")
    assert gzip.decompress(packed) == data
    done = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (data, b"")


def test_compression_does_not_depend_on_how_the_stream_arrives(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(3_000_000) + bytes(1_000_000)
    first = compress(data, tmp_path / "a", pieces=1 << 20)
    assert compress(data, tmp_path / "b", pieces=4099) == first


# -- patience ------------------------------------------------------------------------------------


def test_waits_grow_and_have_an_end() -> None:
    patience = Patience(backoff=0.5, backoff_limit=3.0)
    assert [backoff(patience, n) for n in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("7", 7.0),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("-5", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after(text, now=40.0) == seconds


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://r.example/v2/x?token=secret#part", "https://r.example/v2/x"),
        ("https://name:word@r.example:1/x", "https://r.example:1/x"),
        ("https://r.example/a\nb\x1b[2J", "https://r.example/ab?[2J"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, text: str) -> None:
    assert shown(url) == text


def test_an_origin_is_scheme_host_and_port() -> None:
    assert Origin.of("https://R.example/x") == Origin.of("https://r.example:443/y?z")
    assert Origin.of("http://r.example") != Origin.of("https://r.example")
    assert Origin.of("http://[::1]:5000/").address == "[::1]:5000"


# -- what people see -----------------------------------------------------------------------------


def line(status: str, current: int, total: int, *speeds: tuple[float, int]) -> Line:
    found = Line(Event("abc", status, current, total))
    for now, done in speeds:
        found.add(Event("abc", status, done, total), now)
    return found


def test_a_bar_shows_how_much_of_how_much_and_how_fast() -> None:
    shown_bar = bar("abc", line(DOWNLOADING, 0, 2000, (10.0, 500), (11.0, 1000)), 60)
    assert shown_bar == "abc: Downloading [===========>            ]  1kB/2kB  500B/s"


@pytest.mark.parametrize("width", [20, 30, 40, 60, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = [(f"layer{n}", line(DOWNLOADING, n, 10, (0.0, 0), (1.0, n))) for n in range(12)]
    assert all(len(one) < width for one in picture(lines, width, 24) if width > 20)
    assert len(picture(lines, width, 24)) == 12


def test_what_does_not_fit_is_counted() -> None:
    lines = [(f"layer{n}", line(PULLED, 0, 0, (0.0, 0))) for n in range(12)]
    shown_lines = picture(lines, 80, 6)
    assert shown_lines == ["(8 more above)", *(f"layer{n}: {PULLED}" for n in range(8, 12))]


class Screen:
    """A terminal of 80 columns, and what stands on it in the end; as a Session for a Display."""

    def __init__(self, master: int, slave: int) -> None:
        termios.tcsetwinsize(slave, (24, 80))
        self.stdout = self.stderr = slave
        self._master = master
        self.lines: list[str] = []

    def write_to(self, stream: int, text: str) -> None:
        assert stream == self.stdout
        while found := re.match(r"\x1b\[(\d+)A\r\x1b\[J", text):
            del self.lines[-int(found[1]) :]
            text = text[found.end() :]
        assert "\x1b" not in text
        self.lines += text.splitlines()


@pytest.mark.parametrize("seldom", [True, False])
def test_what_is_told_of_the_whole_stands_where_it_was_told(seldom: bool) -> None:
    """On a terminal, whatever was drawn in between."""
    master, slave = os.openpty()
    try:
        screen = Screen(master, slave)
        display = Display(screen)  # type: ignore[arg-type]
        for event in (
            Event("", "a: Pulling from x"),
            *(Event("one", EXISTS), Event("two", PULLING), Event("two", DOWNLOADING, 1, 2)),
            *(Event("two", PULLED), Event("", "Digest: d"), Event("", "Status: s")),
            *(Event("", "b: Pulling from x"), Event("one", EXISTS), Event("", "Digest: e")),
        ):
            display.listen(event)
            if not seldom:
                display.show()
        display.settle()
        assert screen.lines == [
            *("a: Pulling from x", "one: Already exists", "two: Pull complete"),
            *("Digest: d", "Status: s", "b: Pulling from x", "one: Already exists", "Digest: e"),
        ]
    finally:
        os.close(master)
        os.close(slave)


def test_a_meter_tells_each_hundredth_at_once_and_no_more_than_that() -> None:
    events: list[Event] = []
    meter = Meter(events.append, "layer", DOWNLOADING, 1000)
    for done in range(1001):
        meter(done)
    told = [event.current for event in events]
    assert told[0] == 0
    assert told[-1] == 1000
    assert {after - before for before, after in itertools.pairwise(told)} <= set(range(1, 11))
    assert len(told) < 150
