"""`dockpy run` as a user types it: what goes in, what comes out, and the exit code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from end_to_end.client import Client
from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        pytest.param(["base", "echo", "hello"], 0, "hello\n", "", id="output"),
        pytest.param(["base", "sh", "-c", "echo a; echo b >&2"], 0, "a\n", "b\n", id="two-streams"),
        pytest.param(["base", "sh", "-c", "exit 7"], 7, "", "", id="its-own-code"),
        pytest.param(
            ["base", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137, "", "Killed\n", id="signal"
        ),
        pytest.param(["base", "printf", r"a\0b"], 0, "a\0b", "", id="nul-byte"),
        pytest.param(["base", "echo", "", "  two "], 0, "   two \n", "", id="arguments-untouched"),
        pytest.param(["base", "echo", "--rm", "-d"], 0, "--rm -d\n", "", id="flags-after-image"),
        pytest.param(["--entrypoint", "echo", "base", "hi"], 0, "hi\n", "", id="entrypoint"),
        pytest.param(["base", "sh", "-c", "echo $$"], 0, "1\n", "", id="it-is-process-1"),
    ],
)
def test_a_program_gets_its_arguments_and_its_output_and_code_come_back(
    dockpy: Client, argv: list[str], code: int, out: str, err: str
) -> None:
    result = dockpy("run", "--rm", *argv)
    assert (result.code, result.out, result.err) == (code, out, err)


@pytest.mark.parametrize(
    ("program", "code"),
    [("no-such-program", 127), ("/no/such/path", 127), ("/etc/passwd", 126), ("/etc", 126)],
)
def test_a_program_that_cannot_run_gives_dockers_codes_and_one_line(
    dockpy: Client, program: str, code: int
) -> None:
    result = dockpy("run", "--rm", "base", program)
    assert (result.code, result.out) == (code, "")
    assert len(result.err.splitlines()) == 1
    assert program in result.err
    assert dockpy.ids() == []


def test_input_reaches_the_program_and_ends(dockpy: Client) -> None:
    assert dockpy("run", "--rm", "-i", "base", "cat", input="x\n").out == "x\n"


def test_without_i_the_programs_input_is_empty(dockpy: Client) -> None:
    assert dockpy("run", "--rm", "base", "cat", input="x\n").raw == b""


def test_five_megabytes_of_input_arrive_unchanged(dockpy: Client) -> None:
    data = os.urandom(5 << 20)
    result = dockpy("run", "--rm", "-i", "base", "sha256sum", input=data)
    assert result.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_output_goes_on_after_the_input_has_ended(dockpy: Client) -> None:
    result = dockpy("run", "--rm", "-i", "base", "sh", "-c", "cat; echo after", input="before\n")
    assert result.out == "before\nafter\n"


def test_a_program_that_reads_nothing_does_not_hold_the_client(dockpy: Client) -> None:
    assert dockpy("run", "--rm", "-i", "base", "true", input=b"x" * (1 << 20)).code == 0


def test_a_program_may_close_its_output_and_go_on(dockpy: Client) -> None:
    script = "echo one; exec >&-; cat >/dev/null; exit 4"
    result = dockpy("run", "--rm", "-i", "base", "sh", "-c", script, input="x")
    assert (result.code, result.out) == (4, "one\n")


def test_a_reader_that_leaves_early_does_not_hang_anything(dockpy: Client) -> None:
    with dockpy.started("run", "--rm", "base", "yes") as client:
        assert client.stdout is not None
        assert client.stdout.read(2) == b"y\n"
        client.stdout.close()
        client.wait(patient(20))
    dockpy.remove_all()
    assert dockpy("run", "--rm", "base", "echo", "next").out == "next\n"


@pytest.mark.parametrize(
    ("flags", "out", "err"),
    [
        (["-a", "stdout"], "out\n", ""),
        (["-a", "stderr"], "", "err\n"),
        (["-a", "stdout", "-a", "stderr"], "out\n", "err\n"),
    ],
)
def test_attach_flags_choose_the_streams(
    dockpy: Client, flags: list[str], out: str, err: str
) -> None:
    result = dockpy("run", "--rm", *flags, "base", "sh", "-c", "echo out; echo err >&2")
    assert (result.code, result.out, result.err) == (0, out, err)


def printenv(dockpy: Client, *flags: str, env: dict[str, str] | None = None) -> dict[str, str]:
    lines = dockpy("run", "--rm", *flags, "base", "env", env=env).lines
    return dict(line.split("=", 1) for line in lines)


def test_environment_is_what_was_asked_for_and_nothing_of_the_hosts(dockpy: Client) -> None:
    found = printenv(dockpy, "-e", "A=1=2", "-e", "GIVEN", "-e", "UNSET", env={"GIVEN": "here"})
    assert found.pop("PATH").split(":")[-1] == "/bin"
    assert len(found.pop("HOSTNAME")) == 12
    assert found == {"A": "1=2", "GIVEN": "here", "HOME": "/root"}


def test_an_environment_file_is_read_with_the_callers_eyes(dockpy: Client, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# a comment\n\nX=from the file\nGIVEN\n")
    result = dockpy(
        *("run", "--rm", "--env-file", "list", "-e", "Y=2", "base", "env"),
        cwd=tmp_path,
        env={"GIVEN": "here"},
    )
    assert {"X=from the file", "GIVEN=here", "Y=2"} <= set(result.lines)
    assert not any(line.startswith("#") for line in result.lines)


@pytest.mark.parametrize(
    ("flags", "script", "out"),
    [
        ("-w /tmp", "pwd", "/tmp"),
        ("-h box", "hostname", "box"),
        ("--hostname box", "cat /etc/hostname", "box"),
        ("--hostname=box", "grep -c box /etc/hosts", "1"),
        ("--dns 192.0.2.1", "cat /etc/resolv.conf", "nameserver 192.0.2.1"),
        ("-u worker", "id -u; id -g; id -G", "1000\n1000\n1000 2000"),
        ("-u 1000:2000", "id -u; id -g", "1000\n2000"),
        ("-u worker:crew", "id -g", "2000"),
        ("-u 4321", "id -u", "4321"),
        ("-u worker", "echo $HOME", "/home/worker"),
        ("--ulimit nofile=100:200", "ulimit -n; ulimit -Hn", "100\n200"),
        ("--shm-size 2m", "df -m /dev/shm | awk 'NR == 2 {print $2}'", "2"),
        ("--init", "echo $(( $$ > 1 ))", "1"),
        ("--net none", "ls /sys/class/net", "lo"),
    ],
)
def test_a_flag_does_what_it_says(dockpy: Client, flags: str, script: str, out: str) -> None:
    result = dockpy("run", "--rm", *flags.split(), "base", "sh", "-c", script)
    assert (result.code, result.out.strip(), result.err) == (0, out, "")


def test_net_host_shows_the_hosts_links(dockpy: Client) -> None:
    script = "tail -n +3 /proc/net/dev | cut -d: -f1"
    result = dockpy("run", "--rm", "--net", "host", "base", "sh", "-c", script)
    assert result.code == 0, result.err
    there = {name for _, name in socket.if_nameindex()}
    # Cables of other containers come and go.
    assert {one for one in map(str.strip, result.lines) if not one.startswith("dv")} == {
        one for one in there if not one.startswith("dv")
    }


def test_init_reaps_orphans(dockpy: Client) -> None:
    script = (
        "sh -c 'true & exec true'; n=0; while ps | grep -q '[Zz]ombie\\|\\[true\\]'; do n=$((n+1));"
    )
    script += " [ $n -lt 100 ] || exit 9; usleep 20000; done; echo clean"
    result = dockpy("run", "--rm", "--init", "base", "sh", "-c", script)
    assert (result.code, result.out) == (0, "clean\n")


def test_init_hands_over_the_programs_code_and_signals(dockpy: Client) -> None:
    assert dockpy("run", "--rm", "--init", "base", "sh", "-c", "exit 9").code == 9
    result = dockpy("run", "--rm", "--init", "base", "sh", "-c", "kill -KILL $$")
    assert result.code == 137


def test_rm_leaves_nothing(dockpy: Client) -> None:
    dockpy.ok("run", "--rm", "base", "touch", "/file")
    assert dockpy.ids() == []


def test_without_rm_the_container_stays_with_its_code_and_log(dockpy: Client) -> None:
    assert dockpy("run", "--name", "kept", "base", "sh", "-c", "echo said; exit 3").code == 3
    assert dockpy.field("kept", "{{.State.ExitCode}} {{.State.Status}}") == "3 exited"
    assert dockpy.ok("logs", "kept").out == "said\n"


def test_a_detached_run_prints_the_full_id_only(dockpy: Client) -> None:
    result = dockpy.ok("run", "-d", "base", "sleep", "60")
    (line,) = result.lines
    assert len(line) == 64
    assert dockpy.ids() == [line]


def test_twenty_runs_at_once_each_get_their_own_output(dockpy: Client) -> None:
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                dockpy.started("run", "--rm", "base", "sh", "-c", f"echo n{number}; exit {number}")
            )
            for number in range(20)
        ]
        ends = [
            (client.communicate(timeout=patient(60))[0], client.returncode) for client in clients
        ]
    assert ends == [(f"n{number}\n".encode(), number) for number in range(20)]
    assert dockpy.ids() == []


FIFTY_MB = 50 * 1000 * 1000


def digest_of_fifty_megabytes() -> str:
    line = b"0123456789" * 9 + b"012345678\n"
    return hashlib.sha256(line * (FIFTY_MB // len(line))).hexdigest()


def test_fifty_megabytes_come_complete_through_attach_and_logs(dockpy: Client) -> None:
    line = "0123456789" * 9 + "012345678"
    script = f"yes {line} | head -c {FIFTY_MB}"
    attached = dockpy("run", "--name", "loud", "base", "sh", "-c", script)
    expected = digest_of_fifty_megabytes()
    assert len(attached.raw) == FIFTY_MB
    assert hashlib.sha256(attached.raw).hexdigest() == expected
    logged = dockpy.ok("logs", "loud")
    assert len(logged.raw) == FIFTY_MB
    assert hashlib.sha256(logged.raw).hexdigest() == expected


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_descriptors_of_the_client_are_no_problem(
    dockpy: Client, closed: tuple[int, ...], tmp_path: Path
) -> None:
    shut = " ".join(f"{number}>&-" for number in closed)
    target = tmp_path / "seen"
    command = f'exec "$@" {shut}'
    argv = [*dockpy.command, "run", "--rm", "-i", "-v", f"{tmp_path}:/host"]
    argv += ["base", "sh", "-c", "echo out; echo err >&2; echo ran >/host/seen; exit 5"]
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", *argv],
        capture_output=True,
        env=dockpy.environment,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 5
    assert target.read_text() == "ran\n"
    assert done.stdout == (b"" if 1 in closed else b"out\n")
    assert done.stderr == (b"" if 2 in closed else b"err\n")
