"""Limits as a user sets and sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dockpy.places import cgroup_name
from end_to_end.client import Client
from end_to_end.daemon import Daemon

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

TOP = Path("/sys/fs/cgroup")


def limit(dockpy: Client, flags: list[str], v2: str, v1: str) -> str:
    """What the kernel was told for a container, by the v1 file where there is one, else v2's."""
    job = dockpy.detached(*flags, "base", "sleep", "60")
    group = f"{cgroup_name(dockpy.root)}/{job}"
    controller, _, name = v1.partition("/")
    found = [
        TOP / controller / group / name,
        *TOP.glob(f"{group}/{v2}"),
        *TOP.glob(f"*/{group}/{v2}"),
    ]
    value = next(path.read_text().strip() for path in found if path.exists())
    dockpy.ok("rm", "-f", job)
    return value


@pytest.mark.needs("memory_limit")
def test_the_memory_limit_is_what_was_asked_for(dockpy: Client) -> None:
    files = ("memory.max", "memory/memory.limit_in_bytes")
    assert limit(dockpy, ["-m", "64m"], *files) == str(64 << 20)
    assert limit(dockpy, ["--memory", "67108864"], *files) == str(64 << 20)


@pytest.mark.needs("memory_limit")
def test_oom_killed_is_true_when_memory_ran_out(dockpy: Client) -> None:
    argv = (
        "-m",
        "24m",
        "--memory-swap",
        "24m",
        "base",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=100M",
    )
    assert dockpy("run", "--name", "greedy", *argv).code == 137
    assert dockpy.field("greedy", "{{.State.OOMKilled}} {{.State.ExitCode}}") == "true 137"


@pytest.mark.needs("memory_limit")
@pytest.mark.parametrize("script", ["exit 0", "exit 137", "sh -c 'kill -9 $$'; exit 137"])
def test_oom_killed_is_false_when_it_did_not(dockpy: Client, script: str) -> None:
    dockpy("run", "--name", "modest", "-m", "64m", "base", "sh", "-c", script)
    assert dockpy.field("modest", "{{.State.OOMKilled}}") == "false"


@pytest.mark.needs("memory_limit")
def test_a_container_killed_from_outside_was_not_out_of_memory(dockpy: Client) -> None:
    job = dockpy.detached("-m", "64m", "base", "sleep", "60")
    dockpy.ok("kill", job)
    assert dockpy.field(job, "{{.State.OOMKilled}} {{.State.ExitCode}}") == "false 137"


@pytest.mark.needs("pids_limit")
def test_the_process_limit_holds(dockpy: Client) -> None:
    script = "i=0; while [ $i -lt 30 ]; do sleep 30 & i=$((i+1)); done; echo all"
    result = dockpy("run", "--rm", "--pids-limit", "10", "base", "sh", "-c", script)
    assert result.code != 0
    assert "all" not in result.out
    assert "fork" in result.err
    assert limit(dockpy, ["--pids-limit", "77"], "pids.max", "pids/pids.max") == "77"


@pytest.mark.needs("cpu_limit")
def test_the_cpu_limit_is_what_was_asked_for(dockpy: Client) -> None:
    quota = limit(dockpy, ["--cpus", "0.5"], "cpu.max", "cpu/cpu.cfs_quota_us")
    assert quota in ("50000 100000", "50000")


@pytest.mark.needs("cpu_limit")
def test_cpu_shares_are_what_was_asked_for(dockpy: Client) -> None:
    shares = limit(dockpy, ["--cpu-shares", "512"], "cpu.weight", "cpu/cpu.shares")
    assert shares == "512" or 1 <= int(shares) < 100  # v2: fewer than the default weight of 100


@pytest.mark.needs("cpuset")
def test_a_container_stays_on_its_cpus(dockpy: Client) -> None:
    script = "grep Cpus_allowed_list /proc/self/status"
    result = dockpy("run", "--rm", "--cpuset-cpus", "0", "base", "sh", "-c", script)
    assert result.out.split() == ["Cpus_allowed_list:", "0"]


def test_limits_of_one_container_are_not_anothers(dockpy: Client) -> None:
    script = "ulimit -n"
    limited = dockpy("run", "--rm", "--ulimit", "nofile=64", "base", "sh", "-c", script)
    plain = dockpy("run", "--rm", "base", "sh", "-c", script)
    assert limited.out == "64\n"
    assert plain.out != "64\n"


@pytest.mark.needs("cgroup_v1")
def test_a_program_sees_its_own_v1_groups_and_no_others_when_asked_for(own_daemon: Daemon) -> None:
    """As Java, Go and .NET look for them: by mountinfo and /proc/self/cgroup. The engine's groups
    in hierarchies it has not used before stay as long as it, so it has an engine of its own."""
    dockpy = own_daemon.client
    script = (
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpuset/cpuset.cpus; "
        "ls /sys/fs/cgroup; find /sys/fs/cgroup -mindepth 2 -type d; "
        "grep cgroup /proc/self/mountinfo; grep memory: /proc/self/cgroup; "
        "mkdir /sys/fs/cgroup/memory/x; echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    argv = ("run", "--rm", "-m", "64m", "--cgroup-view", "base", "sh", "-c", script)
    shown = dockpy(*argv)
    assert shown.lines[0] == str(64 << 20)
    assert shown.lines[1] == Path("/sys/fs/cgroup/cpuset/cpuset.cpus").read_text().strip()
    for name in ("memory", "cpu", "cpuacct", "cpuset"):
        assert any(name in line.split(",") for line in shown.lines[2:8])
    assert not [line for line in shown.lines if line.startswith("/sys/fs")]
    memory = next(line.split() for line in shown.lines if " /sys/fs/cgroup/memory " in line)
    assert memory[3] == "/"
    assert "ro" in memory[5].split(",")
    assert shown.lines[-1].endswith("memory:/")
    assert shown.err.count("Read-only file system") == 2
    plain = dockpy.ok("run", "--rm", "base", "ls", "/sys/fs/cgroup")
    assert plain.out == ""
