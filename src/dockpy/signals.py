"""Names and numbers of signals. Pure. Source: signal(7)."""

from __future__ import annotations

import os
import re
import signal

from dockpy.errors import UsageError

RTMIN, RTMAX = 34, 64
"""As the C library numbers them: it keeps the kernel's first two for itself."""

_NUMBERS = {
    name.removeprefix("SIG"): int(one) for name, one in signal.Signals.__members__.items()
} | {"RTMIN": RTMIN, "RTMAX": RTMAX}
_NUMBER = re.compile(r"\d{1,3}", re.ASCII)
_REAL_TIME = re.compile(r"(RTMIN\+|RTMAX-)(\d{1,3})", re.ASCII)


def parse_signal(text: str) -> int:
    """The number of KILL, SIGKILL, kill, 9, RTMIN+3 or RTMAX-1. UsageError for anything else."""
    name = text.strip().upper().removeprefix("SIG")
    number = _NUMBERS.get(name, 0)
    if _NUMBER.fullmatch(name) and not text.strip().upper().startswith("SIG"):
        number = int(name)
    if moved := _REAL_TIME.fullmatch(name):
        offset = int(moved[2])
        number = RTMIN + offset if moved[1] == "RTMIN+" else RTMAX - offset
        number = number if RTMIN <= number <= RTMAX else 0
    if not 0 < number <= RTMAX:
        raise UsageError(
            f"unknown signal {text[:80]!r}; use a name such as TERM or a number from 1 to {RTMAX}"
        )
    return number


def exit_code(status: int) -> int:
    """A wait status as a shell would tell it: the program's code, or 128+n for signal n."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
