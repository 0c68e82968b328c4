"""Cgroups with real processes, on whatever this host has: v1, pure v2 or hybrid.

On a host with v1 hierarchies every test of a container's life runs three times: with all that is
there, with v1 alone, and with v2 alone (which then has no controllers).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dockpy.cgroups import DEFAULT_PIDS, Cgroup, CgroupTree, Hierarchies, Limits
from dockpy.errors import KernelError, NotFound, RequestError
from patience import patient

MIB = 1 << 20
BUSYBOX = "/bin/busybox"
CLONE_INTO_CGROUP = 0x200000000
SYS_CLONE3 = 435
HOST = Hierarchies.detect()
KINDS = ["v1", "v2", "hybrid"] if HOST.kind == "hybrid" else [HOST.kind]
NUMBERS = itertools.count()
UNBOUND = patient(30.0)

pytestmark = pytest.mark.needs("cgroups")


def hierarchies(kind: str) -> Hierarchies:
    if kind == "v1":
        return Hierarchies(HOST.v1, None)
    return HOST if kind == HOST.kind else Hierarchies({}, HOST.v2, HOST.v2_controllers)


@pytest.fixture(params=KINDS)
def tree(request: pytest.FixtureRequest) -> Iterator[CgroupTree]:
    """A tree of its own whose groups and processes are all gone afterwards."""
    with fresh_tree(request.param) as tree:
        yield tree


@pytest.fixture(params=[kind for kind in KINDS if kind == HOST.kind or kind != "v2"])
def limited(request: pytest.FixtureRequest) -> Iterator[CgroupTree]:
    """The same with controllers; the v2 part of a hybrid host has none to test."""
    with fresh_tree(request.param) as tree:
        yield tree


@contextlib.contextmanager
def fresh_tree(kind: str) -> Iterator[CgroupTree]:
    before = descriptors()
    parent = f"dockpy-test-{os.getpid()}-{next(NUMBERS)}"
    tree = CgroupTree(hierarchies(kind), parent)
    tree.prepare()
    yield tree
    for name in tree.names():
        group = tree.open(name)
        group.kill()
        reap()
        group.remove()
    tree.close()
    assert descriptors() == before
    for top in {*tree.hierarchies.v1.values(), tree.hierarchies.v2}:
        assert top is None or not (top / parent).exists()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def reap() -> None:
    """Wait for every child there is."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass


def start(group: Cgroup, program: Callable[[], object]) -> int:
    """Run `program` in a child that joined as the engine's children do; its pid, once joined."""
    join = group.join()
    told, tell = os.pipe()
    flags = 0 if join.directory is None else CLONE_INTO_CGROUP
    arguments = struct.pack(
        "=11Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, join.directory or 0
    )
    library = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter lock, as fork does
    sys.stdout.flush()
    pid = int(library.syscall(SYS_CLONE3, arguments, len(arguments)))
    if pid == 0:
        code = 99
        try:
            for task in join.tasks:
                os.write(task, b"0")
            os.write(tell, b"j")
            code = int(program() or 0)  # type: ignore[call-overload]
        except OSError as error:
            code = error.errno or 98
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    join.close()
    os.close(tell)
    joined = os.read(told, 1)
    os.close(told)
    assert pid > 0, os.strerror(ctypes.get_errno())
    assert joined == b"j"
    return pid


def shell(script: str) -> Callable[[], object]:
    def program() -> None:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.execv(BUSYBOX, ["sh", "-c", script])

    return program


def exit_status(pid: int) -> int:
    """The program's exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + UNBOUND
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def value(tree: CgroupTree, name: str, v1: tuple[str, str], v2: str) -> str:
    """A file of the group: (controller, file) on v1, file on v2."""
    hierarchies = tree.hierarchies
    if v1[0] in hierarchies.v1:
        return (hierarchies.v1[v1[0]] / tree.parent / name / v1[1]).read_text().strip()
    assert hierarchies.v2 is not None
    return (hierarchies.v2 / tree.parent / name / v2).read_text().strip()


# life and death


def test_a_child_that_joins_is_listed_and_counted(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    pid = start(group, shell("sleep 60"))
    assert group.processes() == [pid]
    if tree.host.versions:
        stats = group.stats()
        assert (stats.pids, stats.pids_limit) == (1, DEFAULT_PIDS)
        assert until(lambda: group.stats().memory_usage > 0)
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    assert until(lambda: not group.processes())


def test_cpu_time_is_counted(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    pid = start(group, shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"))
    assert exit_status(pid) == 0
    stats = group.stats()
    assert stats.cpu_ns > 0
    assert stats.cpu_user_ns + stats.cpu_system_ns > 0


def test_kill_reaches_every_descendant_even_in_other_sessions(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    pid = start(group, shell("setsid sleep 60 & (sleep 60 & sleep 60) & trap '' TERM; wait"))
    assert until(lambda: len(group.processes()) >= 4)
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    assert until(lambda: not group.processes())


def test_kill_ends_a_process_that_never_stops_forking(tree: CgroupTree) -> None:
    group = tree.create("one", Limits(pids=30) if tree.host.versions else Limits())
    pid = start(group, shell("while :; do sleep 0.02 & sleep 0.01; done"))
    assert until(lambda: len(group.processes()) > 1)
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    assert until(lambda: not group.processes())


def test_the_walk_by_hand_kills_where_the_kernel_has_no_cgroup_kill(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    group._parent.can_kill = False
    pid = start(group, shell("while :; do sleep 0.02 & sleep 0.01; done"))
    assert until(lambda: len(group.processes()) > 1)
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    assert until(lambda: not group.processes())


def test_remove_waits_for_processes_that_are_dying(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    pids = [start(group, shell("sleep 60")) for _ in range(5)]
    group.kill()
    group.remove()
    assert tree.names() == []
    assert {exit_status(pid) for pid in pids} == {-signal.SIGKILL}


def test_remove_can_be_repeated_and_kill_of_the_gone_is_nothing(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    group.remove()
    group.remove()
    group.kill()
    assert group.processes() == []
    assert group.oom_kills() == 0
    assert group.stats().memory_usage == 0
    with pytest.raises(KernelError, match="open cgroup"):
        group.join()


def test_remove_of_a_living_container_says_busy_and_can_be_tried_again(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    pid = start(group, shell("sleep 60"))
    with pytest.raises(KernelError, match=r"remove cgroup.*EBUSY"):
        group.remove(timeout=0.02)
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    group.remove()
    assert tree.names() == []


def test_groups_the_container_made_inside_its_own_go_with_it(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    for top in {*tree.hierarchies.v1.values(), tree.hierarchies.v2}:
        if top is not None and (top / tree.parent / "one").exists():
            (top / tree.parent / "one" / "a" / "b").mkdir(parents=True)
            (top / tree.parent / "one" / "c").mkdir()
    group.remove()
    assert tree.names() == []


def test_a_process_in_a_group_below_is_listed_and_killed(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    pid = start(group, shell("sleep 60"))
    tops = [tree.hierarchies.v2] if tree.hierarchies.v2 else set(tree.hierarchies.v1.values())
    for top in tops:
        inner = top / tree.parent / "one" / "inner"
        if inner.parent.exists():
            inner.mkdir()
            (inner / "cgroup.procs").write_text(str(pid))
    assert group.processes() == [pid]
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL


def test_an_empty_group_left_by_a_dead_engine_is_replaced(limited: CgroupTree) -> None:
    limited.create("one", Limits(pids=5))
    again = limited.create("one", Limits(pids=6))
    assert again.stats().pids_limit == 6


def test_a_group_in_use_is_not_replaced(tree: CgroupTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dockpy.cgroups.group.REPLACE_TIMEOUT", 0.05)
    group = tree.create("one", Limits())
    pid = start(group, shell("sleep 60"))
    with pytest.raises(KernelError):
        tree.create("one", Limits())
    assert group.processes() == [pid]
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    group.remove()
    assert tree.names() == []


def test_a_late_remove_of_the_last_run_leaves_the_next_run_alone(tree: CgroupTree) -> None:
    last = tree.create("one", Limits())
    last.remove()
    current = tree.create("one", Limits())
    last.remove()
    assert tree.names() == ["one"]
    pid = start(current, shell("exit 3"))
    assert exit_status(pid) == 3
    current.remove()
    assert tree.names() == []


def test_many_containers_can_be_made_and_removed_at_once(tree: CgroupTree) -> None:
    def life(number: int) -> int:
        group = tree.create(f"many{number}", Limits())
        join = group.join()
        opened = len(join.tasks) + (join.directory is not None)
        join.close()
        group.remove()
        return opened

    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(life, range(64)))
    assert min(opened) == max(opened) > 0
    assert tree.names() == []


def test_a_new_engine_finds_and_ends_what_runs(tree: CgroupTree) -> None:
    pid = start(tree.create("one", Limits()), shell("sleep 60"))
    other = CgroupTree(tree.hierarchies, tree.parent)
    assert other.names() == ["one"]
    group = other.open("one")
    assert group.processes() == [pid]
    other.close()  # leaves groups in use alone
    group = tree.open("one")
    group.kill()
    assert exit_status(pid) == -signal.SIGKILL
    with pytest.raises(NotFound, match="no such cgroup"):
        tree.open("two")


@pytest.mark.parametrize("name", ["", ".", "..", ".default", "a/b", "a\n"])
def test_a_name_that_is_no_plain_name_is_refused(tree: CgroupTree, name: str) -> None:
    with pytest.raises(RequestError, match="cgroup name"):
        tree.create(name, Limits())


def test_a_parent_below_another_group_is_made_and_removed_with_it() -> None:
    parent = f"dockpy-test-{os.getpid()}-{next(NUMBERS)}/inner/most"
    tree = CgroupTree(HOST, parent)
    tree.create("one", Limits(pids=7)).remove()
    tree.close()
    for top in {*HOST.v1.values(), HOST.v2}:
        assert top is None or not (top / parent.partition("/")[0]).exists()


def test_prepare_twice_and_after_close_is_fine(tree: CgroupTree) -> None:
    tree.prepare()
    tree.close()
    tree.prepare()
    assert tree.names() == []


# limits


def test_the_tasks_of_a_container_stay_below_their_limit(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(pids=3))
    pid = start(group, shell("for i in 1 2 3 4 5; do sleep 60 & done; wait"))
    assert exit_status(pid) != 0
    assert group.stats().pids <= 3


def test_an_update_leaves_alone_what_it_does_not_name(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(pids=5, cpus=0.5))
    group.update(Limits(memory=64 * MIB))
    assert (group.stats().pids_limit, group.stats().memory_limit) == (5, 64 * MIB)
    assert value(limited, "one", ("cpu", "cpu.cfs_quota_us"), "cpu.max").split()[0] == "50000"
    group.update(Limits(pids=-1))
    assert group.stats().pids_limit == 0


def test_a_remove_after_the_tree_was_closed_touches_nothing(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    tree.close()
    with pytest.raises(KernelError, match=r"remove cgroup.*EBADF"):
        group.remove()
    tree.prepare()
    assert tree.names() == ["one"]


def test_an_eater_is_killed_and_counted(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(memory=16 * MIB, memory_swap=16 * MIB))
    pid = start(group, lambda: os.execv("/usr/bin/tail", ["tail", "/dev/zero"]))
    assert exit_status(pid) == -signal.SIGKILL
    assert group.oom_kills() == 1
    stats = group.stats()
    assert (stats.oom_kills, stats.memory_limit, stats.swap_limit) == (1, 16 * MIB, 0)
    assert 8 * MIB < stats.memory_peak <= 16 * MIB or stats.memory_peak == 0


def test_a_kill_by_hand_is_no_oom_kill(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(memory=16 * MIB))
    pid = start(group, shell("sleep 60"))
    os.kill(pid, signal.SIGKILL)
    assert exit_status(pid) == -signal.SIGKILL
    assert group.oom_kills() == 0


def test_memory_can_be_raised_and_lowered_with_its_swap(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(memory=64 * MIB, memory_swap=128 * MIB))
    for memory, swap in ((32, 40), (256, 512), (300, 300), (64, -1), (128, 0)):
        wanted = swap * MIB if swap > 0 else swap
        group.update(Limits(memory=memory * MIB, memory_swap=wanted))
        stats = group.stats()
        assert stats.memory_limit == memory * MIB
        extra = {-1: 0, 0: memory}.get(swap, swap - memory)
        assert stats.swap_limit == extra * MIB


def test_memory_below_what_is_in_use_is_refused_or_reclaimed(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(memory=64 * MIB))

    def hold() -> None:
        held = b"x" * (24 * MIB)
        time.sleep(60)
        assert held

    pid = start(group, hold)
    assert until(lambda: group.stats().memory_usage > 24 * MIB)
    lower = Limits(memory=8 * MIB, memory_swap=8 * MIB)
    if limited.host.versions["memory"] == 1:
        with pytest.raises(RequestError, match="more than that is in use now"):
            group.update(lower)
        assert group.stats().memory_limit == 64 * MIB
        return
    group.update(lower)  # v2 lowers it and kills what does not fit
    assert exit_status(pid) == -signal.SIGKILL
    assert group.oom_kills() == 1


def test_cpus_are_a_quota_and_throttling_is_counted(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(cpus=0.05, cpu_shares=2048))
    quota = value(limited, "one", ("cpu", "cpu.cfs_quota_us"), "cpu.max")
    assert quota.split()[0] == "5000"
    assert value(limited, "one", ("cpu", "cpu.shares"), "cpu.weight") in {"2048", "174"}
    start(group, shell("while :; do :; done"))
    assert until(lambda: group.stats().throttled_periods > 0)
    assert until(lambda: group.stats().throttled_ns > 0)  # counted when the throttling ends


def test_a_cpuset_binds_the_process_and_unknown_cpus_are_refused(limited: CgroupTree) -> None:
    group = limited.create("one", Limits(cpuset_cpus="0", cpuset_mems="0"))
    pid = start(group, shell("sleep 60"))
    assert os.sched_getaffinity(pid) == {0}
    with pytest.raises(RequestError, match="--cpuset-cpus 4000"):
        limited.create("two", Limits(cpuset_cpus="4000"))
    assert limited.names() == ["one"]


def test_a_cpuset_can_be_given_to_a_running_container(limited: CgroupTree) -> None:
    group = limited.create("one", Limits())
    pid = start(group, shell("sleep 60"))
    assert len(os.sched_getaffinity(pid)) == os.cpu_count()
    group.update(Limits(cpuset_cpus="0"))
    assert os.sched_getaffinity(pid) == {0}


def test_a_memory_reservation_is_set(limited: CgroupTree) -> None:
    limited.create("one", Limits(memory_reservation=32 * MIB))
    file = ("memory", "memory.soft_limit_in_bytes")
    assert value(limited, "one", file, "memory.low") == str(32 * MIB)


def test_a_blkio_weight_is_set_or_the_missing_file_is_named(limited: CgroupTree) -> None:
    limited.create("plain", Limits())
    files = [
        path.name
        for top in {*limited.hierarchies.v1.values(), limited.hierarchies.v2}
        if top is not None
        for path in (top / limited.parent / "plain").glob("*io*.weight")
    ]
    if not files:
        with pytest.raises(RequestError, match="--blkio-weight: this kernel has no"):
            limited.create("one", Limits(blkio_weight=500))
        assert limited.names() == ["plain"]
        return
    limited.create("one", Limits(blkio_weight=500))
    text = value(limited, "one", ("blkio", files[0]), files[0])
    assert "500" in text or "4950" in text


@pytest.mark.needs("cgroup_v2")
def test_without_controllers_limits_are_refused_by_name_and_nothing_is_made() -> None:
    tree = CgroupTree(Hierarchies({}, HOST.v2), f"dockpy-test-{os.getpid()}-{next(NUMBERS)}")
    try:
        with pytest.raises(RequestError, match="--memory needs the memory cgroup controller"):
            tree.create("one", Limits(memory=64 * MIB))
        assert tree.names() == []
        tree.create("one", Limits()).remove()
    finally:
        tree.close()


def test_check_refuses_what_create_would_and_makes_nothing(limited: CgroupTree) -> None:
    limited.check(Limits(memory=64 * MIB))
    with pytest.raises(RequestError, match="6 MiB"):
        limited.check(Limits(memory=1))
    with pytest.raises(RequestError, match="/dev/absent"):
        limited.check(Limits(devices=("/dev/absent",)))
    assert limited.names() == []


def test_a_container_has_groups_only_where_it_needs_them(tree: CgroupTree) -> None:
    tree.create("one", Limits())
    for controller in ("cpuset", "devices"):
        if controller in tree.hierarchies.v1:
            assert not (tree.hierarchies.v1[controller] / tree.parent / "one").exists()


# devices


def opens(path: str, flags: int = os.O_RDONLY) -> Callable[[], object]:
    """Exit code 0 or the errno of opening it."""
    return lambda: os.close(os.open(path, flags | os.O_NONBLOCK))


def test_a_default_container_uses_harmless_devices_and_no_others(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    assert exit_status(start(group, opens("/dev/null", os.O_RDWR))) == 0
    assert exit_status(start(group, opens("/dev/urandom"))) == 0
    assert exit_status(start(group, opens("/dev/kmsg"))) == errno.EPERM


def test_a_default_container_makes_any_node_but_cannot_use_it(
    tree: CgroupTree, tmp_path: Path
) -> None:
    group = tree.create("one", Limits())
    node = tmp_path / "node"

    def make() -> None:
        os.mknod(node, 0o600 | 0o020000, os.makedev(1, 11))

    assert exit_status(start(group, make)) == 0
    assert exit_status(start(group, opens(str(node)))) == errno.EPERM


def test_a_device_asked_for_is_allowed_with_its_access_only(tree: CgroupTree) -> None:
    group = tree.create("one", Limits(devices=("/dev/kmsg:r",)))
    assert exit_status(start(group, opens("/dev/kmsg"))) == 0
    assert exit_status(start(group, opens("/dev/kmsg", os.O_WRONLY))) == errno.EPERM
    assert exit_status(start(group, opens("/dev/null", os.O_RDWR))) == 0


def test_a_privileged_container_uses_every_device(tree: CgroupTree) -> None:
    group = tree.create("one", Limits(privileged=True))
    assert exit_status(start(group, opens("/dev/kmsg"))) == 0


def test_devices_can_be_added_to_a_running_container_and_taken_away(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    assert exit_status(start(group, opens("/dev/kmsg"))) == errno.EPERM
    group.update(Limits(devices=("/dev/kmsg",)))
    assert exit_status(start(group, opens("/dev/kmsg"))) == 0
    group.update(Limits(devices=("/dev/null",)))
    assert exit_status(start(group, opens("/dev/kmsg"))) == errno.EPERM


def test_a_container_beside_one_with_more_devices_gets_none_of_them(tree: CgroupTree) -> None:
    tree.create("open", Limits(privileged=True))
    group = tree.create("closed", Limits())
    assert exit_status(start(group, opens("/dev/kmsg"))) == errno.EPERM


# freezing


def test_a_frozen_container_writes_nothing_until_thawed(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    read, write = os.pipe()
    os.set_blocking(read, False)

    def writer() -> None:
        while True:
            os.write(write, b"x")
            time.sleep(0.001)

    pid = start(group, writer)
    os.close(write)

    def drain() -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(read, 65536)
        return b""

    assert until(drain)
    group.freeze()
    drain()
    time.sleep(0.05)
    assert drain() == b""
    group.thaw()
    assert until(drain)
    group.freeze()
    group.kill()
    group.thaw()  # v1: a frozen process dies when thawed
    assert exit_status(pid) == -signal.SIGKILL
    os.close(read)


def test_freeze_and_thaw_of_an_empty_group_return(tree: CgroupTree) -> None:
    group = tree.create("one", Limits())
    group.freeze()
    group.thaw()
    pid = start(group, shell("exit 7"))
    assert exit_status(pid) == 7


# inside another container


@pytest.mark.needs("cgroup_v2_controllers")
def test_at_the_root_of_a_cgroup_namespace_processes_step_aside_for_controllers() -> None:
    """As when dockpy runs inside a container: its own group is the top of all it can see."""
    outer = CgroupTree(HOST, f"dockpy-test-{os.getpid()}-{next(NUMBERS)}")
    group = outer.create("outer", Limits())

    def inside() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        new_cgroup, new_mounts, private = 0x02000000, 0x00020000, 1 << 18 | 1 << 14

        def refused() -> str:
            return os.strerror(ctypes.get_errno())

        assert libc.unshare(new_cgroup | new_mounts) == 0, refused()
        assert libc.mount(None, b"/", None, private, None) == 0, refused()
        assert libc.umount2(b"/sys/fs/cgroup", 2) == 0, refused()
        assert libc.mount(b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None) == 0, refused()
        tree = CgroupTree(Hierarchies.detect(), "dockpy")
        inner = tree.create("inner", Limits(memory=64 * MIB, pids=9))
        stats = inner.stats()
        inner.remove()
        tree.close()
        return 0 if (stats.memory_limit, stats.pids_limit) == (64 * MIB, 9) else 1

    try:
        assert exit_status(start(group, inside)) == 0
    finally:
        group.remove()
        outer.close()
