"""Hosts, limits and counters as texts and values, without a kernel."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dockpy.cgroups import DEFAULT_PIDS, Limits, stats
from dockpy.cgroups.hierarchies import Hierarchies, from_mountinfo
from dockpy.cgroups.limits import (
    Host,
    Setting,
    blkio_to_io_weight,
    check,
    parse_cpu_list,
    raise_swap_first,
    settings,
    shares_to_weight,
)
from dockpy.cgroups.parent import enable
from dockpy.cgroups.tree import CgroupTree
from dockpy.errors import RequestError

MIB = 1 << 20
ALL = ("memory", "cpu", "cpuset", "pids", "io")
V1 = Host(dict.fromkeys(ALL, 1), 4, frozenset(range(4)), frozenset({0}))
V2 = Host(dict.fromkeys(ALL, 2), 4, frozenset(range(4)), frozenset({0}))

DEBIAN_12 = """\
24 31 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
31 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""
UBUNTU_20 = """\
34 25 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
35 34 0:30 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
36 34 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 34 0:36 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
42 34 0:37 / /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio
43 34 0:38 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
"""
SEPARATE = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_debian_12_is_pure_v2() -> None:
    found = from_mountinfo(DEBIAN_12)
    assert (found.v1, found.v2, found.kind) == ({}, Path("/sys/fs/cgroup"), "v2")


def test_comounted_controllers_have_one_directory() -> None:
    found = from_mountinfo(UBUNTU_20)
    together = Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.v1["cpu"] == found.v1["cpuacct"] == together
    assert (found.v2, found.kind) == (Path("/sys/fs/cgroup/unified"), "hybrid")


def test_a_named_hierarchy_is_no_controller() -> None:
    assert set(from_mountinfo(SEPARATE).v1) == {"cpu", "cpuacct"}


def test_without_a_v2_mount_the_host_is_v1() -> None:
    text = "".join(line + "\n" for line in SEPARATE.splitlines() if "cgroup2" not in line)
    assert from_mountinfo(text).kind == "v1"


def test_a_read_only_cgroup_mount_is_not_used() -> None:
    assert from_mountinfo(DEBIAN_12.replace("cgroup rw,nosuid", "cgroup ro,nosuid")).kind == "none"


def test_a_later_mount_at_the_same_place_hides_the_cgroups() -> None:
    over = "99 35 0:99 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert from_mountinfo(DEBIAN_12 + over).kind == "none"


def test_mounts_below_the_given_root_win_over_others_and_whole_ones_over_parts() -> None:
    part = "98 1 0:30 /docker/x /sys/fs/cgroup/part rw - cgroup2 cgroup2 rw\n"
    elsewhere = "99 1 0:30 / /c rw - cgroup2 cgroup2 rw\n"
    assert from_mountinfo(part + elsewhere + DEBIAN_12).v2 == Path("/sys/fs/cgroup")
    assert from_mountinfo(elsewhere).v2 == Path("/c")
    assert from_mountinfo(elsewhere + DEBIAN_12, Path("/c")).v2 == Path("/c")


def test_escaped_mount_points_and_lines_without_meaning_are_read() -> None:
    text = "nonsense\n\n35 24 0:30 / /a\\040b rw - cgroup2 cgroup2 rw\n36 1 0:1 / /x rw -\n"
    assert from_mountinfo(text).v2 == Path("/a b")


@pytest.mark.parametrize("parent", ["", "/", "..", "a/../b", "a//b", "a b", ".hidden", "x\n"])
def test_a_bad_parent_is_refused_before_anything_is_made(parent: str) -> None:
    with pytest.raises(RequestError, match="cgroup parent"):
        CgroupTree(Hierarchies({}, None), parent)


def test_a_host_without_cgroups_is_told_what_to_mount() -> None:
    with pytest.raises(RequestError, match="mount -t cgroup2"):
        CgroupTree(Hierarchies({}, None)).prepare()


def test_comounted_controllers_get_one_group(tmp_path: Path) -> None:
    """Plain directories stand in for hierarchies: what is made is the same."""
    both, pids = tmp_path / "cpu,cpuacct", tmp_path / "pids"
    both.mkdir()
    pids.mkdir()
    tree = CgroupTree(Hierarchies({"cpu": both, "cpuacct": both, "pids": pids}, None), "a/b")
    group = tree.create("one", Limits())
    assert [path.exists() for path in (both / "a/b/one", pids / "a/b/one")] == [True, True]
    assert tree.names() == ["one"]
    group.remove()
    tree.close()
    assert list(tmp_path.glob("*/*")) == []


def v2_group(path: Path, processes: str) -> Path:
    path.mkdir()
    (path / "cgroup.type").write_text("domain\n")
    (path / "cgroup.procs").write_text(processes)
    (path / "cgroup.subtree_control").write_text("cpu\n")
    return path


def test_controllers_are_enabled_at_every_level_unless_they_are(tmp_path: Path) -> None:
    top = v2_group(tmp_path / "top", "")
    inner = v2_group(top / "inner", "")
    assert enable(top, inner, ("cpu", "memory")) == {}
    assert (top / "cgroup.subtree_control").read_text() == "+memory"
    assert (inner / "cgroup.subtree_control").read_text() == "+memory"


def test_no_controller_is_enabled_below_a_group_with_foreign_processes(tmp_path: Path) -> None:
    top = v2_group(tmp_path / "top", "1\n")
    failed = enable(top, top, ("cpu", "pids"))
    assert failed == {"pids": f"processes live in {top} itself; move them into a group below it"}
    assert (top / "cgroup.subtree_control").read_text() == "cpu\n"


def test_a_controller_the_kernel_does_not_offer_there_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = v2_group(tmp_path / "top", "")

    def refuse(path: Path, text: str) -> int:
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert "Delegate=yes" in enable(top, top, ("memory",))["memory"]


def values(limits: Limits, host: Host) -> list[tuple[str, str]]:
    check(limits, host)
    return [each.files[0] for each in settings(limits, host)]


def test_nothing_asked_sets_the_pids_limit_only() -> None:
    for host in (V1, V2):
        assert values(Limits(), host) == [("pids.max", str(DEFAULT_PIDS))]


@pytest.mark.parametrize(("asked", "text"), [(0, "max"), (-1, "max"), (7, "7")])
def test_pids_zero_or_less_is_no_limit(asked: int, text: str) -> None:
    assert values(Limits(pids=asked), V2) == [("pids.max", text)]


def test_every_limit_has_its_file_on_v1_and_v2() -> None:
    limits = Limits(
        memory=64 * MIB,
        memory_reservation=32 * MIB,
        cpus=1.5,
        cpu_shares=512,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        blkio_weight=500,
    )
    assert values(limits, V1) == [
        ("memory.limit_in_bytes", str(64 * MIB)),
        ("memory.memsw.limit_in_bytes", str(128 * MIB)),
        ("memory.soft_limit_in_bytes", str(32 * MIB)),
        ("cpu.shares", "512"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpuset.mems", "0"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "4096"),
        ("blkio.weight", "500"),
    ]
    assert values(limits, V2) == [
        ("memory.max", str(64 * MIB)),
        ("memory.swap.max", str(64 * MIB)),
        ("memory.low", str(32 * MIB)),
        ("cpu.weight", "59"),
        ("cpu.max", "150000 100000"),
        ("cpuset.mems", "0"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "4096"),
        ("io.bfq.weight", "500"),
    ]


@pytest.mark.parametrize(
    ("swap", "v1", "v2"),
    [
        (0, str(128 * MIB), str(64 * MIB)),
        (64 * MIB, str(64 * MIB), "0"),
        (-1, "-1", "max"),
        (96 * MIB, str(96 * MIB), str(32 * MIB)),
    ],
)
def test_memory_swap_counts_both_on_v1_and_swap_alone_on_v2(swap: int, v1: str, v2: str) -> None:
    limits = Limits(memory=64 * MIB, memory_swap=swap)
    assert ("memory.memsw.limit_in_bytes", v1) in values(limits, V1)
    assert ("memory.swap.max", v2) in values(limits, V2)


def test_swap_that_nobody_named_is_not_required_of_the_kernel() -> None:
    def required(limits: Limits) -> list[bool]:
        return [each.required for each in settings(limits, V1) if each.option == "--memory-swap"]

    assert required(Limits(memory=64 * MIB)) == [False]
    assert required(Limits(memory=64 * MIB, memory_swap=64 * MIB)) == [True]


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(memory=6 * MIB - 1), "smallest memory limit is 6 MiB"),
        (Limits(memory=-1), "--memory"),
        (Limits(memory_swap=MIB), "--memory-swap needs --memory"),
        (Limits(memory=64 * MIB, memory_swap=32 * MIB), "is below --memory"),
        (Limits(memory=64 * MIB, memory_swap=-2), "only --memory-swap may be -1"),
        (Limits(memory=64 * MIB, memory_reservation=65 * MIB), "is above --memory"),
        (Limits(cpus=4.5), "this host has 4 CPUs"),
        (Limits(cpus=-1), "--cpus"),
        (Limits(cpus=float("nan")), "--cpus"),
        (Limits(cpus=float("inf")), "--cpus"),
        (Limits(cpus=0.001), "0.01"),
        (Limits(cpu_shares=1), "2 to 262144"),
        (Limits(cpu_shares=262145), "2 to 262144"),
        (Limits(blkio_weight=9), "10 to 1000"),
        (Limits(blkio_weight=1001), "10 to 1000"),
        (Limits(cpuset_cpus="0-9"), "no 4 here; available CPUs: 0,1,2,3"),
        (Limits(cpuset_mems="1"), "available memory nodes: 0"),
        (Limits(cpuset_cpus="0-"), "give a list such as"),
        (Limits(cpuset_cpus="3-1"), "give a list such as"),
        (Limits(cpuset_cpus="0-99999999999"), "give a list such as"),
    ],
)
def test_a_limit_that_cannot_be_is_one_clear_line(limits: Limits, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(limits, V1)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_controller_is_named_with_its_reason() -> None:
    host = Host({"pids": 2}, 4, missing={"memory": "not delegated"})
    with pytest.raises(RequestError, match=r"--memory needs the memory cgroup .*: not delegated"):
        settings(Limits(memory=64 * MIB), host)
    with pytest.raises(RequestError, match="--cpus needs the cpu cgroup controller"):
        settings(Limits(cpus=1), host)


def test_without_any_controller_a_container_without_limits_is_fine() -> None:
    bare = Host({}, 4)
    assert settings(Limits(), bare) == []
    assert settings(Limits(pids=-1), bare) == []
    with pytest.raises(RequestError, match="--pids-limit needs the pids"):
        settings(Limits(pids=5), bare)


@pytest.mark.parametrize("old", [(100, 200), (100, 100), (150, 150), (10, 500), (400, 800)])
@pytest.mark.parametrize(
    "new", [(100, 200), (50, 60), (300, 600), (150, 200), (300, -1), (900, 900)]
)
def test_memory_never_passes_memory_and_swap_while_both_change(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    order = raise_swap_first(
        [
            Setting("memory", 1, (("memory.limit_in_bytes", str(new[0])),), ""),
            Setting("memory", 1, (("memory.memsw.limit_in_bytes", str(new[1])),), ""),
        ],
        old[1],
    )
    memory, both = old
    for setting in order:
        file, value = setting.files[0]
        if "memsw" in file:
            both = int(value) if value != "-1" else 1 << 60
        else:
            memory = int(value)
        assert memory <= both
    assert memory == new[0]


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 100), (262144, 10000)])
def test_shares_become_weights_with_default_on_default(shares: int, weight: int) -> None:
    assert shares_to_weight(shares) == weight


def test_more_shares_never_mean_less_weight() -> None:
    weights = [shares_to_weight(shares) for shares in range(2, 262145, 101)]
    assert weights == sorted(weights)
    assert 1 <= weights[0] <= weights[-1] <= 10000


@pytest.mark.parametrize(("weight", "scaled"), [(10, 1), (500, 4950), (1000, 10000)])
def test_blkio_weight_spans_io_weight(weight: int, scaled: int) -> None:
    assert blkio_to_io_weight(weight) == scaled


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert parse_cpu_list("0-2,7") == frozenset({0, 1, 2, 7})
    assert parse_cpu_list("") == frozenset()
    for bad in ("a", "1,", "-1", "1-", " 1", "1\n"):
        assert parse_cpu_list(bad) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("17\n", 17), ("max\n", 0), ("", 0), ("9223372036854771712\n", 0), ("-1\n", 0)],
)
def test_a_counter_without_a_number_or_limit_is_zero(text: str, value: int) -> None:
    assert stats.number(text) == value


def test_byte_counters_are_summed_over_devices() -> None:
    v2 = "8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=5 dios=0\n253:0 rbytes=1 wbytes=2\n7:0\n"
    assert stats.io_stat(v2) == (101, 22)
    v1 = "8:0 Read 100\n8:0 Write 20\n8:0 Sync 120\n8:16 Read 1\nTotal 121\n"
    assert stats.blkio_bytes(v1) == (101, 20)


def test_key_value_lines_of_another_shape_are_left_out() -> None:
    assert stats.table("low 0\noom_kill 2\n\nodd line here\nx -1\n") == {"low": 0, "oom_kill": 2}
