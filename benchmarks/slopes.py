"""How a figure grows with the work done: a straight line through samples, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Slope(NamedTuple):
    """Growth for each unit of work, and the standard error of that.

    `error` is infinite when too few samples can tell: fewer than three.
    """

    each: float
    error: float

    @property
    def least(self) -> float:
        """What it is at least, but for one time in forty: two errors below the best line."""
        return self.each - 2 * self.error


def slope(work: Sequence[float], figures: Sequence[float]) -> Slope:
    """The line of least squares through (work, figure). ValueError: all at the same work.

    The error is that of samples which scatter about the line independently of each other. Source:
    any textbook on simple linear regression.
    """
    count = len(work)
    middle, level = sum(work) / count, sum(figures) / count
    spread = sum((x - middle) ** 2 for x in work)
    if not spread:
        raise ValueError("a slope needs samples at two places or more")
    each = sum((x - middle) * (y - level) for x, y in zip(work, figures, strict=True)) / spread
    if count < 3:
        return Slope(each, math.inf)
    off = sum((y - level - each * (x - middle)) ** 2 for x, y in zip(work, figures, strict=True))
    return Slope(each, math.sqrt(off / (count - 2) / spread))
