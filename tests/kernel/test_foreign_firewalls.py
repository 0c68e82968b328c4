"""Beside firewalls of others: their chains may drop by default, and they may flush everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from dockpy.network.bridges import inner_bridges
from dockpy.network.entries import Bridge
from dockpy.network.firewall import Firewall
from netns import World, guarded
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip", "iptables")


@pytest.fixture(scope="module", params=[False, True], ids=["bridge", "bridge-through-rules"])
def world(request: pytest.FixtureRequest, module_leaves_nothing: None) -> Iterator[World]:
    made = World(bridged_through_rules=request.param)
    yield made
    made.close()


@pytest.fixture(name="firewall")
def opened(world: World) -> Iterator[Firewall]:
    firewall = guarded(world, Bridge("dockpy0", "172.30.0.0/16", "fd30::/64"))
    yield firewall
    firewall.close(remove=True)
    for program in ("iptables-nft", "ip6tables-nft"):
        world.host.run(program, "-P", "FORWARD", "ACCEPT")
        world.host.run(program, "-F")
        world.host.run(program, "-X")


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


@pytest.mark.parametrize("chain", ["FORWARD", "DOCKER-USER"])
def test_what_others_refuse_by_a_rule_stays_refused(
    world: World, firewall: Firewall, chain: str
) -> None:
    if chain != "FORWARD":
        world.host.run("iptables-nft", "-N", chain)
        world.host.run("iptables-nft", "-A", "FORWARD", "-j", chain)
    world.host.run("iptables-nft", "-A", chain, "-d", "10.9.0.2", "-j", "DROP")
    drop_by_default(world)
    assert soon(lambda: len([line for line in rules(world) if "dockpy0" in line]) == 2)
    with world.lan.listen(7004, "::"):
        assert not world.box.reaches("10.9.0.2", 7004)
        assert soon(lambda: world.box.reaches("fd09::2", 7004))


def test_what_only_a_default_kept_from_our_containers_stays_kept(
    world: World, firewall: Firewall
) -> None:
    """As Docker did before version 27: rules that accept, and the default for everything else."""
    for words in ("-o dockpy1 -p tcp --dport 7006", "-i dockpy1 ! -o dockpy1"):
        world.host.run("iptables-nft", "-A", "FORWARD", *words.split(), "-j", "ACCEPT")
    with world.far.listen(7005, "0.0.0.0"):
        assert world.box.reaches("172.31.0.2", 7005)
        drop_by_default(world)
        assert soon(lambda: any("-i dockpy0" in line for line in rules(world)))
        assert not world.box.reaches("172.31.0.2", 7005)
        with world.lan.listen(7005, "0.0.0.0"):
            assert world.box.reaches("10.9.0.2", 7005)
        # What the other engine publishes is its to judge.
        with world.far.listen(7006, "0.0.0.0"):
            nat = "-d 10.9.0.1 -p tcp --dport 7007 -j DNAT --to-destination 172.31.0.2:7006"
            world.host.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", *nat.split())
            try:
                assert world.box.reaches("10.9.0.1", 7007)
            finally:
                world.host.run("iptables-nft", "-t", "nat", "-F")


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


def test_a_hand_written_chain_that_drops_is_told_and_left_alone(
    world: World, firewall: Firewall, caplog: pytest.LogCaptureFixture
) -> None:
    chain = "{ type filter hook forward priority 0; policy drop; }"
    world.host.run("nft", f"add table inet site; add chain inet site passing {chain}")
    try:
        assert soon(lambda: "inet site passing drops by default" in caplog.text)
        assert "goes to dockpy0" in caplog.text
        assert "dockpy" not in world.host.run("nft", "list", "table", "inet", "site")
    finally:
        world.host.run("nft", "delete", "table", "inet", "site")


def told(world: World, firewall: Firewall) -> list[str]:
    with world.host.inside():
        return firewall.obstacles()


def test_a_chain_that_drops_is_an_obstacle_as_long_as_it_is_there(
    world: World, firewall: Firewall
) -> None:
    assert told(world, firewall) == []
    chain = "{ type filter hook forward priority 0; policy drop; }"
    world.host.run("nft", f"add table inet site; add chain inet site passing {chain}")
    try:
        (one,) = told(world, firewall)
        assert "chain inet site passing drops by default" in one
    finally:
        world.host.run("nft", "delete", "table", "inet", "site")
    assert told(world, firewall) == []


def test_firewalld_is_an_obstacle_until_the_bridge_has_a_zone(
    world: World, firewall: Firewall
) -> None:
    chain = "{ type filter hook forward priority 10; policy accept; }"
    world.host.run("nft", f"add table inet firewalld; add chain inet firewalld forward {chain}")
    try:
        world.host.run("nft", "add rule inet firewalld forward reject with icmpx admin-prohibited")
        (one,) = told(world, firewall)
        assert "--zone=trusted --add-interface=dockpy0" in one
        world.host.run("nft", "insert rule inet firewalld forward iifname dockpy0 accept")
        assert told(world, firewall) == []
    finally:
        world.host.run("nft", "delete", "table", "inet", "firewalld")


def test_the_old_iptables_is_an_obstacle_until_it_lets_the_bridge_pass(
    world: World, firewall: Firewall
) -> None:
    try:
        world.host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    except AssertionError as missing:
        pytest.skip(f"no iptables-legacy here: {missing}")
    try:
        (one,) = told(world, firewall)
        assert one.startswith("iptables-legacy drops what is forwarded for dockpy0")
        for direction in ("-i", "-o"):
            world.host.run("iptables-legacy", "-I", "FORWARD", direction, "dockpy0", "-j", "ACCEPT")
        assert told(world, firewall) == []
    finally:
        world.host.run("iptables-legacy", "-F")
        world.host.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")


def test_bridges_with_a_way_elsewhere_are_not_inner_ones(world: World) -> None:
    world.host.ip(
        "link add outer type bridge",
        "link add name lane7 type vxlan id 7 dstport 4789",
        "link set lane7 master outer",
    )
    try:
        with world.host.inside():
            names = ["dockpy0", "dockpy1", "outer", "eth0", "lo", "gone"]
            assert inner_bridges(names) == {"dockpy0", "dockpy1"}
    finally:
        world.host.ip("link del lane7", "link del outer")
