"""Durations and sizes as people read and write them. Pure."""

from __future__ import annotations

import re

from dockpy.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?\Z", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_STEPS = (
    (1, "Less than a second", ""),
    (2, "1 second", ""),
    (60, "", "second"),
    (120, "About a minute", ""),
    (3600, "", "minute"),
    (5400, "About an hour", ""),
    (48 * 3600, "", "hour"),
    (14 * 86400, "", "day"),
    (60 * 86400, "", "week"),
    (2 * 365 * 86400, "", "month"),
)
_SECONDS = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 7 * 86400,
    "month": 30 * 86400,
    "year": 365 * 86400,
}


def human_duration(seconds: float) -> str:
    """'3 seconds', 'About a minute', '4 hours': the wording Docker's users know."""
    for limit, text, unit in _STEPS:
        if seconds < limit:
            if text:
                return text
            if unit == "hour":
                return f"{round(seconds / 3600)} hours"
            return f"{int(seconds / _SECONDS[unit])} {unit}s"
    return f"{int(seconds / _SECONDS['year'])} years"


def parse_size(text: str) -> int:
    """Bytes of '512m', '1g', '1.5g', '64k', '100' or '100b'; powers of 1024. UsageError."""
    found = _SIZE.match(text.strip())
    if not found:
        raise UsageError(f"bad size {text!r}; write a number with b, k, m or g")
    return int(float(found[1]) * 1024 ** _POWERS[found[2].lower()])


def human_size(size: float) -> str:
    """'206MB': powers of 1000 and three digits, as Docker shows sizes."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.3g}{unit}"
        size /= 1000
    raise AssertionError("unreachable")
