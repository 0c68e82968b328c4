"""The socket front door: what a command line meets before any container is in it.

Most tests serve a table of small commands instead of the engine's; the last have a real daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dockpy.api import daemon as door
from dockpy.api import wire
from end_to_end.client import Client, Terminal, eventually
from end_to_end.daemon import Daemon
from end_to_end.door import (
    LONG,
    Door,
    answer,
    client_without_daemon,
    end_daemon_of,
    send,
    served,
    serving_lines,
    stranger,
)

pytestmark = pytest.mark.needs("root")

SUBPROCESS_OPTIONS: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def there(_leaves_nothing: None, short_run: Callable[[], Path]) -> Iterator[Door]:
    with served(short_run()) as found:
        yield found


# -- plain commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 125, 127, 255])
def test_the_client_leaves_with_the_code_it_is_told(there: Door, code: int) -> None:
    assert there[0]("leave", str(code)).code == code


def test_arguments_of_megabytes_arrive_whole(there: Door) -> None:
    argv = ["x" * 100_000] * 15
    result = there[0]("words", *argv, env={"WORD": "\udcff=\n"})
    assert result.raw == b"15 1500000 \xff=\n\n"


def test_the_working_directory_is_the_callers(there: Door, tmp_path: Path) -> None:
    assert there[0]("where", cwd=tmp_path).out == str(tmp_path)


def test_input_and_both_outputs_are_the_callers_own(there: Door) -> None:
    result = there[0]("copy", input="one\ntwo\n")
    assert (result.code, result.out, result.err) == (0, "one\ntwo\n", "copied\n")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_problem(there: Door, closed: str) -> None:
    client = there[0]
    script = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *client.command, "copy"],
        input=b"in",
        capture_output=True,
        env=client.environment,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout == (b"" if "1>" in closed else b"" if "0<" in closed else b"in")
    assert done.stderr == (b"" if "2>" in closed else b"copied\n")


def test_the_root_may_be_named_before_the_verb(there: Door) -> None:
    client = there[0]
    other = Client(Path("/nowhere"), Path("/nowhere"), client.command)
    assert other("--root", "/x", f"--run={client.run_directory}", "leave", "9").code == 9
    refused = other("--root")
    assert (refused.code, refused.err) == (125, "dockpy: --root needs a directory\n")


# -- signals and ends ------------------------------------------------------------------------------


def test_every_signal_reaches_the_command_in_order(there: Door) -> None:
    numbers = [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT, signal.SIGTERM]
    with there[0].started("signals", "40") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        for number in numbers:
            client.send_signal(number)
            assert client.stdout.readline() == b"%d\n" % number
        for _ in range(20):
            client.send_signal(41)  # a real-time signal: none is merged into another
        client.send_signal(40)
        told = client.stdout.read().split()
        assert (sorted(told), client.wait(LONG)) == ([b"40"] + [b"41"] * len(told[1:]), 0)


def test_a_deadly_signal_ends_the_client_of_a_command_that_goes_on(there: Door) -> None:
    with there[0].started("ignores") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        assert client.wait(LONG) == 143
    assert not there[1].left.is_set()


def test_a_command_that_does_not_answer_is_left_at_the_third_signal(there: Door) -> None:
    with there[0].started("says_nothing") as client:
        eventually(lambda: there[1].seen, "the command runs")
        for _ in range(3):
            assert client.poll() is None
            client.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(0.3)
        assert client.wait(LONG) == 130


def test_a_killed_clients_end_is_told(there: Door) -> None:
    with there[0].started("until_gone") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.kill()
    assert there[1].left.wait(LONG)


# -- terminals -------------------------------------------------------------------------------------


def expect_raw(terminal: Terminal) -> None:
    terminal.expect("raw")
    eventually(lambda: terminal.settings() != terminal.before, "the terminal is raw")


def test_keys_go_through_raw_and_the_terminal_is_restored(there: Door) -> None:
    with there[0].terminal("raw") as terminal:
        expect_raw(terminal)
        terminal.type(b"\x03\r")
        terminal.expect("030d\r\n")
        terminal.type("q")
        assert terminal.wait() == 5
        assert terminal.settings() == terminal.before


def test_a_client_told_to_end_restores_the_terminal(there: Door) -> None:
    with there[0].terminal("raw") as terminal:
        expect_raw(terminal)
        for _ in range(3):
            terminal.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                terminal.process.wait(0.3)
        assert terminal.wait() == 143
        assert terminal.settings() == terminal.before


def test_the_terminal_is_restored_when_the_daemon_goes(there: Door) -> None:
    with there[0].terminal("raw") as terminal:
        expect_raw(terminal)
        for client in list(there[2]._clients.values()):
            client._connection.shutdown(socket.SHUT_RDWR)
        assert terminal.wait() == 125
        assert "the daemon ended" in terminal.seen.decode()
        assert terminal.settings() == terminal.before


def test_keys_stay_in_the_terminal_while_no_command_wants_them(there: Door) -> None:
    with there[0].terminal("leave", "0") as terminal:
        terminal.type("for the shell\n")
        assert terminal.wait() == 0
        os.set_blocking(terminal.slave, False)
        assert os.read(terminal.slave, 100) == b"for the shell\n"


def test_a_new_window_size_is_told(there: Door) -> None:
    with there[0].terminal("window", rows=30, columns=90) as terminal:
        terminal.expect("first 30 90")
        terminal.resize(40, 100)
        terminal.expect("now 40 100")
        assert terminal.wait() == 0


# -- hostile clients -------------------------------------------------------------------------------


GOOD = wire.pack(wire.Request(wire.RUN, 0, [b"leave", b"0"], []))[0]
SPILLED = GOOD[:8] + bytes((wire.SPILLED,)) + GOOD[9:17]


@pytest.mark.parametrize(
    ("packet", "count", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 0, "not a dockpy client"),
        (b"x", 0, "not a dockpy client"),
        (GOOD, 0, "wrong descriptors"),
        (GOOD, 3, "wrong descriptors"),
        (GOOD, 5, "wrong descriptors"),
        (GOOD[:-1], 4, "torn"),
        (SPILLED, 5, "not in a memfd"),
        (GOOD[:6] + b"\x63" + GOOD[7:], 4, "different versions"),
        (GOOD[:9] + b"\xff" * 8, 4, "too large"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(
    there: Door, packet: bytes, count: int, why: str
) -> None:
    directory = os.open("/", os.O_PATH)
    with stranger(there) as connection:
        send(connection, packet, [directory] * count)
        said, rest = answer(connection)
    os.close(directory)
    assert why in said
    assert (said.count("\n"), rest) == (1, wire.EXIT + bytes((125,)))
    assert there[0]("leave", "3").code == 3


def test_a_packet_larger_than_any_request_and_many_descriptors_are_dropped(there: Door) -> None:
    directory = os.open("/", os.O_PATH)
    for packet, count in ((b"dockpy" + bytes(100_000), 0), (GOOD, 200)):
        with stranger(there) as connection:
            send(connection, packet, [directory] * count)
            assert connection.recv(10) == b""
    os.close(directory)
    assert there[0]("leave", "3").code == 3


def test_who_asks_nothing_is_dropped_and_holds_up_nobody(
    there: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "REQUEST_PATIENCE", 0.5)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(stranger(there)) for _ in range(30)]
        assert there[0]("leave", "4").code == 4
        assert ["no request came" in answer(one)[0] for one in silent] == [True] * 30


def test_who_is_let_go_by_two_threads_takes_no_newcomer_along(
    there: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newcomer may have the descriptor of the one that was let go first."""
    server = there[2]
    newcomer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with stranger(there), newcomer:
        eventually(lambda: server._clients, "the first is there")
        ((number, first),) = server._clients.items()
        slow, real, waited = threading.get_ident(), server._lock, threading.Event()

        class Lock:
            """Who is slow gets it after the other thread was here, and the newcomer."""

            def __enter__(self) -> None:
                if threading.get_ident() == slow and not waited.is_set():
                    waited.set()
                    server.forget(first._connection)
                    newcomer.connect(str(there[0].run_directory / "dockpy.sock"))
                    eventually(lambda: number in server._clients, "the newcomer is there")
                real.acquire()

            def __exit__(self, *_: object) -> None:
                real.release()

        monkeypatch.setattr(server, "_lock", Lock())
        server.forget(first._connection)
        assert waited.is_set()
        assert number in server._clients
        assert server._clients[number] is not first


def test_noise_after_the_request_is_no_signal_of_importance(there: Door) -> None:
    directory = os.open("/", os.O_PATH)
    null = os.open("/dev/null", os.O_RDWR)
    with stranger(there) as connection:
        request = wire.pack(wire.Request(wire.RUN, 0, [b"ignores"], []))[0]
        send(connection, request, [null, null, null, directory])
        eventually(lambda: there[1].seen, "the command runs")
        for noise in (b"\0", b"\xff", b"\x1c", b"\x41" * 1000):
            send(connection, noise, [directory])
        assert there[0]("leave", "3").code == 3
        there[1].left.set()
        assert connection.recv(10) == wire.EXIT + b"\0"
    os.close(directory)
    os.close(null)


def test_the_socket_is_for_root_and_the_group_alone(there: Door) -> None:
    path = there[0].run_directory / "dockpy.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    assert path.parent.stat().st_mode & 0o066 == 0
    assert sorted(os.listdir(path.parent)) == ["dockpy.sock"]


# -- real daemons ----------------------------------------------------------------------------------

GATE = "echo before; while [ ! -e /go ]; do usleep 20000; done; echo after; exit 7"


@pytest.fixture
def lonely(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path]
) -> Iterator[Client]:
    with client_without_daemon(real_tmp, short_run()) as client:
        yield client


@pytest.mark.needs("overlay", "cgroups")
def test_fifty_clients_at_once_start_one_daemon(lonely: Client) -> None:
    clients = [
        subprocess.Popen(
            [*lonely.command, "ps", "-q"], env=lonely.environment, **SUBPROCESS_OPTIONS
        )
        for _ in range(50)
    ]
    ends = [(client.communicate(timeout=2 * LONG), client.returncode) for client in clients]
    assert ends == [((b"", b""), 0)] * 50
    assert len(serving_lines(lonely)) == 1


def test_a_daemon_that_cannot_start_is_told_in_one_line(
    short_run: Callable[[], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = Client(tmp_path / "file" / "root", short_run())("ps")
    assert result.code == 125
    assert result.err.count("\n") == 1
    assert "did not start" in result.err
    assert "Not a directory" in result.err


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_a_client_outlives_its_daemon(lonely: Client, tiny_archive: Path) -> None:
    lonely.ok("import", str(tiny_archive), "base")
    with lonely.started("run", "--name", "gate", "base", "sh", "-c", GATE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"before\n"
        pid = int(lonely.field("gate", "{{.State.Pid}}"))
        first = end_daemon_of(lonely, signal.SIGKILL)
        eventually(lambda: len(serving_lines(lonely)) == 2, "the client starts another daemon")
        Path(f"/proc/{pid}/root/go").touch()
        assert client.stdout.read() == b"after\n"
        assert client.wait(LONG) == 7
    assert int((lonely.root / "lock").read_text()) != first


@pytest.mark.needs("overlay", "busybox", "cgroups", "devpts")
def test_a_terminal_outlives_its_daemon(lonely: Client, tiny_archive: Path) -> None:
    lonely.ok("import", str(tiny_archive), "base")
    with lonely.terminal("run", "--name", "shell", "-it", "base", "sh") as terminal:
        terminal.expect("# ")
        end_daemon_of(lonely, signal.SIGKILL)
        eventually(lambda: len(serving_lines(lonely)) == 2, "the client starts another daemon")
        terminal.type("echo $((6*7))\r")
        terminal.expect("42\r\n")
        terminal.resize(44, 133)
        terminal.type("until [ \"$(stty size)\" = '44 133' ]; do usleep 20000; done; echo new $?\r")
        terminal.expect("new 0\r\n")
        terminal.type(b"\x10\x11")
        assert terminal.wait() == 0
        assert terminal.settings() == terminal.before
    assert lonely.field("shell", "{{.State.Running}}") == "true"


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_a_daemon_ended_on_purpose_is_not_started_by_who_waits(own_daemon: Daemon) -> None:
    dockpy = own_daemon.client
    with dockpy.started("run", "--name", "gate", "base", "sh", "-c", GATE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"before\n"
        pid = int(dockpy.field("gate", "{{.State.Pid}}"))
        assert own_daemon.stop() == 0
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(0.6)
        assert serving_lines(dockpy) == []
        own_daemon.start()
        Path(f"/proc/{pid}/root/go").touch()
        assert client.stdout.read() == b"after\n"
        assert client.wait(LONG) == 7
