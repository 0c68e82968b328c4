"""How long tests wait for what must happen before they call it a hang.

No test is slower for more of it, none measures with it. DOCKPY_SLOW multiplies it for machines that
are slow in themselves: 10 is right for one that is emulated.
"""

from __future__ import annotations

import os

SLOW = float(os.environ.get("DOCKPY_SLOW") or 1)


def patient(seconds: float) -> float:
    """The seconds to wait here for what takes less than `seconds` on any usual machine."""
    return seconds * SLOW
