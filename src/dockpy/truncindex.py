"""Finds identifiers by any unique prefix."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterable

from dockpy.errors import AmbiguousPrefix, NotFound, UsageError


class TruncIndex:
    """A sorted set of identifiers of one kind; look-up time does not grow to speak of.

    Thread-safe. `kind` is the noun errors use.
    """

    def __init__(self, kind: str, identifiers: Iterable[str] = ()) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._sorted = sorted(set(identifiers))

    def add(self, identifier: str) -> None:
        """Add an identifier; one that is there already stays once."""
        if not identifier:
            raise UsageError(f"an empty {self._kind} id")
        with self._lock:
            if not self._holds(identifier):
                insort(self._sorted, identifier)

    def remove(self, identifier: str) -> None:
        """NotFound when it is not there."""
        with self._lock:
            if not self._holds(identifier):
                raise NotFound(self._kind, identifier)
            del self._sorted[bisect_left(self._sorted, identifier)]

    def get(self, prefix: str) -> str:
        """The one identifier that starts with `prefix`. NotFound, AmbiguousPrefix, UsageError."""
        if not prefix:
            raise UsageError(f"an empty {self._kind} id; give at least one digit")
        with self._lock:
            first = bisect_left(self._sorted, prefix)
            last = bisect_left(self._sorted, prefix + "\U0010ffff")
            if first == last:
                raise NotFound(self._kind, prefix)
            if self._sorted[first] == prefix:
                return prefix
            if last - first > 1:
                raise AmbiguousPrefix(prefix, last - first)
            return self._sorted[first]

    def __contains__(self, identifier: str) -> bool:
        with self._lock:
            return self._holds(identifier)

    def __len__(self) -> int:
        return len(self._sorted)

    def _holds(self, identifier: str) -> bool:
        at = bisect_left(self._sorted, identifier)
        return at < len(self._sorted) and self._sorted[at] == identifier
