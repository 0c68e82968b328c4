"""The engines dockpy is compared with, as far as they are installed here."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FLOOR_SOURCE = Path(__file__).with_name("floor.c")
PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000
BRIDGE = "flbr"
"""The floor's bridge."""


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def program(name: str) -> Path:
    """Where one of this host's programs is. FileNotFoundError when it is not installed."""
    found = shutil.which(name, path=PROGRAMS)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return Path(found)


def lacking(*names: str) -> list[str]:
    """Those of the programs that are not installed."""
    return [name for name in names if shutil.which(name, path=PROGRAMS) is None]


def unshare_network() -> None:
    """A new network namespace for the calling thread and those it starts."""
    if libc().unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace of our own: run it as root")


def own_network() -> None:
    """Go into a new network namespace with a bridge for the floor; all that is started from here
    on is in it, and nothing of the host's network is touched. Needs root; call it first."""
    unshare_network()
    for line in (
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"addr add 10.200.0.1/16 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ):
        subprocess.run(["ip", *line.split()], check=True)


class Floor:
    """The kernel's own charge for a container, by a C program."""

    def __init__(self, directory: Path) -> None:
        self.program = directory / "floor"
        subprocess.run(["cc", "-O2", "-w", "-o", str(self.program), str(FLOOR_SOURCE)], check=True)
        self.work = directory / "floor-work"
        self.work.mkdir()

    def times(self, rootfs: Path, count: int, *options: str) -> list[float]:
        """`count` starts in milliseconds."""
        done = subprocess.run(
            [str(self.program), str(count), str(rootfs), str(self.work), "raw", *options],
            check=True,
            capture_output=True,
            text=True,
        )
        return [float(line) for line in done.stdout.split()]

    def together(self, rootfs: Path, processes: int, count: int, *options: str) -> None:
        """`count` starts by each of several processes at once."""
        running = []
        for number in range(processes):
            work = self.work / str(number)
            work.mkdir(exist_ok=True)
            words = [str(count), str(rootfs), str(work), "raw", *options]
            running.append(subprocess.Popen([str(self.program), *words], stdout=subprocess.DEVNULL))
        for one in running:
            if one.wait():
                raise RuntimeError(f"a floor ended with {one.returncode}")


@contextlib.contextmanager
def docker(directory: Path, *, network: bool = False) -> Iterator[list[str] | None]:
    """A dockerd of our own: the command to talk to it; None when it is not here.

    With `network` it has its bridge and rules: only where `own_network` was called. Its sockets
    and data lie in `directory`; it is ended by its pid.
    """
    client, server = shutil.which("docker", path="/usr/bin:/bin"), shutil.which("dockerd")
    if client is None or server is None:
        yield None
        return
    socket = directory / "docker.sock"
    pidfile = directory / "docker.pid"
    with open(directory / "docker.log", "wb") as log:
        process = subprocess.Popen(
            [
                server,
                *("--data-root", str(directory / "docker-data")),
                *("--exec-root", str(directory / "docker-exec")),
                *("-H", f"unix://{socket}"),
                *("-p", str(pidfile)),
                *([] if network else ("--bridge=none", "--iptables=false")),
                "--ip6tables=false",
            ],
            stdout=log,
            stderr=log,
        )
    command = [client, "-H", f"unix://{socket}"]
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            probe = subprocess.run([*command, "version"], capture_output=True, check=False)
            if probe.returncode == 0:
                yield command
                return
            time.sleep(0.3)
        yield None
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def podman(directory: Path) -> list[str] | None:
    """The podman command over storage of its own, or None."""
    program = shutil.which("podman")
    if program is None:
        return None
    return [
        program,
        "--cgroup-manager=cgroupfs",
        *(["--runtime", "runc"] if shutil.which("runc") else []),  # crun refuses hybrid hosts
        *("--root", str(directory / "podman-data")),
        *("--runroot", str(directory / "podman-run")),
    ]


def wall(command: list[str]) -> float:
    """Milliseconds from process start to process end; raises when it fails."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        began = time.perf_counter()
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)],
        )
        _, status = os.waitpid(pid, 0)
        took = (time.perf_counter() - began) * 1e3
    finally:
        os.close(null)
    if status:
        raise RuntimeError(f"{command} ended with wait status {status}")
    return took


@contextlib.contextmanager
def scratch(parent: Path = Path("/var/tmp")) -> Iterator[Path]:
    """A directory on a real file system for everything a benchmark makes."""
    directory = Path(tempfile.mkdtemp(prefix="dockpy-bench-", dir=parent))
    try:
        yield directory
    finally:
        unmount_below(directory)
        shutil.rmtree(directory, ignore_errors=True)


def unmount_below(directory: Path) -> None:
    """What is still mounted in it, the last one first: podman leaves its storage mounted on itself
    now and then, and that cannot be deleted. Source: proc(5), /proc/self/mountinfo."""
    with open("/proc/self/mountinfo") as table:
        places = [line.split()[4] for line in table]
    for place in reversed(places):
        if place.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", place], check=False)
