"""What a transfer tells while it goes on: events, and readers that make them.

An event says how one thing (a layer by its short digest, or "" for the whole) stands; the newest
of each thing is all that counts. The wording of `status` is Docker's: tools read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

INTERVAL = 0.1
"""Seconds after which any more bytes are told."""
STEPS = 100
"""Parts of the whole that are told at once: a transfer that stalls shows what came before."""


@dataclass(frozen=True, slots=True)
class Event:
    """`current` and `total` are bytes; 0 where they make no sense."""

    thing: str
    status: str
    current: int = 0
    total: int = 0


Listener = Callable[[Event], None]
"""Called from any thread; must not block for long and must not raise."""

WAITING = "Waiting"
PULLING = "Pulling fs layer"
EXISTS = "Already exists"
DOWNLOADING = "Downloading"
VERIFYING = "Verifying Checksum"
DOWNLOADED = "Download complete"
EXTRACTING = "Extracting"
PULLED = "Pull complete"
RETRYING = "Retrying"
PREPARING = "Preparing"
PUSHING = "Pushing"
PUSHED = "Pushed"
PUSH_EXISTS = "Layer already exists"
MOUNTED = "Mounted from"


class Meter:
    """Events about one thing's bytes, not more of them than people can read."""

    def __init__(self, listener: Listener, thing: str, status: str, total: int) -> None:
        self._listener = listener
        self._thing = thing
        self._status = status
        self._total = total
        self._next = 0.0
        self._told = 0

    def __call__(self, current: int) -> None:
        """So many bytes are done in all."""
        now = time.monotonic()
        if now >= self._next or (current - self._told) * STEPS >= self._total > 0:
            self._next = now + INTERVAL
            self._told = current
            self._listener(Event(self._thing, self._status, current, self._total))


class _Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...


class ProgressReader:
    """A stream that tells how far it was read. `report` gets the bytes so far."""

    def __init__(self, source: _Readable, report: Callable[[int], None], start: int = 0) -> None:
        self._source = source
        self._report = report
        self.count = start

    def readinto(self, buffer: memoryview) -> int:
        count = self._source.readinto(buffer)
        self.count += count
        self._report(self.count)
        return count

    def read(self, size: int = -1) -> bytes:
        buffer = bytearray(256 << 10 if size < 0 else size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])
