"""Engines beside each other: what the tables are made of."""

from __future__ import annotations

import pytest
from benchmarks.samples import Samples
from benchmarks.sites import BARE, DOCKER, DOCKPY, in_turn
from benchmarks.webs import FEW, LARGE, MANY, SMALL, WRK, Wanted, by_wrk, told_by_wrk


def test_ratios_are_of_one_turn() -> None:
    rows = [
        Samples(DOCKER, [10.0, 20.0], "/s"),
        Samples(DOCKPY, [20.0, 10.0], "/s"),
        Samples(BARE, [30.0, 20.0], "/s"),
    ]
    found = in_turn({"connections": rows})
    assert {title: [(row.name, row.values) for row in rows] for title, rows in found.items()} == {
        "dockpy beside docker in the same turn": [("connections", [2.0, 0.5])],
        "no engine beside docker in the same turn": [("connections", [3.0, 1.0])],
    }


def test_nothing_stands_beside_a_docker_that_is_not_here() -> None:
    assert in_turn({"connections": [Samples(DOCKPY, [20.0], "/s")]}) == {}


def test_what_wrk_found() -> None:
    found = told_by_wrk("Running 2s test\nfound 1000 2000000 2000000 150 0\n")
    wanted = [(SMALL, MANY), (SMALL, 1), (LARGE, FEW)]
    figures = [by_wrk(Wanted("localhost", WRK, 2, "", *how), found) for how in wanted]
    assert [one[1:] for one in figures] == [(500.0, "/s"), (150.0, "us"), (1.0, "MB/s")]
    assert len({one.title for one in figures}) == len(wanted)


@pytest.mark.parametrize("output", ["", "found 1000 2000000 2000000 150 3\n"])
def test_failed_requests_are_no_figures(output: str) -> None:
    with pytest.raises(RuntimeError, match="did not get its answers"):
        told_by_wrk(output)
