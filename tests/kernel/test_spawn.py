"""Spawning: from many threads, with odd descriptors, with failures, leaving nothing behind."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dockpy._clone import try_spawn
from dockpy._mount import try_leave_mounts, try_mount
from dockpy.errors import CommandNotFound
from dockpy.plan import Plan
from dockpy.spawn import StepFailed, hold_mounts, make_network, spawn
from dockpy.start import start_plan
from patience import patient
from starts import BARE, Starts

pytestmark = pytest.mark.needs("root", "overlay", "mount_api", "openat2", "pidfd")


@pytest.fixture
def starts(tiny_root: Path, real_tmp: Path) -> Iterator[Starts]:
    work = real_tmp / "spawn"
    work.mkdir()
    made = Starts(tiny_root, work)
    yield made
    made.close()
    shutil.rmtree(work)


def plan_of(*argv: str, **changes: object) -> Plan:
    spec = replace(BARE, network="host", argv=argv)
    return start_plan(replace(spec, **changes))  # type: ignore[arg-type]


def wait(pid: int, pidfd: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pidfd)
    return code


def test_the_pidfd_is_the_childs_and_close_on_exec(starts: Starts) -> None:
    child = spawn(plan_of("/bin/sleep", "100").pack(), [starts.root()])
    assert not os.get_inheritable(child.pidfd)
    assert f"Pid:\t{child.pid}\n" in Path(f"/proc/self/fdinfo/{child.pidfd}").read_text()
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    assert wait(child.pid, child.pidfd) == -signal.SIGKILL


def test_a_failed_step_leaves_no_child_and_no_descriptor(starts: Starts) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    plan = plan_of("/bin/true", hostname="x" * 100)
    root = starts.root()
    with pytest.raises(StepFailed) as caught:
        spawn(plan.pack(), [root])
    assert plan.labels[caught.value.index - 1] == "set host name"
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert sorted(os.listdir("/proc/self/fd")) == sorted([*before, str(root)])


def test_many_threads_spawn_at_once_and_each_has_its_own_child(starts: Starts) -> None:
    count, workers = 48, 8
    roots = [starts.root() for _ in range(count)]
    started = threading.Barrier(workers)

    def one(number: int) -> int:
        if number < workers:
            started.wait(patient(10))
        script = f"test $(hostname) = h{number} && exit {number}"
        plan = plan_of("/bin/sh", "-c", script, hostname=f"h{number}")
        if number % 5 == 4:  # some fail, in the midst of others that do not
            plan = plan_of("/absent")
            with pytest.raises(StepFailed) as caught:
                spawn(plan.pack(), [roots[number]])
            assert caught.value.errno == errno.ENOENT
            return number
        child = spawn(plan.pack(), [roots[number]])
        return wait(child.pid, child.pidfd)

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(one, range(count))) == list(range(count))


def test_other_threads_run_while_one_spawns(starts: Starts) -> None:
    # a child that is held up in a step: writing to a full pipe in place of a tasks file
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    root = starts.root()
    plan = plan_of("/bin/true", cgroup_tasks_slots=(1,)).pack()
    codes: list[int] = []

    def held() -> None:
        child = spawn(plan, [root, writer])
        codes.append(wait(child.pid, child.pidfd))

    thread = threading.Thread(target=held)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    assert os.read(reader, 65536)  # this thread still runs, and lets the other one go on
    thread.join(patient(10))
    os.close(reader)
    os.close(writer)
    assert codes == [0]


def test_signals_of_the_calling_thread_are_blocked_as_before(starts: Starts) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        child = spawn(plan_of("/bin/true").pack(), [starts.root()])
        assert wait(child.pid, child.pidfd) == 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_ignored_signals_are_at_their_default_in_the_child(starts: Starts) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        child = spawn(
            plan_of("/bin/cat", "/proc/self/status", stdout_slot=1).pack(), [starts.root(), 1]
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert wait(child.pid, child.pidfd) == 0
    child = spawn(plan_of("/bin/sh", "-c", "kill -TERM $$; exit 3").pack(), [starts.root()])
    assert wait(child.pid, child.pidfd) == 3  # pid 1 of a namespace ignores what it does not handle


def test_slots_may_be_the_standard_descriptors_in_any_order(starts: Starts) -> None:
    root = starts.root()
    reader, writer = os.pipe()
    kept = [os.dup(number) for number in range(3)]
    try:
        # 0 is the output, 1 and 2 are the root and the output again: each in the other's place
        os.dup2(writer, 0)
        os.dup2(root, 1)
        os.dup2(writer, 2)
        os.close(writer)
        plan = plan_of(
            "/bin/sh", "-c", "echo out; echo err >&2", stdout_slot=2, stderr_slot=1
        ).pack()
        child = spawn(plan, [1, 0, 2, 0, 0, 2, 2])
        code = wait(child.pid, child.pidfd)
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)
    text = os.read(reader, 100)
    os.close(reader)
    assert (code, text) == (0, b"out\nerr\n")


@pytest.mark.needs("cgroup_v2")
@pytest.mark.parametrize("by_libc", [False, True])
def test_the_child_starts_in_the_given_group(starts: Starts, by_libc: bool) -> None:
    top = next(
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    )
    group = Path(top, f"dockpy-test-spawn-{os.getpid()}")
    group.mkdir()
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pid, pidfd, step, err = try_spawn(
            plan_of("/bin/sleep", "100").pack(), [starts.root()], directory, by_libc
        )
        assert (step, err) == (0, 0)
        inside = (group / "cgroup.procs").read_text().split()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait(pid, pidfd)
        assert inside == [str(pid)]
    finally:
        os.close(directory)
        group.rmdir()


def test_a_group_that_is_none_is_a_failed_clone(starts: Starts) -> None:
    root = starts.root()
    with pytest.raises(StepFailed) as caught:
        spawn(plan_of("/bin/true").pack(), [root], cgroup_fd=root)
    assert (caught.value.index, caught.value.errno) == (0, errno.EBADF)


def test_libcs_clone_does_the_same(starts: Starts) -> None:
    pid, pidfd, step, err = try_spawn(
        plan_of("/bin/sh", "-c", "exit 9").pack(), [starts.root()], -1, by_libc=True
    )
    assert (step, err) == (0, 0)
    assert wait(pid, pidfd) == 9
    plan = plan_of("/absent")
    assert try_spawn(plan.pack(), [starts.root()], -1, by_libc=True) == (
        *(0, -1),
        *(len(plan.labels), errno.ENOENT),
    )


def enter_empty_root() -> None:
    """As the supervisor does: a mount namespace in which there is nothing but an empty tmpfs."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert try_leave_mounts() == (0, 0)
    tree, step, _ = try_mount(b"tmpfs", b"/tmp", b"size=64k")
    assert step == 0
    os.close(tree)
    os.chdir("/tmp")
    assert libc.pivot_root(b".", b".") == 0
    assert libc.umount2(b".", 2) == 0
    os.chdir("/")
    assert os.listdir("/") == []


def test_the_caller_may_live_where_there_is_nothing_but_a_root(starts: Starts) -> None:
    root, other = starts.root(), starts.root()
    plan = plan_of("/bin/sh", "-c", "test $(ls /proc/self/fd | wc -l) = 4 && exit 4").pack()
    bad = plan_of("/absent").pack()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            enter_empty_root()
            child = spawn(plan, [root])
            code = wait(child.pid, child.pidfd)
            spawn(bad, [other])
            code = 98
        except StepFailed as failure:
            code += 10 * failure.errno
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4 + 10 * errno.ENOENT


@pytest.mark.parametrize("before_slots", [True, False])
def test_many_descriptors_of_the_parent_stay_open_there_and_only_there(
    starts: Starts, before_slots: bool
) -> None:
    def open_many() -> None:
        for descriptor in [starts.keep(os.dup(0)) for _ in range(500)]:
            os.set_inheritable(descriptor, True)

    root = starts.root()
    if before_slots:
        open_many()
        root = starts.root()  # now above all others
    else:
        open_many()
    before = os.listdir("/proc/self/fd")
    assert starts.run("ls /proc/self/fd | wc -l", root=root).text == "4\n"
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(CommandNotFound):
        starts.run("/absent", "x", root=starts.root())
    assert set(before) <= set(os.listdir("/proc/self/fd"))


@pytest.mark.needs("netns")
def test_a_ready_network_namespace_is_joined_and_the_thread_is_back(starts: Starts) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    network = make_network()
    descriptor = starts.keep(network.namespace)
    assert network.sysfs is not None
    sysfs = starts.keep(network.sysfs)
    assert os.readlink("/proc/thread-self/ns/net") == before
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    ran = starts.run(
        "readlink /proc/self/ns/net; cat /sys/class/net/lo/flags; ls /sys/class/net",
        slots=[descriptor, sysfs],
        network=2,
        sysfs_slot=3,
    )
    assert name != before
    assert ran.lines == [name, "0x9", "lo"]


def test_held_mounts_outlive_the_process_until_they_are_closed(starts: Starts) -> None:
    child = spawn(plan_of("/bin/sleep", "100").pack(), [starts.root()])
    held = hold_mounts(child.pidfd)
    inside = os.readlink(f"/proc/{child.pid}/ns/mnt")
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    after = hold_mounts(child.pidfd)
    os.close(child.pidfd)
    assert after is None
    if held is not None:  # Linux 6.11
        assert os.readlink(f"/proc/self/fd/{held}") == inside
        os.close(held)


def test_the_childs_moments_are_one_for_the_clone_and_one_for_each_step_before_the_program(
    starts: Starts,
) -> None:
    plan = plan_of("/bin/true")
    moments: list[int] = []
    before = time.monotonic_ns()
    child = spawn(plan.pack(), [starts.root()], moments=moments)
    after = time.monotonic_ns()
    assert wait(child.pid, child.pidfd) == 0
    assert len(moments) == len(plan.labels)
    assert [before, *moments, after] == sorted([before, *moments, after])


def test_no_clock_is_looked_at_under_a_filter_that_kills_for_it(starts: Starts) -> None:
    clock_gettime = {"x86_64": 228, "aarch64": 113}[os.uname().machine]
    instructions = (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, clock_gettime),  # this one: next; another: over the next
        (0x06, 0, 0, 0x80000000),  # kill the process
        (0x06, 0, 0, 0x7FFF0000),  # allow
    )
    program = b"".join(struct.pack("<HBBI", *one) for one in instructions)
    plan = plan_of("/bin/true", seccomp=program)
    moments: list[int] = []
    child = spawn(plan.pack(), [starts.root()], moments=moments)
    assert wait(child.pid, child.pidfd) == 0
    assert len(moments) == plan.labels.index("install seccomp filter") + 1


def test_a_failed_step_has_no_moment_and_those_before_it_have(starts: Starts) -> None:
    plan = plan_of("/absent")
    moments: list[int] = []
    with pytest.raises(StepFailed) as caught:
        spawn(plan.pack(), [starts.root()], moments=moments)
    assert len(moments) == caught.value.index
