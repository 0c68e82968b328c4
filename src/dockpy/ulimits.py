"""Resource limits by name. Pure. Source: getrlimit(2)."""

from __future__ import annotations

import re

from dockpy.errors import UsageError
from dockpy.model import Ulimit

LARGEST = (1 << 63) - 1
"""As the system calls count; the kernel's RLIM_INFINITY is above it."""
_FIGURE = re.compile(r"\d{1,19}", re.ASCII)

_NUMBERS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}


def resource_number(name: str) -> int:
    """The kernel's number; UsageError for an unknown name."""
    try:
        return _NUMBERS[name]
    except KeyError:
        known = ", ".join(_NUMBERS)
        raise UsageError(f"unknown ulimit {name[:80]!r}; known are {known}") from None


def parse(text: str) -> Ulimit:
    """`name=soft[:hard]`; -1 or `unlimited` for no limit. UsageError."""
    name, equals, values = text.partition("=")
    resource_number(name)
    soft, colon, hard = values.partition(":")
    if not equals or not soft or (colon and not hard):
        raise UsageError(f"bad ulimit {text[:80]!r}; write NAME=SOFT[:HARD]")
    low, high = _value(text, soft), _value(text, hard or soft)
    if high != -1 and (low == -1 or low > high):
        raise UsageError(f"bad ulimit {text[:80]!r}: the soft limit is above the hard one")
    return Ulimit(name, low, high)


def _value(text: str, figure: str) -> int:
    """A figure in the unit of its resource (bytes, seconds, pieces); -1 for no limit."""
    if figure in ("-1", "unlimited"):
        return -1
    if not _FIGURE.fullmatch(figure) or int(figure) > LARGEST:
        raise UsageError(f"bad ulimit {text[:80]!r}: {figure[:80]!r} is no number up to {LARGEST}")
    return int(figure)
