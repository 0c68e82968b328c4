"""Ratios of the hot paths now beside saved ones.

    python -m benchmarks.hot.compare [--against FILE] [--keep [FILE]] [NOW ...]

NOW are files that `pytest benchmarks/hot --benchmark-autosave` wrote, the newest one when none is
named; of several, the median of each ratio counts. The table has a line per benchmark: its ratio to
its reference now (contest.py), the saved one, and the change. The exit status is 1 only when even
the tenth of a benchmark's rounds that went best is more than WORST times the saved ratio: on a
machine with six times as much to do as it has cores, medians were up to 2.5 times those of a quiet
one, and no best tenth 1.9 times. A benchmark that is new, or gone, is told and nothing else.
`--keep` writes what is now as the file to compare with: names and ratios, nothing of this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAVED = Path(__file__).resolve().parent.parent / "saved"
BASELINE = SAVED / "hot.json"
WORST = 2.0
"""By how much a ratio may grow."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One benchmark's ratio to its reference: ours / theirs, so less is better."""

    ratio: float
    low: float
    high: float
    reference: str


class NothingSaved(Exception):
    """There is no run to compare, or the file is not one."""


def newest(directory: Path) -> Path:
    """The last run that was saved by itself. NothingSaved."""
    found = sorted(directory.glob("*/*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NothingSaved(f"no run is saved below {directory}; run pytest benchmarks/hot first")
    return found[-1]


def read_run(path: Path) -> dict[str, Figure]:
    """What pytest-benchmark saved. NothingSaved for something else."""
    try:
        return {
            one["name"].removeprefix("test_"): Figure(
                one["extra_info"]["ratio"],
                one["extra_info"]["ratio_p10"],
                one["extra_info"]["ratio_p90"],
                one["extra_info"]["reference"],
            )
            for one in json.loads(path.read_text())["benchmarks"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NothingSaved(f"{path} is no saved run of benchmarks/hot: {error}") from error


def middle(runs: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Of each benchmark the run with the median ratio."""
    found: dict[str, list[Figure]] = {}
    for run in runs:
        for name, figure in run.items():
            found.setdefault(name, []).append(figure)
    return {
        name: sorted(figures, key=lambda one: one.ratio)[len(figures) // 2]
        for name, figures in found.items()
    }


def read_kept(path: Path) -> dict[str, float]:
    """What `keep` wrote. NothingSaved for something else."""
    try:
        return {str(name): float(ratio) for name, ratio in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise NothingSaved(f"{path} holds no ratios: {error}") from error


def keep(figures: Mapping[str, Figure], path: Path) -> None:
    """Write the ratios to compare later runs with."""
    kept = {name: float(f"{figures[name].ratio:.3g}") for name in sorted(figures)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def table(now: Mapping[str, Figure], saved: Mapping[str, float]) -> list[str]:
    """A line per benchmark, worst change first; the gone ones at the end."""
    lines = [f"{'':24} {'now':>9} {'p10..p90':>17} {'saved':>9} {'change':>7}  beside"]
    for name in sorted(now, key=lambda one: -now[one].ratio / saved.get(one, float("inf"))):
        figure = now[name]
        spread = f"{figure.low:.3g}..{figure.high:.3g}"
        before = f"{saved[name]:9.3g}" if name in saved else f"{'new':>9}"
        change = f"x{figure.ratio / saved[name]:.2f}" if name in saved else ""
        lines.append(
            f"{name:24} {figure.ratio:9.3g} {spread:>17} {before} {change:>7}  {figure.reference}"
        )
    lines += [f"{name:24} {'not run':>9}" for name in sorted(set(saved) - set(now))]
    return lines


def too_slow(now: Mapping[str, Figure], saved: Mapping[str, float]) -> list[str]:
    """What a change made worse than noise can explain."""
    return [
        f"{name} is {now[name].ratio / saved[name]:.1f} times as slow beside "
        f"{now[name].reference} as when it was saved; the bound is {WORST:g}"
        for name in sorted(set(now) & set(saved))
        if now[name].low > WORST * saved[name]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("now", nargs="*", type=Path, metavar="NOW")
    parser.add_argument("--against", type=Path, default=BASELINE, help="saved ratios, or a run")
    parser.add_argument("--keep", type=Path, nargs="?", const=BASELINE, help="write the ratios")
    options = parser.parse_args(arguments)
    try:
        now = middle([read_run(path) for path in options.now or [newest(SAVED)]])
        if options.keep is not None:
            keep(now, options.keep)
            return 0
        saved = saved_ratios(options.against)
    except NothingSaved as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    print(f"hot paths: ours / reference, against {options.against.name}")
    print("\n".join(table(now, saved)))
    failures = too_slow(now, saved)
    for one in failures:
        print(f"too slow: {one}")
    return 1 if failures else 0


def saved_ratios(path: Path) -> dict[str, float]:
    """Of a kept file, or of a whole run. NothingSaved."""
    try:
        return read_kept(path)
    except NothingSaved:
        return {name: figure.ratio for name, figure in read_run(path).items()}


if __name__ == "__main__":
    raise SystemExit(main())
