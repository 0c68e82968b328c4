"""Figures drawn: bars of each group, and the timeline of a start.

    python -m benchmarks.plots FILE.json [--to docs/plots] [--into docs/performance.md]
    python -m benchmarks.plots --trace TEXT --to DIRECTORY

FILE.json is what `python -m benchmarks --json` wrote; there is one SVG for each of its groups. With
`--into` the tables of that page are written anew too (benchmarks.report). TEXT is what
`dockpy run --trace` printed on its standard error. Nothing but the standard library is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, svg
from benchmarks.figures import Figures, Group, NotFigures, Row, Step, steps_of

FAR_APART = 20.0
"""Times that figures differ before the scale is logarithmic."""
MORE_IS_BETTER = ("/s",)
"""How units end of which more is better."""
SHORT = 0.012
"""Of the whole time: shorter steps are drawn together with their neighbours."""
LEAST = 1.0
"""Pixels of a step that took next to nothing."""


def times(ratio: float) -> str:
    """A ratio as one says it: twice, or a third."""
    return f"x{svg.number(ratio)}" if ratio > 0.5 else f"1/{svg.number(1 / ratio)}"


def bar(group: Group, row: Row) -> svg.Bar:
    ratio = group.ratio(row)
    beside = "" if not ratio or row.name == group.reference else f", {times(ratio)}"
    words = f"{svg.number(row.median)} {row.unit}{beside}"
    ours = "dockpy" in row.name or ours_only(group)
    return svg.Bar(row.name.strip(), row.median, row.p10, row.p90, words, ours)


def ours_only(group: Group) -> bool:
    """No peer stands in it, and not the floor: all of it is about dockpy."""
    return not any(row.name.startswith("floor") or "dockpy" in row.name for row in group.rows)


def panels(group: Group) -> list[tuple[str, str, list[svg.Bar]]]:
    """Title, unit and bars: one panel for each unit of a group."""
    units = list(dict.fromkeys(row.unit for row in group.rows))
    found = []
    for unit in units:
        bars = [bar(group, row) for row in group.rows if row.unit == unit]
        says = f"{unit}, more is better" if unit.endswith(MORE_IS_BETTER) else unit
        found.append((group.title, says, bars))
    return found


def bars(groups: Sequence[Group], described: str) -> str:
    """One drawing: a panel below the other."""
    parts, top = list[str](), 0.0
    for group in groups:
        for title, unit, rows in panels(group):
            parts += svg.panel(title, unit, rows, svg.scale_for(rows, FAR_APART), top)
            top += svg.panel_height(len(rows))
    return svg.document(parts, top, described)


def folded(steps: Sequence[Step]) -> list[Step]:
    """Steps of one process in a row that are too short to see become one: from the beginning of the
    first to the end of the last, called after the longest."""
    least = SHORT * max((step.at for step in steps), default=0.0)
    runs: list[list[Step]] = []
    for step in steps:
        together = runs and runs[-1][-1].who == step.who
        if together and step.took < least and runs[-1][-1].took < least:
            runs[-1].append(step)
        else:
            runs.append([step])
    found = []
    for run in runs:
        began, end = run[0].at - run[0].took, run[-1].at
        longest = max(run, key=lambda one: one.took)
        more = f" + {len(run) - 1} more" if len(run) > 1 else ""
        found.append(Step(longest.who, longest.what + more, end, end - began))
    return found


def timeline(title: str, steps: Sequence[Step]) -> str:
    """One row for each step, from when it began to when it was done; the colour changes with the
    process, which is named where it changes. A step begins where the one before it ended, whoever
    did that."""
    steps = folded(steps)
    end = max((step.at for step in steps), default=0.0) or 1.0
    step_size = svg.round_step(end / svg.TICKS)
    scale = svg.Scale(0.0, end, logarithmic=False, width=svg.BAR + svg.FIGURES - 20)
    people = list(dict.fromkeys(step.who for step in steps))
    bottom = 28 + svg.LINE * len(steps)
    parts = [svg.text(8, 18, title, "title")]
    for count in range(int(end / step_size + 1e-9) + 1):
        x = svg.LABELS + scale.at(count * step_size)
        parts.append(svg.line(x, 28, x, bottom, "grid"))
        parts.append(svg.text(x, bottom + 14, svg.number(count * step_size), "soft", "middle"))
    parts.append(svg.text(svg.LABELS - 10, bottom + 14, "ms", "soft", "end"))
    for row, step in enumerate(steps):
        y = 28 + svg.LINE * row
        if row == 0 or steps[row - 1].who != step.who:
            parts.append(svg.text(8, y + svg.LINE / 2 + 4, step.who, "title"))
        words = step.what if len(step.what) <= 30 else f"{step.what[:29]}…"
        parts.append(svg.text(svg.LABELS - 10, y + svg.LINE / 2 + 4, words, "soft", "end"))
        begin = scale.at(step.at - step.took)
        width = max(LEAST, scale.at(step.at) - begin)
        kind = "bar ours" if people.index(step.who) % 2 == 0 else "bar other"
        told = f"{step.who}: {step.what}, {svg.number(step.took)} ms"
        parts.append(svg.box(svg.LABELS + begin, y + 4, width, svg.LINE - 8, kind, told))
        took = f"{svg.number(step.took)} ms"
        parts.append(svg.text(svg.WIDTH - 8, y + svg.LINE / 2 + 4, took, "soft", "end"))
    return svg.document(parts, bottom + 28, title)


def drawings(found: Figures) -> dict[str, str]:
    """The files, by name."""
    made = {}
    for name in dict.fromkeys(group.name for group in found.groups):
        groups = found.of(name)
        plain = [one for one in groups if one.rows and not one.steps]
        if plain:
            made[f"{name}.svg"] = bars(plain, f"{name}: medians, p10 to p90")
        for group in groups:
            if group.steps:
                made[f"{name}.svg"] = timeline(group.title, group.steps)
    return made


def of_trace(path: Path) -> dict[str, str]:
    """The drawing of one start's timeline. NotFigures."""
    steps = steps_of(path.read_text(errors="replace"))
    if not steps:
        raise NotFigures(f"{path} holds no timeline")
    return {f"{path.stem}.svg": timeline("one start, step by step", steps)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.plots", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.json")
    parser.add_argument("--to", type=Path, default=Path("docs/plots"), metavar="DIRECTORY")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="also rewrite its tables")
    parser.add_argument("--trace", type=Path, metavar="TEXT", help="a timeline to draw")
    given = parser.parse_args(arguments)
    if (given.file is None) == (given.trace is None):
        parser.error("give a FILE.json or a --trace")
    given.to.mkdir(parents=True, exist_ok=True)
    try:
        if given.trace is not None:
            made = of_trace(given.trace)
        else:
            found = Figures.read(given.file)
            made = drawings(found)
            if given.into is not None:
                report.rewrite(given.into, found)
    except (NotFigures, OSError) as error:
        print(f"plots: {error}", file=sys.stderr)
        return 2
    for name, drawn in made.items():
        (given.to / name).write_text(drawn)
        print(given.to / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
