"""How large packets are: as large as can be on this host, as large as is usual beyond it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dockpy import Config, Runtime
from dockpy.container import Container
from dockpy.network.values import LOCAL_MTU, OUTSIDE_MTU
from engines import address_of, settled
from netns import Namespace
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip", "overlay")

HERE, THERE = "10.8.0.1", "10.8.0.2"
LARGE = 60_000


@pytest.fixture(name="neighbour", scope="module")
def on_the_link(_module_leaves_nothing: None) -> Iterator[Namespace]:
    """Somebody on the host's link, of the usual size."""
    made = Namespace()
    host = Namespace(own=False)
    place = f"/proc/{os.getpid()}/fd/{made.descriptor}"
    host.ip(
        "link add size0 type veth peer name size1",
        f"link set size1 netns {place}",
        f"addr add {HERE}/24 dev size0",
        "link set size0 up",
    )
    made.ip(f"addr add {THERE}/24 dev size1", "link set size1 up")
    yield made
    host.ip("link del size0")
    host.close()
    made.close()


@pytest.fixture(name="runtime")
def given(networked: Runtime) -> Runtime:
    return networked


def started(runtime: Runtime, script: str, **values: object) -> Container:
    config = Config(image="base", cmd=("sh", "-c", script)).with_(**values)
    container = runtime.create(config)
    container.start()
    return container


def segment_size(link: socket.socket) -> int:
    """What one packet of the connection carries. Source: tcp(7), TCP_MAXSEG."""
    return link.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def connected(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + patient(5)
    while True:
        try:
            return socket.create_connection((address, port), patient(2))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def sizes(container: Container) -> tuple[int, list[int]]:
    """Its link's largest packet, and those of its default routes: 0 where there is none told."""
    with closing(Namespace(own=False, process=str(container.state.pid))) as inside:
        links = json.loads(inside.run("ip", "-j", "link", "show", "eth0"))
        routes = [
            one
            for version in ("-4", "-6")
            for one in json.loads(inside.run("ip", "-j", version, "route", "show", "default"))
        ]
    return links[0]["mtu"], [sum(m.get("mtu", 0) for m in one.get("metrics", [])) for one in routes]


def test_the_largest_packet_is_for_this_host_alone(runtime: Runtime) -> None:
    runtime.networks.create("six", subnet6="fd79:1::/64")
    for network, defaults in (("bridge", 1), ("six", 2)):
        container = started(runtime, "sleep 600", network_mode=network)
        assert sizes(container) == (LOCAL_MTU, [OUTSIDE_MTU] * defaults)


def test_a_size_that_is_asked_for_is_the_size_of_all(runtime: Runtime) -> None:
    network = runtime.networks.create("narrow", mtu=1400)
    assert sizes(started(runtime, "sleep 600", network_mode="narrow")) == (1400, [0])
    with closing(Namespace(own=False)) as host:
        bridge = next(network.segments()).bridge
        assert " mtu 1400 " in host.run("ip", "-o", "link", "show", bridge)


def test_connections_on_this_host_use_it_and_those_of_a_neighbour_do_not(
    runtime: Runtime, neighbour: Namespace
) -> None:
    server = started(runtime, "while true; do nc -l -p 80 -e cat; done", port_specs=("18090:80",))
    for address, port in (("127.0.0.1", 18090), (address_of(runtime, server), 80)):
        with connected(address, port) as link:
            assert segment_size(link) > 10 * OUTSIDE_MTU  # at most half the window at first
    with neighbour.inside():
        link = connected(HERE, 18090)
    with link:
        assert segment_size(link) == OUTSIDE_MTU - 52  # two headers, and RFC 7323's timestamps
        data = os.urandom(3_000_000)
        assert echoed(link, data) == data


def echoed(link: socket.socket, data: bytes) -> bytes:
    """What comes back of it."""
    sender = threading.Thread(target=link.sendall, args=(data,))
    sender.start()
    found = bytearray()
    while len(found) < len(data):
        piece = link.recv(1 << 20)
        assert piece, f"the connection ended after {len(found)} bytes"
        found += piece
    sender.join()
    return bytes(found)


def test_large_datagrams_arrive_on_this_host_and_in_pieces_beyond(
    runtime: Runtime, neighbour: Namespace
) -> None:
    client = started(runtime, "sleep 600")
    gateway = str(next(runtime.networks.get("bridge").segments()).gateway)
    with (
        closing(Namespace(own=False)) as host,
        closing(Namespace(own=False, process=str(client.state.pid))) as inside,
        inside.datagrams() as sender,
    ):
        for place, address in ((host, gateway), (neighbour, THERE)):
            with place.datagrams(address, 7301) as receiver:
                before = put_together(place)
                sender.sendto(bytes(LARGE), (address, 7301))
                assert len(receiver.recv(LARGE + 1)) == LARGE
                assert (put_together(place) > before) is (place is neighbour)


def test_a_bridge_with_a_smaller_link_gets_no_larger_ones(runtime: Runtime) -> None:
    """Somebody's card on a bridge of theirs: a bridge cuts nothing into pieces."""
    with closing(Namespace(own=False)) as host:
        network = runtime.networks.create("shared")
        bridge = next(network.segments()).bridge
        host.ip(
            f"link add {bridge} type bridge",
            "link add size2 type veth peer name size3",
            f"link set size2 master {bridge}",
        )
        try:
            container = started(runtime, "sleep 600", network_mode="shared")
            assert sizes(container) == (OUTSIDE_MTU, [OUTSIDE_MTU])
            runtime.destroy(container, force=True)
            settled(runtime)
        finally:
            host.ip("link del size2")


def put_together(place: Namespace) -> int:
    """Datagrams that came there in pieces. Source: proc_pid_net, snmp."""
    with place.inside():
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    return int(values[names.index("ReasmOKs")])
