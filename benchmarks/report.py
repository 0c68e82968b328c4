"""The tables of a page, written anew from the file of a run.

    python -m benchmarks.report FILE.json [--into docs/performance.md]

The page has pairs of marks, each on a line of its own; what stands between them is replaced:

    <!-- figures: GROUP -->  the tables of that group and its drawing
    <!-- figures: promises --> each promise beside what the run found
    <!-- figures -->         the run: machine, commit, load, what was not measured
    <!-- end -->             ends either

A group that the file has no rows of keeps the table that was there.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import promises
from benchmarks.figures import Figures, Group, NotFigures
from benchmarks.svg import number

MARKS = re.compile(r"(<!-- figures(?:: ([\w-]+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PLOTS = "plots"
"""Where the drawings are, beside the page."""


def table(group: Group) -> str:
    """Markdown; the ratio is the median over the reference's."""
    if group.steps:
        lines = ["| at ms | took | who | what |", "| ---: | ---: | --- | --- |"]
        lines += [
            f"| {one.at:.2f} | {one.took:.2f} | {one.who} | {one.what} |" for one in group.steps
        ]
        return "\n".join([f"**{group.title}**", "", *lines, ""])
    lines = ["| | n | p10 | median | p90 | p99 | ratio |", f"| --- |{' ---: |' * 6}"]
    for row in group.rows:
        ratio = group.ratio(row)
        figures = [number(one) for one in (row.p10, row.median, row.p90, row.p99)]
        figures[1] += f" {row.unit}"
        beside = "" if ratio is None else number(ratio)
        lines.append(f"| {row.name.strip()} | {row.n} | {' | '.join(figures)} | {beside} |")
    return "\n".join([f"**{group.title}**", "", *lines, ""])


def facts(found: Figures) -> str:
    """What the run was made on."""
    on = found.machine
    load = f"{on['load_before']} before, {on.get('load_after', 'not known')} after"
    words = (
        f"{'Short run' if on.get('short') else 'Run'} of {found.began[:10]} "
        f"at commit {found.commit or 'not known'}: Linux {on['kernel']}, "
        f"HZ {on['hz'] or 'not told'}, {on['processors']} x {on['processor']}, "
        f"{on['memory_mib']} MiB,\ncgroups {on['cgroups']}, Python {on['python']}; load {load}. "
        "Ratio: to the row whose ratio is 1. Of /s more is better, of the rest less.\n"
    )
    if found.skipped:
        words += "".join(f"\n- not measured: {line}" for line in found.skipped) + "\n"
    if found.failures:
        words += "".join(f"\n- failed: {line}" for line in found.failures) + "\n"
    return words


def written(page: str, found: Figures) -> str:
    """The page with what the run found between its marks."""

    def between(mark: re.Match[str]) -> str:
        begin, name, before, end = mark.groups()
        if name is None:
            return f"{begin}{facts(found)}{end}"
        if name == "promises":
            return f"{begin}{promises.table(found)}{end}"
        groups = [one for one in found.of(name) if one.rows or one.steps]
        if not groups:
            return f"{begin}{before}{end}"
        tables = "\n".join(table(one) for one in groups if one.rows or one.steps)
        return f"{begin}![{name}]({PLOTS}/{name}.svg)\n\n{tables}{end}"

    return MARKS.sub(between, page)


def rewrite(path: Path, found: Figures) -> None:
    """Replace the page as a whole or not at all. OSError."""
    new = path.with_suffix(".new")
    new.write_text(written(path.read_text(), found))
    os.replace(new, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.report", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--into", type=Path, metavar="PAGE")
    given = parser.parse_args(arguments)
    try:
        found = Figures.read(given.file)
        if given.into is not None:
            rewrite(given.into, found)
        else:
            print("\n".join([facts(found), *(table(one) for one in found.groups)]))
    except (NotFigures, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
