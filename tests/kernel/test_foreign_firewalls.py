"""Beside firewalls of others: their chains may drop by default, and they may flush everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from netns import World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip", "iptables")


@pytest.fixture(scope="module", params=[False, True], ids=["bridge", "bridge-through-rules"])
def world(request: pytest.FixtureRequest, module_leaves_nothing: None) -> Iterator[World]:
    made = World(bridged_through_rules=request.param)
    yield made
    made.close()


@pytest.fixture(name="firewall")
def opened(world: World) -> Iterator[Firewall]:
    firewall = Firewall("dockpy-test")
    with world.host.inside():
        firewall.open()
        firewall.attach(Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"))
        firewall.allow("172.30.0.2", "v2", "fd30::2")
        firewall.allow("172.30.0.3", "v3", "fd30::3")
    yield firewall
    firewall.close(remove=True)
    for program in ("iptables-nft", "ip6tables-nft"):
        world.host.run(program, "-P", "FORWARD", "ACCEPT")
        world.host.run(program, "-F", "FORWARD")


def drop_by_default(world: World) -> None:
    for program in ("iptables-nft", "ip6tables-nft"):
        world.host.run(program, "-P", "FORWARD", "DROP")


def soon(check: Callable[[], object]) -> bool:
    deadline = time.monotonic() + patient(5)
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def rules(world: World, program: str = "iptables-nft") -> list[str]:
    return [line for line in world.host.run(program, "-S", "FORWARD").splitlines() if "-A" in line]


@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_containers_go_out_though_another_firewall_drops_by_default(
    world: World, firewall: Firewall, address: str
) -> None:
    drop_by_default(world)
    with world.lan.listen(7000, "::") as server:
        server.settimeout(patient(5))
        assert soon(lambda: world.box.reaches(address, 7000))


def test_containers_of_one_bridge_still_talk(world: World, firewall: Firewall) -> None:
    drop_by_default(world)
    with world.other.listen(7001, "0.0.0.0"):
        assert soon(lambda: world.box.reaches("172.30.0.3", 7001))


def test_what_our_own_tables_refuse_stays_refused(world: World, firewall: Firewall) -> None:
    drop_by_default(world)
    with world.box.listen(7002, "0.0.0.0"):
        assert soon(lambda: len(rules(world)) == 2)
        assert not world.lan.reaches("172.30.0.2", 7002)


def test_iptables_reads_and_lists_our_rules(world: World, firewall: Firewall) -> None:
    drop_by_default(world)
    assert soon(lambda: len(rules(world)) == 2)
    shown = rules(world)
    assert sorted(line.split()[2:4] for line in shown) == [["-i", "dockpy0"], ["-o", "dockpy0"]]
    assert all("dockpy-test: " in line and line.endswith("-j ACCEPT") for line in shown)
    assert soon(lambda: len(rules(world, "ip6tables-nft")) == 2)


def test_a_chain_that_accepts_is_left_alone(world: World, firewall: Firewall) -> None:
    drop_by_default(world)
    assert soon(lambda: rules(world))
    world.host.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
    assert soon(lambda: not rules(world))


def test_our_rules_go_with_the_bridge(world: World, firewall: Firewall) -> None:
    drop_by_default(world)
    assert soon(lambda: len(rules(world)) == 2)
    with world.host.inside():
        firewall.detach(Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"))
    assert rules(world) == []


def test_rules_of_others_are_not_touched(world: World, firewall: Firewall) -> None:
    drop_by_default(world)
    world.host.run("iptables-nft", "-A", "FORWARD", "-i", "eth9", "-j", "ACCEPT")
    assert soon(lambda: len(rules(world)) == 3)
    firewall.close(remove=True)
    assert rules(world) == ["-A FORWARD -i eth9 -j ACCEPT"]


def test_after_a_flush_of_everything_the_tables_are_put_back(
    world: World, firewall: Firewall
) -> None:
    drop_by_default(world)
    world.host.run("nft", "flush", "ruleset")
    assert soon(firewall.check)
    with world.box.listen(7003, "0.0.0.0"):
        assert not world.lan.reaches("172.30.0.2", 7003)
    assert soon(lambda: firewall.restored >= 1)
