"""Where the milliseconds of a start go: medians over many traced runs.

    python -m benchmarks.waterfall --command DOCKPY [--rootfs TAR] [--runs N] [-- OPTION ...]

Each run is `dockpy run --rm --trace OPTION ... base /bin/true`, one at a time with a pause between,
on a daemon of its own. A line is a step (docs/performance.md tells how to read them); its time is
the median of what it took. Steps of different processes overlap, so a run's own order may differ;
the order here is that of the median moments. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import base_archive
from benchmarks.commands import stop_daemon

LINE = re.compile(r" *([0-9.]+) +([0-9.]+)  (\w+) +(.*)")
WARM_UP = 3
PAUSE = 0.05
"""Seconds between runs: what a start leaves to clear away is not the next one's time."""


@dataclass
class Step:
    """One line of the timelines: when it was done and what it took, in milliseconds."""

    at: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)


def read(text: str, steps: dict[tuple[str, str], Step]) -> float:
    """Add a timeline to the steps; its whole length in milliseconds."""
    seen: dict[tuple[str, str], int] = {}
    end = 0.0
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            continue
        at, took, who, what = float(found[1]), float(found[2]), found[3], found[4]
        number = seen[who, what] = seen.get((who, what), 0) + 1
        step = steps.setdefault((who, what if number == 1 else f"{what}, again"), Step())
        step.at.append(at)
        step.took.append(took)
        end = at
    return end


def show(steps: dict[tuple[str, str], Step], whole: Sequence[float], runs: int) -> None:
    load = os.getloadavg()[0]
    print(f"{runs} runs, whole: median {statistics.median(whole):.2f} ms, load {load:.1f}")
    print(f"{'at ms':>8} {'took':>7} {'p90':>7}  {'who':10}  what")
    usual = [(key, step) for key, step in steps.items() if len(step.at) * 2 > runs]
    for (who, what), step in sorted(usual, key=lambda one: statistics.median(one[1].at)):
        worse = sorted(step.took)[int(len(step.took) * 0.9)]
        print(
            f"{statistics.median(step.at):8.3f} {statistics.median(step.took):7.3f} {worse:7.3f}"
            f"  {who:10}  {what}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--command", required=True, help="an installed dockpy")
    parser.add_argument("--rootfs", help="a root file system as tar; default: a small one")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of dockpy run")
    asked = parser.parse_args()
    with peers.scratch() as directory:
        engine = [
            asked.command,
            "--root",
            str(directory / "state"),
            "--run",
            str(directory / "run"),
        ]
        archive = base_archive(directory, asked.rootfs)
        subprocess.run([*engine, "import", str(archive), "base"], check=True, capture_output=True)
        command = [*engine, "run", "--rm", "--trace", *asked.options, "base", "/bin/true"]
        try:
            measure(command, asked.runs)
        finally:
            stop_daemon(Path(directory, "state"))


def measure(command: Sequence[str], runs: int) -> None:
    steps: dict[tuple[str, str], Step] = {}
    whole = []
    for number in range(runs + WARM_UP):
        time.sleep(PAUSE)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if number >= WARM_UP:
            whole.append(read(done.stderr, steps))
    show(steps, whole, runs)


if __name__ == "__main__":
    main()
