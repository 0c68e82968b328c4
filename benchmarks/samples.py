"""Timings of one thing, and a table of several beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Samples:
    """Times in milliseconds (or figures in `unit`) of one contestant."""

    name: str
    values: list[float] = field(default_factory=list)
    unit: str = "ms"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "n": len(self.values),
            "p10": self.quantile(0.10),
            "median": self.median,
            "p90": self.quantile(0.90),
            "p99": self.quantile(0.99),
            "values": self.values,
        }


def table(title: str, rows: Sequence[Samples], reference: Samples | None = None) -> str:
    """One line per contestant; the last column is its median over the reference's."""
    lines = [title, f"  {'':34} {'n':>5} {'p10':>9} {'median':>9} {'p90':>9} {'p99':>9}  ratio"]
    for row in rows:
        if not row.values:
            lines.append(f"  {row.name:34}  (not measured)")
            continue
        ratio = f"{row.median / reference.median:6.2f}" if reference and reference.values else ""
        figures = "".join(
            f" {value:9.2f}"
            for value in (row.quantile(0.10), row.median, row.quantile(0.90), row.quantile(0.99))
        )
        lines.append(f"  {row.name:34} {len(row.values):5}{figures} {ratio:>6} {row.unit}")
    return "\n".join(lines)
