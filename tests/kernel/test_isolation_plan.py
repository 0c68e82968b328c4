"""What a container's program can and cannot do, seen from inside: busybox in a tiny root."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dockpy import mounts
from dockpy.errors import (
    CannotExecute,
    CommandNotFound,
    DockpyError,
    KernelError,
    RequestError,
    UsageError,
)
from dockpy.plan import Plan
from dockpy.start import MASKED_PATHS, NAMESPACES, READ_ONLY_PATHS, BindMount
from patience import patient
from starts import BARE, DEFAULT_CAPABILITIES, Starts, read_until, spawn_plan

pytestmark = pytest.mark.needs("root", "overlay", "mount_api", "openat2", "netns")


@pytest.fixture
def starts(
    tiny_root: Path, real_tmp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Starts]:
    work = real_tmp / tmp_path_factory.mktemp("start").name
    work.mkdir()
    made = Starts(tiny_root, work)
    yield made
    made.close()
    shutil.rmtree(work)


def bind(
    starts: Starts, source: Path, target: str, slot: int = 2, read_only: bool = False
) -> tuple[BindMount, int]:
    """A bind of a host path, and the descriptor of its detached mount."""
    opened = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        tree = starts.keep(mounts.clone_tree(opened, read_only=read_only))
    finally:
        os.close(opened)
    spec = BindMount(
        slot=slot,
        target=target,
        read_only=read_only,
        is_directory=source.is_dir(),
        recursive=True,
    )
    return spec, tree


def all_capabilities() -> int:
    """What this machine can give at most."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"CapBnd:\s*(\w+)", status)[1], 16)  # type: ignore[index]


# -- identity ----------------------------------------------------------------------------------


def status_of(starts: Starts, **changes: object) -> dict[str, str]:
    text = starts.run("/bin/cat", "/proc/self/status", **changes).text  # type: ignore[arg-type]
    return {
        key: value.strip() for key, _, value in (one.partition(":") for one in text.splitlines())
    }


def test_root_has_the_asked_capabilities_and_no_inheritable_or_ambient_ones(starts: Starts) -> None:
    found = status_of(starts)
    asked = f"{DEFAULT_CAPABILITIES:016x}"
    assert {name: found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": "0" * 16,
        "CapPrm": asked,
        "CapEff": asked,
        "CapBnd": asked,
        "CapAmb": "0" * 16,
    }


def test_another_user_has_an_empty_set_below_the_same_bound(starts: Starts) -> None:
    found = status_of(starts, uid=1000, gid=1000, groups=(2000, 7))
    assert found["CapEff"] == found["CapPrm"] == found["CapInh"] == found["CapAmb"] == "0" * 16
    assert found["CapBnd"] == f"{DEFAULT_CAPABILITIES:016x}"
    assert found["Uid"].split() == ["1000"] * 4
    assert found["Gid"].split() == ["1000"] * 4
    assert set(found["Groups"].split()) == {"2000", "7"}


def test_signals_are_at_their_defaults_and_none_is_blocked(starts: Starts) -> None:
    found = status_of(starts)
    assert found["SigIgn"] == found["SigBlk"] == found["SigCgt"] == "0" * 16


def test_umask_is_022_and_the_program_is_pid_1_of_its_own_session(starts: Starts) -> None:
    ran = starts.run("umask; echo $$; cut -d' ' -f5,6 /proc/1/stat")
    assert ran.lines == ["0022", "1", "1 1"]


def test_host_name_and_domain_name_are_the_containers_own(starts: Starts) -> None:
    before = os.uname().nodename
    ran = starts.run(
        "hostname; cat /proc/sys/kernel/domainname", hostname="a-name", domainname="d.test"
    )
    assert ran.lines == ["a-name", "d.test"]
    assert os.uname().nodename == before


def test_limits_are_set(starts: Starts) -> None:
    ran = starts.run(
        "ulimit -n; ulimit -c",
        rlimits=((resource.RLIMIT_NOFILE, 100, 200), (resource.RLIMIT_CORE, 0, 0)),
    )
    assert ran.lines == ["100", "0"]


def test_oom_score_is_set(starts: Starts) -> None:
    ours = Path("/proc/self/oom_score_adj").read_text()
    assert starts.run("cat /proc/self/oom_score_adj", oom_score_adj=321).text == "321\n"
    assert Path("/proc/self/oom_score_adj").read_text() == ours


def test_a_setuid_program_gains_nothing_with_no_new_privileges(starts: Starts) -> None:
    layer = starts.layer()
    shutil.copy(Path(mounts.__file__).with_name("_init"), layer / "become")  # drops nothing itself
    os.chmod(layer / "become", 0o4755)
    words = ("/become", "--", "/bin/grep", "Uid", "/proc/1/status")
    free = starts.run(*words, uid=1000, gid=1000, root=starts.root(layer))
    bound = starts.run(*words, uid=1000, gid=1000, root=starts.root(layer), no_new_privileges=True)
    assert free.text.split() == ["Uid:", "1000", "0", "0", "0"]
    assert bound.text.split() == ["Uid:", "1000", "1000", "1000", "1000"]


@pytest.mark.needs("seccomp")
@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_the_filter_is_on_with_and_without_no_new_privileges(
    starts: Starts, no_new_privileges: bool
) -> None:
    everything = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    found = status_of(starts, seccomp=everything, no_new_privileges=no_new_privileges)
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", str(int(no_new_privileges)))


# -- what is open ------------------------------------------------------------------------------


def test_exactly_the_three_standard_descriptors_are_open(starts: Starts) -> None:
    extra = [starts.keep(os.open("/", os.O_RDONLY)) for _ in range(3)]
    for descriptor in extra:
        os.set_inheritable(descriptor, True)
    ran = starts.run("/bin/busybox", "ls", "/proc/1/fd")
    # ls itself has the directory open
    assert ran.lines == ["0", "1", "2", "3"]
    assert starts.run("readlink /proc/self/fd/3 || echo none").text == "none\n"


def test_without_slots_the_streams_are_the_containers_null(starts: Starts) -> None:
    ran = starts.run("/bin/sh", "-c", "readlink /proc/self/fd/0; stat -c %t:%T /proc/self/fd/0 -L")
    assert ran.lines == ["/dev/null", "1:3"]


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)])
def test_closed_standard_descriptors_of_the_parent_are_no_problem(
    starts: Starts, closed: tuple[int, ...]
) -> None:
    kept = {number: os.dup(number) for number in closed}
    try:
        for number in closed:
            os.close(number)
        ran = starts.run("echo out; echo err >&2; cat; ls /proc/self/fd | wc -l")
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
    assert ran.lines == ["out", "err", "4"]


def test_another_user_may_open_its_output_again(starts: Starts) -> None:
    ran = starts.run("echo again > /dev/stdout", uid=1000, gid=1000)
    assert (ran.code, ran.text) == (0, "again\n")


# -- mounts ------------------------------------------------------------------------------------


def test_the_mount_table_shows_nothing_of_the_host(starts: Starts) -> None:
    lines = starts.run("cat /proc/self/mountinfo").lines
    places = {line.split()[4]: line for line in lines}
    expected = {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"}
    closed = {f"/{path}" for path in (*READ_ONLY_PATHS, *MASKED_PATHS)}
    assert expected <= set(places)
    assert {place for place in places if "thermal_throttle" not in place} <= expected | closed
    # neither a mount below another one on the same place nor a peer outside
    assert len(places) == len(lines)
    assert not [line for line in lines if "shared:" in line or "master:" in line]


def test_device_nodes_of_the_image_do_not_work(starts: Starts) -> None:
    layer = starts.layer()
    os.mknod(layer / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    ran = starts.run("head -c1 /zero || echo refused", root=starts.root(layer))
    assert "refused" in ran.text
    assert "ermission denied" in ran.text


def test_devices_are_the_default_ones_and_work(starts: Starts) -> None:
    ran = starts.run(
        "ls /dev; head -c4 /dev/zero | wc -c; echo x > /dev/null; head -c1 /dev/random | wc -c"
    )
    assert ran.lines == [
        *("core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr"),
        *("stdin", "stdout", "tty", "urandom", "zero", "4", "1"),
    ]
    modes = starts.run(
        "stat -c '%a %t:%T %n' /dev/null /dev/tty /dev/shm /dev; readlink /dev/ptmx"
    ).lines
    assert modes == [
        "666 1:3 /dev/null",
        "666 5:0 /dev/tty",
        "1777 0:0 /dev/shm",
        "755 0:0 /dev",
        "pts/ptmx",
    ]


def test_asked_devices_are_made_below_dev(starts: Starts) -> None:
    ran = starts.run(
        "stat -c '%a %t:%T' /dev/deep/one /dev/two",
        devices=(("/dev/deep/one", "c", 1, 3, 0o600), ("/dev/two", "b", 7, 0, 0o640)),
    )
    assert ran.lines == ["600 1:3", "640 7:0"]


def test_mknod_and_mount_are_refused(starts: Starts) -> None:
    ran = starts.run("mknod /tmp/n c 1 3; echo $?; mount -t tmpfs none /tmp; echo $?")
    assert [line for line in ran.lines if line.isdigit()] == ["1", "1"] or "0" not in ran.lines
    assert ran.text.count("ermitted") + ran.text.count("denied") == 2


def test_masked_paths_say_nothing(starts: Starts) -> None:
    script = "\n".join(
        f"if test -d /{path}; then echo {path} $(ls /{path} | wc -l); "
        f"elif test -e /{path}; then echo {path} $(head -c 10 /{path} | wc -c); fi"
        for path in MASKED_PATHS
    )
    lines = starts.run(script, capabilities=all_capabilities()).lines
    assert lines
    assert [line for line in lines if not line.endswith(" 0")] == []
    here = [path for path in MASKED_PATHS if Path("/", path).exists()]
    assert [line.split()[0] for line in lines] == here


def test_read_only_paths_cannot_be_written(starts: Starts) -> None:
    here = [f"/{path}" for path in READ_ONLY_PATHS if Path("/", path).exists()]
    table = starts.run("cut -d' ' -f5,6 /proc/self/mountinfo").lines
    assert [path for path in here if f"{path} ro,nosuid,nodev,noexec,relatime" not in table] == []
    ran = starts.run("echo 1 > /proc/sys/vm/drop_caches; mkdir /sys/fs/x")
    assert ran.text.count("Read-only file system") == 2


def test_a_privileged_start_masks_nothing_and_leaves_sysfs_writable(starts: Starts) -> None:
    table = "cut -d' ' -f5,6 /proc/self/mountinfo | grep -E '^/(sys|proc)'"
    ran = starts.run(table, privileged=True, capabilities=all_capabilities())
    assert sorted(ran.lines) == [
        "/proc rw,nosuid,nodev,noexec,relatime",
        "/sys rw,nosuid,nodev,noexec,relatime",
    ]
    assert "/sys ro,nosuid,nodev,noexec,relatime" in starts.run(table).lines


def test_shm_has_its_size(starts: Starts) -> None:
    ran = starts.run("df -k /dev/shm | tail -1", shm_size=3 << 20)
    assert ran.text.split()[1] == "3072"


def test_the_image_is_never_written_and_the_root_is_writable(starts: Starts) -> None:
    before = sorted(path.name for path in starts.base.iterdir())
    assert starts.run("echo x > /made && cat /made").text == "x\n"
    assert sorted(path.name for path in starts.base.iterdir()) == before


def test_a_read_only_root_is_read_only_but_its_mounts_are_not(starts: Starts) -> None:
    ran = starts.run(
        "touch /x; touch /tmp/y && echo tmp; touch /dev/shm/z && echo shm; pwd",
        read_only=True,
        tmpfs=(("/tmp", "size=1m"),),
        cwd="/new/place",
    )
    assert "Read-only file system" in ran.text
    assert ran.lines[-3:] == ["tmp", "shm", "/new/place"]


def test_tmpfs_has_its_options(starts: Starts) -> None:
    ran = starts.run(
        "grep ' /scratch ' /proc/self/mountinfo", tmpfs=(("/scratch", "size=2m,mode=700,ro"),)
    )
    assert " ro,nosuid,nodev,noexec" in ran.text
    assert "size=2048k,mode=700" in ran.text


@pytest.mark.needs("cgroup_v2")
def test_the_v2_hierarchy_is_mounted_read_only_when_asked(starts: Starts) -> None:
    ran = starts.run("grep ' /sys/fs/cgroup ' /proc/self/mountinfo", mount_cgroup=True)
    assert " ro,nosuid,nodev,noexec" in ran.text
    assert "cgroup2" in ran.text


def test_own_groups_of_v1_are_shown_below_a_read_only_tmpfs(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/limit").write_text("1\n")
    opened = os.open(tmp_path / "memory", os.O_PATH)
    tree = starts.keep(mounts.clone_tree(opened, recursive=False, read_only=True))
    os.close(opened)
    ran = starts.run(
        "ls /sys/fs/cgroup; cat /sys/fs/cgroup/memory/limit; "
        "mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x",
        mount_cgroup=True,
        slots=[tree],
        cgroup_binds=((2, "memory"),),
    )
    assert ran.lines[:2] == ["memory", "1"]
    assert ran.text.count("Read-only file system") == 2


# -- binds -------------------------------------------------------------------------------------


def test_binds_are_made_read_write_and_read_only(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs\n")
    (tmp_path / "directory").mkdir()
    first, first_tree = bind(starts, tmp_path / "file", "/etc/new/file", slot=2)
    second, second_tree = bind(starts, tmp_path / "directory", "/srv/a/b", slot=3, read_only=True)
    ran = starts.run(
        "cat /etc/new/file; echo ours > /etc/new/file; touch /srv/a/b/x",
        slots=[first_tree, second_tree],
        binds=(first, second),
    )
    assert ran.lines[0] == "theirs"
    assert "Read-only file system" in ran.text
    assert (tmp_path / "file").read_text() == "ours\n"


@pytest.mark.parametrize(
    ("links", "target", "lands"),
    [
        ({"etc/one": "/var/lib"}, "/etc/one/f", "/var/lib/f"),
        ({"etc/up": "../../../../../../var"}, "/etc/up/f", "/var/f"),
        ({}, "/etc/../../../../var/f", "/var/f"),
        ({"etc/resolv.conf": "../run/nowhere/stub"}, "/etc/resolv.conf", "/run/nowhere/stub"),
        ({"etc/resolv.conf": "/run/a/b"}, "/etc/resolv.conf", "/run/a/b"),
        ({"etc/x": "y", "etc/y": "/gone/z"}, "/etc/x", "/gone/z"),
        ({"etc/host": "/proc/1/root"}, "/etc/host/f", None),
        ({"etc/loop": "loop"}, "/etc/loop/f", None),
    ],
)
def test_links_on_the_way_to_a_target_never_leave_the_root(
    starts: Starts, tmp_path: Path, links: dict[str, str], target: str, lands: str | None
) -> None:
    layer = starts.layer()
    (layer / "etc").mkdir()
    for name, text in links.items():
        (layer / name).symlink_to(text)
    (tmp_path / "f").write_text("bound\n")
    wanted, tree = bind(starts, tmp_path / "f", target)
    before = set(os.listdir("/")), set(os.listdir("/var")), os.path.exists("/run/nowhere")
    if lands is None:
        with pytest.raises(DockpyError):
            starts.run("true", slots=[tree], binds=(wanted,), root=starts.root(layer))
    else:
        ran = starts.run(f"cat {lands}", slots=[tree], binds=(wanted,), root=starts.root(layer))
        assert ran.text == "bound\n"
    assert (set(os.listdir("/")), set(os.listdir("/var")), os.path.exists("/run/nowhere")) == before


def test_inner_mounts_come_after_outer_ones(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/seen").touch()
    inner, tree = bind(starts, tmp_path / "inner", "/a/b/c")
    ran = starts.run("ls /a/b/c", slots=[tree], binds=(inner,), tmpfs=(("/a/b", ""), ("/a", "")))
    assert ran.text == "seen\n"


def test_a_file_on_a_directory_is_one_clear_line(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    wanted, tree = bind(starts, tmp_path / "f", "/etc")
    with pytest.raises(RequestError) as caught:
        starts.run("true", slots=[tree], binds=(wanted,))
    assert "/etc" in str(caught.value)


# -- hostile images ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("text", ["/etc", "../../../tmp", "/proc/self/root"])
def test_an_image_whose_mount_points_are_links_is_refused(
    starts: Starts, name: str, text: str
) -> None:
    layer = starts.layer()
    (layer / name).symlink_to(text)
    with pytest.raises(RequestError) as caught:
        starts.run("true", root=starts.root(layer))
    assert f"/{name} is not a directory in the image" in str(caught.value)


def test_device_names_in_the_image_are_hidden_by_ours(starts: Starts, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("host")
    layer = starts.layer()
    (layer / "dev").mkdir()
    for name in ("null", "pts", "shm", "console", "ptmx"):
        (layer / "dev" / name).symlink_to(target)
    ran = starts.run("echo x > /dev/null; head -c3 /proc/keys | wc -c", root=starts.root(layer))
    assert ran.text == "0\n"
    assert target.read_text() == "host"


def test_missing_mount_points_are_made(starts: Starts) -> None:
    bare = starts.layer()
    (bare / "bin").mkdir()
    shutil.copy("/bin/busybox", bare / "bin/sh")
    alone = Starts(bare, starts.work)
    root = starts.keep(alone.root())
    alone.open.clear()
    ran = starts.run(
        "test -e /proc/self && test -c /dev/null && test -d /sys/class && echo all", root=root
    )
    assert ran.text == "all\n"


def test_a_working_directory_behind_any_descriptor_is_refused(starts: Starts) -> None:
    # a descriptor of the host's root that a careless parent would hand down
    os.set_inheritable(starts.keep(os.open("/", os.O_RDONLY | os.O_DIRECTORY)), True)
    for number in range(256):
        with pytest.raises(CannotExecute, match=r"working directory /proc/self/fd/\d+ is not"):
            starts.run("/bin/pwd", cwd=f"/proc/self/fd/{number}")


def test_the_kernel_is_asked_where_the_working_directory_is(starts: Starts) -> None:
    # a host directory as stdin: the one descriptor of a directory that can still be open then
    host = starts.keep(os.open("/usr", os.O_RDONLY | os.O_DIRECTORY))
    plan = Plan(NAMESPACES)
    plan.private_mounts()
    plan.root(0)
    plan.mount("proc", "proc")
    plan.mount("tmpfs", "dev")
    plan.node("dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    plan.pivot()
    plan.streams(1, -1, -1, 0)
    plan.close_descriptors()
    plan.chdir("/proc/self/fd/0")
    plan.execute(["/bin/true"], [], ["/bin/true"])
    with pytest.raises(CannotExecute, match="not inside the container"):
        spawn_plan(plan, [starts.root(), host])


def test_a_target_that_is_raced_never_lands_outside(starts: Starts, tmp_path: Path) -> None:
    shared, outside = tmp_path / "shared", tmp_path / "outside"
    for path in (shared, outside, shared / "real"):
        path.mkdir()
    (tmp_path / "file").write_text("bound")
    (shared / "way").symlink_to("real")
    over = threading.Event()

    def race() -> None:
        while not over.is_set():
            for target in (str(outside), "real", "../../../../../.." + str(outside)):
                (shared / "next").symlink_to(target)
                (shared / "next").rename(shared / "way")

    thread = threading.Thread(target=race)
    thread.start()
    try:
        for _ in range(60):
            first, shared_tree = bind(starts, shared, "/shared", slot=2)
            second, file_tree = bind(starts, tmp_path / "file", "/shared/way/deep/f", slot=3)
            # lost races are errors of the request; landing outside would be ours
            with suppress(DockpyError):
                starts.run("true", slots=[shared_tree, file_tree], binds=(first, second))
    finally:
        over.set()
        thread.join()
    assert list(outside.iterdir()) == []


def test_a_directory_bound_over_sysfs_is_masked_too(starts: Starts, tmp_path: Path) -> None:
    (tmp_path / "sys/firmware").mkdir(parents=True)
    (tmp_path / "sys/firmware/secret").touch()
    (tmp_path / "sys/kept").touch()
    wanted, tree = bind(starts, tmp_path / "sys", "/sys")
    ran = starts.run("ls /sys /sys/firmware", slots=[tree], binds=(wanted,))
    assert "kept" in ran.text
    assert "secret" not in ran.text


def test_a_working_directory_is_made_and_entered_through_links_of_the_image(starts: Starts) -> None:
    layer = starts.layer()
    (layer / "link").symlink_to("/../../../srv")
    ran = starts.run("pwd -P; stat -c %u:%a .", cwd="/link/deep/er", root=starts.root(layer))
    assert ran.lines == ["/srv/deep/er", "0:755"]
    assert not os.path.exists("/srv/deep")


def test_a_working_directory_that_only_root_may_enter_is_entered_for_the_user(
    starts: Starts,
) -> None:
    layer = starts.layer()
    (layer / "closed").mkdir(mode=0o700)
    (layer / "closed" / "inner").touch()
    ran = starts.run(
        "pwd; ls inner || echo refused", cwd="/closed", uid=1000, gid=1000, root=starts.root(layer)
    )
    assert ran.lines[0] == "/closed"
    assert ran.lines[-1] == "refused"


def test_proc_self_exe_as_interpreter_reaches_no_file_of_the_host(starts: Starts) -> None:
    layer = starts.layer()
    (layer / "entry").write_text("#!/proc/self/exe\n")
    os.chmod(layer / "entry", 0o755)
    # Until exec the program's file is the parent's interpreter (the supervisor's is a sealed copy);
    # it is linked with a loader that the tiny root does not have.
    with pytest.raises(CommandNotFound, match="interpreter"):
        starts.run("/entry", "x", root=starts.root(layer))


# -- terminal ----------------------------------------------------------------------------------


@pytest.mark.needs("devpts")
def test_a_terminal_is_controlling_and_has_job_control(starts: Starts) -> None:
    mount, master, slave = (starts.keep(one) for one in mounts.devpts())
    os.set_blocking(master, True)
    spec = replace(
        BARE,
        argv=("/bin/sh", "-i"),
        env=("PS1=ready> ", "PATH=/bin"),
        tty_slot=1,
        devpts_slot=2,
        uid=1000,
        gid=1000,
    )
    child = starts.spawn(spec, [starts.root(), slave, mount])
    os.close(slave)
    starts.open.remove(slave)
    text = read_until(master, "ready>")
    os.write(master, b"tty; stat -c %u:%a $(tty); test -c /dev/console && echo console-$((1+1))\n")
    text += read_until(master, "console-2")
    os.write(master, b"sleep 1000\n")
    text += read_until(master, "sleep 1000")
    # once the sleep has the terminal for a group of its own, ^C ends it and not the shell
    deadline = time.monotonic() + patient(10)
    while os.tcgetpgrp(master) == child.pid:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.write(master, b"\x03")
    text += read_until(master, "ready>")
    os.write(master, b"echo alive-$((40+2)); exit 7\n")
    ran = starts.finish(child, master)
    text += ran.text
    assert "can't access tty" not in text
    assert "/dev/pts/0" in text
    assert "1000:620" in text
    assert "alive-42" in text
    assert ran.code == 7


# -- init --------------------------------------------------------------------------------------


def test_init_is_pid_1_reaps_orphans_and_passes_the_code_on(starts: Starts) -> None:
    program = starts.keep(mounts.init_program())
    # to read init's descriptors takes CAP_SYS_PTRACE
    ran = starts.run(
        "echo $$ | grep -v '^1$' >/dev/null && echo other; (sleep 0.05 &) ; sleep 0.2;"
        " grep -c '(zombie)' /proc/[0-9]*/status | grep -v :0; ls /proc/1/fd | wc -l; exit 5",
        slots=[program],
        init_slot=2,
        capabilities=DEFAULT_CAPABILITIES | 1 << 19,
    )
    assert ran.code == 5
    assert ran.lines == ["other", "0"]


@pytest.mark.parametrize(("program", "code"), [("/absent", 127), ("absent", 127), ("/etc", 126)])
def test_init_tells_a_missing_program_by_its_code(starts: Starts, program: str, code: int) -> None:
    init = starts.keep(mounts.init_program())
    ran = starts.run(program, "x", slots=[init], init_slot=2)
    assert ran.code == code
    assert program in ran.text


def test_init_passes_signals_on_and_tells_of_the_death_by_one(starts: Starts) -> None:
    init = starts.keep(mounts.init_program())
    reader, writer = os.pipe2(os.O_CLOEXEC)
    starts.keep(reader)
    script = "trap 'echo got' USR1; echo ready; while :; do sleep 0.05; done"
    spec = replace(BARE, argv=("/bin/sh", "-c", script), stdout_slot=1, init_slot=2)
    child = starts.spawn(spec, [starts.root(), writer, init])
    os.close(writer)
    text = read_until(reader, "ready")
    signal.pidfd_send_signal(child.pidfd, signal.SIGUSR1)
    text += read_until(reader, "got")
    signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
    ran = starts.finish(child, reader)
    assert "got" in text
    assert ran.code == 128 + signal.SIGTERM


# -- programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        ("absent", CommandNotFound, "absent"),
        ("/absent", CommandNotFound, "/absent"),
        ("/etc/passwd/x", CommandNotFound, "/etc/passwd/x"),
        ("/etc", CannotExecute, "directory"),
        ("/etc/passwd", CannotExecute, "permission denied"),
        ("/nonsense", CannotExecute, "no program"),
        ("/orphan", CommandNotFound, "interpreter"),
        ("", CommandNotFound, ""),
    ],
)
def test_programs_that_cannot_run_are_told_apart(
    starts: Starts, program: str, error: type[DockpyError], words: str
) -> None:
    layer = starts.layer()
    (layer / "nonsense").write_bytes(b"\x00\x01nonsense")
    (layer / "orphan").write_text("#!/no/such/interpreter\n")
    for name in ("nonsense", "orphan"):
        os.chmod(layer / name, 0o755)
    with pytest.raises(error) as caught:
        starts.run(program, "x", root=starts.root(layer))
    assert words in str(caught.value)
    assert caught.value.exit_code == (127 if error is CommandNotFound else 126)


def test_the_path_of_the_containers_environment_is_searched(starts: Starts) -> None:
    layer = starts.layer()
    (layer / "tools").mkdir()
    (layer / "tools/refused").write_text("x")
    (layer / "more").mkdir()
    shutil.copy("/bin/busybox", layer / "more/echo")
    ran = starts.run(
        *("echo", "found"), env=("PATH=/absent:/etc/passwd:/tools:/more",), root=starts.root(layer)
    )
    assert ran.text == "found\n"
    with pytest.raises(CannotExecute):
        starts.run("refused", "x", env=("PATH=/tools:/more",), root=starts.root(layer))


def test_devices_and_mounts_that_cannot_be_are_refused_before_anything_starts(
    starts: Starts,
) -> None:
    with pytest.raises(UsageError):
        starts.run("true", devices=(("/etc/x", "c", 1, 3, 0o666),))
    with pytest.raises(UsageError):
        starts.run("true", tmpfs=(("/..", ""),))


# -- failing steps -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "step", "err", "path"),
    [
        ({"cgroup_tasks_slots": (0,)}, "join cgroup", errno.EBADF, None),
        ({"network": 1}, "join namespace", errno.EINVAL, None),
        ({"hostname": "x" * 65}, "set host name", errno.EINVAL, "x" * 65),
        ({"domainname": "y" * 65}, "set domain name", errno.EINVAL, "y" * 65),
        ({"root_slot": 1}, "attach root", errno.EINVAL, None),
        ({"oom_score_adj": 5000}, "write", errno.EINVAL, "/proc/self/oom_score_adj"),
        ({"tmpfs": (("/t", "size=nonsense"),)}, "mount tmpfs", errno.EINVAL, "/t"),
        ({"tty_slot": 1}, "bind console", errno.EINVAL, "/dev/console"),
        ({"rlimits": ((resource.RLIMIT_NOFILE, 2, 1),)}, "set resource limit", errno.EINVAL, None),
        ({"seccomp": b"\xff" * 8}, "install seccomp filter", errno.EINVAL, None),
        ({"argv": ("/bin/true", "x" * 200_000)}, None, errno.E2BIG, None),
    ],
)
def test_each_failing_step_is_named_with_errno_and_path(
    starts: Starts, changes: dict[str, object], step: str | None, err: int, path: str | None
) -> None:
    if step is None:
        with pytest.raises(CannotExecute):
            starts.run("true", **changes)  # type: ignore[arg-type]
        return
    with pytest.raises(KernelError) as caught:
        starts.run("true", **changes)  # type: ignore[arg-type]
    assert (caught.value.step, caught.value.errno, caught.value.filename) == (step, err, path)


def test_a_slot_that_is_no_mount_is_told_with_its_target(starts: Starts) -> None:
    directory = starts.keep(os.open("/", os.O_PATH))
    with pytest.raises(KernelError) as caught:
        starts.run("true", slots=[directory], devpts_slot=2)
    assert (caught.value.step, caught.value.filename) == ("bind mount", "/dev/pts")


def test_names_in_errors_are_those_the_user_knows(starts: Starts) -> None:
    with pytest.raises(KernelError) as caught:
        starts.run("true", tmpfs=(("/t", "size=nonsense"),))
    assert re.fullmatch(r"mount tmpfs on /t: EINVAL \(.*\)", str(caught.value))
