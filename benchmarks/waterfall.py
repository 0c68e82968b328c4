"""Where the milliseconds of a start go: medians over many traced runs.

    python -m benchmarks.waterfall [--command DOCKPY] [--rootfs TAR] [--runs N] [--json FILE]
                                   [-- OPTION ...]

Each run is `dockpy run --rm --trace OPTION ... base /bin/true`, one at a time with a pause between,
on a daemon of its own. A line is a step (docs/performance.md tells how to read them); its time is
the median of what it took. Steps of different processes overlap, so a run's own order may differ;
the order here is that of the median moments. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import figures, peers
from benchmarks.bench import base_archive, stop_daemon
from benchmarks.figures import group_record
from benchmarks.samples import Samples

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
    for one in figures.steps_of(text):
        number = seen[one.who, one.what] = seen.get((one.who, one.what), 0) + 1
        key = one.who, one.what if number == 1 else f"{one.what}, again"
        step = steps.setdefault(key, Step())
        step.at.append(one.at)
        step.took.append(one.took)
        end = one.at
    return end


def usual(steps: Mapping[tuple[str, str], Step], runs: int) -> list[tuple[tuple[str, str], Step]]:
    """The steps that most runs had, in the order of their median moments."""
    found = [(key, step) for key, step in steps.items() if len(step.at) * 2 > runs]
    return sorted(found, key=lambda one: statistics.median(one[1].at))


def record(
    steps: Mapping[tuple[str, str], Step], whole: Sequence[float], title: str
) -> dict[str, object]:
    """A group with its steps, see `figures`."""
    told = [
        {
            "who": who,
            "what": what,
            "at": statistics.median(step.at),
            "took": statistics.median(step.took),
        }
        for (who, what), step in usual(steps, len(whole))
    ]
    made = group_record(title, [Samples("whole", list(whole))], None)
    return {**made, "steps": told}


def show(steps: dict[tuple[str, str], Step], whole: Sequence[float], runs: int) -> None:
    load = os.getloadavg()[0]
    print(f"{runs} runs, whole: median {statistics.median(whole):.2f} ms, load {load:.1f}")
    print(f"{'at ms':>8} {'took':>7} {'p90':>7}  {'who':10}  what")
    for (who, what), step in usual(steps, runs):
        worse = sorted(step.took)[int(len(step.took) * 0.9)]
        print(
            f"{statistics.median(step.at):8.3f} {statistics.median(step.took):7.3f} {worse:7.3f}"
            f"  {who:10}  {what}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--command", help="default: the one beside this Python")
    parser.add_argument("--rootfs", help="a root file system as tar; default: a small one")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of dockpy run")
    asked = parser.parse_args()
    program = asked.command or shutil.which("dockpy", path=str(Path(sys.executable).parent))
    if program is None:
        parser.error("dockpy is not installed beside this Python: give --command")
    with peers.scratch() as directory:
        engine = [
            program,
            "--root",
            str(directory / "state"),
            "--run",
            str(directory / "run"),
        ]
        archive = base_archive(directory, asked.rootfs)
        subprocess.run([*engine, "import", str(archive), "base"], check=True, capture_output=True)
        command = [*engine, "run", "--rm", "--trace", *asked.options, "base", "/bin/true"]
        try:
            steps, whole = measure(command, asked.runs)
        finally:
            stop_daemon(Path(directory, "state"))
    show(steps, whole, asked.runs)
    if asked.json:
        title = f"{' '.join(['run --rm', *asked.options])}, medians of {asked.runs} starts"
        asked.json.write_text(json.dumps([record(steps, whole, title)]))


def measure(command: Sequence[str], runs: int) -> tuple[dict[tuple[str, str], Step], list[float]]:
    """The steps of all runs, and how long each run was."""
    steps: dict[tuple[str, str], Step] = {}
    whole: list[float] = []
    for number in range(runs + WARM_UP):
        time.sleep(PAUSE)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if number >= WARM_UP:
            whole.append(read(done.stderr, steps))
    return steps, whole


if __name__ == "__main__":
    main()
