"""SVG drawings as text: bars with whiskers, and timelines. Pure: the same values, the same bytes.

Text stays text, in the reader's own font; colours are for light and dark pages both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LABELS, BAR, LINE, FIGURES = 860, 250, 380, 24, 150
"""Pixels: of the drawing, of the names on its left, of the longest bar, of a row, of the numbers
on its right."""
TICKS = 5
STYLE = """<style>
svg { font: 13px system-ui, sans-serif; } .title { font-weight: 600; } .soft { font-size: 11px; }
.page { fill: #ffffff; } text { fill: #1f2328; } .soft { fill: #59636e; } .ours { fill: #54a3ff; }
.other { fill: #b8c0ca; } .grid { stroke: #d1d9e0; } .whisker { stroke: #1f2328; }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; } text { fill: #f0f6fc; } .soft { fill: #9198a1; } .ours { fill: #1f6feb; }
.other { fill: #555d67; } .grid { stroke: #30363d; } .whisker { stroke: #f0f6fc; } }
</style>"""
"""No variables: programs that draw SVG outside of browsers do not know them."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure with its spread, and what is written behind it."""

    name: str
    value: float
    low: float
    high: float
    text: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """From figures to pixels: from `low`, the left edge, to `high`, `width` pixels on."""

    low: float
    high: float
    logarithmic: bool
    width: float = BAR

    def at(self, value: float) -> float:
        """Pixels from the left edge; what is below the edge is on it."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return max(0.0, min(1.0, share)) * self.width

    def marks(self) -> list[float]:
        """Round figures along it: powers of ten, or steps of 1, 2 or 5 times one."""
        if self.logarithmic:
            low, high = round(math.log10(self.low)), round(math.log10(self.high))
            every = max(1, (high - low) // TICKS)
            return [10.0**power for power in range(low, high + 1, every)]
        step = round_step((self.high - self.low) / TICKS)
        count = int((self.high - self.low) / step + 1e-9)
        return [self.low + number * step for number in range(count + 1)]


def round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least * (1 - 1e-9))


def scale_for(bars: Sequence[Bar], far_apart: float) -> Scale:
    """Logarithmic when the figures differ by more than `far_apart` times, and none is zero."""
    values = [bar.value for bar in bars]
    high = max(max(bar.value, bar.high) for bar in bars)
    low = min(min(bar.value, bar.low) for bar in bars)
    if min(values) > 0 and max(values) / min(values) > far_apart:
        bottom = 10.0 ** math.floor(math.log10(low if low > 0 else min(values)))
        if bottom == min(values):
            bottom /= 10  # else its bar has no length
        return Scale(bottom, 10.0 ** math.ceil(math.log10(high)), logarithmic=True)
    if high <= 0:
        return Scale(0.0, 1.0, logarithmic=False)
    step = round_step(high / TICKS)
    return Scale(0.0, step * math.ceil(high / step - 1e-9), logarithmic=False)


def number(value: float) -> str:
    """As short as three digits tell it."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def pixels(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{pixels(x)}" y="{pixels(y)}"{named}{end}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    ends = f'x1="{pixels(x1)}" y1="{pixels(y1)}" x2="{pixels(x2)}" y2="{pixels(y2)}"'
    return f'<line {ends} class="{kind}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    size = f'width="{pixels(width)}" height="{pixels(height)}"'
    told = f"<title>{escape(title)}</title>"
    return f'<rect x="{pixels(x)}" y="{pixels(y)}" {size} class="{kind}">{told}</rect>'


def panel(title: str, unit: str, bars: Sequence[Bar], scale: Scale, top: float) -> list[str]:
    """A title, a bar for each row with its whisker and figure, and the axis below."""
    bottom = top + 28 + LINE * len(bars)
    parts = [text(8, top + 18, title, "title")]
    for mark in scale.marks():
        x = LABELS + scale.at(mark)
        parts.append(line(x, top + 28, x, bottom, "grid"))
        parts.append(text(x, bottom + 14, number(mark), "soft", "middle"))
    says = f"{unit}, logarithmic" if scale.logarithmic else unit
    parts.append(text(LABELS - 10, bottom + 14, says, "soft", "end"))
    for row, bar in enumerate(bars):
        y = top + 28 + LINE * row
        middle = y + LINE / 2
        parts.append(text(LABELS - 10, middle + 4, bar.name, anchor="end"))
        kind = "bar ours" if bar.ours else "bar other"
        spread = f"{bar.name}: {number(bar.value)}, p10 {number(bar.low)}, p90 {number(bar.high)}"
        parts.append(box(LABELS, y + 4, scale.at(bar.value), LINE - 8, kind, spread))
        if bar.high > bar.low:
            left, right = LABELS + scale.at(bar.low), LABELS + scale.at(bar.high)
            parts.append(line(left, middle, right, middle, "whisker"))
            parts += [line(x, middle - 4, x, middle + 4, "whisker") for x in (left, right)]
        parts.append(text(WIDTH - 8, middle + 4, bar.text, anchor="end"))
    return parts


def panel_height(bars: int) -> int:
    return 28 + LINE * bars + 34


def document(parts: Iterable[str], height: float, described: str) -> str:
    """A whole SVG file."""
    high = pixels(height)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" '
            f'width="{WIDTH}" height="{high}" role="img">',
            f"<title>{escape(described)}</title>",
            STYLE,
            f'<rect width="{WIDTH}" height="{high}" class="page"/>',
            *parts,
            "</svg>",
            "",
        ]
    )
