"""Readers that are slow, stopped or dead, and the supervisor that dies while nothing happens."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from end_to_end.daemon import Daemon
from end_to_end.storm import kill, logged, supervisors_of

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

LINES = 4000
FLOOD = (
    f"i=0; while [ $i -lt {LINES} ]; do echo line $i of very many, each of them as long as this;"
    "i=$((i+1)); done; exit 5"
)
FLOODED = "".join(
    f"line {number} of very many, each of them as long as this\n" for number in range(LINES)
)


def identifier(client: Client, name: str) -> str:
    eventually(lambda: client("inspect", name).code == 0, f"{name} is there")
    return client.field(name, "{{.Id}}")


def test_a_stopped_reader_delays_nobody_else_and_gets_all_when_it_goes_on(
    daemon: Daemon, dockpy: Client
) -> None:
    with dockpy.started("run", "--name", "flood", "base", "sh", "-c", FLOOD) as reader:
        flood = identifier(dockpy, "flood")
        reader.send_signal(signal.SIGSTOP)
        others = [dockpy("run", "--rm", "base", "sh", "-c", f"echo hi; exit {n}") for n in (1, 2)]
        assert [(one.code, one.out) for one in others] == [(1, "hi\n"), (2, "hi\n")]
        reader.send_signal(signal.SIGCONT)
        assert reader.stdout is not None
        assert reader.stdout.read().decode() == FLOODED
        assert reader.wait(30) == 5
    assert logged(dockpy, flood) == FLOODED


def test_a_dead_reader_costs_the_program_neither_its_log_nor_its_code(
    daemon: Daemon, dockpy: Client
) -> None:
    with dockpy.started("run", "--name", "flood", "base", "sh", "-c", FLOOD) as reader:
        flood = identifier(dockpy, "flood")
        eventually(
            lambda: dockpy.field("flood", "{{.State.Status}}") != "created",
            "the client asked for the start",
        )
        reader.kill()
    assert dockpy.ok("wait", "flood").out == "5\n"
    assert logged(dockpy, flood) == FLOODED


def test_an_idle_supervisor_that_is_killed_is_replaced(daemon: Daemon, dockpy: Client) -> None:
    idle = dockpy.detached("base", "sh", "-c", "echo up; read line; exit 1")
    sleeper = dockpy.detached("base", "sh", "-c", "echo up; sleep 600")
    pid = int(dockpy.field(sleeper, "{{.State.Pid}}"))
    dockpy.ok("wait", idle)
    before = supervisors_of(dockpy)
    for supervisor in before:
        kill(supervisor)
    eventually(
        lambda: (
            len(supervisors_of(dockpy)) == len(before) and not {*before} & {*supervisors_of(dockpy)}
        ),
        "others take their places",
    )
    assert Path(f"/proc/{pid}").exists()
    assert dockpy.ok("run", "--rm", "base", "echo", "hi").out == "hi\n"
    dockpy.ok("kill", sleeper)
    assert dockpy.field(sleeper, "{{.State.ExitCode}}") == "137"
    assert logged(dockpy, sleeper) == "up\n"
