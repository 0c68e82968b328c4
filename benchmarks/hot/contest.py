"""Ours beside a slow reference or a floor, in turns, under pytest-benchmark.

A round is one run of the reference and then one of ours, so that what disturbs the machine disturbs
both. What pytest-benchmark times and keeps is ours; the reference's times go beside it:

    extra_info = {"reference": its name, "reference_seconds": median, "ratio": ours / reference,
                  "ratio_p10": ..., "ratio_p90": ...}

A job's time is what it takes of the processors, in all threads of this process: on a busy machine
the wall's time says who had to wait. A job whose work is done by other processes times itself, and
returns the seconds as a float. The ratio is the median of the rounds' own ratios. Only ratios are
compared between runs (compare.py): times of two machines, or of two hours of one machine, say
nothing about each other.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Protocol

Job = Callable[[], object]


class Contest(Protocol):
    """What the fixture `contest` gives."""

    def __call__(
        self, ours: Job, reference: Job, *, against: str, rounds: int, prepare: Job | None = None
    ) -> None:
        """Run both `rounds` times and note the ratio.

        `against`: what the reference is, in a few words. `prepare` runs before each of the two,
        outside the time.
        """


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that a contest needs."""

    extra_info: dict[str, object]

    def pedantic(
        self, target: Job, *, setup: Callable[[], None], rounds: int, warmup_rounds: int
    ) -> object: ...


def run_contest(
    benchmark: Benchmark,
    ours: Job,
    reference: Job,
    *,
    against: str,
    rounds: int,
    prepare: Job | None = None,
) -> None:
    """See Contest."""
    theirs: list[float] = []
    own: list[float] = []

    def reference_first() -> None:
        for step in (prepare, lambda: theirs.append(timed(reference)), prepare):
            if step is not None:
                step()

    def timed_ours() -> None:
        own.append(timed(ours))

    gc.collect()
    gc.disable()
    try:
        benchmark.pedantic(timed_ours, setup=reference_first, rounds=rounds, warmup_rounds=1)
    finally:
        gc.enable()
    benchmark.extra_info |= summary(own[1:], theirs[1:]) | {"reference": against}


def repeated(job: Job, times: int) -> Callable[[], float]:
    """`times` runs in one, for a job too short to be timed by itself; says what one took."""

    def run() -> float:
        began = time.process_time()
        for _ in range(times):
            job()
        return (time.process_time() - began) / times

    return run


def timed(job: Job) -> float:
    """Seconds of one run."""
    began = time.process_time()
    said = job()
    return said if isinstance(said, float) else time.process_time() - began


def summary(own: list[float], theirs: list[float]) -> dict[str, object]:
    """What is kept of the rounds' times: the ratio, and how much it varied."""
    ratios = sorted(one / other for one, other in zip(own, theirs, strict=True))
    return {
        "reference_seconds": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_p10": ratios[int(len(ratios) * 0.1)],
        "ratio_p90": ratios[min(len(ratios) - 1, int(len(ratios) * 0.9))],
    }
