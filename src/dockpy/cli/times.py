"""Moments as users write them: RFC 3339, a date, Unix seconds, or a duration before now. Pure.

Source: Docker's reference of `logs --since`; Go's time.ParseDuration for durations.
"""

from __future__ import annotations

import re
from datetime import datetime

from dockpy.errors import UsageError

UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIX = re.compile(r"\d+(\.\d{1,9})?")
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:T(\d\d)(?::?(\d\d)(?::(\d\d)(\.\d+)?)?)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as 1h30m, 10m, 1.5s, 0. ValueError."""
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.removeprefix("-").removeprefix("+")
    if rest == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None:
            break
        total += float(part[1]) * UNITS[part[2]]
        position = part.end()
    if not rest or position < len(rest):
        raise ValueError(f"{text!r} is not a duration")
    return sign * total


def parse_moment(option: str, text: str, now: float) -> float:
    """Seconds since the epoch. A time without a zone is the daemon's local time. UsageError."""
    if _UNIX.fullmatch(text):
        return float(text)
    found = _RFC3339.fullmatch(text)
    if found is not None:
        date, hours, minutes, seconds, fraction, zone = found.groups()
        whole = f"{date}T{hours or '00'}:{minutes or '00'}:{seconds or '00'}{zone or ''}"
        try:
            return datetime.fromisoformat(whole).timestamp() + float(f"0{fraction or ''}")
        except ValueError as error:
            raise UsageError(f"{option} {text!r}: {error}") from error
    try:
        return now - parse_duration(text)
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r}: give a time (2026-01-02T15:04:05Z), Unix seconds or a duration "
            "such as 10m"
        ) from error
