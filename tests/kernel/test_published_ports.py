"""Published ports, from every side and in both versions of IP, with real packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import netns
from dockpy.errors import Conflict
from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from dockpy.network.ports import Published
from netns import World

pytestmark = pytest.mark.needs("root", "netns", "ip")

BOX, BOX6 = "172.30.0.2", "fd30::2"


@pytest.fixture(scope="module", params=[False, True], ids=["bridge", "bridge-through-rules"])
def world(request: pytest.FixtureRequest, _module_leaves_nothing: None) -> Iterator[World]:
    made = World(bridged_through_rules=request.param)
    yield made
    made.close()


@pytest.fixture(name="firewall")
def opened(world: World) -> Iterator[Firewall]:
    bridges = (
        Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"),
        Bridge("dockpy1", "172.31.0.0/16"),
    )
    firewall = netns.guarded(
        world, *bridges, cables=(netns.BOX, netns.OTHER, netns.FAR), loopback=True
    )
    yield firewall
    firewall.close(remove=True)


def published(firewall: Firewall, address: str = "", host_port: int = 8080) -> None:
    ipv4_only = address and ":" not in address
    ports = [Published(80, "tcp", address, host_port)]
    firewall.publish(BOX, ports, "box", "" if ipv4_only else BOX6)


def test_a_port_answers_on_every_address_and_the_client_keeps_its_own(
    world: World, firewall: Firewall
) -> None:
    published(firewall)
    with world.box.listen(80) as server:
        assert world.lan.source_at(server, "10.9.0.1", 8080) == "10.9.0.2"
        assert world.host.source_at(server, "10.9.0.1", 8080) == "10.9.0.1"
        assert world.lan.source_at(server, "fd09::1", 8080) == "fd09::2"
        assert world.host.source_at(server, "fd09::1", 8080) == "fd09::1"


def test_without_masquerade_a_container_is_answered_under_its_own_address(
    world: World, firewall: Firewall
) -> None:
    with world.lan.listen(7300) as server:
        assert world.box.source_at(server, "10.9.0.2", 7300) == "10.9.0.1"
        firewall.detach(Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"))
        firewall.attach(Bridge("dockpy0", "172.30.0.0/16", masquerade=False))
        world.lan.ip("route add 172.30.0.0/16 via 10.9.0.1")
        try:
            assert world.box.source_at(server, "10.9.0.2", 7300) == BOX
            with world.box.listen(7301):
                assert not world.lan.reaches(BOX, 7301)
        finally:
            world.lan.ip("route del 172.30.0.0/16")


def test_localhost_answers_and_shows_the_bridge_as_the_client(
    world: World, firewall: Firewall
) -> None:
    published(firewall)
    with world.box.listen(80) as server:
        assert world.host.source_at(server, "127.0.0.1", 8080) == "172.30.0.1"
        if firewall.loopback6:
            assert world.host.source_at(server, "::1", 8080) == "fd30::1"
        else:
            with pytest.raises(ConnectionRefusedError):
                world.host.connect("::1", 8080)


def test_containers_reach_it_by_the_host_address_themselves_included(
    world: World, firewall: Firewall
) -> None:
    published(firewall)
    with world.box.listen(80) as server:
        assert world.other.source_at(server, "10.9.0.1", 8080) == "172.30.0.1"
        assert world.box.source_at(server, "10.9.0.1", 8080) == "172.30.0.1"
        # Of another network: the answer comes past the host, so the address is kept.
        assert world.far.source_at(server, "10.9.0.1", 8080) == "172.31.0.2"


def test_a_port_on_localhost_is_not_for_neighbours_nor_containers(
    world: World, firewall: Firewall
) -> None:
    published(firewall, "127.0.0.1")
    # As bad as it gets: the host takes 127.0.0.1 from its link, and the neighbour sends it there.
    world.host.set("ipv4/conf/eth0/route_localnet", "1")
    world.lan.ip("addr flush dev lo", "route replace 127.0.0.1/32 via 10.9.0.1 src 10.9.0.2")
    world.lan.set("ipv4/conf/all/route_localnet", "1")
    try:
        with world.box.listen(80) as server:
            assert world.host.source_at(server, "127.0.0.1", 8080) == "172.30.0.1"
            assert not world.lan.reaches("10.9.0.1", 8080)
            assert not world.lan.reaches("127.0.0.1", 8080)
            assert not world.other.reaches("10.9.0.1", 8080)
    finally:
        world.host.set("ipv4/conf/eth0/route_localnet", "0")
        world.lan.ip("route del 127.0.0.1/32", "addr add 127.0.0.1/8 dev lo")


def test_a_port_on_one_address_is_on_that_address_alone(world: World, firewall: Firewall) -> None:
    published(firewall, "10.9.0.1")
    with world.box.listen(80) as server:
        assert world.lan.source_at(server, "10.9.0.1", 8080) == "10.9.0.2"
        assert not world.host.reaches("127.0.0.1", 8080)
        assert not world.host.reaches("172.30.0.1", 8080)


def test_a_port_on_an_ipv6_address_is_on_that_address_alone(
    world: World, firewall: Firewall
) -> None:
    published(firewall, "fd09::1")
    with world.box.listen(80) as server:
        assert world.lan.source_at(server, "fd09::1", 8080) == "fd09::2"
        assert not world.lan.reaches("10.9.0.1", 8080)


def test_ipv6_localhost_is_published_where_the_kernel_can(world: World, firewall: Firewall) -> None:
    if not firewall.loopback6:
        with pytest.raises(Conflict, match="bridge-nf-call-ip6tables"):
            published(firewall, "::1")
        return
    published(firewall, "::1")
    with world.box.listen(80) as server:
        assert world.host.source_at(server, "::1", 8080) == "fd30::1"
        assert not world.lan.reaches("fd09::1", 8080)


def test_an_ipv6_address_for_a_container_without_one_is_refused(firewall: Firewall) -> None:
    with pytest.raises(Conflict, match="no IPv6 address"):
        firewall.publish(BOX, [Published(80, "tcp", "fd09::1", 8080)], "box")


def test_a_withdrawn_port_answers_no_more(world: World, firewall: Firewall) -> None:
    published(firewall)
    with world.box.listen(80) as server:
        world.lan.source_at(server, "10.9.0.1", 8080)
        firewall.withdraw("box")
        with pytest.raises(ConnectionRefusedError):
            world.lan.connect("10.9.0.1", 8080)


def test_a_host_port_leads_to_one_container_only(firewall: Firewall) -> None:
    published(firewall)
    with pytest.raises(Conflict):
        firewall.publish("172.30.0.3", [Published(80, "tcp", "", 8080)], "other")
    assert firewall.check()


def test_traffic_the_host_passes_on_is_not_taken_for_its_own(
    world: World, firewall: Firewall
) -> None:
    published(firewall, host_port=8080)
    with world.lan.listen(8080) as elsewhere, world.box.listen(80):
        assert world.far.source_at(elsewhere, "10.9.0.2", 8080) == "10.9.0.1"


@pytest.mark.needs("ctnetlink")
def test_a_udp_flow_follows_its_port_to_the_next_container(
    world: World, firewall: Firewall
) -> None:
    with (
        world.lan.datagrams() as client,
        world.box.datagrams(port=53) as first,
        world.other.datagrams(port=53) as second,
    ):
        target = ("10.9.0.1", 5353)
        client.sendto(b"before", target)  # a flow that leads to the host itself
        ports = [Published(53, "udp", "", 5353)]
        firewall.publish(BOX, ports, "box")
        client.sendto(b"one", target)
        data, peer = first.recvfrom(16)
        assert (data, peer[0]) == (b"one", "10.9.0.2")
        first.sendto(b"answer", peer)
        assert client.recvfrom(16) == (b"answer", target)
        firewall.withdraw("box")
        firewall.publish("172.30.0.3", ports, "other")
        client.sendto(b"two", target)
        assert second.recvfrom(16)[0] == b"two"


def test_a_thousand_ports_all_lead_to_theirs(world: World, firewall: Firewall) -> None:
    ports = [Published(80, "tcp", "", 20000 + number) for number in range(1000)]
    firewall.publish(BOX, ports, "box", BOX6)
    with world.box.listen(80) as server:
        for host_port in (20000, 20500, 20999):
            assert world.lan.source_at(server, "10.9.0.1", host_port) == "10.9.0.2"
    assert not world.lan.reaches("10.9.0.1", 21000)
    assert firewall.check()
    firewall.withdraw("box")
    assert firewall.check()


def test_connections_go_on_when_the_engine_is_killed_and_the_next_one_adopts_the_ports(
    world: World, firewall: Firewall
) -> None:
    published(firewall)
    with world.box.listen(80) as server, world.lan.connect("10.9.0.1", 8080) as client:
        there, _ = server.accept()
        with there:
            firewall.close()  # as a killed one: the tables stay
            client.sendall(b"1")
            assert there.recv(1) == b"1"
            with world.host.inside():
                firewall.open()
            client.sendall(b"2")
            assert there.recv(1) == b"2"
            assert world.lan.source_at(server, "10.9.0.1", 8080) == "10.9.0.2"
            published(firewall)
            firewall.allow(netns.BOX)
            firewall.attach(Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"))
            assert firewall.settle() > 0  # the other cables and the other bridge
            client.sendall(b"3")
            assert there.recv(1) == b"3"
    assert firewall.check()


def test_ports_nobody_claims_after_a_restart_are_withdrawn(
    world: World, firewall: Firewall
) -> None:
    published(firewall)
    firewall.close()
    with world.host.inside():
        firewall.open()
    firewall.settle()
    with pytest.raises(ConnectionRefusedError):
        world.lan.connect("10.9.0.1", 8080)
