"""Limits as a user sets and sees them."""

from __future__ import annotations

import pytest

from end_to_end.client import Client

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

FIRST_OF = "for f in {}; do [ ! -e $f ] || {{ cat $f; break; }}; done"


def seen(dockpy: Client, flags: list[str], *files: str) -> str:
    """The first of some cgroup files that exists inside a container."""
    paths = " ".join(f"/sys/fs/cgroup/{name}" for name in files)
    result = dockpy("run", "--rm", *flags, "base", "sh", "-c", FIRST_OF.format(paths))
    assert (result.code, result.err) == (0, "")
    return result.out.strip()


@pytest.mark.needs("memory_limit")
def test_the_memory_limit_is_seen_in_the_container(dockpy: Client) -> None:
    files = ("memory.max", "memory/memory.limit_in_bytes")
    assert seen(dockpy, ["-m", "64m"], *files) == str(64 << 20)
    assert seen(dockpy, ["--memory", "67108864"], *files) == str(64 << 20)


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
    assert seen(dockpy, ["--pids-limit", "77"], "pids.max", "pids/pids.max") == "77"


@pytest.mark.needs("cpu_limit")
def test_the_cpu_limit_is_seen_in_the_container(dockpy: Client) -> None:
    quota = seen(dockpy, ["--cpus", "0.5"], "cpu.max", "cpu/cpu.cfs_quota_us")
    assert quota in ("50000 100000", "50000")


@pytest.mark.needs("cpu_limit")
def test_cpu_shares_are_seen_in_the_container(dockpy: Client) -> None:
    shares = seen(dockpy, ["--cpu-shares", "512"], "cpu.weight", "cpu/cpu.shares")
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
