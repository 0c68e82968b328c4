"""Pictures and tables of a run of `benchmarks.compare`, for docs/performance.md.

    python -m benchmarks.plots RUN.json [--to docs/plots] [--page docs/performance.md]

One SVG for each table: a bar per row as long as its median, a line from its tenth to its ninetieth
percentile. Where the longest is more than twenty times the shortest the scale is logarithmic, and
says so. The page gets the run's tables and pictures between its two `run` marks; the rest of it is
left alone. The same run gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

MARK, END = "<!-- run -->", "<!-- end of run -->"
LEFT, WIDTH, RIGHT, LINE, TOP = 250, 380, 130, 24, 34
"""Pixels: names, bars, figures; the height of a row; the title's."""
WIDE = 20.0
"""From this ratio of the longest to the shortest on, the scale is logarithmic."""


@dataclass(frozen=True)
class Row:
    """One bar: what it is, its figures, their unit."""

    name: str
    low: float
    median: float
    high: float
    unit: str


@dataclass(frozen=True)
class Scale:
    """Where a figure lies on the bars' width."""

    first: float
    last: float
    logarithmic: bool

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Scale:
        figures = [one for row in rows for one in (row.low, row.median, row.high)]
        least, most = min(figures), max(figures)
        if least > 0 and most / least > WIDE:
            return cls(10 ** math.floor(math.log10(least)), most, True)
        return cls(0.0, most or 1.0, False)

    def at(self, figure: float) -> float:
        """Pixels from the bars' left end."""
        if not self.logarithmic:
            return WIDTH * figure / self.last
        span = math.log10(self.last / self.first) or 1.0
        return WIDTH * max(0.0, math.log10(figure / self.first)) / span


def rows_of(group: dict[str, Any]) -> list[Row]:
    return [
        Row(one["name"].strip(), one["p10"], one["median"], one["p90"], one["unit"])
        for one in group["rows"]
    ]


def picture(title: str, rows: Sequence[Row]) -> str:
    """An SVG, readable on light and on dark ground."""
    scale = Scale.of(rows)
    height = TOP + LINE * len(rows) + 10
    wide = LEFT + WIDTH + RIGHT
    note = " (logarithmic)" if scale.logarithmic else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" '
        f'width="{wide}" height="{height}" font-family="sans-serif" font-size="12">',
        "<style>text{fill:#333}.bar{fill:#4a7fb5}.ours{fill:#c8643c}.span{stroke:#333}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.span{stroke:#ddd}}</style>",
        f'<text x="0" y="18" font-size="14">{escape(title)}{note}</text>',
    ]
    for number, row in enumerate(rows):
        middle = TOP + LINE * number + LINE / 2
        kind = "ours" if row.name.startswith("dockpy") else "bar"
        low, long, high = (scale.at(one) for one in (row.low, row.median, row.high))
        text, top = middle + 4, middle - 8
        parts += [
            f'<text x="{LEFT - 8}" y="{text:.1f}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{top:.1f}" width="{long:.1f}" height="16"/>',
            f'<line class="span" x1="{LEFT + low:.1f}" x2="{LEFT + high:.1f}" '
            f'y1="{middle:.1f}" y2="{middle:.1f}"/>',
            f'<text x="{LEFT + max(long, high) + 6:.1f}" y="{text:.1f}">'
            f"{row.median:.4g} {escape(row.unit)}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def name_of(title: str) -> str:
    """A file name for a table's title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]


def markdown(group: dict[str, Any]) -> str:
    """A table with the ratio to its reference, where it has one."""
    found = {one["name"]: one["median"] for one in group["rows"]}
    reference = found.get(group.get("reference", ""))
    lines = ["| | n | p10 | median | p90 | p99 | ratio |", "| --- |" + " ---: |" * 6]
    for one in group["rows"]:
        figures = " | ".join(f"{one[key]:.2f}" for key in ("p10", "median", "p90", "p99"))
        ratio = f"{one['median'] / reference:.2f}" if reference else ""
        name = one["name"].strip().replace("|", "\\|")
        lines.append(f"| {name} ({one['unit'] or '1'}) | {one['n']} | {figures} | {ratio} |")
    return "\n".join(lines)


def page_part(run: dict[str, Any], directory: str) -> str:
    """What comes between the marks."""
    machine = run["machine"]
    told = ", ".join(f"{key} {value}" for key, value in machine.items())
    parts = [f"One run of `python -m benchmarks.compare`: {told}."]
    if run["skipped"]:
        parts.append("Not there, and left out: " + "; ".join(run["skipped"]) + ".")
    for group in run["groups"]:
        if not group["rows"]:
            continue
        title = group["title"]
        parts += [f"### {title}", markdown(group), f"![{title}]({directory}/{name_of(title)}.svg)"]
    return "\n\n".join(parts)


def put(page: str, part: str) -> str:
    """The page with its part between the marks replaced. ValueError: it has no marks."""
    before, mark, rest = page.partition(MARK)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page has no {MARK} and {END}")
    return f"{before}{MARK}\n\n{part}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, default=Path("docs/plots"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    run = json.loads(options.run.read_text())
    options.to.mkdir(parents=True, exist_ok=True)
    for group in run["groups"]:
        if group["rows"]:
            target = options.to / f"{name_of(group['title'])}.svg"
            target.write_text(picture(group["title"], rows_of(group)))
    part = page_part(run, options.to.name)
    options.page.write_text(put(options.page.read_text(), part))


if __name__ == "__main__":
    main()
