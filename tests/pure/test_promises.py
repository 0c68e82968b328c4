"""Promises beside what a run of the benchmarks found."""

from __future__ import annotations

from benchmarks import promises
from benchmarks.figures import Figures, Group, Row


def row(name: str, median: float, unit: str = "ms", n: int = 10, p99: float = 0.0) -> Row:
    return Row(name, unit, n, median, median, median, p99 or median)


def found(name: str, title: str, *rows: Row) -> Figures:
    return Figures({}, "", "", [Group(name, title, None, rows)])


EXEC = ("exec", "exec of /bin/true")


def test_a_ratio_within_its_bound_is_met() -> None:
    text = promises.table(found(*EXEC, row("nsenter", 2.0), row("dockpy API", 6.0)))
    assert "| exec through the API, beside nsenter | <= 3 x | 3 | met |" in text


def test_a_ratio_beyond_its_bound_is_not_met() -> None:
    text = promises.table(found(*EXEC, row("nsenter", 2.0), row("dockpy API", 6.2)))
    assert "| exec through the API, beside nsenter | <= 3 x | 3.1 | **not met** |" in text


def test_a_rate_below_its_bound_is_not_met() -> None:
    rows = [row("dockpy, 8 clients", 99.0, "/s"), row("docker, 8 clients", 5.0, "/s")]
    text = promises.table(found("clients", "run --rm, bridge: runs a second", *rows))
    assert "| >= 100 | 99 | **not met** |" in text


def test_a_promise_without_its_peer_is_not_judged() -> None:
    text = promises.table(found(*EXEC, row("dockpy API", 6.0), row("dockpy exec", 3.0)))
    assert len(text.splitlines()) == 2


def test_tails_are_judged_with_a_hundred_samples_and_not_with_fewer() -> None:
    title = "create+start+wait+remove, none, gap 100 ms"
    few = found("start", title, row("dockpy API, none", 5.0, n=30, p99=50.0))
    many = found("start", title, row("dockpy API, none", 5.0, n=120, p99=50.0))
    assert "p99" not in promises.table(few)
    assert "p99 beside the median | <= 3 x | 10 | **not met** |" in promises.table(many)


def test_memory_is_that_of_daemon_and_supervisors_together() -> None:
    rows = [
        row("engine (the daemon)", 8.0, "KiB"),
        row("supervisors", 4.0, "KiB"),
        row("the programs themselves", 200.0, "KiB"),
    ]
    text = promises.table(found("density", "memory of each of 100 idle containers", *rows))
    assert "| <= 100 | 12 | met |" in text
