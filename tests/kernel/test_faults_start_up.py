"""What an engine finds at its start: reboots, torn records, halves, and another engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import Config, Container, Runtime
from dockpy.errors import CommandNotFound, KernelError, Locked
from dockpy.model import Status
from dockpy.places import cgroup_name
from dockpy.supervision import Supervisor
from patience import patient

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

SOURCE = Path(__file__).resolve().parents[2] / "src"
HOST_WENT_DOWN = 255
KERNEL_TELLS_EXITS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
"""PIDFD_GET_INFO: of processes that were never ours."""


class Host:
    """A state directory whose engine comes and goes."""

    def __init__(self, root: Path, run: Path) -> None:
        self.root = root
        self.run = run

    def engine(self) -> Runtime:
        return Runtime(self.root, run=self.run, supervisors=1)

    @contextlib.contextmanager
    def after(self, script: str, *, reboot: bool) -> Iterator[Runtime]:
        """The engine after one that ran `script` and was killed, its supervisor too at a reboot.

        The script has `runtime` and `Config`.
        """
        program = (
            "import os, signal, sys; from dockpy import Runtime, Config;"
            "runtime = Runtime(sys.argv[1], run=sys.argv[2], supervisors=1);"
            "exec(sys.argv[3]); print(*runtime.info().supervisors, flush=True);"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        killed = subprocess.run(
            [sys.executable, "-c", program, str(self.root), str(self.run), script],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            timeout=patient(60),
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        if reboot:
            for pid in map(int, killed.stdout.split()):
                end_family(pid)
            shutil.rmtree(self.run)
        with self.engine() as runtime:
            yield runtime

    def cgroups(self) -> list[str]:
        """Groups of containers, in any hierarchy."""
        name = cgroup_name(self.root)
        tops = [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")]
        return [group for top in tops for group in os.listdir(top) if len(group) == 64]


def end_family(pid: int) -> None:
    """Kill a process and its children, as a power cut does, and wait until they are gone."""
    family = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        family += map(int, task.read_text().split())
    for one in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{one}").exists() for one in family), "they are gone")


def until(check: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + patient(20)
    while not check():
        assert time.monotonic() < deadline, f"{what}: still not so"
        time.sleep(0.01)


@pytest.fixture
def host(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Host]:
    """A state directory with the image `base` and no engine."""
    made = Host(Path(tempfile.mkdtemp(prefix="faults-", dir=real_tmp)), short_run())
    with made.engine() as runtime, open(tiny_archive, "rb") as source:
        runtime.import_image(source, "base")
    yield made
    with made.engine() as runtime:
        for container in runtime.list():
            runtime.destroy(container, force=True)
    assert made.cgroups() == []
    assert os.listdir(made.root / "containers") == []
    shutil.rmtree(made.root)
    shutil.rmtree(made.run)


def shell(script: str, **more: object) -> Config:
    return Config(image="base", cmd=("sh", "-c", script)).with_(**more)


def log_of(container: Container) -> bytes:
    return b"".join(entry.message for entry in container.read_log())


# -- reboots ---------------------------------------------------------------------------------------

UP = """
cat = lambda text: Config(image="base", cmd=("sh", "-c", text))
up = runtime.create(cat("touch /was-here; echo up; sleep 600"), "up")
up.start()
while not list(up.read_log()): pass
done = runtime.create(cat("exit 6"), "done")
done.run()
done.released.wait()
runtime.create(cat("sleep 600").with_(auto_remove=True), "gone").start()
runtime.create(cat("true"), "new")
"""


def test_after_a_reboot_what_ran_is_seen_as_exited_and_starts_again(host: Host) -> None:
    with host.after(UP, reboot=True) as runtime:
        found = {one.name: (one.state.status, one.state.exit_code) for one in runtime.list()}
        assert found == {
            "up": (Status.EXITED, HOST_WENT_DOWN),
            "done": (Status.EXITED, 6),
            "new": (Status.CREATED, 0),
        }
        up = runtime.get("up")
        assert "host went down" in up.state.error
        assert log_of(up) == b"up\n"
        up.start()
        until(lambda: log_of(up) == b"up\nup\n", "it runs again")
        assert (up.directory / "upper" / "was-here").exists()
        assert up.state.error == ""
        assert runtime.get("new").run() == 0


AGAIN = """
text = "[ -e /x ] && sleep 600; touch /x; exit 5"
one = runtime.create(Config(image="base", cmd=("sh", "-c", text)), "one")
one.run()
one.released.wait()
one.start()
"""


def test_a_second_run_lost_with_the_host_is_not_told_as_the_first_ones_end(host: Host) -> None:
    with host.after(AGAIN, reboot=True) as runtime:
        assert runtime.get("one").state.exit_code == HOST_WENT_DOWN


FAILS = """
try:
    runtime.create(Config(image="base", cmd=("nothing-there",)), "fails").start()
except Exception:
    runtime._janitor.drain()
"""


@pytest.mark.parametrize("reboot", [False, True])
def test_a_start_that_failed_is_still_one_to_the_next_engine(host: Host, reboot: bool) -> None:
    with host.after(FAILS, reboot=reboot) as runtime:
        state = runtime.get("fails").state
        assert (state.status, state.exit_code) == (Status.CREATED, CommandNotFound.exit_code)
        assert "nothing-there" in state.error


CUT_SHORT = """
import os, signal
one = runtime.create(Config(image="base", cmd=("sh", "-c", "exit 5")), "one")
%s
one.released.wait()
runtime._supervision.start = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
one.start()
"""


@pytest.mark.parametrize(
    ("first", "state"), [("", (Status.CREATED, 0)), ("one.run()", (Status.EXITED, 5))]
)
def test_a_start_its_engine_died_in_before_it_asked_a_supervisor_did_not_happen(
    host: Host, first: str, state: tuple[Status, int]
) -> None:
    with host.after(CUT_SHORT % first, reboot=False) as runtime:
        found = runtime.get("one")
        assert (found.directory / "work" / "work").exists()
        assert (found.state.status, found.state.exit_code) == state
        assert found.run() == 5


def test_what_ran_without_an_engine_is_found_as_it_was(host: Host) -> None:
    script = UP + "print(up.state.started_at, file=open(sys.argv[1] + '/note', 'w'))"
    with host.after(script, reboot=False) as runtime:
        found = {one.name: one.state.status for one in runtime.list()}
        assert found == {
            "up": Status.RUNNING,
            "done": Status.EXITED,
            "gone": Status.RUNNING,
            "new": Status.CREATED,
        }
        up = runtime.get("up")
        assert up.state.started_at == float((host.root / "note").read_text())
        assert runtime.info().running == 2
        assert len(runtime.info().supervisors) == 2
        with pytest.raises(Exception, match="running already"):
            up.start()
        up.kill()
        runtime.get("gone").kill()
        until(lambda: not runtime.exists("gone"), "--rm is done")
        until(lambda: len(runtime.info().supervisors) == 1, "the old supervisor leaves")
    (host.root / "note").unlink()


def test_a_supervisor_killed_after_its_engine_leaves_its_containers_to_a_new_one(
    host: Host,
) -> None:
    with host.after(UP, reboot=False) as runtime:
        old = runtime.info().supervisors[-1]
        before = runtime.get("up").state
        os.kill(old, signal.SIGKILL)
        until(lambda: old not in runtime.info().supervisors, "another one takes over")
        up = runtime.get("up")
        assert up.state == before
        with pytest.raises(TimeoutError):
            up.wait(0.2)
        up.kill()
        assert up.state.exit_code == (137 if KERNEL_TELLS_EXITS else 255)
        assert log_of(up) == b"up\n"


def test_a_supervisor_that_ends_as_the_engine_comes_holds_nobody_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to look after any more; that it is gone is heard after a question to it."""
    heard = Supervisor._read

    def late(self: Supervisor) -> None:
        time.sleep(0.1)
        heard(self)

    monkeypatch.setattr(Supervisor, "_read", late)
    host.run.mkdir(parents=True, exist_ok=True)
    path = host.run / "supervisor-1.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def leave() -> None:
            listener.accept()[0].close()

        leaving = threading.Thread(target=leave)
        leaving.start()
        with host.engine() as runtime:
            leaving.join()
            assert runtime.create(Config(image="base", cmd=("true",))).run() == 0


# -- halves of things ------------------------------------------------------------------------------


def test_a_create_that_was_cut_short_leaves_nothing(host: Host) -> None:
    containers = host.root / "containers"
    half, rest = containers / ("a" * 64), host.run / "containers" / ("b" * 64)
    (half / "upper").mkdir(parents=True)
    (half / ".tmp-config.json-12345678").touch()
    rest.mkdir()
    (rest / "hosts").touch()
    (host.root / "base.4711" / "etc").mkdir(parents=True)
    (host.root / ".tmp-repositories.json-12345678").touch()
    (host.root / "trash" / "old-0123" / "deep").mkdir(parents=True)
    (host.root / "layers" / ".tmp-0123" / "diff").mkdir(parents=True)
    with host.engine() as runtime:
        assert runtime.list() == []
        assert runtime.warnings == []
        until(lambda: os.listdir(host.root / "trash") == [], "the trash is emptied")
    assert os.listdir(containers) == os.listdir(host.run / "containers") == []
    assert not list(host.root.glob("base.*")) + list(host.root.glob(".tmp-*"))
    assert not list((host.root / "layers").glob(".tmp-*"))


def test_half_written_states_are_removed_and_the_whole_ones_count(host: Host) -> None:
    with host.engine() as runtime:
        one = runtime.create(shell("exit 4"))
        one.run()
    (one.directory / ".tmp-state.json-12345678").write_text('{"status": "cre')
    with host.engine() as runtime:
        assert runtime.get(one.id).state.exit_code == 4
    assert not list(one.directory.glob(".tmp-*"))


def test_the_cgroup_and_processes_of_a_run_nobody_knows_are_ended(host: Host) -> None:
    with host.engine() as runtime:
        one = runtime.create(shell("sleep 600"))
        one.start()
        pid = one.state.pid
    (one.directory / "config.json").write_bytes(b"")  # its record is torn while it runs
    with host.engine() as runtime:
        assert [one.id[:12] in text for text in runtime.warnings] == [True]
        until(lambda: not Path(f"/proc/{pid}").exists(), "its program is ended")
        until(lambda: host.cgroups() == [], "its cgroup is removed")
        until(lambda: len(runtime.info().supervisors) == 1, "its supervisor leaves")
    shutil.rmtree(one.directory)


# -- torn records ----------------------------------------------------------------------------------

TEARS = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: b"\xff\xfe" + data,
    "another shape": lambda data: b'[1, "two"]',
    "another's": lambda data: data.replace(json.loads(data)["id"].encode(), b"0" * 64),
    "wrong types": lambda data: data.replace(b'"created": ', b'"created": "x", "was": '),
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_a_torn_record_is_named_and_set_aside_and_the_others_load(
    host: Host, tear: Callable[[bytes], bytes]
) -> None:
    with host.engine() as runtime:
        good, torn = runtime.create(shell("exit 3"), "good"), runtime.create(shell(""), "torn")
        good.run()
    record = torn.directory / "config.json"
    broken = tear(record.read_bytes())
    record.write_bytes(broken)
    with host.engine() as runtime:
        assert [(one.name, one.state.exit_code) for one in runtime.list()] == [("good", 3)]
        assert [str(record) in text for text in runtime.warnings] == [True]
        (aside,) = record.parent.glob("config.json*")
        assert aside.name in runtime.warnings[0]
        assert aside.read_bytes() == broken
        assert runtime.create(shell(""), "torn").name == "torn"
    with host.engine() as runtime:
        assert (runtime.warnings, aside.exists()) == ([], True)
    shutil.rmtree(torn.directory)


@pytest.mark.parametrize("text", [b"", b'{"status": "ex', b"[]", b'{"status": "flying"}'])
def test_a_torn_state_is_set_aside_and_the_container_is_there(host: Host, text: bytes) -> None:
    with host.engine() as runtime:
        one = runtime.create(shell("exit 3"), "one")
        one.run()
    (one.directory / "state.json").write_bytes(text)
    with host.engine() as runtime:
        state = runtime.get("one").state
        assert (state.status, state.exit_code) == (Status.EXITED, HOST_WENT_DOWN)
        assert ["state.json.torn-" in text for text in runtime.warnings] == [True]
        assert runtime.get("one").run() == 3
    with host.engine() as runtime:
        assert (runtime.get("one").state.exit_code, runtime.warnings) == (3, [])


def test_the_state_of_another_container_is_not_taken_for_this_ones(host: Host) -> None:
    """What a power cut may leave of a record that was written over another's."""
    with host.engine() as runtime:
        one, other = runtime.create(shell("exit 3")), runtime.create(shell("exit 4"))
        one.run()
        other.run()
        runtime._janitor.drain()
    shutil.copy(other.directory / "state.json", one.directory / "state.json")
    with host.engine() as runtime:
        assert ["the state of another" in text for text in runtime.warnings] == [True]
        found = runtime.get(one.id).state
        assert (found.status, found.exit_code) == (Status.EXITED, HOST_WENT_DOWN)
        assert runtime.get(other.id).state.exit_code == 4


def test_torn_names_of_images_are_told_and_the_images_stay(host: Host) -> None:
    (host.root / "repositories.json").write_bytes(b'{"base": {"lat')
    with host.engine() as runtime:
        assert ["repositories.json" in text for text in runtime.warnings] == [True]
        (image,) = runtime.graph.all()
        runtime.tags.set("base", "latest", image.id)
    next(host.root.glob("repositories.json.torn-*")).unlink()


def test_of_two_containers_with_one_name_the_newer_keeps_it(host: Host) -> None:
    with host.engine() as runtime:
        first, second = runtime.create(shell(""), "first"), runtime.create(shell(""), "second")
    record = first.directory / "config.json"
    record.write_bytes(record.read_bytes().replace(b'"first"', b'"second"'))
    with host.engine() as runtime:
        assert runtime.get("second").id == second.id
        assert [first.short_id in text for text in runtime.warnings] == [True]
        runtime.destroy(runtime.get(first.id))
        assert runtime.get("second").id == second.id


# -- removed ones ----------------------------------------------------------------------------------

REMOVES = """
one = runtime.create(Config(image="base", cmd=("true",)), "one")
one.run()
runtime._janitor.put(lambda: __import__("time").sleep(600))
runtime.destroy(one)
runtime.create(Config(image="base", cmd=("true",)), "one")
"""


def test_a_removed_container_is_gone_for_the_next_engine_too(host: Host) -> None:
    with host.after(REMOVES, reboot=False) as runtime:
        assert [(one.name, one.state.status) for one in runtime.list()] == [("one", Status.CREATED)]
        assert runtime.warnings == []


DISPOSABLE = """
one = runtime.create(Config(image="base", cmd=("sh", "-c", "exit 9"), auto_remove=True), "one")
runtime.exit_code_of("")
one.run()
print(one.id, file=open(sys.argv[1] + '/note', 'w'), flush=True)
"""


def test_the_exit_code_of_a_disposable_container_outlives_the_engine(host: Host) -> None:
    with host.after(DISPOSABLE, reboot=False) as runtime:
        assert runtime.exit_code_of((host.root / "note").read_text().strip()) == 9
        until(lambda: runtime.list() == [], "it is removed")
    (host.root / "note").unlink()


# -- two engines -----------------------------------------------------------------------------------


def test_a_second_engine_on_one_root_is_refused_with_the_firsts_pid(host: Host) -> None:
    with host.engine():
        for run in (host.run, host.run.with_name("other-run")):
            with pytest.raises(Locked) as refused:
                Runtime(host.root, run=run)
            assert (refused.value.pid, refused.value.root) == (os.getpid(), str(host.root))
    assert not host.run.with_name("other-run").exists()


def test_a_second_engine_leaves_what_the_first_is_about_to_put_in_place(host: Host) -> None:
    unfinished = host.root / ".tmp-repositories.json-12345678"
    with host.engine():
        unfinished.touch()
        with pytest.raises(Locked):
            Runtime(host.root, run=host.run)
        assert unfinished.exists()
    host.engine().close()
    assert not unfinished.exists()


def test_the_lock_of_a_killed_engine_holds_nobody_up(host: Host) -> None:
    with host.after("pass", reboot=False) as runtime:
        assert (host.root / "lock").read_text() == f"{os.getpid()}\n"
        assert runtime.list() == []


def test_a_full_disk_at_the_create_is_told_by_class(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def full(path: str, mode: int = 0o777) -> None:
        if str(path).endswith("/work"):
            raise OSError(28, os.strerror(28), path)
        real(path, mode)

    with host.engine() as runtime:
        monkeypatch.setattr(os, "mkdir", full)
        with pytest.raises(KernelError, match="ENOSPC"):
            runtime.create(shell(""), "one")
        monkeypatch.undo()
        assert [*runtime.list(), *os.listdir(host.root / "containers")] == []
        assert runtime.create(shell(""), "one").run() == 0
