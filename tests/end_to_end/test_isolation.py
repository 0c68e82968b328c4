"""What a container can and cannot do, seen from inside it; and what each relaxation changes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from end_to_end.client import Client
from roots import pack

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

DEFAULT_CAPABILITIES = "00000000800405fb"
"""CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT
SETFCAP."""


def status(dockpy: Client, *flags: str) -> dict[str, str]:
    """/proc/self/status of a container's process."""
    result = dockpy("run", "--rm", *flags, "base", "cat", "/proc/self/status")
    assert (result.code, result.err) == (0, "")
    return dict(line.split(":\t", 1) for line in result.lines if ":\t" in line)


def shell(dockpy: Client, script: str, *flags: str) -> tuple[int, str]:
    """Exit code and output of a script in a container."""
    result = dockpy("run", "--rm", *flags, "base", "sh", "-c", script)
    return result.code, result.out.strip()


def test_capabilities_are_the_default_set_and_no_others(dockpy: Client) -> None:
    found = status(dockpy)
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == DEFAULT_CAPABILITIES
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    assert found["Seccomp"] == "2"


@pytest.mark.parametrize(
    ("flags", "mask"),
    [
        (["--cap-drop", "ALL"], 0),
        (["--cap-drop", "all", "--cap-add", "CHOWN"], 1),
        (["--cap-add", "NET_ADMIN"], 0x800405FB | 1 << 12),
        (["--cap-add", "CAP_NET_RAW", "--cap-drop", "mknod"], 0x800405FB | 1 << 13),
        (["--cap-drop", "CHOWN"], 0x800405FB & ~1),
    ],
)
def test_capabilities_are_added_and_dropped_by_name(
    dockpy: Client, flags: list[str], mask: int
) -> None:
    assert int(status(dockpy, *flags)["CapBnd"], 16) == mask


def test_a_user_has_no_effective_capabilities(dockpy: Client) -> None:
    assert int(status(dockpy, "-u", "worker")["CapEff"], 16) == 0


def test_no_new_privileges_is_set_when_asked_for(dockpy: Client) -> None:
    assert status(dockpy)["NoNewPrivs"] == "0"
    assert status(dockpy, "--security-opt", "no-new-privileges")["NoNewPrivs"] == "1"


def test_seccomp_can_be_unconfined(dockpy: Client) -> None:
    assert status(dockpy, "--security-opt", "seccomp=unconfined")["Seccomp"] == "0"


def test_a_seccomp_profile_is_taken_from_a_file(dockpy: Client, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
        ' "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}'
    )
    script = "mkdir /x 2>&1; touch /y && echo touched"
    code, out = shell(dockpy, script, "--security-opt", f"seccomp={profile}")
    assert code == 0
    refused, touched = out.splitlines()
    assert refused.endswith("not supported")
    assert touched == "touched"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("mount -t tmpfs none /tmp", id="mount"),
        pytest.param("mknod /tmp/disk b 8 0", id="mknod"),
        pytest.param("echo 1 >/proc/sys/kernel/domainname", id="write-proc-sys"),
        pytest.param("echo b >/proc/sysrq-trigger", id="sysrq"),
        pytest.param("dd if=/proc/kcore bs=1 count=1 | grep -q .", id="kcore"),
        pytest.param("hostname other", id="hostname"),
        pytest.param("! date -s @$(date +%s) 2>&1 | grep -q 'not permitted'", id="clock"),
        pytest.param("touch /sys/kernel/x", id="write-sys"),
        pytest.param("mkdir /sys/fs/cgroup/x", id="make-a-cgroup"),
        pytest.param("umount /proc", id="umount"),
    ],
)
def test_what_a_container_must_not_do_is_refused(dockpy: Client, script: str) -> None:
    code, _ = shell(dockpy, f"({script}) 2>/dev/null && exit 0; exit 77")
    assert code == 77


def test_the_container_sees_its_own_processes_and_links_only(dockpy: Client) -> None:
    assert shell(dockpy, "echo /proc/[0-9]*; ls /sys/class/net") == (0, "/proc/1\neth0\nlo")


def test_no_descriptor_of_ours_is_open_in_the_container(dockpy: Client) -> None:
    code, out = shell(dockpy, "cd /proc/self/fd && ls")
    assert code == 0
    assert set(out.split()) <= {"0", "1", "2", "3"}  # 3: ls reads the directory


def test_mounts_of_the_host_do_not_show(dockpy: Client) -> None:
    _, out = shell(dockpy, "cat /proc/self/mountinfo")
    places = [line.split()[4] for line in out.splitlines()]
    assert places.count("/") == 1
    assert not any(place.startswith(("/host", "/old", "/mnt")) for place in places)
    assert all("dockpy" not in line.split()[4] for line in out.splitlines())


def test_a_read_only_root_is_read_only_and_tmpfs_is_not(dockpy: Client) -> None:
    script = "touch /x 2>/dev/null && echo root; touch /scratch/x && echo scratch"
    code, out = shell(dockpy, script, "--read-only", "--tmpfs", "/scratch")
    assert (code, out) == (0, "scratch")


def test_tmpfs_takes_options(dockpy: Client) -> None:
    script = "df -m /scratch | tail -n 1 | awk '{print $2}'; stat -c %a /scratch"
    assert shell(dockpy, script, "--tmpfs", "/scratch:size=3m,mode=700") == (0, "3\n700")


def test_binds_show_the_hosts_files_and_take_writes(dockpy: Client, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    code, out = shell(dockpy, "cat /data/in; echo back >/data/out", "-v", f"{tmp_path}:/data")
    assert (code, out) == (0, "from the host")
    assert (tmp_path / "out").read_text() == "back\n"


def test_a_read_only_bind_takes_none(dockpy: Client, tmp_path: Path) -> None:
    script = "touch /data/x && exit 1; mount -o remount,rw /data && exit 2; exit 0"
    assert shell(dockpy, script, "-v", f"{tmp_path}:/data:ro") == (0, "")
    assert os.listdir(tmp_path) == []


def test_a_single_file_can_be_bound(dockpy: Client, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("just this\n")
    assert shell(dockpy, "cat /etc/one", "-v", f"{tmp_path}/one:/etc/one:ro") == (0, "just this")


def test_a_bind_below_a_symlink_of_the_image_stays_in_the_container(
    dockpy: Client, tmp_path: Path, tiny_root: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(tiny_root, root, symlinks=True)
    escape = tmp_path / "escape"
    escape.mkdir()
    (root / "out").symlink_to(escape)
    dockpy.ok("import", str(pack(root, tmp_path / "hostile.tar")), "hostile")
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    result = dockpy("run", "--rm", "-v", f"{source}:/out/in", "hostile", "ls", "/out/in")
    assert os.listdir(escape) == []
    assert result.code == 125 or result.out == "file\n"


def test_privileged_gives_what_the_host_has(dockpy: Client) -> None:
    bound = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapBnd:")
    )
    found = status(dockpy, "--privileged")
    assert found["CapEff"] == bound
    assert found["Seccomp"] == "0"
    assert shell(dockpy, "mount -t tmpfs none /tmp && echo ok", "--privileged") == (0, "ok")


def test_privileged_is_still_a_container(dockpy: Client) -> None:
    code, out = shell(dockpy, "echo $$; ls /sys/class/net; hostname", "--privileged", "-h", "box")
    assert (code, out) == (0, "1\neth0\nlo\nbox")


def test_devices_are_the_harmless_ones(dockpy: Client) -> None:
    _, out = shell(dockpy, "ls /dev")
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"} <= set(
        out.split()
    )
    assert not {"sda", "vda", "mem", "kmsg"} & set(out.split())


PRINT_USER = """
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("%d\\n", geteuid()); return 0; }
"""


@pytest.mark.needs("cc")
def test_the_setuid_bit_works_until_no_new_privileges(dockpy: Client, tmp_path: Path) -> None:
    """A program of our own: busybox gives the bit's rights back by itself."""
    (tmp_path / "user.c").write_text(PRINT_USER)
    subprocess.run(["cc", "-static", "-o", tmp_path / "user", tmp_path / "user.c"], check=True)
    script = "cp /host/user /usr-bit; chmod 4755 /usr-bit; su worker -c /usr-bit"
    flags = ("-v", f"{tmp_path}:/host:ro")
    assert shell(dockpy, script, *flags) == (0, "0")
    assert shell(dockpy, script, *flags, "--security-opt", "no-new-privileges") == (0, "1000")
