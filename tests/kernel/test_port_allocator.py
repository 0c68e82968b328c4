"""Host ports: given once, held against programs of the host, refused with the owner's name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dockpy.errors import Conflict
from dockpy.network.portalloc import PortAllocator, PortInUse
from dockpy.network.ports import Published, parse_publish
from netns import Namespace

pytestmark = pytest.mark.needs("root", "netns", "ip")


@pytest.fixture(name="host")
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    made.ip("addr add 10.9.0.1/32 dev lo", "addr add fd09::1/128 dev lo nodad")
    yield made
    made.close()


@pytest.fixture(name="ports")
def allocator() -> Iterator[PortAllocator]:
    made = PortAllocator()
    yield made
    made.close()


def reserve(
    ports: PortAllocator, host: Namespace, owner: str, *specs: str, ipv6: bool = False
) -> tuple[Published, ...]:
    wanted = [one for spec in specs for one in parse_publish(spec)]
    with host.inside():
        return ports.reserve(owner, wanted, name=f"name-of-{owner}", ipv6=ipv6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("8080:80", "8080:81"),
        ("8080:80", "127.0.0.1:8080:80"),
        ("127.0.0.1:8080:80", "8080:80"),
        ("0.0.0.0:8080:80", "10.9.0.1:8080:80"),
        ("[::1]:8080:80", "8080:80"),
        ("8080:80/udp", "8080:80/udp"),
    ],
)
def test_a_port_another_container_has_is_refused_with_its_name(
    host: Namespace, ports: PortAllocator, first: str, second: str
) -> None:
    reserve(ports, host, "one", first)
    with pytest.raises(PortInUse) as caught:
        reserve(ports, host, "two", second)
    assert "in use by container name-of-one" in str(caught.value)
    assert ports.owned_by("two") == ()
    assert len(ports.release("one")) == 1
    reserve(ports, host, "two", second)


def test_a_container_that_asks_twice_for_a_port_is_told_so(
    host: Namespace, ports: PortAllocator
) -> None:
    with pytest.raises(PortInUse, match="in use by this container itself"):
        reserve(ports, host, "one", "8080:80", "8080:81")
    assert ports.owned_by("one") == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("8080:80", "8080:80/udp"),
        ("127.0.0.1:8080:80", "10.9.0.1:8080:80"),
        ("0.0.0.0:8080:80", "[::1]:8080:80"),
    ],
)
def test_ports_that_do_not_meet_are_given_to_both(
    host: Namespace, ports: PortAllocator, first: str, second: str
) -> None:
    reserve(ports, host, "one", first)
    reserve(ports, host, "two", second)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::1"])
def test_a_port_a_program_has_is_refused_with_its_name_and_pid(
    host: Namespace, ports: PortAllocator, protocol: str, address: str
) -> None:
    kind = "SOCK_STREAM" if protocol == "tcp" else "SOCK_DGRAM"
    family = "AF_INET6" if ":" in address else "AF_INET"
    script = (
        f"import socket; s = socket.socket(socket.{family}, socket.{kind})\n"
        f"s.bind(({address!r}, 8080))\n"
        f"{'s.listen()' if protocol == 'tcp' else ''}\n"
        "print('bound', flush=True); input()"
    )
    place = f"--net=/proc/self/fd/{host.descriptor}"
    with subprocess.Popen(
        ["nsenter", place, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(host.descriptor,),
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"bound\n"
        with pytest.raises(PortInUse) as caught:
            reserve(ports, host, "one", f"8080:80/{protocol}", ipv6=True)
        assert f"8080/{protocol}" in str(caught.value)
        assert f"(pid {program.pid})" in str(caught.value)
        program.communicate(b"\n")
    reserve(ports, host, "one", f"8080:80/{protocol}", ipv6=True)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_program_cannot_take_a_published_port(
    host: Namespace, ports: PortAllocator, address: str
) -> None:
    reserve(ports, host, "one", "8080:80", ipv6=True)
    with pytest.raises(OSError, match="in use"):
        host.listen(8080, address)
    ports.release("one")
    host.listen(8080, address).close()


def test_all_ports_of_a_container_are_given_or_none(host: Namespace, ports: PortAllocator) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with host.listen(8082, "127.0.0.1"), pytest.raises(PortInUse):
        reserve(ports, host, "one", "8080:80", "8081:81", "8082:82")
    assert ports.owned_by("one") == ()
    assert len(os.listdir("/proc/self/fd")) == before
    reserve(ports, host, "two", "8080:80", "8081:81", "8082:82")


def test_a_range_gives_its_first_free_port(host: Namespace, ports: PortAllocator) -> None:
    with host.listen(8000, "127.0.0.1"):
        given = [reserve(ports, host, f"c{n}", "8000-8002:80")[0].host_port for n in range(2)]
        assert given == [8001, 8002]
        with pytest.raises(Conflict, match="no port from 8000 to 8002/tcp is free"):
            reserve(ports, host, "c3", "8000-8002:80")


def test_ports_without_choice_come_before_free_ones(host: Namespace, ports: PortAllocator) -> None:
    low = int(host.get("ipv4/ip_local_port_range").split()[0])
    host.set("ipv4/ip_local_port_range", f"{low} {low + 1}")
    given = reserve(ports, host, "one", "80", f"{low}:81")
    assert [(one.port, one.host_port) for one in given] == [(80, low + 1), (81, low)]


def test_free_ports_are_free_on_both_versions(host: Namespace, ports: PortAllocator) -> None:
    low = int(host.get("ipv4/ip_local_port_range").split()[0])
    host.set("ipv4/ip_local_port_range", f"{low} {low + 1}")
    with host.listen(low, "::1"):
        (given,) = reserve(ports, host, "one", "80", ipv6=True)
    assert given.host_port == low + 1


def test_an_address_the_host_has_not_got_is_refused(host: Namespace, ports: PortAllocator) -> None:
    with pytest.raises(Conflict, match=r"192\.0\.2\.7 is not an address of this host"):
        reserve(ports, host, "one", "192.0.2.7:8080:80")


def test_a_container_does_not_reserve_twice(host: Namespace, ports: PortAllocator) -> None:
    reserve(ports, host, "one", "8080:80")
    with pytest.raises(Conflict, match="name-of-one has its ports already"):
        reserve(ports, host, "one", "8081:80")


def test_a_port_is_published_again_though_its_connections_are_just_over(
    host: Namespace, ports: PortAllocator
) -> None:
    with host.listen(8080, "0.0.0.0") as server:
        client = host.connect("127.0.0.1", 8080)
        there, _ = server.accept()
        there.close()  # the server's side waits
        client.close()
    with host.inside(), socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("", 8080))
    reserve(ports, host, "one", "8080:80")
    with pytest.raises(OSError, match="in use"):
        host.listen(8080, "0.0.0.0")


def test_the_next_engine_takes_ports_over_and_says_which_it_cannot_hold(
    host: Namespace, ports: PortAllocator, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [Published(80, "tcp", "", 8080), Published(81, "tcp", "", 8081)]
    with host.listen(8081, "0.0.0.0"):
        with host.inside():
            ports.adopt("one", kept, name="web")
        assert "web keeps port 8081/tcp, but it cannot be held" in caplog.text
        assert ports.owned_by("one") == tuple(kept)
        with pytest.raises(PortInUse, match="container web"):
            reserve(ports, host, "two", "8081:80")
    with pytest.raises(OSError, match="in use"):
        host.listen(8080, "0.0.0.0")
