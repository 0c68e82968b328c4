"""The tables' life: refusals, restarts, routing, what others do to them. With real packets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import netns
from dockpy.errors import KernelError
from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall, NoFirewall
from dockpy.network.nfnetlink import Netfilter
from dockpy.network.nft import NLM_F_CREATE, Family, Kind, delete_table, message, text, u32
from dockpy.network.ports import Published
from dockpy.network.tables import UNGUARDED
from netns import Namespace, World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip", "nft")

NAME = "dockpy-test"
BRIDGE = Bridge("dockpy0", "172.30.0.0/16", "fd30::/64")
PORTS = [Published(80, "tcp", "", 8080)]
OWNER = 2
"""NFT_TABLE_F_OWNER: nobody but the socket that made the table changes it (Linux 5.12)."""


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def firewall() -> Iterator[Firewall]:
    made = Firewall(NAME)
    yield made
    made.close(remove=True)


def start(world: World, firewall: Firewall) -> None:
    with world.host.inside():
        firewall.open()
        firewall.attach(BRIDGE)
        firewall.accept_loopback(BRIDGE.name)
        firewall.allow(netns.BOX, netns.OTHER)


@contextmanager
def locked_by_somebody(host: Namespace, family: Family, *, there: bool = False) -> Iterator[None]:
    """Somebody owns a table of our name, in place of ours when it is `there`."""
    with host.inside():
        somebody = Netfilter()
    mine = message(Kind.NEW_TABLE, NLM_F_CREATE, family, text(1, NAME) + u32(2, OWNER))
    try:
        somebody.commit([*[delete_table(family, NAME)] * there, mine], "own a table")
        yield
    finally:
        somebody.close()  # and the table with it


def soon(check: Callable[[], object]) -> bool:
    deadline = time.monotonic() + patient(5)
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# -- what cannot be installed ------------------------------------------------------------------


@pytest.mark.parametrize("family", [Family.INET, Family.BRIDGE])
def test_tables_that_cannot_be_made_are_an_error_and_nothing_is_left(
    world: World, firewall: Firewall, family: Family
) -> None:
    world.host.set("ipv4/ip_forward", "0")
    with locked_by_somebody(world.host, family), world.host.inside():
        with pytest.raises(NoFirewall, match="make the firewall's tables"):
            firewall.open()
        assert world.host.get("ipv4/ip_forward") == "0"
    assert NAME not in world.host.run("nft", "list", "tables")
    start(world, firewall)
    assert firewall.check()


def test_a_port_that_cannot_be_published_is_an_error_and_leads_nowhere_later(
    world: World, firewall: Firewall
) -> None:
    start(world, firewall)
    with locked_by_somebody(world.host, Family.INET, there=True):
        with pytest.raises(KernelError):
            firewall.publish(netns.BOX.address, PORTS, "box")
        with pytest.raises(KernelError):
            firewall.attach(Bridge("dockpy1", "172.31.0.0/16"))
    assert soon(firewall.check)
    assert firewall.withdraw("box") == ()
    assert not world.lan.reaches("10.9.0.1", 8080)


@pytest.mark.usefixtures("no_bridge_tables")
def test_a_kernel_without_tables_for_bridges_is_told_as_a_warning(
    world: World, firewall: Firewall
) -> None:
    start(world, firewall)
    with world.host.inside():
        assert [one for one in firewall.obstacles() if "for bridges" in one] == [UNGUARDED]


def test_a_guarded_kernel_is_not_warned_of(world: World, firewall: Firewall) -> None:
    start(world, firewall)
    with world.host.inside():
        assert UNGUARDED not in firewall.obstacles()


def test_what_is_used_before_it_is_open_is_an_error(firewall: Firewall) -> None:
    for use in (firewall.check, lambda: firewall.allow(netns.BOX)):
        with pytest.raises(NoFirewall, match="before it is open"):
            use()


# -- what others do ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "flush ruleset",
        f"delete table inet {NAME}",
        f"delete table bridge {NAME}",
        f"flush chain inet {NAME} forward",
        f"flush chain inet {NAME} home",
        f"flush chain bridge {NAME} guard",
        f"flush map inet {NAME} any4",
        f"add element inet {NAME} any4 {{ tcp . 9 : 172.30.0.3 . 9 }}",
        f"insert rule inet {NAME} forward accept",
        f"add table inet {NAME} {{ flags dormant; }}",
    ],
)
def test_whatever_somebody_does_to_the_tables_is_undone(
    world: World, firewall: Firewall, words: str
) -> None:
    start(world, firewall)
    firewall.publish(netns.BOX.address, PORTS, "box", netns.BOX.address6)
    with world.box.listen(80) as server, world.lan.connect("10.9.0.1", 8080) as client:
        there, _ = server.accept()
        with there:
            world.host.run("nft", words)
            assert soon(lambda: firewall.restored and firewall.check())
            client.sendall(b"1")  # connections keep their way
            assert there.recv(1) == b"1"
        assert world.lan.source_at(server, "10.9.0.1", 8080) == "10.9.0.2"
        world.lan.ip("route add 172.30.0.0/16 via 10.9.0.1")
        assert not world.lan.reaches(netns.BOX.address, 80)


def test_changes_elsewhere_make_nothing_anew(world: World, firewall: Firewall) -> None:
    start(world, firewall)
    world.host.run("nft", "add table inet somebody")
    world.host.run("nft", "delete table inet somebody")
    firewall.publish(netns.BOX.address, PORTS, "box")
    firewall.withdraw("box")
    time.sleep(0.2)
    assert firewall.restored == 0
    assert firewall.check()


def test_tables_of_two_engines_do_not_meet(world: World, firewall: Firewall) -> None:
    start(world, firewall)
    other = Firewall("dockpy-other")
    with world.host.inside():
        other.open()
    other.close(remove=True)
    assert firewall.check()
    assert "dockpy-other" not in world.host.run("nft", "list", "tables")


# -- routing -----------------------------------------------------------------------------------


def test_a_host_that_did_not_route_routes_for_containers_only(
    world: World, firewall: Firewall
) -> None:
    """`far` is on a second link of the host that no engine owns."""
    world.host.set("ipv4/ip_forward", "0")
    world.host.set("ipv6/conf/all/forwarding", "0")
    start(world, firewall)
    assert world.host.get("ipv4/ip_forward") == "1"
    assert world.host.get("ipv6/conf/all/forwarding") == "1"
    world.lan.ip("route add 172.31.0.0/16 via 10.9.0.1")
    with world.far.listen(7300, "0.0.0.0"), world.lan.listen(7300):
        assert not world.lan.reaches(netns.FAR.address, 7300)
        assert world.box.reaches("10.9.0.2", 7300)
        firewall.close()  # the next engine finds routing on, and keeps the fence
        with world.host.inside():
            firewall.open()
        firewall.settle()
        assert not world.lan.reaches(netns.FAR.address, 7300)


def test_a_host_that_routes_goes_on_as_before(world: World, firewall: Firewall) -> None:
    world.host.set("ipv4/ip_forward", "1")
    start(world, firewall)
    world.lan.ip("route add 172.31.0.0/16 via 10.9.0.1")
    with world.far.listen(7301, "0.0.0.0"):
        assert world.lan.reaches(netns.FAR.address, 7301)


def test_an_internal_network_reaches_its_host_and_itself_alone(
    world: World, firewall: Firewall
) -> None:
    with world.host.inside():
        firewall.open()
        firewall.attach(Bridge("dockpy0", "172.30.0.0/16", "fd30::/64", internal=True))
        firewall.allow(netns.BOX, netns.OTHER)
    with world.lan.listen(7302), world.other.listen(7302), world.host.listen(7303):
        assert world.box.reaches(netns.OTHER.address, 7302)
        assert world.box.reaches("172.30.0.1", 7303)
        for address in ("10.9.0.2", "fd09::2"):
            assert not world.box.reaches(address, 7302)
