"""Straight lines through samples, and what the churn makes of them."""

from __future__ import annotations

import math
import os
import random
import signal
import statistics
import subprocess
from pathlib import Path

import pytest
from benchmarks.churn import PART, paces, report
from benchmarks.remains import LIMITS, Limit, below, entries, inodes, judge, namespaces
from benchmarks.slopes import Slope, slope


def test_a_straight_line_is_found_without_an_error() -> None:
    found = slope([0, 10, 20, 30], [5, 7, 9, 11])
    assert found.each == pytest.approx(0.2)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_what_stays_has_no_slope() -> None:
    assert slope([0, 1, 2], [4, 4, 4]) == Slope(0, 0)


def test_line_and_error_are_those_of_the_standard_library() -> None:
    chance = random.Random(7)
    work = [1000.0 * number for number in range(20)]
    figures = [5 + 0.003 * x + chance.gauss(0, 4) for x in work]
    line = statistics.linear_regression(work, figures)
    off = [y - line.intercept - line.slope * x for x, y in zip(work, figures, strict=True)]
    deviation = math.sqrt(sum(one * one for one in off) / (len(work) - 2))
    found = slope(work, figures)
    assert found.each == pytest.approx(line.slope)
    assert found.error == pytest.approx(deviation / statistics.stdev(work) / math.sqrt(19))


def test_the_error_is_how_far_lines_through_other_samples_lie() -> None:
    chance = random.Random(3)
    work = [float(number) for number in range(15)]
    lines = [slope(work, [chance.gauss(0, 2) for _ in work]) for _ in range(2000)]
    seen = statistics.stdev(line.each for line in lines)
    assert statistics.mean(line.error for line in lines) == pytest.approx(seen, rel=0.1)


def test_two_samples_cannot_tell() -> None:
    assert slope([0, 1], [0, 5]).error == math.inf
    assert not Limit(0, 0).exceeded(slope([0, 1], [0, 5]), 1)


def test_samples_at_one_place_have_no_line() -> None:
    with pytest.raises(ValueError, match="two places"):
        slope([3, 3], [1, 2])


@pytest.mark.parametrize(
    ("each", "error", "exceeded"),
    [
        (0.0, 0.0, False),
        (50.0, 0.0, True),
        (50.0, 30.0, False),  # may as well be nothing
        (3.0, 0.0, False),  # less than the bound
        (8.0, 0.0, False),  # less than the room in all
        (-50.0, 0.0, False),
    ],
)
def test_a_limit_is_exceeded_by_what_surely_grows_beyond_bound_and_room(
    each: float, error: float, exceeded: bool
) -> None:
    assert Limit(each=4, room=10_000).exceeded(Slope(each, error), 1000) is exceeded


def samples(name: str, values: list[int]) -> list[dict[str, int]]:
    return [{"links": 7, name: value} for value in values]


WORK = [0, 10_000, 20_000, 30_000]


def test_a_count_that_grows_is_told_and_one_that_stays_is_not() -> None:
    lost = samples("cgroups", [9, 21, 30, 41])
    found = judge(WORK, lost)
    assert [(one.name, one.first, one.last, one.exceeded) for one in found] == [
        ("links", 7, 7, False),
        ("cgroups", 9, 41, True),
    ]
    assert "cgroups" in [
        line.split()[0] for line in report(found, []).splitlines() if "grows" in line
    ]


def test_memory_that_grows_by_a_kilobyte_a_start_is_told() -> None:
    name = "memory of the engine, B"
    grows = [30_000_000 + 1024 * starts for starts in WORK]
    assert judge(WORK, samples(name, grows))[1].exceeded
    assert not judge(WORK, samples(name, [30_000_000, 30_700_000, 30_650_000, 30_690_000]))[
        1
    ].exceeded


def test_what_is_counted_of_a_shared_host_is_not_judged() -> None:
    name = "host: network namespaces"
    assert LIMITS[name].host
    grows = samples(name, [10, 410, 810, 1210])
    assert judge(WORK, grows)[1].exceeded
    assert not judge(WORK, grows, shared=True)[1].exceeded
    assert judge(WORK, samples("cgroups", [0, 400, 800, 1200]), shared=True)[1].exceeded


def test_starts_that_become_slower_are_told() -> None:
    chance = random.Random(5)
    flat = [chance.expovariate(0.1) for _ in range(20 * PART)]
    assert [pace.name for pace in paces(flat)] == ["p50", "p99", "p99.9"]
    assert not any(pace.slower for pace in paces(flat))
    slower = [took * (1 + number / len(flat)) for number, took in enumerate(flat)]
    assert all(pace.slower for pace in paces(slower))


def test_few_starts_have_parts_too() -> None:
    assert [(pace.first, pace.last) for pace in paces([1.0] * 8)] == [(1.0, 1.0)] * 3


def test_what_a_process_has_is_seen_from_outside(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("")
    assert inodes(tmp_path) == 3
    words = ["sh", "-c", "exec 7</proc/self/ns/net 8</proc/self/ns/uts; sleep 100 & echo; wait"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        assert len(below([child.pid])) == 1
        assert namespaces([child.pid]) == 2
        assert entries("task", [child.pid]) == 1
        assert entries("fd", [child.pid]) == 5
        for one in (*below([child.pid]), child.pid):
            os.kill(one, signal.SIGKILL)
