"""Connections of ended containers are forgotten, and no others: with real packets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

import netns
from dockpy.network import conntrack, entries
from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from dockpy.network.nfnetlink import Netfilter
from dockpy.network.nft import Family
from dockpy.network.ports import Published
from netns import World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip")

BOX, OTHER = netns.BOX.address, netns.OTHER.address
GONE = {entries.packed(BOX)}
PORTS = [Published(80, "tcp", "", 8080)]
CLIENT_PORT = 40001


@pytest.fixture(name="world", scope="module")
def made(_module_leaves_nothing: None) -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture(name="firewall")
def opened(world: World) -> Iterator[Firewall]:
    firewall = netns.guarded(world, Bridge("dockpy0", "172.30.0.0/16"))
    firewall.publish(BOX, PORTS, "box")
    yield firewall
    firewall.close(remove=True)


@pytest.fixture(name="netfilter")
def asked(world: World) -> Iterator[Netfilter]:
    with world.host.inside():
        made = Netfilter()
    yield made
    made.close()


def call(world: World) -> socket.socket:
    """A client of the published port, always from the same port."""
    with world.lan.inside():
        client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.settimeout(patient(5))
    client.bind(("10.9.0.2", CLIENT_PORT))
    client.connect(("10.9.0.1", 8080))
    return client


def answered(client: socket.socket, server: socket.socket) -> None:
    server.sendall(b"answer")
    assert client.recv(16) == b"answer"


def tracked(world: World, netfilter: Netfilter) -> list[conntrack.Entry]:
    with world.host.inside():
        bodies = netfilter.dump(
            conntrack.GET, Family.IPV4, b"", conntrack.STEP, conntrack.SUBSYSTEM
        )
    return [conntrack.parse_entry(one) for one in bodies]


def then(netfilter: Netfilter, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act between the listing of connections and what is done with it."""
    real = netfilter.dump

    def dump(kind: int, family: int, body: bytes, step: str, subsystem: int) -> list[bytes]:
        found = real(kind, family, body, step, subsystem)
        act()
        return found

    monkeypatch.setattr(netfilter, "dump", dump)


@pytest.mark.usefixtures("firewall")
def test_a_connection_to_an_ended_container_is_forgotten(
    world: World, netfilter: Netfilter
) -> None:
    with world.box.listen(80) as server, call(world) as client:
        answered(client, server.accept()[0])
    before = [one for one in tracked(world, netfilter) if one.reply.source in GONE]
    assert len(before) == 1
    assert conntrack.forget_addresses(netfilter, Family.IPV4, GONE) == 1
    assert not [one for one in tracked(world, netfilter) if one.reply.source in GONE]


@pytest.mark.usefixtures("firewall")
def test_a_connection_from_an_ended_container_is_forgotten(
    world: World, netfilter: Netfilter
) -> None:
    with world.lan.listen(7200) as server, world.box.connect("10.9.0.2", 7200) as client:
        answered(client, server.accept()[0])
    assert conntrack.forget_addresses(netfilter, Family.IPV4, GONE) == 1
    assert not [one for one in tracked(world, netfilter) if one.original.source in GONE]


def test_who_calls_again_from_the_same_port_meanwhile_is_not_cut_off(
    world: World, firewall: Firewall, netfilter: Netfilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tuple by which it came is that of the connection that is forgotten."""
    with world.box.listen(80) as server, call(world) as client:
        there, _ = server.accept()
        there.close()  # the server ends it: the client's port is free again
        assert client.recv(1) == b""
    firewall.withdraw("box")
    firewall.publish(OTHER, PORTS, "other")
    again = list[socket.socket]()
    with world.other.listen(80) as server:
        then(netfilter, monkeypatch, lambda: again.append(call(world)))
        conntrack.forget_addresses(netfilter, Family.IPV4, GONE)
        with again[0] as client, server.accept()[0] as there:
            answered(client, there)
