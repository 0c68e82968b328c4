"""Names and numbers of signals. Pure."""

from __future__ import annotations

import signal

from dockpy.errors import UsageError

RTMIN, RTMAX = 34, 64
"""As the C library numbers them: it keeps the kernel's first two for itself. signal(7)."""

_NUMBERS = {one.name.removeprefix("SIG"): int(one) for one in signal.Signals}


def parse_signal(text: str) -> int:
    """The number of KILL, SIGKILL, kill, 9, RTMIN+3 or RTMAX-1. UsageError for anything else."""
    name = text.strip().upper().removeprefix("SIG")
    number = _NUMBERS.get(name)
    if number is None and name.isdecimal() and 0 < int(name) <= RTMAX:
        number = int(name)
    for base, sign in (("RTMIN", "+"), ("RTMAX", "-")):
        head, found, offset = name.partition(sign)
        if number is None and head == base and found and offset.isdecimal():
            moved = RTMIN + int(offset) if base == "RTMIN" else RTMAX - int(offset)
            number = moved if RTMIN <= moved <= RTMAX else None
    if number is None:
        raise UsageError(f"unknown signal {text!r}; use a name such as TERM or a number up to 64")
    return number
