"""The client as a job of a shell: stopped, in the background, killed; whose keys are whose."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, Terminal, eventually
from end_to_end.door import LONG, Door, served

pytestmark = pytest.mark.needs("root")

CTRL_D, CTRL_Z = b"\x04", b"\x1a"


@pytest.fixture
def there(_leaves_nothing: None, short_run: Callable[[], Path]) -> Iterator[Door]:
    with served(short_run()) as found:
        yield found


@contextlib.contextmanager
def shell(client: Client, script: str, *argv: str) -> Iterator[Terminal]:
    """A shell with job control on a terminal; `"$@"` in its script is the client's command."""
    words = ["sh", "-c", f"set -m; {script}", "sh", *client.command, *argv]
    terminal = Terminal(words, client.environment, 24, 80)
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_stopped_client_leaves_the_keys_to_the_shell_and_goes_on_afterwards(there: Door) -> None:
    script = '"$@"; echo "stopped $?"; read line; echo "shell has $line"; fg; echo "done $?"'
    with shell(there[0], script, "copy") as terminal:
        terminal.type("one\n")
        terminal.expect("one\r\none\r\n")
        terminal.type(CTRL_Z)
        terminal.expect("stopped 148")
        terminal.type("two\n")
        terminal.expect("shell has two")
        terminal.expect('"${@}"\r\n')  # what fg brings to the front
        terminal.type("three\n")
        terminal.expect("three\r\nthree\r\n")
        terminal.type(CTRL_D)
        terminal.expect("copied")
        terminal.expect("done 0")
        assert terminal.wait() == 0


def test_a_client_in_the_background_is_stopped_before_it_takes_a_key(there: Door) -> None:
    script = '"$@" & echo "job started"; read line; echo "shell has $line"; fg; echo "done $?"'
    with shell(there[0], script, "copy") as terminal:
        terminal.expect("job started")
        eventually(lambda: there[1].seen, "the command runs")
        terminal.type("mine\n")
        terminal.expect("shell has mine")
        terminal.expect('"${@}"\r\n')  # what fg brings to the front
        terminal.type("yours\n")
        terminal.expect("yours\r\nyours\r\n")
        terminal.type(CTRL_D)
        terminal.expect("done 0")
        assert terminal.wait() == 0


def test_a_raw_terminal_is_raw_again_after_a_stop(there: Door) -> None:
    with there[0].terminal("raw") as terminal:
        terminal.expect("raw")
        eventually(lambda: terminal.settings() != terminal.before, "the terminal is raw")
        raw = terminal.settings()
        os.kill(terminal.process.pid, signal.SIGSTOP)
        stopped = os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED)
        assert stopped is not None
        termios.tcsetattr(
            terminal.slave, termios.TCSANOW, terminal.before
        )  # as a shell does that takes its terminal back
        os.kill(terminal.process.pid, signal.SIGCONT)
        eventually(lambda: terminal.settings() == raw, "the terminal is raw again")
        terminal.type("q")
        assert terminal.wait() == 5
        assert terminal.settings() == terminal.before


def test_a_killed_clients_terminal_is_read_by_nobody(there: Door) -> None:
    with there[0].terminal("copy") as terminal:
        terminal.type("one\n")
        terminal.expect("one\r\none\r\n")
        terminal.process.kill()
        terminal.process.wait(LONG)
        terminal.type("for the shell\n")
        os.set_blocking(terminal.slave, False)
        assert os.read(terminal.slave, 100) == b"for the shell\n"
