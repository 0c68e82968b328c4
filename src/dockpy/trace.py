"""The timeline of one command: what was done when, by which of the processes that take part.

All of them read CLOCK_MONOTONIC, so their moments need no translation. A moment is noted when
something is *done*: what a line of the table took is the time since the line before it, whoever
noted that one. Nobody who does not ask pays: `OFF` notes nothing, and a supervisor and a child look
at the clock only when their message says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic_ns, time_ns

CLIENT, DAEMON, SUPERVISOR, CHILD, PUMP = "client", "daemon", "supervisor", "child", "pump"
"""Who takes part. The child is the container's first process before it executes the program; the
pump, a thread of its supervisor, sees the program's end."""


class Trace:
    """Moments, from any thread and in any order."""

    on = True

    def __init__(self) -> None:
        self.moments: list[tuple[int, str, str]] = []
        """Nanoseconds of CLOCK_MONOTONIC, who, and what was done."""

    def mark(self, who: str, what: str) -> None:
        """It was done just now."""
        self.moments.append((monotonic_ns(), who, what))

    def at(self, when: int, who: str, what: str) -> None:
        """It was done at that moment."""
        self.moments.append((when, who, what))

    def add(self, who: str, moments: Iterable[tuple[int, str]]) -> None:
        """What another process noted."""
        self.moments += [(when, who, what) for when, what in moments]

    def text(self) -> str:
        """The table: milliseconds since the first moment, what it took, who, what."""
        return table(self.moments)

    def message(self, limit: int) -> bytes:
        """The first and the last moment, a newline, and the table: for a client that adds its own
        last line. At most `limit` bytes: the last lines are left out of a longer one."""
        times = [when for when, _, _ in self.moments] or [monotonic_ns()]
        told = f"{min(times)} {max(times)}\n{self.text()}".encode(errors="backslashreplace")
        return told if len(told) <= limit else told[: told.rindex(b"\n", 0, limit) + 1]


class _Off(Trace):
    """Stands for a trace nobody asked for."""

    on = False

    def mark(self, who: str, what: str) -> None:
        pass

    def at(self, when: int, who: str, what: str) -> None:
        pass

    def add(self, who: str, moments: Iterable[tuple[int, str]]) -> None:
        pass


OFF = _Off()


def from_epoch(seconds: float) -> int:
    """A moment told in seconds since the epoch, as the pump tells ends: right to the microsecond,
    unless somebody sets the clock meanwhile."""
    return monotonic_ns() - (time_ns() - int(seconds * 1e9))


def steps_of_child(moments: Sequence[int], labels: Sequence[str]) -> list[tuple[int, str]]:
    """Names for the moments of `spawn`: the clone, then the plan's steps, as far as it noted."""
    return list(zip(moments, ("clone", *labels), strict=False))


def table(moments: Iterable[tuple[int, str, str]]) -> str:
    """See Trace.text. Equal steps of one process in a row are one line with their number."""
    rows: list[tuple[int, int, str, str, int]] = []
    ordered = sorted(moments, key=lambda moment: moment[0])
    before = first = ordered[0][0] if ordered else 0
    for when, who, what in ordered:
        if rows and rows[-1][2:4] == (who, what):
            _, took, _, _, count = rows[-1]
            rows[-1] = (when - first, took + when - before, who, what, count + 1)
        else:
            rows.append((when - first, when - before, who, what, 1))
        before = when
    lines = [f"{'at ms':>8} {'took':>7}  {'who':10}  what"]
    for at, took, who, what, count in rows:
        times = f" ({count})" if count > 1 else ""
        lines.append(f"{at / 1e6:8.3f} {took / 1e6:7.3f}  {who:10}  {what}{times}")
    return "\n".join(lines) + "\n"
