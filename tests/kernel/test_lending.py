"""Network namespaces through which nothing went, which the next containers get: who does, and who
must not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import Config, Exec, Runtime, namespaces
from dockpy.container import Container
from dockpy.errors import KernelError
from dockpy.model import Bind
from dockpy.network import lending
from dockpy.network.values import Wish
from netns import enter
from patience import patient

pytestmark = [
    pytest.mark.needs("root", "netns", "overlay", "busybox", "cgroups"),
    pytest.mark.skipif(
        tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15),
        reason="this kernel does not clone mounts that are nowhere attached",
    ),
]

NETWORKS = ("bridge", "none")
WAIT = "cat"
"""For the end of its input."""
SHOWN = "ip -4 -o addr show eth0; ls /sys/class/net"
SO_NETNS_COOKIE = 71
REFUSED = "nc 127.0.0.1 9 </dev/null"
"""Two packets through `lo`: a port where nobody listens."""


def shell(script: str, network: str = "bridge", **values: object) -> Config:
    return Config(image="base", cmd=("sh", "-c", script), network_mode=network).with_(**values)


@pytest.fixture(name="runtime")
def given(engine: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Nothing goes to and fro on the bridge any more, as when it has just been made; what came
    back waits however slow the machine is."""
    monkeypatch.setattr(namespaces, "QUIET", 600.0)
    engine.networks.prepare()
    engine.networks._namespaces.begin()
    deadline = time.monotonic() + patient(10)
    while not quiet(engine) and time.monotonic() < deadline:
        pass
    yield engine
    for container in engine.list():
        engine.destroy(container, force=True)
    for network in engine.networks.all():
        if not network.default:
            engine._janitor.drain()
            engine.networks.remove(network)


def quiet(runtime: Runtime) -> bool:
    """Whether nothing arrived in any namespace that is ready for a while."""

    def arrived() -> list[lending.Traffic]:
        return [
            lending.traffic(one.namespace.sysfs, one.endpoint)
            for one in runtime.networks._ready._ready
            if one.namespace.sysfs is not None
        ]

    before = arrived()
    time.sleep(0.3)
    return runtime.networks.ready and arrived() == before


def namespace(container: Container) -> int:
    """A cookie of the namespace a container is in: a number of an inode may come again."""
    with open(f"/proc/{container.state.pid}/ns/net", "rb") as place:
        return cookie(place.fileno())


def cookie(descriptor: int) -> int:
    with visit(descriptor, socket.socket) as one:
        raw = one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


def visit(descriptor: int, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket of another namespace."""
    made: list[socket.socket] = []

    def work() -> None:
        enter(descriptor)
        made.append(make())

    visitor = threading.Thread(target=work)
    visitor.start()
    visitor.join()
    return made[0]


def started(runtime: Runtime, config: Config) -> Container:
    container = runtime.create(config)
    container.start()
    return container


def used_by(runtime: Runtime, config: Config) -> int:
    """The namespace a container had, when all of its end is dealt with."""
    container = runtime.create(config.with_(open_stdin=True))
    with container.stdin_pipe() as hold:
        container.start()
        try:
            found = namespace(container)
            hold.close()
            container.wait()
        finally:
            ended(runtime, container)
    return found


def came_back(runtime: Runtime, network: str, gone: int, *, tries: int = 10) -> bool:
    """Whether one of the next containers gets it; there are at most seven or so ready."""
    return gone in {used_by(runtime, shell(WAIT, network)) for _ in range(tries)}


@pytest.mark.parametrize("network", NETWORKS)
def test_an_unused_namespace_comes_back(runtime: Runtime, network: str) -> None:
    assert came_back(runtime, network, used_by(runtime, shell(WAIT, network)))


def test_it_is_as_new_with_address_and_sysfs_and_works(runtime: Runtime) -> None:
    config, seen = shell(f"{SHOWN}; ip route; echo hello | nc -l -p 80"), set[int]()
    container = started(runtime, config)
    while (found := namespace(container)) not in seen:
        seen.add(found)
        ended(runtime, container)
        assert len(seen) < lending.MOST
        container = started(runtime, config)
    lease = runtime.networks.lease(container.id)
    assert lease is not None
    host = runtime.create(shell(f"until echo | nc {lease.addresses[0]} 80; do usleep 9999; done"))
    assert host.output() == b"hello\n"
    assert container.wait() == 0
    text = b"".join(entry.message for entry in container.read_log()).decode()
    assert f" {lease.addresses[0]}/" in text
    assert "\neth0\nlo\n" in text
    assert "default via" in text


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "script",
    [REFUSED, f"({REFUSED}) & wait; sleep 0.01"],
    ids=["its loopback", "by a child"],
)
def test_one_with_traffic_does_not(runtime: Runtime, network: str, script: str) -> None:
    gone = used_by(runtime, shell(f"{script}; cat", network))
    assert not came_back(runtime, network, gone)


def test_one_that_sent_into_the_network_does_not(runtime: Runtime) -> None:
    gateway = str(next(runtime.networks.get("bridge").segments()).gateway)
    gone = used_by(runtime, shell(f"nc {gateway} 9 </dev/null; cat"))
    assert not came_back(runtime, "bridge", gone)


def test_one_that_somebody_sent_to_does_not(runtime: Runtime) -> None:
    """Also when it was heard, so that nothing was answered."""
    one, gone = running(runtime)
    lease = runtime.networks.lease(one.id)
    assert lease is not None
    with (
        open(f"/proc/{one.state.pid}/ns/net", "rb") as place,
        visit(place.fileno(), lambda: socket.socket(type=socket.SOCK_DGRAM)) as heard,
        socket.socket(type=socket.SOCK_DGRAM) as sender,
    ):
        heard.bind((lease.addresses[0], 53))
        sender.sendto(b"x", heard.getsockname())
        assert heard.recv(1) == b"x"
    ended(runtime, one)
    assert not came_back(runtime, "bridge", gone)


GRIPS: dict[str, Callable[[Path], dict[str, object]]] = {
    "a volume": lambda place: {"binds": (Bind(str(place), "/mnt"),)},
    "privileged": lambda _: {"privileged": True},
    "more capabilities": lambda _: {"cap_add": ("NET_ADMIN",)},
    "no filter": lambda _: {"seccomp": "unconfined"},
}


@pytest.mark.parametrize("grip", GRIPS.values(), ids=GRIPS)
@pytest.mark.parametrize("network", NETWORKS)
def test_who_could_have_changed_it_or_passed_it_on_gives_nothing_back(
    runtime: Runtime, tmp_path: Path, network: str, grip: Callable[[Path], dict[str, object]]
) -> None:
    gone = used_by(runtime, shell(WAIT, network, **grip(tmp_path)))
    assert not came_back(runtime, network, gone)


def test_a_wish_and_a_published_port_are_the_containers_own(runtime: Runtime) -> None:
    wished = used_by(runtime, shell(WAIT, mac_address="02:42:00:00:00:07"))
    published = used_by(runtime, shell(WAIT, port_specs=("127.0.0.1::80",)))
    seen = {used_by(runtime, shell(WAIT)) for _ in range(12)}
    assert not seen & {wished, published}


def running(runtime: Runtime) -> tuple[Container, int]:
    container = started(runtime, shell("sleep 600"))
    return container, namespace(container)


def ended(runtime: Runtime, container: Container) -> None:
    """Gone, and what it had is given back: that is under way when others see that it ended."""
    runtime.destroy(container, force=True)
    assert container.released.wait(patient(10))
    runtime._janitor.drain()


def test_one_that_another_container_shared_does_not_come_back(runtime: Runtime) -> None:
    one, gone = running(runtime)
    assert runtime.create(shell("true", f"container:{one.id}")).run() == 0
    ended(runtime, one)
    assert not came_back(runtime, "bridge", gone)


def test_one_that_joined_another_network_does_not_even_after_it_left(runtime: Runtime) -> None:
    other = runtime.networks.create("other")
    one, gone = running(runtime)
    runtime.join_network(one, other, Wish())
    runtime.leave_network(one, other)
    ended(runtime, one)
    assert not came_back(runtime, "bridge", gone)


def test_a_privileged_exec_keeps_it_from_coming_back(runtime: Runtime) -> None:
    one, gone = running(runtime)
    execution = one.execute(Exec(cmd=("true",), privileged=True))
    execution.start()
    assert execution.wait() == 0
    ended(runtime, one)
    assert not came_back(runtime, "bridge", gone)


def test_a_plain_exec_does_not(runtime: Runtime) -> None:
    one, gone = running(runtime)
    execution = one.execute(Exec(cmd=("true",)))
    execution.start()
    assert execution.wait() == 0
    ended(runtime, one)
    assert came_back(runtime, "bridge", gone)


def test_a_start_that_failed_gives_nothing_back(runtime: Runtime) -> None:
    before = runtime.networks.get("bridge")
    container = runtime.create(Config(image="base", cmd=("/absent",)))
    with pytest.raises(Exception, match="absent"):
        container.start()
    assert runtime.networks.lease(container.id) is None
    assert runtime.networks.users(before) == []


def test_who_runs_for_long_does_not_keep_others_from_giving_back(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "MOST", 2)
    long = [running(runtime) for _ in range(3)]
    gone = used_by(runtime, shell(WAIT))
    assert came_back(runtime, "bridge", gone)
    for container, _ in long:
        ended(runtime, container)
    seen = {used_by(runtime, shell(WAIT)) for _ in range(12)}
    assert long[0][1] not in seen


def test_there_are_no_more_than_before_when_all_is_quiet(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "QUIET", patient(3.0))
    many = [runtime.create(shell("sleep 0.2")) for _ in range(12)]
    for container in many:
        container.start()
    for container in many:
        container.wait()
    assert runtime.networks._ready.count > 6
    deadline = time.monotonic() + patient(30)
    while runtime.networks._ready.count != 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert runtime.networks._ready.count == 6
    assert runtime.networks.dying() == 0 or runtime.networks.ready


@pytest.mark.parametrize("network", NETWORKS)
def test_a_start_whose_namespace_cannot_be_lent_fails_and_keeps_no_descriptor(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise KernelError("clone the container's sysfs", errno.EMFILE)

    before = spaces()
    with monkeypatch.context() as patch:
        patch.setattr(lending, "clone_tree", refuse)
        container = runtime.create(shell("true", network))
        with pytest.raises(KernelError, match="clone the container's sysfs"):
            container.start()
    assert len(spaces()) <= len(before)
    assert not set(runtime.networks._lending._loans)
    runtime.destroy(container)
    assert used_by(runtime, shell(WAIT, network))


def spaces() -> list[str]:
    """Descriptors of network namespaces in this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [one for one in found if one.startswith("net:")]


def test_an_older_kernel_lends_nothing(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, *, recursive: bool = True) -> int:
        raise KernelError("clone", 22)

    monkeypatch.setattr(lending, "clone_tree", refused)
    gone = used_by(runtime, shell(WAIT))
    assert not came_back(runtime, "bridge", gone)
