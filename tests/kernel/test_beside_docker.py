"""Beside a real Docker daemon whose forward chain drops by default. All of it in namespaces.

Its containers are played by `far`, which is on Docker's bridge: what counts are Docker's rules.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from dockpy.network.ports import Published
from needs import real_directory
from netns import BOX, OTHER, World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip", "iptables", "dockerd")
CONTAINER = "172.17.0.2"
"""What `far` is called on Docker's bridge."""


class Docker:
    """A daemon in a network namespace, with a mount namespace of its own, and the shell that
    starts it again whenever it ends."""

    def __init__(self, world: World, directory: Path) -> None:
        self._directory = directory
        descriptor = world.host.descriptor
        words = ["--data-root", directory / "data", "--exec-root", directory / "run"]
        words += ["--pidfile", directory / "pid", "--host", f"unix://{directory}/socket"]
        words += ["--storage-driver", "vfs"]
        script = f'mount -t tmpfs none /run; while [ ! -e {directory}/stop ]; do dockerd "$@"; done'
        inside = ["nsenter", f"--net=/proc/self/fd/{descriptor}", "unshare", "-m"]
        with open(directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*inside, "sh", "-c", script, "sh", *map(str, words)],
                stdout=log,
                stderr=log,
                pass_fds=(descriptor,),
            )

    def start_again(self) -> None:
        before = self._pid()
        os.kill(before, signal.SIGTERM)
        assert eventually(lambda: self._pid() not in (0, before), 30)
        self.wait()

    def stop(self) -> None:
        (self._directory / "stop").touch()
        if pid := self._pid():
            os.kill(pid, signal.SIGTERM)
        self._process.wait(patient(30))

    def wait(self) -> None:
        """Returns once it answers, its rules being there."""
        answered = eventually(self._answers, 30)
        assert answered, (self._directory / "log").read_text()[-2000:]

    def _pid(self) -> int:
        """The daemon's; 0 while there is none."""
        try:
            return int((self._directory / "pid").read_text() or "0")
        except FileNotFoundError:
            return 0

    def _answers(self) -> bool:
        words = ["docker", "--host", f"unix://{self._directory}/socket", "version"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def eventually(check: Callable[[], object], seconds: float = 5) -> bool:
    deadline = time.monotonic() + patient(seconds)
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def docker_in(world: World) -> Iterator[Docker]:
    directory = Path(tempfile.mkdtemp(prefix="dockpy-docker-", dir=real_directory()))
    docker = Docker(world, directory)
    try:
        docker.wait()
        yield docker
    finally:
        docker.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def docker(module_leaves_nothing: None) -> Iterator[tuple[World, Docker]]:
    world = World()
    world.host.set("ipv4/ip_forward", "0")  # Docker then lets the forward chain drop by default
    with docker_in(world) as made:
        policy = world.host.run("iptables-nft", "-S", "FORWARD").splitlines()[0]
        assert policy == "-P FORWARD DROP"
        world.host.ip("link set w2 master docker0")
        world.far.ip(
            "addr flush dev eth0",
            f"addr add {CONTAINER}/16 dev eth0",
            "route add default via 172.17.0.1",
        )
        yield world, made
    world.close()


@pytest.fixture
def world(docker: tuple[World, Docker]) -> Iterator[World]:
    """With our own firewall beside Docker's."""
    world = docker[0]
    firewall = Firewall("dockpy-test")
    with world.host.inside():
        firewall.open()
        firewall.attach(Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"))
        firewall.accept_loopback("dockpy0")
        firewall.allow(BOX, OTHER)
        firewall.publish(BOX.address, [Published(80, "tcp", "", 8080)], "box", BOX.address6)
    yield world
    firewall.close(remove=True)
    assert "dockpy" not in world.host.run("iptables-nft", "-S")


def test_containers_go_out_and_answer_on_published_ports(world: World) -> None:
    with world.lan.listen(7200) as lan, world.box.listen(80) as box:
        assert world.box.reaches("10.9.0.2", 7200)
        assert world.lan.source_at(box, "10.9.0.1", 8080) == "10.9.0.2"
        assert world.host.source_at(box, "127.0.0.1", 8080) == "172.30.0.1"
        assert world.other.source_at(box, BOX.address, 80) == OTHER.address
        lan.close()


def test_neither_engine_opens_the_others_containers(world: World) -> None:
    with world.far.listen(7201, "0.0.0.0"), world.box.listen(7201, "0.0.0.0"):
        assert world.host.reaches(CONTAINER, 7201)
        assert not world.box.reaches(CONTAINER, 7201)
        assert not world.far.reaches(BOX.address, 7201)


def test_each_engines_published_ports_are_for_the_others_containers_too(world: World) -> None:
    nat = f"-d 10.9.0.1 -p tcp --dport 7202 -j DNAT --to-destination {CONTAINER}:7203"
    accept = f"-d {CONTAINER} -p tcp --dport 7203 -j ACCEPT"  # as Docker publishes
    world.host.run("iptables-nft", "-t", "nat", "-A", "DOCKER", *nat.split())
    world.host.run("iptables-nft", "-A", "DOCKER", *accept.split())
    try:
        with world.box.listen(80), world.far.listen(7203, "0.0.0.0"):
            assert world.far.reaches("10.9.0.1", 8080)
            assert world.box.reaches("10.9.0.1", 7202)
    finally:
        world.host.run("iptables-nft", "-t", "nat", "-D", "DOCKER", *nat.split())
        world.host.run("iptables-nft", "-D", "DOCKER", *accept.split())


def test_what_is_refused_in_docker_user_is_refused_for_ours_too(world: World) -> None:
    rule = ["DOCKER-USER", "-d", "10.9.0.2", "-j", "DROP"]
    world.host.run("iptables-nft", "-I", *rule)
    try:
        with world.lan.listen(7204):
            assert not world.box.reaches("10.9.0.2", 7204)
    finally:
        world.host.run("iptables-nft", "-D", *rule)
    with world.lan.listen(7204):
        assert world.box.reaches("10.9.0.2", 7204)


def test_all_of_it_holds_after_docker_was_started_again(
    world: World, docker: tuple[World, Docker]
) -> None:
    docker[1].start_again()
    with world.lan.listen(7205), world.box.listen(80) as box:
        assert eventually(lambda: world.box.reaches("10.9.0.2", 7205))
        assert world.lan.source_at(box, "10.9.0.1", 8080) == "10.9.0.2"
    with world.far.listen(7206, "0.0.0.0"):
        assert not world.box.reaches(CONTAINER, 7206)
