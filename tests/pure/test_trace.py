"""Timelines: their table, and how they travel."""

from __future__ import annotations

import time

import pytest

from dockpy.trace import CHILD, CLIENT, DAEMON, OFF, Trace, from_epoch, steps_of_child


def noted(*moments: tuple[int, str, str]) -> Trace:
    trace = Trace()
    for moment in moments:
        trace.at(*moment)
    return trace


def test_the_table_tells_when_each_step_was_done_and_what_it_took() -> None:
    trace = noted((5_000_000, CLIENT, "begun"), (6_500_000, DAEMON, "parsed"))
    assert trace.text().splitlines() == [
        "   at ms    took  who         what",
        "   0.000   0.000  client      begun",
        "   1.500   1.500  daemon      parsed",
    ]


def test_moments_are_told_in_the_order_they_happened_whoever_noted_them_first() -> None:
    trace = noted((9, DAEMON, "third"), (1, CLIENT, "first"), (5, DAEMON, "second"))
    assert [line.split()[-1] for line in trace.text().splitlines()[1:]] == [
        "first",
        "second",
        "third",
    ]


def test_equal_steps_in_a_row_are_one_line_with_their_number_and_their_sum() -> None:
    trace = noted(
        (0, DAEMON, "asked"),
        *((n * 1_000_000, CHILD, "mask") for n in (1, 2, 3)),
        (4_000_000, CHILD, "pivot_root"),
        (5_000_000, CHILD, "mask"),
    )
    assert [line.split(None, 3) for line in trace.text().splitlines()[2:]] == [
        ["3.000", "3.000", "child", "mask (3)"],
        ["4.000", "1.000", "child", "pivot_root"],
        ["5.000", "1.000", "child", "mask"],
    ]


def test_a_trace_without_moments_is_a_head_alone() -> None:
    assert Trace().text().count("\n") == 1


def test_a_message_tells_when_it_begins_and_ends_above_its_table() -> None:
    trace = noted((30, CLIENT, "begun"), (70, DAEMON, "done"), (50, DAEMON, "mount \udcff"))
    head, _, table = trace.message(1000).partition(b"\n")
    assert head == b"30 70"
    assert table == trace.text().encode(errors="backslashreplace")


@pytest.mark.parametrize("limit", range(80, 300, 7))
def test_a_message_too_long_for_its_packet_loses_whole_lines_at_its_end(limit: int) -> None:
    trace = noted(*((n, DAEMON, f"step {n}") for n in range(9)))
    told = trace.message(limit)
    whole = trace.message(10_000)
    assert len(told) <= limit
    assert whole.startswith(told)
    assert told.endswith(b"\n")
    assert len(told) + 45 > min(limit, len(whole))


def test_steps_are_named_by_the_plan_as_far_as_the_child_noted_them() -> None:
    assert steps_of_child([10, 20], ["mount proc", "pivot_root", "execute"]) == [
        (10, "clone"),
        (20, "mount proc"),
    ]


def test_what_nobody_asked_for_notes_nothing() -> None:
    OFF.mark(DAEMON, "step")
    OFF.at(1, DAEMON, "step")
    OFF.add(CHILD, [(1, "step")])
    assert (OFF.on, OFF.moments) == (False, [])


def test_a_moment_since_the_epoch_is_told_by_the_clock_of_all_others() -> None:
    before = time.monotonic_ns()
    moment = from_epoch(time.time())
    after = time.monotonic_ns()
    # A float holds seconds since the epoch to a quarter of a microsecond.
    assert before - 1000 <= moment <= after + 1000
