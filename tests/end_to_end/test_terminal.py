"""`run -t` and `attach` with a person at a terminal."""

from __future__ import annotations

import pytest

from end_to_end.client import Client, eventually

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups", "devpts")

DETACH = b"\x10\x11"
"""Ctrl-p Ctrl-q."""


def test_the_program_has_a_terminal_of_its_own(dockpy: Client) -> None:
    result = dockpy(
        "run", "--rm", "-t", "base", "sh", "-c", "tty; test -t 0 && test -t 2 && echo both"
    )
    assert (result.code, result.err) == (0, "")
    assert result.out == "/dev/pts/0\r\nboth\r\n"


def test_a_shell_answers_and_its_code_comes_back(dockpy: Client) -> None:
    with dockpy.terminal("run", "--rm", "-it", "base", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("echo $((6*7))\r")
        terminal.expect("42\r\n")
        terminal.type("exit 3\r")
        assert terminal.wait() == 3
        assert terminal.settings() == terminal.before


def test_the_window_size_is_told_at_the_start_and_on_change(dockpy: Client) -> None:
    with dockpy.terminal("run", "--rm", "-it", "base", "sh", rows=31, columns=97) as terminal:
        terminal.expect("# ")
        terminal.type("stty size\r")
        terminal.expect("31 97\r\n")
        terminal.resize(44, 133)
        terminal.type("until [ \"$(stty size)\" = '44 133' ]; do usleep 20000; done; echo new $?\r")
        terminal.expect("new 0\r\n")
        terminal.type("exit\r")
        assert terminal.wait() == 0


def test_ctrl_c_ends_the_job_not_the_shell(dockpy: Client) -> None:
    with dockpy.terminal("run", "--rm", "-it", "base", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("sh -c 'echo go; exec sleep 100'\r")  # it speaks when it has the terminal
        terminal.expect("go\r\n")
        terminal.type(b"\x03")
        terminal.expect("# ")
        terminal.type("echo alive; exit 0\r")
        terminal.expect("alive\r\n")
        assert terminal.wait() == 0


def test_detach_leaves_the_program_running_and_attach_comes_back(dockpy: Client) -> None:
    with dockpy.terminal("run", "--name", "shell", "-it", "base", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("KEPT=still; echo set\r")
        terminal.expect("set\r\n")
        terminal.type(DETACH)
        assert terminal.wait() == 0
        assert terminal.settings() == terminal.before
    assert dockpy.field("shell", "{{.State.Running}}") == "true"
    with dockpy.terminal("attach", "shell") as terminal:
        terminal.type("echo $KEPT here\r")
        terminal.expect("still here\r\n")
        terminal.type("exit 6\r")
        assert terminal.wait() == 6


def test_the_detach_keys_may_come_one_by_one_and_alone_pass_through(dockpy: Client) -> None:
    with dockpy.terminal("run", "--name", "shell", "-it", "base", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("stty -icanon -echo; echo raw; dd bs=1 count=2 2>/dev/null | od -An -tx1\r")
        terminal.expect("raw\r\n")
        terminal.type(b"\x10")
        terminal.type(b"x")
        terminal.expect("10 78\r\n")
        terminal.type(b"\x10")
        eventually(lambda: terminal.process.poll() is None, "it waits for the second key")
        terminal.type(b"\x11")
        assert terminal.wait() == 0
    assert dockpy.field("shell", "{{.State.Running}}") == "true"


def test_other_detach_keys_can_be_chosen(dockpy: Client) -> None:
    argv = ("run", "--name", "shell", "-it", "--detach-keys", "ctrl-x,y", "base", "sh")
    with dockpy.terminal(*argv) as terminal:
        terminal.expect("# ")
        terminal.type(b"\x18y")
        assert terminal.wait() == 0
    assert dockpy.field("shell", "{{.State.Running}}") == "true"


def test_the_terminal_is_restored_when_the_client_is_told_to_end(dockpy: Client) -> None:
    with dockpy.terminal("run", "--name", "shell", "-it", "base", "sh") as terminal:
        terminal.expect("# ")
        dockpy.ok("kill", "shell")
        assert terminal.wait() == 137
        assert terminal.settings() == terminal.before


def test_a_detached_terminal_container_can_be_attached_and_logged(dockpy: Client) -> None:
    job = dockpy.detached("-i", "-t", "base", "sh")
    with dockpy.terminal("attach", job) as terminal:
        terminal.type("echo $((40+2)) seen\r")
        terminal.expect("42 seen\r\n")
        terminal.type("exit 0\r")
        assert terminal.wait() == 0
    assert "42 seen\r\n" in dockpy.ok("logs", job).out
