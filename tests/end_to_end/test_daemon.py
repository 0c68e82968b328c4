"""The daemon itself: started by the client, alone on its root, and restarted under load."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from end_to_end.daemon import Daemon, running_daemon

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

COUNTER = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); usleep 5000; done; exit 3"
EXPECTED = "".join(f"line {number}\n" for number in range(400))


@pytest.fixture
def lonely(real_tmp: Path, short_run: Callable[[], Path]) -> Iterator[Client]:
    """A client whose engine has no daemon yet. One that it starts is ended afterwards."""
    root = Path(tempfile.mkdtemp(prefix="lonely-", dir=real_tmp))
    client = Client(root, short_run())
    yield client
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int((root / "lock").read_text())
        client.remove_all()
        end(pid)
    shutil.rmtree(root)
    shutil.rmtree(client.run_directory, ignore_errors=True)


def end(pid: int, number: int = signal.SIGTERM) -> None:
    """End a daemon that some client started: wherever its ancestors went."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, number)
        with contextlib.suppress(ChildProcessError):  # ours only if we became its subreaper
            os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    finally:
        os.close(descriptor)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), f"daemon {pid} ends")


def test_the_client_starts_a_daemon_when_there_is_none(lonely: Client, tiny_archive: Path) -> None:
    lonely.ok("import", str(tiny_archive), "base")
    assert lonely.ok("run", "--rm", "base", "echo", "hi").out == "hi\n"
    assert (lonely.root / "lock").exists()


def test_a_daemon_that_was_ended_is_started_again(lonely: Client, tiny_archive: Path) -> None:
    lonely.ok("import", str(tiny_archive), "base")
    job = lonely.detached("base", "sleep", "60")
    first = int((lonely.root / "lock").read_text())
    end(first)
    assert lonely.ok("ps", "-q", "--no-trunc").lines == [job]
    assert int((lonely.root / "lock").read_text()) != first


def test_a_second_daemon_is_refused_with_the_first_ones_pid(daemon: Daemon) -> None:
    assert daemon.process is not None
    refused = daemon.client("daemon")
    assert refused.code != 0
    assert str(daemon.process.pid) in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert daemon.client.ok("version").code == 0


def test_the_short_spelling_starts_the_daemon_too(daemon: Daemon) -> None:
    assert daemon.process is not None
    assert str(daemon.process.pid) in daemon.client("-d").err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_containers_and_their_output_survive_the_daemon(
    own_daemon: Daemon, number: signal.Signals
) -> None:
    client = own_daemon.client
    jobs = [client.detached("base", "sh", "-c", COUNTER) for _ in range(5)]
    sleeper = client.detached("--name", "sleeper", "base", "sleep", "600")
    client.wait_for_log(jobs[0], "line 20")
    own_daemon.stop(number)
    own_daemon.start()
    assert client.field("sleeper", "{{.State.Running}}") == "true"
    assert client.ok("wait", *jobs).lines == ["3"] * len(jobs)
    assert [client.ok("logs", job).out == EXPECTED for job in jobs] == [True] * len(jobs)
    client.ok("kill", sleeper)
    assert client.field(sleeper, "{{.State.ExitCode}}") == "137"


def test_an_end_without_a_daemon_is_learnt_by_the_next_one(own_daemon: Daemon) -> None:
    client = own_daemon.client
    job = client.detached(
        "base", "sh", "-c", "echo ready; while [ ! -e /go ]; do usleep 20000; done; exit 7"
    )
    client.wait_for_log(job, "ready")
    upper = client.root / "containers" / job / "upper"
    pid = int(client.field(job, "{{.State.Pid}}"))
    own_daemon.stop(signal.SIGKILL)
    Path(f"/proc/{pid}/root/go").touch()
    eventually(lambda: not Path(f"/proc/{pid}/root/go").exists(), "the program ends")
    own_daemon.start()
    assert client.field(job, "{{.State.Status}} {{.State.ExitCode}}") == "exited 7"
    assert upper.exists()


def test_a_killed_supervisor_loses_no_line_and_no_code(own_daemon: Daemon) -> None:
    client = own_daemon.client
    jobs = [client.detached("base", "sh", "-c", COUNTER) for _ in range(6)]
    client.wait_for_log(jobs[-1], "line 20")
    assert own_daemon.process is not None
    family = descendants(own_daemon.process.pid)
    supervisors = [pid for pid in family if "supervisor" in command_line(pid)]
    assert supervisors
    os.kill(supervisors[0], signal.SIGKILL)
    assert client.ok("wait", *jobs).lines == ["3"] * len(jobs)
    assert [client.ok("logs", job).out == EXPECTED for job in jobs] == [True] * len(jobs)


def command_line(pid: int) -> str:
    """A process's arguments; "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_after_a_reboot_containers_are_seen_as_exited_and_start_again(own_daemon: Daemon) -> None:
    client = own_daemon.client
    client.detached("--name", "was-up", "base", "sh", "-c", "echo up; sleep 600")
    client.ok("run", "--name", "was-done", "base", "true")
    pid = int(client.field("was-up", "{{.State.Pid}}"))
    assert own_daemon.process is not None
    stop_everything(own_daemon)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the container is gone with its host")
    shutil.rmtree(client.run_directory)
    own_daemon.start()
    assert client.field("was-up", "{{.State.Status}}") == "exited"
    assert client.field("was-done", "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"
    client.ok("start", "was-up")
    assert client.field("was-up", "{{.State.Running}}") == "true"


def stop_everything(daemon: Daemon) -> None:
    """kill -9 of the daemon, its supervisors and their containers, as a power cut does it."""
    assert daemon.process is not None
    family = descendants(daemon.process.pid)
    daemon.stop(signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in family:  # those that became ours, since some test made this process a subreaper
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def descendants(pid: int) -> list[int]:
    """Children first, then theirs: supervisors before the containers that only they know."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            children = [int(each) for each in (task / "children").read_text().split()]
            found += children
            for child in children:
                found += descendants(child)
    return found


def test_a_torn_record_is_set_aside_and_the_others_load(own_daemon: Daemon) -> None:
    client = own_daemon.client
    good = client.detached("--name", "good", "base", "true")
    torn = client.detached("--name", "torn", "base", "true")
    client.ok("wait", good, torn)
    own_daemon.stop()
    record = client.root / "containers" / torn / "config.json"
    record.write_bytes(record.read_bytes()[:40])
    own_daemon.start()
    assert client.ids() == [good]
    assert torn[:12] in own_daemon.log.read_text() + client.ok("info").out
    assert [path.name for path in record.parent.glob("config.json*")] != ["config.json"]


def test_records_on_disk_are_json_and_private(daemon: Daemon, dockpy: Client) -> None:
    job = dockpy.detached("base", "sleep", "60")
    record = dockpy.root / "containers" / job / "config.json"
    assert json.loads(record.read_text())["id"] == job
    assert dockpy.root.stat().st_mode & 0o077 == 0
    socket = dockpy.run_directory / "dockpy.sock"
    assert socket.stat().st_mode & 0o007 == 0


def test_a_killed_client_in_the_middle_of_a_run_leaks_nothing(dockpy: Client) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        with dockpy.started("run", "--rm", "base", "sh", "-c", "echo x; exit 0") as client:
            with contextlib.suppress(Exception):
                client.wait(delay)
            client.kill()
    eventually(lambda: dockpy.ids() == [], "every --rm container is gone")


@pytest.fixture
def small_disk(
    _leaves_nothing: None, tmp_path: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Daemon]:
    """A daemon whose root has 24 MB in all."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "small", str(disk)], check=True)
    try:
        with running_daemon(disk / "root", short_run(), tiny_archive) as running:
            yield running
    finally:
        umount = ["umount", str(disk)]
        try:  # the kernel ends mounts of dead namespaces a little later
            eventually(
                lambda: subprocess.call(umount, stderr=subprocess.DEVNULL) == 0,
                "the disk is let go of",
                10,
            )
        except AssertionError:
            subprocess.run([*umount, "-l"], check=True)
            raise


def test_a_full_disk_is_told_and_hurts_nobody_else(small_disk: Daemon) -> None:
    client = small_disk.client
    other = client.detached("-i", "base", "sh", "-c", "read line; echo $line; exit 4")
    filler = client.root / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    refused = client("run", "base", "true")
    assert refused.code == 125
    assert "ENOSPC" in refused.err or "No space left" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert client.ids() == [other]
    filler.unlink()
    client("attach", other, input="went on\n")
    assert client.field(other, "{{.State.ExitCode}}") == "4"
    assert "went on" in client.ok("logs", other).out
    assert client.ok("run", "--rm", "base", "echo", "again").out == "again\n"


def test_a_log_that_cannot_be_written_does_not_stop_the_program(small_disk: Daemon) -> None:
    client = small_disk.client
    size = 40_000_000
    result = client("run", "--name", "loud", "base", "sh", "-c", f"yes | head -c {size}; exit 6")
    assert (result.code, len(result.raw)) == (6, size)
    assert client.field("loud", "{{.State.ExitCode}}") == "6"
    client.ok("rm", "loud")
    assert client.ok("run", "--rm", "base", "echo", "again").out == "again\n"
