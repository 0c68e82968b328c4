"""The timeline of a start in the engine itself: dockpy.Trace."""

from __future__ import annotations

import pytest

from dockpy import Config, Runtime, Trace
from dockpy.errors import CommandNotFound

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

IN_ORDER = [
    ("daemon", "image found, configuration checked"),
    ("daemon", "container's directories and record written"),
    ("daemon", "network connected"),
    ("daemon", "cgroups made"),
    ("daemon", "root mounted, detached"),
    ("daemon", "user looked up"),
    ("daemon", "plan built and packed"),
    ("supervisor", "has the message"),
    ("child", "clone"),
    ("child", "mount proc"),
    ("child", "pivot_root"),
    ("supervisor", "program is executed"),
    ("pump", "program has ended, output is drained"),
    ("daemon", "knows of the end"),
]


def told(trace: Trace) -> list[tuple[str, str]]:
    """Who did what, in the order of time."""
    return [(who, what) for _, who, what in sorted(trace.moments)]


def test_a_start_and_its_end_are_traced_through_all_processes(engine: Runtime) -> None:
    trace = Trace()
    container = engine.create(Config(image="base", cmd=("true",)), trace=trace)
    container.start(trace=trace)
    assert container.wait() == 0
    engine.destroy(container)
    assert [step for step in told(trace) if step in IN_ORDER] == IN_ORDER


def test_a_start_without_a_trace_between_traced_ones_adds_nothing(engine: Runtime) -> None:
    trace = Trace()
    for wanted in (trace, None):
        container = engine.create(Config(image="base", cmd=("true",)))
        if wanted is None:
            container.start()
        else:
            container.start(trace=wanted)
        assert container.wait() == 0
        engine.destroy(container)
    assert told(trace).count(("child", "pivot_root")) == 1


def test_a_start_that_fails_is_traced_up_to_the_supervisor(engine: Runtime) -> None:
    trace = Trace()
    container = engine.create(Config(image="base", cmd=("no-such-program",)))
    with pytest.raises(CommandNotFound):
        container.start(trace=trace)
    engine.destroy(container)
    assert told(trace)[-1] == ("daemon", "plan built and packed")
