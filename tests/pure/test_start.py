"""Which steps a start takes, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dockpy._clone import check_plan
from dockpy.errors import UsageError
from dockpy.plan import NODEV, NOEXEC, NOSUID, RDONLY, Plan
from dockpy.start import (
    MASKED_PATHS,
    READ_ONLY_PATHS,
    BindMount,
    candidates,
    start_plan,
    tmpfs_options,
)
from starts import BARE

FILTER = b"\x06\0\0\0\0\0\xff\x7f"


def plan(**changes: object) -> Plan:
    return start_plan(replace(BARE, **changes))  # type: ignore[arg-type]


def places(made: Plan, label: str) -> list[str | None]:
    return [path for one, path in zip(made.labels, made.paths, strict=True) if one == label]


def in_order(made: Plan, *labels: str) -> None:
    assert [one for one in made.labels if one in labels] == list(labels)


def bound(target: str, slot: int = 1) -> BindMount:
    return BindMount(slot=slot, target=target, read_only=False, is_directory=True, recursive=True)


def test_cgroups_are_joined_before_their_namespace_is_made() -> None:
    made = plan(cgroup_tasks_slots=(1, 2))
    in_order(
        made, "join cgroup", "join cgroup", "make a cgroup namespace", "attach root", "pivot_root"
    )


def test_everything_is_mounted_before_the_pivot_and_identity_comes_after() -> None:
    made = plan(binds=(bound("/a"),), tmpfs=(("/b", ""),), seccomp=FILTER, read_only=True, cwd="/w")
    pivot = made.labels.index("pivot_root")
    before = {
        *("mount proc", "mount sysfs", "mount tmpfs", "bind mount", "mask", "make read-only"),
        *("make mount read-only", "make working directory"),
    }
    after = {
        *("connect streams", "close descriptors", "install seccomp filter", "drop capabilities"),
        *("set groups", "set user", "set capabilities", "enter working directory", "execute"),
    }
    assert before <= set(made.labels[:pivot])
    assert after <= set(made.labels[pivot:])
    assert not before & set(made.labels[pivot:])
    assert not after & set(made.labels[:pivot])


def test_the_working_directory_is_made_before_the_root_is_read_only() -> None:
    in_order(plan(read_only=True, cwd="/w"), "make working directory", "make mount read-only")


def test_the_working_directory_is_entered_with_nothing_open_and_the_users_rights() -> None:
    in_order(
        plan(uid=5),
        *("close descriptors", "set groups", "set user", "set capabilities"),
        *("enter working directory", "execute"),
    )


def test_without_no_new_privileges_the_filter_comes_before_capabilities_go() -> None:
    in_order(plan(seccomp=FILTER), "install seccomp filter", "drop capabilities", "set user")


def test_with_no_new_privileges_the_filter_is_the_last_step_before_the_program() -> None:
    made = plan(seccomp=FILTER, no_new_privileges=True)
    in_order(made, "set no_new_privs", "set user", "install seccomp filter", "execute")
    assert made.labels[-2] == "install seccomp filter"


@pytest.mark.parametrize(
    ("network", "labels"),
    [("none", ["bring loopback up"]), ("host", []), (1, ["join namespace"])],
)
def test_networks(network: object, labels: list[str]) -> None:
    made = plan(network=network)
    assert [one for one in made.labels if one in ("bring loopback up", "join namespace")] == labels


def test_privileged_masks_nothing() -> None:
    assert (
        places(plan(privileged=True), "mask")
        == places(plan(privileged=True), "make read-only")
        == []
    )


def test_the_masked_and_read_only_paths_are_those_of_the_list() -> None:
    made = plan()
    assert tuple(places(made, "make read-only")) == READ_ONLY_PATHS
    assert tuple(places(made, "mask"))[:-1] == MASKED_PATHS
    assert "thermal_throttle" in str(places(made, "mask")[-1])


def test_masks_come_after_the_users_mounts() -> None:
    made = plan(binds=(bound("/sys"),))
    assert made.labels.index("bind mount") < made.labels.index("mask")


def test_mounts_are_ordered_by_depth_and_else_as_given() -> None:
    made = plan(binds=(bound("/a/b"), bound("/z"), bound("/y")), tmpfs=(("/a", ""), ("/a/b/c", "")))
    wanted = {"/a", "/a/b", "/a/b/c", "/y", "/z"}
    assert [one for one in made.paths if one in wanted] == ["/a", "/z", "/y", "/a/b", "/a/b/c"]


@pytest.mark.parametrize("target", ["/", "", ".", "/..", "//", "/a/.."])
def test_nothing_is_mounted_on_the_root(target: str) -> None:
    with pytest.raises(UsageError):
        plan(tmpfs=((target, ""),))
    with pytest.raises(UsageError):
        plan(binds=(bound(target),))


@pytest.mark.parametrize(
    "path", ["/etc/x", "/dev/../etc/x", "/dev", "/dev/pts/7", "../dev/x/../../y"]
)
def test_devices_lie_below_dev(path: str) -> None:
    with pytest.raises(UsageError):
        plan(devices=((path, "c", 1, 3, 0o666),))


def test_default_devices_are_not_made_twice_and_directories_once() -> None:
    made = plan(
        devices=(
            ("/dev/null", "c", 1, 3, 0o666),
            ("/dev/net/tun", "c", 10, 200, 0o666),
            ("/dev/net/other", "c", 10, 201, 0o666),
        )
    )
    nodes = places(made, "make device")
    assert len(nodes) == len(set(nodes))
    assert nodes[-2:] == ["dev/net/tun", "dev/net/other"]
    assert places(made, "make directory").count("dev/net") == 1


def test_a_terminal_takes_the_place_of_streams() -> None:
    made = plan(tty_slot=1, devpts_slot=2)
    in_order(made, "start a session", "bind console", "take terminal")
    assert "connect streams" not in made.labels
    assert "mount devpts" not in made.labels


def test_init_is_executed_by_descriptor_with_the_program_behind_it() -> None:
    made = plan(init_slot=1, argv=("prog", "x"))
    assert made.labels[-1] == "execute init"
    assert b"init\0--\0prog\0x\0" in made.pack()
    assert check_plan(made.pack(), 2) is None


def test_v1_groups_are_shown_when_given_and_v2_only_where_there_is_no_v1() -> None:
    assert "mount cgroup2" in plan(mount_cgroup=True).labels
    assert "mount cgroup2" not in plan(mount_cgroup=True, cgroup_tasks_slots=(1,)).labels
    assert "mount cgroup2" not in plan().labels
    shown = plan(mount_cgroup=True, cgroup_tasks_slots=(1,), cgroup_binds=((2, "memory"),))
    assert "sys/fs/cgroup/memory" in shown.paths
    in_order(shown, "bind mount", "make mount read-only")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"uid": 7, "gid": 8, "groups": (1, 2, 3)},
        {"tty_slot": 1, "devpts_slot": 2, "init_slot": 3},
        {"privileged": True, "seccomp": None, "mount_cgroup": True},
        {"read_only": True, "cwd": "/w", "oom_score_adj": -5, "domainname": "d"},
        {"env": (), "argv": ("",)},
        {"network": 1, "cgroup_tasks_slots": (2, 3), "seccomp": FILTER},
    ],
)
def test_every_plan_passes_the_native_check(changes: dict[str, object]) -> None:
    assert check_plan(plan(**changes).pack(), 4) is None


# -- small rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "env", "expected"),
    [
        ("/bin/x", ("PATH=/a",), ["/bin/x"]),
        ("./x", (), ["./x"]),
        ("x", ("PATH=/a:/b",), ["/a/x", "/b/x"]),
        ("x", ("PATH=/a::/b:",), ["/a/x", "./x", "/b/x", "./x"]),
        ("x", ("APATH=/no", "PATH=/a", "PATH=/second"), ["/a/x"]),
        ("", (), [""]),
    ],
)
def test_where_a_program_is_looked_for(
    program: str, env: tuple[str, ...], expected: list[str]
) -> None:
    assert list(candidates(program, env)) == expected


@pytest.mark.parametrize("env", [(), ("PATH=",), ("HOME=/",)])
def test_without_a_path_the_usual_one_is_searched(env: tuple[str, ...]) -> None:
    first, *others = candidates("x", env)
    assert first == "/usr/local/sbin/x"
    assert len(others) == 5


@pytest.mark.parametrize(
    ("text", "settings", "attributes"),
    [
        ("", {"mode": "1777"}, NOSUID | NODEV | NOEXEC),
        ("size=1m,ro", {"mode": "1777", "size": "1m"}, NOSUID | NODEV | NOEXEC | RDONLY),
        ("exec,dev,suid,rw", {"mode": "1777"}, 0),
        ("mode=700,uid=5,relatime", {"mode": "700", "uid": "5"}, NOSUID | NODEV | NOEXEC),
        ("ro,rw", {"mode": "1777"}, NOSUID | NODEV | NOEXEC),
    ],
)
def test_tmpfs_options(text: str, settings: dict[str, str], attributes: int) -> None:
    found, flags = tmpfs_options(text)
    assert (dict(found), flags) == (settings, attributes)


@pytest.mark.parametrize("text", ["nonsense", "source=/x", "ro=1", "size=1m,context=x"])
def test_options_tmpfs_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="tmpfs has no option"):
        tmpfs_options(text)
