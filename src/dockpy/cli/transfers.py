"""Transfers as people watch them: bars on a terminal, a line for each step otherwise.

The transfer runs in a thread of its own and tells events; the command's thread shows them, so a
terminal that is slow to read never holds the transfer up, and Ctrl-C is answered at once.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dockpy.cli.session import Session
from dockpy.humantime import human_size
from dockpy.registry import progress
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.progress import Event, Listener

T = TypeVar("T")
REFRESH = 0.1
"""Seconds between two pictures on a terminal."""
SPEED_SECONDS = 3.0
"""How far back the speed looks."""
MOVING = frozenset(
    {progress.DOWNLOADING, progress.EXTRACTING, progress.PUSHING, progress.PREPARING}
)
"""Statuses that repeat with other figures."""
_ALL_ROWS = 10_000


class Interrupted(Exception):
    """The caller gave up; `code` is what the command leaves with."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


@dataclass(slots=True)
class Line:
    """How one thing stands, and when how many bytes were done."""

    event: Event
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))

    def add(self, event: Event, now: float) -> None:
        if event.status != self.event.status:
            self.samples.clear()
        self.event = event
        self.samples.append((now, event.current))
        while now - self.samples[0][0] > SPEED_SECONDS:
            self.samples.popleft()

    def speed(self) -> float:
        """Bytes a second; 0.0 when it cannot be told yet."""
        (then, before), (now, after) = self.samples[0], self.samples[-1]
        return (after - before) / (now - then) if now - then >= 0.3 else 0.0


def picture(lines: Sequence[tuple[str, Line]], columns: int, rows: int) -> list[str]:
    """What a terminal of that size shows: one line a thing, and the last ones if there are more."""
    width = max(columns - 1, 20)
    shown = list(lines)
    hidden = len(shown) - max(rows - 2, 1)
    if hidden > 0:
        shown = shown[hidden:]
    found = [bar(thing, line, width) for thing, line in shown]
    return [f"({hidden} more above)"[:width], *found] if hidden > 0 else found


def bar(thing: str, line: Line, width: int) -> str:
    """`e1556081d3f5: Downloading [=====>      ]  24.1MB/95.3MB  81MB/s`, in `width` characters."""
    event = line.event
    head = f"{thing}: {event.status}"
    if event.status not in MOVING or not event.total:
        return head[:width]
    speed = line.speed()
    figures = f"{human_size(event.current)}/{human_size(event.total)}"
    figures += f"  {human_size(speed)}/s" if speed else ""
    room = min(width - len(head) - len(figures) - 5, 50)
    if room < 5:
        return f"{head}  {figures}"[:width]
    filled = min(room * event.current // event.total, room)
    arrow = "=" * max(filled - 1, 0) + ">" * (filled > 0)
    return f"{head} [{arrow:<{room}}]  {figures}"


class Display:
    """Collects events from any thread; shows them when the command's thread says so."""

    def __init__(self, session: Session, *, quiet: bool = False, aside: bool = False) -> None:
        """`aside`: on standard error, because the output is a command's own."""
        self._session = session
        self._quiet = quiet
        self._stream = session.stderr if aside else session.stdout
        self._terminal = self._stream >= 0 and os.isatty(self._stream) and not quiet
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}
        self._texts: list[str] = []
        self._drawn = 0
        self._changed = False

    def listen(self, event: Event) -> None:
        """An event; never blocks for long."""
        if self._quiet:
            return
        with self._lock:
            self._changed = True
            line = self._lines.get(event.thing)
            if not event.thing:
                self._finish_lines()
                self._texts.append(event.status)
            elif line is None:
                self._lines[event.thing] = Line(event)
                self._lines[event.thing].add(event, time.monotonic())
                self._step(event)
            else:
                if event.status != line.event.status:
                    self._step(event)
                line.add(event, time.monotonic())

    def _finish_lines(self) -> None:
        """What a terminal shows of single things stands above what is told about the whole next:
        that is told before and after them only."""
        if self._terminal:
            self._texts += picture(list(self._lines.items()), self._size()[0], _ALL_ROWS)
            self._lines.clear()

    def _step(self, event: Event) -> None:
        """One line for a step that begins, where nobody draws bars."""
        if not self._terminal and event.status not in MOVING:
            size = f" ({human_size(event.total)})" if event.total else ""
            self._texts.append(f"{event.thing}: {event.status}{size}")

    def show(self, *, last: bool = False) -> None:
        """Write what is new. Blocks while the caller does not read. ClientGone."""
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            texts, self._texts = self._texts, []
            lines = list(self._lines.items())
            columns, rows = self._size()
            drawn = picture(lines, columns, _ALL_ROWS if last else rows) if self._terminal else []
        text = "".join(f"{one}\n" for one in texts)
        if self._terminal:
            up = f"\x1b[{self._drawn}A\r\x1b[J" if self._drawn else ""
            text = up + text + "".join(f"{one}\n" for one in drawn)
            self._drawn = 0 if last else len(drawn)
        if text:
            self._session.write_to(self._stream, text)

    def settle(self) -> None:
        """What stands on the terminal stays; new things begin below it."""
        self._changed = True
        self.show(last=True)
        with self._lock:
            self._lines.clear()
            self._drawn = 0

    def _size(self) -> tuple[int, int]:
        if self._terminal:
            try:
                size = os.get_terminal_size(self._stream)
            except OSError:
                return 80, 24
            return size.columns or 80, size.lines or 24
        return 80, 24


def watch(
    session: Session,
    work: Callable[[Listener, Cancellation], T],
    *,
    quiet: bool = False,
    aside: bool = False,
) -> T:
    """Do `work` in a thread, show its progress, and give what it gives or raise what it raises.

    Raises Interrupted at once when the caller gives up: `work` is cancelled then, and ends by
    itself.
    """
    display = Display(session, quiet=quiet, aside=aside)
    cancellation = Cancellation()
    results: list[T] = []
    failures: list[BaseException] = []
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def run() -> None:
        try:
            results.append(work(display.listen, cancellation))
        except BaseException as failure:  # raised again in the command's thread
            failures.append(failure)
        finally:
            os.close(writer)

    with session.events.interruption() as interruption:
        threading.Thread(target=run, name="dockpy-transfer", daemon=True).start()
        try:
            follow(display, reader, interruption.descriptor)
        finally:
            cancellation.cancel()  # nothing happens to what is done
            os.close(reader)
    if interruption.exit_code:
        raise Interrupted(interruption.exit_code)
    if failures:
        raise failures[0]
    return results[0]


def follow(display: Display, done: int, interrupted: int) -> None:
    """Show progress until one of the two descriptors says that it is over."""
    poll = select.poll()
    poll.register(done, select.POLLIN)
    poll.register(interrupted, select.POLLIN)
    while not (ready := poll.poll(int(REFRESH * 1000))):
        display.show()
    if all(descriptor != interrupted for descriptor, _ in ready):
        display.settle()
