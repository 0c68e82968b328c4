"""Durations and sizes as people read and write them. Pure.

The wording and the steps are those Docker's users know from `docker ps` and `docker images`
(github.com/docker/go-units: HumanDuration, HumanSizeWithPrecision of 3, RAMInBytes).
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from dockpy.errors import UsageError

_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?) ?(?:([kmgtp])i?)?b?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_LARGEST_SIZE = (1 << 63) - 1
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

_DAY, _WEEK, _MONTH, _YEAR = 24, 7 * 24, 30 * 24, 365 * 24
_IN_HOURS = (
    (2 * _DAY, 1, "hours"),
    (2 * _WEEK, _DAY, "days"),
    (2 * _MONTH, _WEEK, "weeks"),
    (2 * _YEAR, _MONTH, "months"),
)
"""Up to so many hours, counted in so many hours, called so."""


def human_duration(seconds: float) -> str:
    """'3 seconds', 'About a minute', '4 hours'. Whole units that have passed; hours are rounded."""
    if not 1 <= seconds < math.inf:
        return "Less than a second"
    whole = int(seconds)
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if whole < 3600:
        minutes = whole // 60
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, unit, name in _IN_HOURS:
        if hours < limit:
            return f"{hours // unit} {name}"
    return f"{whole // 3600 // _YEAR} years"


def parse_size(text: str) -> int:
    """Bytes of '512m', '1g', '1.5g', '64k', '1gib', '100' or '100b'; powers of 1024. UsageError.

    What is less than a byte is dropped.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"bad size {text[:80]!r}; write a number with b, k, m or g, such as 512m")
    size = int(Decimal(found[1]) * 1024 ** _POWERS[(found[2] or "").lower()])
    if size > _LARGEST_SIZE:
        raise UsageError(f"bad size {text[:80]!r}: more than {_LARGEST_SIZE} bytes")
    return size


def human_size(size: float) -> str:
    """'206MB': powers of 1000 and three digits."""
    for unit in _UNITS:
        text = f"{size:.3g}"
        if float(text) < 1000:
            return text + unit
        size /= 1000
    return f"{size * 1000:.0f}{_UNITS[-1]}"
