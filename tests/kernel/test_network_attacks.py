"""A neighbour on the host's link, and containers that lie about who they are. With real packets."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from netns import Namespace, World

pytestmark = pytest.mark.needs("root", "netns", "ip")

BOX, OTHER, FAR = "172.30.0.2", "172.30.0.3", "172.31.0.2"
LOST_AFTER = 0.4
"""Seconds after which a datagram that did not come is lost."""


@pytest.fixture(scope="module")
def world(module_leaves_nothing: None) -> Iterator[World]:
    made = World()
    # The neighbour knows the way to the containers.
    made.lan.ip("route add 172.30.0.0/15 via 10.9.0.1", "route add fd30::/64 via fd09::1")
    yield made
    made.close()


@pytest.fixture(name="firewall", autouse=True)
def opened(world: World) -> Iterator[Firewall]:
    firewall = Firewall("dockpy-test")
    with world.host.inside():
        firewall.open()
        for bridge in (
            Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"),
            Bridge("dockpy1", "172.31.0.0/16"),
        ):
            firewall.attach(bridge)
            firewall.accept_loopback(bridge.name)
        firewall.allow(BOX, "v2", "fd30::2")
        firewall.allow(OTHER, "v3", "fd30::3")
        firewall.allow(FAR, "w2")
    yield firewall
    firewall.close(remove=True)


def udp_packet(source: str, target: str, port: int, data: bytes) -> bytes:
    """A whole IPv4 packet; the kernel fills in length and sum (raw(7))."""
    udp = struct.pack("!HHHH", 4000, port, 8 + len(data), 0) + data
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp


def send_as(sender: Namespace, source: str, target: str, port: int) -> None:
    with sender.inside():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        raw.sendto(udp_packet(source, target, port, b"mine"), (target, 0))


def arrives(receiver: socket.socket) -> bool:
    receiver.settimeout(LOST_AFTER)
    try:
        receiver.recv(64)
    except TimeoutError:
        return False
    return True


def send_frame(sender: Namespace, frame: bytes) -> None:
    with sender.inside():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with link:
        link.bind(("eth0", 0))
        link.send(frame)


def hardware(namespace: Namespace) -> bytes:
    words = namespace.run("ip", "-o", "link", "show", "eth0").split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))


# -- a neighbour -------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "listen"), [(BOX, "0.0.0.0"), ("fd30::2", "::")])
def test_a_neighbour_who_routes_to_a_container_does_not_reach_it(
    world: World, address: str, listen: str
) -> None:
    with world.box.listen(7100, listen):
        assert world.host.reaches(address, 7100)
        assert not world.lan.reaches(address, 7100)


def test_a_neighbour_who_pretends_to_be_a_container_is_not_heard(world: World) -> None:
    with world.box.datagrams(port=7101) as box:
        send_as(world.lan, OTHER, BOX, 7101)
        assert not arrives(box)
        send_as(world.other, OTHER, BOX, 7101)
        assert arrives(box), "the one it pretended to be is heard"


def test_a_neighbour_does_not_reach_the_hosts_loopback(world: World) -> None:
    world.lan.set("ipv4/conf/all/route_localnet", "1")
    with world.host.datagrams("127.0.0.1", 7102) as host:
        world.lan.ip("route replace 127.0.0.7/32 via 10.9.0.1 src 10.9.0.2 table main")
        send_as(world.lan, "10.9.0.2", "127.0.0.7", 7102)
        assert not arrives(host)


# -- a container -------------------------------------------------------------------------------


def test_a_container_cannot_send_as_somebody_else(world: World) -> None:
    with world.lan.datagrams(port=7103) as lan:
        for wrong in (OTHER, "172.30.0.1", "10.9.0.1", "192.0.2.7"):
            send_as(world.box, wrong, "10.9.0.2", 7103)
            assert not arrives(lan), wrong
        send_as(world.box, BOX, "10.9.0.2", 7103)
        assert arrives(lan)


def test_a_container_cannot_be_somebody_else_to_its_neighbours(world: World) -> None:
    with world.other.datagrams(port=7104) as other:
        send_as(world.box, "172.30.0.1", OTHER, 7104)
        assert not arrives(other)
        send_as(world.box, BOX, OTHER, 7104)
        assert arrives(other)


def test_a_container_cannot_take_an_address_by_arp(world: World) -> None:
    mine, everybody = hardware(world.box), b"\xff" * 6
    for victim in ("172.30.0.1", OTHER):
        claim = socket.inet_aton(victim)
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mine + claim + everybody + claim
        send_frame(world.box, everybody + mine + b"\x08\x06" + arp)
    time.sleep(LOST_AFTER)
    known = world.other.run("ip", "neigh") + world.host.run("ip", "neigh")
    for line in known.splitlines():
        if line.startswith(("172.30.0.1 ", f"{OTHER} ")):
            assert mine.hex(":") not in line


def test_a_container_cannot_play_the_router(world: World) -> None:
    world.other.set("ipv6/conf/eth0/accept_ra", "2")
    mine = hardware(world.box)
    source = socket.inet_pton(socket.AF_INET6, "fe80::2")
    everybody = socket.inet_pton(socket.AF_INET6, "ff02::1")
    advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    total = sum(struct.unpack(f"!{len(advert) // 2}H", advert))
    total += sum(struct.unpack("!16H", source + everybody)) + len(advert) + 58
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    advert = advert[:2] + struct.pack("!H", ~total & 0xFFFF) + advert[4:]
    packet = struct.pack("!IHBB", 6 << 28, len(advert), 58, 255) + source + everybody + advert
    send_frame(world.box, b"\x33\x33\0\0\0\1" + mine + b"\x86\xdd" + packet)
    time.sleep(LOST_AFTER)
    routes = world.other.run("ip", "-6", "route", "show", "default")
    assert "fe80::2" not in routes


def test_a_container_does_not_reach_the_hosts_loopback(world: World) -> None:
    with world.host.listen(7105, "127.0.0.1"):
        world.box.set("ipv4/conf/all/route_localnet", "1")
        world.box.ip("route replace 127.0.0.9/32 via 172.30.0.1")
        assert not world.box.reaches("127.0.0.9", 7105)


def test_containers_of_another_network_are_not_reached_whatever_the_source(world: World) -> None:
    with world.far.datagrams(port=7106) as far:
        for source in (BOX, FAR, "172.31.0.1"):
            send_as(world.box, source, FAR, 7106)
            assert not arrives(far), source


def test_who_has_an_address_is_free_again_once_it_is_forgotten(
    world: World, firewall: Firewall
) -> None:
    with world.host.inside():
        firewall.forget(BOX, "v2", "fd30::2")
        firewall.allow("172.30.0.9", "v2")
    with world.other.datagrams(port=7107) as other:
        send_as(world.box, BOX, OTHER, 7107)
        assert not arrives(other)
