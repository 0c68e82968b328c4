"""The timeline of a command: `run --trace` and DOCKPY_TRACE."""

from __future__ import annotations

import pytest

from end_to_end.client import Client

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

IN_ORDER = [
    ("daemon", "client accepted"),
    ("daemon", "request received"),
    ("daemon", "command line parsed"),
    ("daemon", "image found, configuration checked"),
    ("daemon", "container's directories and record written"),
    ("daemon", "network connected"),
    ("daemon", "cgroups made"),
    ("daemon", "root mounted, detached"),
    ("daemon", "plan built and packed"),
    ("supervisor", "has the message"),
    ("child", "clone"),
    ("child", "mount proc"),
    ("child", "pivot_root"),
    ("supervisor", "program is executed"),
    ("pump", "program has ended, output is drained"),
    ("daemon", "output delivered"),
    ("daemon", "command done"),
    ("client", "has the answer"),
]


def steps(text: str) -> list[tuple[float, str, str]]:
    """Milliseconds, who and what of each line below the head."""
    rows = [line.split(None, 3) for line in text.splitlines()[1:]]
    return [(float(at), who, what) for at, _, who, what in rows]


def test_a_traced_run_tells_each_step_of_all_processes_in_order(dockpy: Client) -> None:
    result = dockpy("run", "--trace", "--rm", "base", "sh", "-c", "echo out; exit 3")
    assert (result.code, result.out) == (3, "out\n")
    told = steps(result.err)
    assert [at for at, _, _ in told] == sorted(at for at, _, _ in told)
    names = [(who, what) for _, who, what in told]
    assert [step for step in names if step in IN_ORDER] == IN_ORDER


def test_the_variable_traces_any_command(dockpy: Client) -> None:
    result = dockpy("ps", env={"DOCKPY_TRACE": "1"})
    assert [what for _, who, what in steps(result.err) if who == "daemon"] == [
        "client accepted",
        "request received",
        "a thread has read the request",
        "command line parsed",
        "command done",
    ]


@pytest.mark.parametrize("value", ["", "0"])
def test_the_variable_set_to_nothing_or_zero_traces_nothing(dockpy: Client, value: str) -> None:
    assert dockpy("run", "--rm", "base", "true", env={"DOCKPY_TRACE": value}).err == ""


def test_the_programs_own_argument_of_that_name_is_the_programs(dockpy: Client) -> None:
    result = dockpy("run", "--rm", "base", "echo", "--trace")
    assert (result.out, result.err) == ("--trace\n", "")


def test_a_start_that_fails_is_traced_as_far_as_it_came(dockpy: Client) -> None:
    result = dockpy("run", "--trace", "--rm", "base", "no-such-program")
    assert result.code == 127
    said, _, timeline = result.err.partition("\n")
    assert said.startswith("dockpy: ")
    names = [what for _, _, what in steps(timeline)]
    assert "plan built and packed" in names
    assert "program is executed" not in names


def test_a_detached_run_is_traced_to_its_start(dockpy: Client) -> None:
    result = dockpy("run", "-d", "--trace", "base", "sleep", "100")
    names = [what for _, _, what in steps(result.err)]
    assert "program is executed" in names
    assert "output delivered" not in names
