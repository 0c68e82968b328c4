"""Beside a real podman, with real containers of both engines. All of it in namespaces.

The host is a network namespace with a neighbour on its link; podman and all that it starts live in
mount and process namespaces of their own and end with those.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dockpy import Config, Runtime
from dockpy.errors import Conflict
from engines import running_engine, warm
from needs import real_directory
from netns import Namespace, World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "pid_namespace", "ip", "overlay", "podman")

HOST, LAN = "10.9.0.1", "10.9.0.2"
OURS, THEIRS = 18180, 18181
SERVER = """
mkdir -p /www/cgi-bin
printf '#!/bin/sh\\nprintf "Content-type: text/plain\\\\n\\\\n"; echo NAME sees $REMOTE_ADDR\\n' \
    | sed s/NAME/$1/ >/www/cgi-bin/who
chmod 755 /www/cgi-bin/who
exec busybox httpd -f -p 80 -h /www
"""
ASK = """
for try in 1 2 3 4 5; do
  said=$(printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 1 "$1" "$2" 2>/dev/null | tail -1)
  [ -z "$said" ] || break; usleep 100000
done
echo "$said"
"""
LIMITS = ("--ulimit", "nofile=512:512", "--ulimit", "nproc=512:512")


class Podman:
    """podman over storage of its own, in a host's network."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self._directory = directory
        script = "mount -t tmpfs none /run; mkdir -p /var/lib/cni; mount -t tmpfs none /var/lib/cni"
        self._holder = subprocess.Popen(
            [
                *("nsenter", f"--net=/proc/self/fd/{host.descriptor}"),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-c", f"set -e; {script}; echo ready; exec cat"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(host.descriptor,),
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        pid = self._holder.pid
        self._first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]

    def __call__(self, *words: object) -> str:
        """Its output without the end of the line; it must succeed."""
        done = self.tried(*words)
        assert done.returncode == 0, f"podman {words}: {done.stderr}"
        return done.stdout.strip()

    def tried(self, *words: object) -> subprocess.CompletedProcess[str]:
        runtime = ("--runtime", "runc") if shutil.which("runc") else ()
        places = ("--root", self._directory / "data", "--runroot", self._directory / "run")
        fixed = ("--cgroup-manager", "cgroupfs", "--storage-driver", "vfs", *places, *runtime)
        return subprocess.run(
            ["nsenter", "-t", self._first, "-m", "-p", "-n", "podman", *map(str, (*fixed, *words))],
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(60),
        )

    def close(self) -> None:
        try:
            self("rm", "--force", "--all", "--time", 0)
        finally:
            assert self._holder.stdin is not None
            assert self._holder.stdout is not None
            self._holder.stdin.close()  # its first process ends, and all the others with it
            self._holder.wait(patient(10))
            self._holder.stdout.close()


@contextmanager
def podman_in(host: Namespace) -> Iterator[Podman]:
    directory = Path(tempfile.mkdtemp(prefix="dockpy-podman-", dir=real_directory()))
    made = Podman(host, directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


class Both:
    """A server of each engine, published, and a neighbour on the host's link."""

    def __init__(self, world: World, runtime: Runtime, podman: Podman) -> None:
        self.world, self.runtime, self.podman = world, runtime, podman
        made = Config(
            image="base", cmd=("sh", "-c", SERVER, "sh", "ours"), port_specs=(f"{OURS}:80",)
        )
        self.web = runtime.create(made, "web")
        self.web.start()
        words = ("--name", "pod", "-p", f"{THEIRS}:80", "base", "sh", "-c", SERVER, "sh", "theirs")
        podman("run", "-d", *LIMITS, *words)
        lease = runtime.networks.lease(self.web.id)
        assert lease is not None
        self.ours = lease.addresses[0]
        self.theirs = podman("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "pod")

    def from_ours(self, address: str, port: int) -> str:
        """What a server tells a new container of ours; "" when it is not reached."""
        cmd = ("sh", "-c", ASK, "sh", address, str(port))
        container = self.runtime.create(Config(image="base", cmd=cmd, auto_remove=True))
        return container.output().decode().strip()

    def from_theirs(self, address: str, port: int) -> str:
        return self.podman("run", "--rm", *LIMITS, "base", "sh", "-c", ASK, "sh", address, port)

    def asked(self, where: Namespace, address: str, port: int) -> str:
        """What a server tells the host or the neighbour; tried until it listens."""
        deadline = time.monotonic() + patient(5)
        while True:
            try:
                with where.connect(address, port) as link:
                    link.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
                    return link.makefile().read().splitlines()[-1]
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@pytest.fixture(scope="module")
def both(
    module_leaves_nothing: None,
    real_tmp: Path,
    short_run: Callable[[], Path],
    tiny_archive: Path,
) -> Iterator[Both]:
    world = World()
    for link in ("dockpy0", "dockpy1"):  # stand-ins for bridges: here both engines have real ones
        world.host.ip(f"link del {link}")
    try:
        with podman_in(world.host) as podman, world.host.inside():
            podman("import", tiny_archive, "base")
            with running_engine(real_tmp, short_run(), tiny_archive) as runtime:
                warm(runtime)
                yield Both(world, runtime, podman)
    finally:
        world.close()


def test_published_ports_of_both_answer_on_every_address(both: Both) -> None:
    lan, host = both.world.lan, both.world.host
    assert both.asked(lan, HOST, OURS) == f"ours sees [::ffff:{LAN}]"
    assert both.asked(lan, HOST, THEIRS) == f"theirs sees [::ffff:{LAN}]"
    for port, name in ((OURS, "ours"), (THEIRS, "theirs")):
        assert both.asked(host, "127.0.0.1", port).startswith(f"{name} sees")
        assert both.asked(host, HOST, port).startswith(f"{name} sees")


def test_containers_of_both_reach_published_ports_of_both(both: Both) -> None:
    for port, name in ((OURS, "ours"), (THEIRS, "theirs")):
        assert both.from_ours(HOST, port).startswith(f"{name} sees")
        assert both.from_theirs(HOST, port).startswith(f"{name} sees")


def test_what_is_not_published_of_ours_is_not_for_theirs_nor_for_the_neighbour(both: Both) -> None:
    assert both.from_ours(both.ours, 80).startswith("ours sees")
    assert both.from_theirs(both.theirs, 80).startswith("theirs sees")
    assert both.from_theirs(both.ours, 80) == ""
    both.world.lan.ip(f"route add {both.ours}/32 via {HOST}")
    assert not both.world.lan.reaches(both.ours, 80)


def test_a_port_of_one_is_refused_to_the_other(both: Both) -> None:
    config = Config(image="base", cmd=("true",), port_specs=(f"{THEIRS}:80",))
    refused = both.runtime.create(config)
    with pytest.raises(Conflict, match=f"{THEIRS}/tcp is in use by"):
        refused.start()
    both.runtime.destroy(refused)
    tried = both.podman.tried("run", "--rm", *LIMITS, "-p", f"{OURS}:80", "base", "true")
    assert tried.returncode != 0
    assert "in use" in tried.stderr


def test_containers_of_either_that_come_and_go_leave_the_others_alone(both: Both) -> None:
    again = both.podman("run", "-d", *LIMITS, "-p", "18182:80", "base", "sleep", "600")
    assert both.asked(both.world.lan, HOST, OURS) == f"ours sees [::ffff:{LAN}]"
    both.podman("rm", "--force", "--time", 0, again)
    assert both.asked(both.world.lan, HOST, OURS) == f"ours sees [::ffff:{LAN}]"
    config = Config(image="base", cmd=("true",), port_specs=("18182:80",), auto_remove=True)
    assert both.runtime.create(config).run() == 0
    assert both.asked(both.world.lan, HOST, THEIRS) == f"theirs sees [::ffff:{LAN}]"
    assert both.runtime.networks.warnings() == []
