"""A client that finds no daemon: when it starts one, when not, and what that one inherits."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dockpy.api import launch
from dockpy.api.groups import inhabited, outermost
from end_to_end.client import Client, eventually
from end_to_end.daemon import Daemon
from end_to_end.door import LONG, client_without_daemon, served, serving_lines

pytestmark = pytest.mark.needs("root")


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """The lock of an engine that is coming up, or going."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unreachable() -> None:
    raise ConnectionRefusedError


def test_the_owner_of_a_lock_is_told_without_trying_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert launch.owner(str(lock)) == 0
    with held(lock):
        assert launch.owner(str(lock)) == os.getpid()
    assert lock.exists()
    assert launch.owner(str(lock)) == 0


def test_no_daemon_is_started_beside_one_that_comes_up(
    tmp_path: Path, short_run: Callable[[], Path]
) -> None:
    client = Client(tmp_path, short_run())
    with held(tmp_path / "lock"), client.started("leave", "6") as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.7)
        with served(client.run_directory):
            assert waiting.wait(LONG) == 6
    assert sorted(os.listdir(client.run_directory)) == ["launch.lock"]


def test_an_owner_that_never_answers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.1)
    with (
        held(tmp_path / "root/lock"),
        pytest.raises(launch.CannotLaunch, match=f"pid {os.getpid()} owns {tmp_path}/root"),
    ):
        launch.launch(str(tmp_path / "root"), str(tmp_path), ["/bin/false"], unreachable)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (
            ["/bin/sh", "-c", "echo first; echo dockpy: the last word >&2; exit 125"],
            "the last word",
        ),
        (["/bin/sh", "-c", "exit 3"], "it ended with 3"),
        (["/nowhere/python"], "cannot execute /nowhere/python: No such file or directory"),
    ],
)
def test_a_daemon_that_does_not_come_up_is_told_by_its_last_word(
    tmp_path: Path, command: Sequence[str], why: str
) -> None:
    (tmp_path / "daemon.log").write_text("dockpy: what another one said\n")
    expected = re.escape(f"the daemon did not start: {why}; {tmp_path}/daemon.log says more")
    with pytest.raises(launch.CannotLaunch, match=f"^{expected}$"):
        launch.launch(str(tmp_path), str(tmp_path), command, unreachable)


def test_a_daemon_that_breaks_is_told_and_not_started_again(
    tmp_path: Path, short_run: Callable[[], Path]
) -> None:
    package = tmp_path / "dockpy" / "api"
    package.mkdir(parents=True)
    for name in ("client", "wire", "launch", "groups"):
        shutil.copy(Path(launch.__file__).with_name(f"{name}.py"), package)
    for directory in (package, package.parent):
        (directory / "__init__.py").touch()
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    boot = f"{path}; from dockpy.api.client import main; main()"
    client = Client(tmp_path / "root", short_run(), [sys.executable, "-I", "-c", boot])
    result = client("ps")
    assert result.code == 125
    assert "did not start: ModuleNotFoundError: No module named 'dockpy.api.daemon'" in result.err
    assert result.err.count("\n") == 1
    assert (client.run_directory / "daemon.log").read_text().count("Traceback") == 1


def test_a_daemon_refused_for_a_lock_just_let_go_of_is_started_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"[ -e {seen} ] && touch {tmp_path}/up; touch {seen}; exit {launch.LOCKED}"

    def reach() -> str:
        if not (tmp_path / "up").exists():
            raise ConnectionRefusedError
        return "connected"

    begun = ["/bin/sh", "-c", script]
    assert launch.launch(str(tmp_path), str(tmp_path), begun, reach) == "connected"
    os.waitpid(-1, 0)  # what it started is its child while it lives


def test_a_client_waits_for_another_ones_turn_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "TURN", 0.1)
    with held(tmp_path / "launch.lock"), pytest.raises(launch.CannotLaunch, match="another client"):
        launch.launch(str(tmp_path), str(tmp_path), ["/bin/false"], unreachable)


def test_of_the_callers_environment_the_daemon_gets_what_it_needs() -> None:
    caller = {
        "PATH": "/bin",
        "https_proxy": "p",
        "SSL_CERT_FILE": "c",
        "SECRET": "s",
        "LD_PRELOAD": "x",
    }
    assert launch.environment(caller) == {"PATH": "/bin", "https_proxy": "p", "SSL_CERT_FILE": "c"}


def spoiled() -> None:
    """What a careless parent leaves to its children."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    os.umask(0o777)


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_the_daemon_inherits_nothing_of_its_first_clients_oddities(
    real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> None:
    with client_without_daemon(real_tmp, short_run()) as client:
        with client.started("ps", "-q", preexec_fn=spoiled) as first:
            assert first.wait(LONG) == 0
        pid = int((client.root / "lock").read_text())
        status = dict(
            line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert int(status["SigBlk"], 16) == 0
        assert int(status["SigIgn"], 16) & 1 << (signal.SIGCHLD - 1) == 0
        assert (os.getsid(pid), os.readlink(f"/proc/{pid}/cwd")) == (pid, "/")
        client.ok("import", str(tiny_archive), "base")
        assert client("run", "--rm", "base", "sh", "-c", "exit 7").code == 7
        assert len(serving_lines(client)) == 1


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_a_killed_clients_container_goes_on_to_its_end(dockpy: Client) -> None:
    gate = "echo before; while [ ! -e /go ]; do usleep 20000; done; echo after; exit 7"
    with dockpy.started("run", "--name", "gate", "base", "sh", "-c", gate) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"before\n"
        client.kill()
        client.wait(LONG)
        pid = int(dockpy.field("gate", "{{.State.Pid}}"))
        Path(f"/proc/{pid}/root/go").touch()
        assert dockpy.ok("wait", "gate").out == "7\n"
    assert dockpy.ok("logs", "gate").out == "before\nafter\n"


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_a_refused_second_daemon_ends_with_the_code_that_the_launch_knows(daemon: Daemon) -> None:
    assert daemon.process is not None
    for spelling in ("daemon", "-d"):
        refused = daemon.client(spelling)
        expected = f"{daemon.client.root} is in use by the dockpy engine with pid"
        assert (refused.code, refused.out) == (launch.LOCKED, "")
        assert refused.err == f"dockpy: {expected} {daemon.process.pid}\n"


@contextlib.contextmanager
def cell() -> Iterator[tuple[list[Path], Callable[[], None]]]:
    """A group of the test's own in every hierarchy, and what moves a process into them."""
    tops = [
        directory for directory, _ in outermost(Path("/proc/self/mountinfo").read_text()).values()
    ]
    cells = [Path(top, f"cell-{os.getpid()}") for top in tops]

    def enter() -> None:
        for one in cells:
            (one / "cgroup.procs").write_text("0")

    with contextlib.ExitStack() as undo:
        for one in cells:
            one.mkdir()
            undo.callback(one.rmdir)
            if (one / "cpuset.cpus").exists():
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (one / file).write_text((one.parent / file).read_text())
        undo.callback(
            eventually, lambda: not any(members(one) for one in cells), "the groups are empty"
        )
        yield cells, enter


def members(group: Path) -> list[str]:
    return (group / "cgroup.procs").read_text().split()


@pytest.mark.needs("cgroup_kill", "overlay", "busybox")
def test_a_daemon_that_a_client_started_outlives_the_clients_cgroup(
    real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> None:
    with client_without_daemon(real_tmp, short_run()) as client, cell() as (cells, enter):
        with client.started("events-of-nobody", preexec_fn=enter) as first:
            assert first.wait(LONG) != 0  # no such command, said by the daemon
        pid = int((client.root / "lock").read_text())
        client.ok("import", str(tiny_archive), "base")
        client.detached("--name", "box", "base", "sleep", "1000")
        assert [members(one) for one in cells] == [[] for _ in cells]
        places = inhabited(Path(f"/proc/{pid}/cgroup").read_text())
        assert set(places.values()) == {"/"}
        with client.started("attach", "box", preexec_fn=enter) as second:
            (killing,) = [one / "cgroup.kill" for one in cells if (one / "cgroup.kill").exists()]
            eventually(lambda: members(killing.parent), "the client is there")
            killing.write_text("1")
            assert second.wait(LONG) == -signal.SIGKILL
        assert client.field("box", "{{.State.Status}}") == "running"
        assert int((client.root / "lock").read_text()) == pid
        assert len(serving_lines(client)) == 1


@pytest.mark.needs("cgroup_v2")
def test_a_daemon_that_was_started_by_hand_stays_in_its_cgroup(
    real_tmp: Path, short_run: Callable[[], Path]
) -> None:
    with (
        client_without_daemon(real_tmp, short_run()) as client,
        cell() as (cells, enter),
        client.started("daemon", preexec_fn=enter) as daemon,
    ):
        eventually((client.run_directory / "dockpy.sock").exists, "it serves")
        client.ok("ps")
        assert all(str(daemon.pid) in members(one) for one in cells)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LONG) == 0


MOUNTS = """\
22 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
23 22 0:21 /job /elsewhere rw shared:1 - cgroup cgroup rw,cpu,cpuacct
24 22 0:21 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct
25 22 0:22 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
26 22 0:23 / /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
27 22 0:24 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw,nsdelegate
"""


def test_the_outermost_group_of_each_hierarchy_is_found_in_the_mount_table() -> None:
    assert outermost(MOUNTS) == {
        frozenset({"cpu", "cpuacct"}): ("/sys/fs/cgroup/cpu,cpuacct", "/"),
        frozenset({"name=systemd"}): ("/sys/fs/cgroup/systemd", "/"),
        frozenset(): ("/sys/fs/cgroup/uni fied", "/"),
    }
    assert inhabited("4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/c\n") == {
        frozenset({"cpu", "cpuacct"}): "/a:b",
        frozenset({"name=systemd"}): "/",
        frozenset(): "/c",
    }
