"""A neighbour on the host's link, and containers that lie about who they are. With real packets."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

import netns
from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from netns import Namespace, World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip")

BOX, OTHER, FAR = "172.30.0.2", "172.30.0.3", "172.31.0.2"
BOX6, OTHER6 = "fd30::2", "fd30::3"
LOST_AFTER = 0.4
"""Seconds after which a datagram that did not come is lost."""


@pytest.fixture(scope="module")
def world(module_leaves_nothing: None) -> Iterator[World]:
    made = World()
    # The neighbour knows the way to the containers.
    made.lan.ip("route add 172.30.0.0/15 via 10.9.0.1", "route add fd30::/64 via fd09::1")
    yield made
    made.close()


# Networks of the usual size, which are looked for by their block, and others.
@pytest.fixture(
    name="firewall", autouse=True, params=[(24, 64), (16, 60)], ids=["blocks", "ranges"]
)
def opened(request: pytest.FixtureRequest, world: World) -> Iterator[Firewall]:
    prefix, prefix6 = request.param
    firewall = guarded(world, prefix, prefix6)
    yield firewall
    firewall.close(remove=True)


def guarded(world: World, prefix: int = 24, prefix6: int = 64) -> Firewall:
    bridges = (
        Bridge("dockpy0", f"172.30.0.0/{prefix}", f"fd30::/{prefix6}"),
        Bridge("dockpy1", f"172.31.0.0/{prefix}"),
    )
    return netns.guarded(world, *bridges, cables=(netns.BOX, netns.OTHER, netns.FAR), loopback=True)


def udp_packet(source: str, target: str, port: int, data: bytes, source_port: int = 4000) -> bytes:
    """A whole IPv4 packet; the kernel fills in length and sum (raw(7))."""
    udp = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp


def whole(packet: bytes) -> bytes:
    """With its length and sum, for who sends frames."""
    packet = packet[:2] + struct.pack("!H", len(packet)) + packet[4:]
    total = sum(struct.unpack("!10H", packet[:20]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:10] + struct.pack("!H", ~total & 0xFFFF) + packet[12:]


def send_as(
    sender: Namespace, source: str, target: str, port: int, source_port: int = 4000
) -> None:
    with sender.inside():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        raw.sendto(udp_packet(source, target, port, source.encode(), source_port), (target, 0))


def arrives(receiver: socket.socket) -> bool:
    receiver.settimeout(LOST_AFTER)
    try:
        receiver.recv(64)
    except TimeoutError:
        return False
    return True


def heard(receiver: socket.socket, last: str) -> list[str]:
    """Who sent what arrived, until `last` did and nothing came after it."""
    found: list[str] = []
    receiver.settimeout(patient(5))
    while True:
        try:
            found.append(receiver.recv(64).decode())
        except TimeoutError:
            return found
        if found[-1] == last:
            receiver.settimeout(LOST_AFTER / 4)


def send_frame(sender: Namespace, frame: bytes) -> None:
    with sender.inside():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with link:
        link.bind(("eth0", 0))
        link.send(frame)


def hardware(namespace: Namespace, interface: str = "eth0") -> bytes:
    words = namespace.run("ip", "-o", "link", "show", interface).split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))


def checked6(ends: bytes, protocol: int, body: bytes, at: int) -> bytes:
    """With the Internet checksum of RFC 8200, 8.1, written to `at`."""
    padding = bytes(len(body) % 2)
    words = struct.unpack(f"!{len(body + padding + ends) // 2}H", body + padding + ends)
    total = sum(words) + len(body) + protocol
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:at] + struct.pack("!H", ~total & 0xFFFF) + body[at + 2 :]


def udp6_frame(sender: Namespace, source: str, target: str, port: int, to: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    body = checked6(
        ends, 17, struct.pack("!HHHH", 4000, port, 8 + len(source), 0) + source.encode(), 6
    )
    head = struct.pack("!IHBB", 6 << 28, len(body), 17, 64)
    return to + hardware(sender) + b"\x86\xdd" + head + ends + body


def icmp6_frame(
    sender: Namespace,
    kind: int,
    rest: bytes,
    source: str,
    target: str = "ff02::1",
    *,
    to: bytes = b"\x33\x33\0\0\0\1",
    hidden: bool = False,
) -> bytes:
    """An Ethernet frame with an ICMPv6 message; `hidden`: behind a header of padding options."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    body = checked6(ends, 58, struct.pack("!BBH", kind, 0, 0) + rest, 2)
    if hidden:
        body = bytes([58, 0, 1, 4, 0, 0, 0, 0]) + body
    head = struct.pack("!IHBB", 6 << 28, len(body), 60 if hidden else 58, 255)
    return to + hardware(sender) + b"\x86\xdd" + head + ends + body


def link_local(namespace: Namespace, interface: str) -> str:
    words = namespace.run("ip", "-6", "-o", "addr", "show", interface, "scope", "link").split()
    return words[words.index("inet6") + 1].partition("/")[0]


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


def test_a_neighbour_is_not_heard_in_what_a_container_and_the_host_say(world: World) -> None:
    """Connections are tracked before it is known who sends."""
    with world.host.datagrams(port=7118) as host, world.box.datagrams(port=7118) as box:
        box.sendto(b"box", ("10.9.0.1", 7118))
        assert host.recv(64) == b"box"
        host.sendto(b"host", (BOX, 7118))
        assert box.recv(64) == b"host"
        send_as(world.lan, BOX, "10.9.0.1", 7118, 7118)
        send_as(world.lan, "172.30.0.1", BOX, 7118, 7118)
        assert not arrives(host)
        assert not arrives(box)


def test_a_neighbour_does_not_reach_the_hosts_loopback(world: World) -> None:
    world.lan.set("ipv4/conf/all/route_localnet", "1")
    with world.host.datagrams("127.0.0.1", 7102) as host:
        world.lan.ip("route replace 127.0.0.7/32 via 10.9.0.1 src 10.9.0.2 table main")
        send_as(world.lan, "10.9.0.2", "127.0.0.7", 7102)
        assert not arrives(host)


# -- a container -------------------------------------------------------------------------------


def test_a_container_cannot_send_as_somebody_else(world: World) -> None:
    with world.lan.datagrams(port=7103) as lan:
        for source in (OTHER, "172.30.0.1", "10.9.0.1", "192.0.2.7", BOX):
            send_as(world.box, source, "10.9.0.2", 7103)
        assert heard(lan, BOX) == [BOX]


def test_a_container_cannot_be_somebody_else_to_its_neighbours(world: World) -> None:
    with world.other.datagrams(port=7104) as other:
        for source in ("172.30.0.1", FAR, BOX):
            send_as(world.box, source, OTHER, 7104)
        assert heard(other, BOX) == [BOX]


def test_a_container_cannot_send_as_somebody_else_by_ipv6(world: World) -> None:
    wrong = ("fd30::1", "fd30::9", "fd09::1", "fd09::2", "2001:db8::7", "::1", "::ffff:172.30.0.2")
    for target, to, receiver in (
        (OTHER6, hardware(world.other), world.other),
        ("fd09::2", hardware(world.host, "dockpy0"), world.lan),
    ):
        with receiver.datagrams("::", 7114) as listener:
            for source in (*wrong, BOX6):
                send_frame(world.box, udp6_frame(world.box, source, target, 7114, to))
            assert heard(listener, BOX6) == [BOX6]


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


def test_a_container_tells_no_other_hardware_address_by_arp(world: World) -> None:
    """Not even for its own address: others would send it elsewhere."""
    mine, everybody = hardware(world.box), b"\xff" * 6
    own, target = socket.inet_aton(BOX), socket.inet_aton(OTHER)
    with world.other.inside():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with link:
        link.bind(("eth0", 0x0806))
        link.settimeout(patient(2))
        for claimed in (bytes.fromhex("02aa00000001"), mine):
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + claimed + own + mine + target
            send_frame(world.box, everybody + mine + b"\x08\x06" + arp)
        # The first one that comes is the second that was sent.
        assert link.recv(64)[22:28] == mine


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "behind-options"])
def test_a_container_cannot_play_the_router(world: World, hidden: bool) -> None:
    world.other.set("ipv6/conf/eth0/accept_ra", "2")
    advert = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
    send_frame(world.box, icmp6_frame(world.box, 134, advert, "fe80::2", hidden=hidden))
    time.sleep(LOST_AFTER)
    routes = world.other.run("ip", "-6", "route", "show", "default")
    assert "fe80::2" not in routes


def test_a_container_cannot_redirect_others_to_itself(world: World) -> None:
    router, mine = link_local(world.host, "dockpy0"), hardware(world.box)
    # Only a router that is known by its link-local address can redirect.
    world.other.ip(f"route add fd09::/64 via {router} dev eth0")
    target, to = (socket.inet_pton(socket.AF_INET6, one) for one in ("fe80::2", "fd09::2"))
    first = socket.inet_pton(socket.AF_INET6, OTHER6)
    echo = struct.pack("!IHBB", 6 << 28, 8, 58, 64) + first + to + bytes([128]) + bytes(7)
    said = bytes(4) + target + to + bytes([2, 1]) + mine
    said += bytes([4, 1 + len(echo) // 8]) + bytes(6) + echo
    frame = icmp6_frame(world.box, 137, said, router, OTHER6, to=hardware(world.other))
    try:
        send_frame(world.box, frame)
        time.sleep(LOST_AFTER)
        assert f"via {router} " in world.other.run("ip", "-6", "route", "get", "fd09::2")
    finally:
        world.other.ip("route del fd09::/64 dev eth0")


def test_a_container_cannot_take_an_address_by_neighbour_discovery(world: World) -> None:
    with world.other.datagrams("::", 7111) as other:
        for victim in ("fd30::1", "fd30::9"):
            other.sendto(b"", (victim, 9))  # so that there is an entry to take
            claim = struct.pack("!I", 0xA0000000) + socket.inet_pton(socket.AF_INET6, victim)
            option = bytes([2, 1]) + hardware(world.box)
            for source in ("fd30::2", "fe80::2", "::"):
                send_frame(world.box, icmp6_frame(world.box, 136, claim + option, source))
    time.sleep(LOST_AFTER)
    known = world.other.run("ip", "-6", "neigh")
    assert "fd30::1" in known
    for line in known.splitlines():
        if line.startswith(("fd30::1 ", "fd30::9 ")):
            assert hardware(world.box).hex(":") not in line


@pytest.mark.parametrize("kind", [0x8100, 0x88A8, 0x8864, 0x86DD ^ 0xFFFF], ids=hex)
def test_frames_that_are_neither_ip_nor_arp_go_nowhere(world: World, kind: int) -> None:
    everybody = b"\xff" * 6
    with world.other.inside():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with link:
        link.bind(("eth0", 0x0003))
        inner = struct.pack("!HH", 1, 0x0800) + udp_packet("172.30.0.1", OTHER, 7113, b"wrapped")
        send_frame(world.box, everybody + hardware(world.box) + kind.to_bytes(2, "big") + inner)
        deadline = time.monotonic() + LOST_AFTER
        link.settimeout(LOST_AFTER)
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline:
                assert b"wrapped" not in link.recv(2048)


def test_a_container_does_not_reach_the_hosts_loopback(world: World) -> None:
    with world.host.listen(7105, "127.0.0.1"):
        world.box.set("ipv4/conf/all/route_localnet", "1")
        world.box.ip("route replace 127.0.0.9/32 via 172.30.0.1")
        assert not world.box.reaches("127.0.0.9", 7105)


def test_containers_of_another_network_are_not_reached_whatever_the_source(world: World) -> None:
    with world.far.datagrams(port=7106) as far:
        for source in (BOX, FAR, "172.31.0.1"):
            send_as(world.box, source, FAR, 7106)
        assert not arrives(far)


def test_who_has_an_address_is_free_again_once_it_is_forgotten(
    world: World, firewall: Firewall
) -> None:
    with world.host.inside():
        firewall.forget(netns.BOX)
        firewall.allow(replace(netns.BOX, address="172.30.0.9"))
    with world.other.datagrams(port=7107) as other:
        send_as(world.box, BOX, OTHER, 7107)
        assert not arrives(other)


@pytest.mark.parametrize("last", [0, 1, 2, 3, 0xE, 0xF])
def test_a_container_is_not_heard_past_the_bridge(world: World, last: int) -> None:
    """A bridge asks no rule about frames for most groups of its own, and the host gets them from
    the cable."""
    group = b"\x01\x80\xc2\0\0" + bytes([last])
    with world.host.datagrams("::", 7115) as host:
        for source in ("10.9.0.77", OTHER, "172.30.0.1"):
            packet = whole(udp_packet(source, "10.9.0.1", 7115, source.encode()))
            send_frame(world.box, group + hardware(world.box) + b"\x08\x00" + packet)
        for source in ("fd09::77", OTHER6, "fd30::1"):
            send_frame(world.box, udp6_frame(world.box, source, "fd09::1", 7115, group))
        send_as(world.box, BOX, "10.9.0.1", 7115)
        assert heard(host, BOX) == [BOX]


def test_where_bridges_have_no_tables_a_container_keeps_to_its_network(
    world: World, firewall: Firewall, request: pytest.FixtureRequest
) -> None:
    firewall.close(remove=True)
    request.getfixturevalue("no_bridge_tables")
    with contextlib.closing(guarded(world)) as unbridged:
        with world.lan.datagrams(port=7116) as lan, world.host.datagrams(port=7116) as host:
            # A flow of the neighbour with the host: its packets are known.
            lan.sendto(b"10.9.0.2", ("10.9.0.1", 7116))
            host.sendto(b"10.9.0.1", ("10.9.0.2", 7116))
            assert heard(lan, "10.9.0.1") == ["10.9.0.1"]
            for source in ("10.9.0.1", "192.0.2.7", FAR, BOX):
                send_as(world.box, source, "10.9.0.2", 7116, 7116)
            for source in ("10.9.0.2", "192.0.2.7", FAR, BOX):
                send_as(world.box, source, "10.9.0.1", 7116, 7116)
            assert heard(lan, BOX) == [BOX]
            assert heard(host, BOX) == ["10.9.0.2", BOX]
        world.box.set("ipv4/conf/all/route_localnet", "1")
        world.box.ip("route replace 127.0.0.9/32 via 172.30.0.1")
        with world.host.listen(7117, "127.0.0.1"):
            assert not world.box.reaches("127.0.0.9", 7117)
        unbridged.close(remove=True)
