"""Answers that say: not now. Sources: RFC 9110 10.2.3 (Retry-After), RFC 6585 4 (429)."""

from __future__ import annotations

import email.utils

from dockpy.registry.connecting import Broken

PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may work."""


class Passing(Broken):
    """An answer that says: not now. `wait`: the seconds the server asks for."""

    def __init__(self, text: str, wait: float | None) -> None:
        self.wait = wait
        super().__init__(text, sent=True)


def too_many(where: str, said: str, wait: float | None) -> Passing:
    """What a 429 means; `said` is the server's own words, or ""."""
    when = f" in {wait:.0f} seconds" if wait else " later"
    return Passing(f"{where}: too many requests{said}; try again{when}, or log in", wait)


def retry_after(text: str, now: float) -> float | None:
    """Seconds a Retry-After header asks for; None when there is none that makes sense."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(when - now, 0.0)
