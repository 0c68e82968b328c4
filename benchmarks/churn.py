"""Very many short containers in one run: what is left of them, and whether starts become slower.

    python -m benchmarks.churn [--starts N] [--every N] [--warm N] [--threads N] [--network NAME]
                               [--command PROGRAM] [--shared] [--json FILE]

create, start, wait and remove of /bin/true through the API, on the bridge unless told otherwise, in
a network namespace of this program's own; with `--command` it is `PROGRAM run --rm`, through the
daemon. The engine is in a process of its own. After each N starts this one lets it clean up, looks
at it and at the kernel from outside (`benchmarks.remains`), and goes on. The samples of each count
are a line; exit status 1 when one surely grows by more than its limit, or when starts become
slower. `--shared`: others work on this host; what is counted there is told and not judged. Needs
root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from benchmarks import peers
from benchmarks.bench import base_archive
from benchmarks.churned import Churned, through_commands, through_the_api
from benchmarks.remains import Remains, count, judge, processor, standing
from benchmarks.slopes import Slope, slope
from dockpy.places import cgroup_name

WARM = 2000
"""Starts before the first sample: pools are full, modules imported, and as much is garbage at once
as ever will be."""
SAMPLES = 20
"""How often there is a look at what is left, unless told."""
QUIET = 2.0
"""Seconds without a change after which engine and kernel have cleared away what they will."""
PATIENCE = 60.0
"""Seconds they may take for that; what is left then is counted."""
PART = 1000
"""Starts whose quantiles are compared with those of others."""
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
SLOWER = 0.2
"""A quantile that grows by less than this share of itself, in the whole run, is flat."""


class Pace(NamedTuple):
    """A time of each part of a run, in ms. `slope`: for each start."""

    name: str
    first: float
    last: float
    slope: Slope
    slower: bool


def pace(name: str, work: Sequence[float], times: Sequence[float]) -> Pace:
    """`work`: the starts before each part."""
    line = slope(work, times)
    slower = line.least * (work[-1] - work[0]) > SLOWER * statistics.mean(times)
    return Pace(name, times[0], times[-1], line, slower)


def paces(took: Sequence[float]) -> list[Pace]:
    """How quantiles of the latency develop from part to part."""
    size = max(1, min(PART, len(took) // 4))
    work = range(0, len(took) - size + 1, size)
    parts = [sorted(took[at : at + size]) for at in work]
    return [
        pace(name, work, [part[min(size - 1, int(size * share))] for part in parts])
        for name, share in QUANTILES.items()
    ]


class Churn(NamedTuple):
    """What a run gave. `took`: ms of each start; `rate`: starts a second.

    `done`: the starts before each of the `samples`; `spent`: processor seconds of the engine and
    its supervisors, with what these have waited for, until each sample.
    """

    took: Sequence[float]
    rate: float
    done: Sequence[int]
    samples: Sequence[dict[str, int]]
    spent: Sequence[float]

    def paces(self) -> list[Pace]:
        """Latency, and processor time, which others on this machine disturb less."""
        work = self.done[:-1]
        times = [
            1000 * (self.spent[number + 1] - self.spent[number]) / (self.done[number + 1] - begun)
            for number, begun in enumerate(work)
        ]
        return [*paces(self.took), pace("processor, containers' too", work, times)]


def churn(engine: Churned, cgroup: str, starts: int, every: int, warm: int) -> Churn:
    """A run of `starts`, with a look after `every` so many; before it, `warm` that do not count."""
    found = engine.engine()  # once: what it takes to tell is garbage that the collector leaves
    engine.starts(warm)
    took, busy = array("d"), 0.0
    done: list[int] = []
    samples: list[dict[str, int]] = []
    spent: list[float] = []

    def look() -> None:
        wait_until_still(lambda: standing(found, cgroup))
        samples.append(count(found, cgroup))
        spent.append(processor((found.pid, *found.supervisors)))
        done.append(len(took))

    look()
    while len(took) < starts:
        began = time.perf_counter()
        took.extend(engine.starts(min(every, starts - len(took))))
        busy += time.perf_counter() - began
        look()
    return Churn(took, starts / busy, done, samples, spent)


def wait_until_still(look: Callable[[], object]) -> None:
    """Until what it sees is the same for `QUIET` seconds; `PATIENCE` at most."""
    began = since = time.monotonic()
    seen = look()
    while since + QUIET > time.monotonic() and since < began + PATIENCE:
        time.sleep(0.2)
        now = look()
        if now != seen:
            seen, since = now, time.monotonic()


def report(found: Sequence[Remains], quick: Sequence[Pace]) -> str:
    """Two tables, a line for each count and each quantile."""
    lines = [f"  {'':30} {'first':>12} {'last':>12} {'a start':>14} {'+-':>10}"]
    for one in found:
        lines.append(
            f"  {one.name:30} {one.first:12} {one.last:12} {one.slope.each:14.3g}"
            f" {one.slope.error:10.2g}"
            f"{'  grows' if one.exceeded else ''}"
        )
    lines.append("  ms, of each part's starts:")
    for part in quick:
        lines.append(
            f"  {part.name:30} {part.first:12.2f} {part.last:12.2f} {part.slope.each:14.3g}"
            f" {part.slope.error:10.2g}"
            f"{'  slower' if part.slower else ''}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--starts", type=int, default=10_000)
    parser.add_argument("--every", type=int, help="starts between samples")
    parser.add_argument("--warm", type=int, default=WARM, help="starts before the first sample")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--network", default="bridge")
    parser.add_argument("--command", type=Path, help="the installed dockpy: run --rm by that")
    parser.add_argument("--shared", action="store_true", help="others work on this host")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    every = options.every or max(1, options.starts // SAMPLES)
    if options.starts < 2 * every:
        parser.error("a line needs three samples: let there be --starts of at least twice --every")
    peers.own_network()
    with peers.scratch() as directory:
        what = (directory, base_archive(directory, None), options.network, options.threads)
        measured: AbstractContextManager[Churned] = (
            through_commands(options.command, *what) if options.command else through_the_api(*what)
        )
        with measured as engine:
            cgroup = cgroup_name(directory / "state")
            run = churn(engine, cgroup, options.starts, every, options.warm)
        shutil.rmtree(directory / "state")
    found, quick = judge(run.done, run.samples, shared=options.shared), run.paces()
    print(f"{options.starts} starts, {options.threads} threads, {run.rate:.1f} a second:")
    print(report(found, quick))
    if options.json:
        options.json.write_text(json.dumps(run._replace(took=list(run.took))._asdict()))
    return 1 if any(one.exceeded for one in found) or any(one.slower for one in quick) else 0


if __name__ == "__main__":
    raise SystemExit(main())
