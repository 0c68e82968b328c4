"""`dockpy exec`: one more program in a container that runs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups", "devpts")

STATUS = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
SPACES = "cd /proc/self/ns && for one in cgroup ipc mnt net pid uts; do readlink $one; done"


@pytest.fixture
def there(dockpy: Client) -> Iterator[Client]:
    """A client with a container `box` that runs."""
    dockpy.ok("run", "-d", "--name", "box", "-e", "A=1", "-w", "/srv", "base", "sleep", "1000")
    yield dockpy
    dockpy.remove_all()


def test_it_runs_beside_the_containers_own_and_its_output_and_code_come_back(there: Client) -> None:
    result = there("exec", "box", "sh", "-c", "echo $A; pwd; echo b >&2; ps -o args; exit 7")
    assert (result.code, result.err) == (7, "b\n")
    assert result.out.startswith("1\n/srv\n")
    assert "sleep 1000" in result.out
    assert there.ok("logs", "box").out == ""


@pytest.mark.parametrize(
    ("program", "code"), [("no-such-program", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_a_program_that_cannot_run_gives_dockers_codes_and_one_line(
    there: Client, program: str, code: int
) -> None:
    result = there("exec", "box", program)
    assert (result.code, result.out) == (code, "")
    assert result.err.count("\n") == 1
    assert program in result.err


def test_it_has_the_containers_isolation_exactly(there: Client) -> None:
    own = there.ok("run", "--rm", "base", "sh", "-c", STATUS).out
    assert "Seccomp:\t2" in own
    assert there.ok("exec", "box", "sh", "-c", STATUS).out == own
    mine = there.ok("exec", "box", "sh", "-c", SPACES).out
    first = there.ok("exec", "box", "sh", "-c", SPACES.replace("self", "1")).out
    assert mine == first
    assert there.ok("exec", "box", "sh", "-c", "cat /proc/self/cgroup").out == (
        there.ok("exec", "box", "sh", "-c", "cat /proc/1/cgroup").out
    )
    listed = there.ok("exec", "box", "sh", "-c", "cd /proc/self/fd && ls").out.split()
    assert set(listed) <= {"0", "1", "2", "3"}  # 3: ls reads the directory


def test_it_is_in_the_containers_cgroup(there: Client) -> None:
    there.ok("run", "-d", "--name", "small", "-m", "16m", "base", "sleep", "1000")
    result = there("exec", "small", "sh", "-c", "tail /dev/zero; exit $?")
    assert result.code == 137
    assert there.field("small", "{{.State.Running}}") == "true"


def test_privileged_gives_capabilities_and_takes_the_filter_away(there: Client) -> None:
    out = there.ok("exec", "--privileged", "box", "sh", "-c", STATUS).out
    assert "Seccomp:\t0" in out
    assert int(out.split("CapEff:\t")[1].split()[0], 16) & 1 << 21  # CAP_SYS_ADMIN
    again = there.ok("exec", "box", "sh", "-c", STATUS).out
    assert "Seccomp:\t2" in again


@pytest.mark.parametrize("options", [["--cap-add", "SYS_PTRACE"], ["--privileged"]])
def test_a_container_that_may_trace_others_gets_a_program_with_memory_of_its_own(
    dockpy: Client, options: list[str]
) -> None:
    dockpy.ok("run", "-d", "--name", "tracer", *options, "base", "sleep", "1000")
    result = dockpy("exec", "tracer", "sh", "-c", "echo in; exit 3")
    assert (result.code, result.out) == (3, "in\n")
    assert dockpy("exec", "tracer", "nowhere").code == 127
    dockpy.remove_all()


def test_user_directory_and_environment_are_its_own(there: Client) -> None:
    out = there.ok(
        *("exec", "-u", "1000:7", "-w", "/tmp", "-e", "A=2", "-e", "B=3", "box"),
        *("sh", "-c", "id -u; id -g; pwd; echo $A$B"),
    ).out
    assert out == "1000\n7\n/tmp\n23\n"
    result = there("exec", "-w", "/nowhere", "box", "true")
    assert result.code in (126, 127)
    assert "/nowhere" in result.err


def test_input_reaches_it_and_ends(there: Client) -> None:
    assert there("exec", "-i", "box", "cat", input="x\n").out == "x\n"
    assert there("exec", "box", "cat", input="x\n").out == ""


def test_a_terminal_is_one_of_the_containers_own(there: Client) -> None:
    with there.terminal("exec", "-it", "box", "sh", rows=31, columns=97) as terminal:
        terminal.expect("# ")
        terminal.type("tty; stty size\r")
        terminal.expect("/dev/pts/0\r\n31 97\r\n")
        terminal.type("exit 4\r")
        assert terminal.wait() == 4
    assert there.field("box", "{{.State.Running}}") == "true"


def test_detach_keys_leave_it_running(there: Client) -> None:
    with there.terminal("exec", "-it", "box", "sh", "-c", "echo up; exec sleep 777") as terminal:
        terminal.expect("up")
        terminal.type(b"\x10\x11")
        assert terminal.wait() == 0
    assert "sleep 777" in there.ok("exec", "box", "ps", "-o", "args").out


def test_detached_it_goes_on_alone(there: Client) -> None:
    result = there.ok("exec", "-d", "box", "sh", "-c", "sleep 0.1; touch /made; exec sleep 555")
    assert result.out == ""
    eventually(lambda: there("exec", "box", "test", "-e", "/made").code == 0, "it did its work")


def test_signals_to_the_client_reach_it(there: Client) -> None:
    script = "trap 'echo got; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    with there.started("exec", "box", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got\n"
        assert process.wait(20) == 9


def test_it_ends_with_the_container(there: Client) -> None:
    with there.started("exec", "box", "sh", "-c", "echo up; exec sleep 1000") as process:
        assert process.stdout is not None
        process.stdout.readline()
        there.ok("kill", "box")
        assert process.wait(20) == 137


@pytest.mark.parametrize("name", ["box", "absent"])
def test_a_container_that_does_not_run_is_told_in_one_line(dockpy: Client, name: str) -> None:
    dockpy.ok("create", "--name", "box", "base", "true")
    result = dockpy("exec", name, "true")
    assert result.code != 0
    assert result.err.count("\n") == 1
    assert name in result.err
    dockpy.remove_all()


def test_big_outputs_are_complete(there: Client) -> None:
    result = there(
        "exec", "box", "sh", "-c", "dd if=/dev/zero bs=65536 count=160 2>/dev/null; exit 2"
    )
    assert (result.code, len(result.raw)) == (2, 160 * 65536)


def test_a_tampered_dev_pts_gives_no_terminal_and_opens_nothing(
    dockpy: Client, tmp_path: Path
) -> None:
    dockpy.ok(
        *("run", "-d", "--name", "bad", "--privileged", "base", "sh", "-c"),
        "umount /dev/pts; mkfifo /dev/pts/ptmx; touch /ready; exec sleep 1000",
    )
    eventually(lambda: dockpy("exec", "bad", "test", "-e", "/ready").code == 0, "it is ready")
    with dockpy.terminal("exec", "-it", "bad", "sh") as terminal:
        assert terminal.wait() != 0
    dockpy.remove_all()


def test_many_at_once_keep_their_outputs_apart(there: Client) -> None:
    processes = [
        subprocess.Popen(
            [*there.command, "exec", "box", "sh", "-c", f"echo {number}; exit {number}"],
            stdout=subprocess.PIPE,
            env=there.environment,
        )
        for number in range(20)
    ]
    for number, process in enumerate(processes):
        out, _ = process.communicate(timeout=60)
        assert (out, process.returncode) == (f"{number}\n".encode(), number)
