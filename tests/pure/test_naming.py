from __future__ import annotations

import random

from dockpy.network.naming import Leases
from dockpy.network.values import BRIDGE, DEFAULT, Endpoint, Lease, Owner

NET, OTHER = "net" * 21, "oth" * 21


def endpoint(address: str, network: str = NET, *aliases: str, address6: str = "") -> Endpoint:
    return Endpoint(
        network=network,
        network_name=BRIDGE if network == DEFAULT else "app",
        bridge="br",
        cable="v",
        inside="eth0",
        index=1,
        address=address,
        prefix=16,
        gateway="172.30.0.1",
        hardware="",
        aliases=aliases,
        address6=address6,
    )


def lease(*endpoints: Endpoint, dns: tuple[str, ...] = ()) -> Lease:
    return Lease(endpoints=endpoints, dns=dns)


def owner(number: int, name: str) -> Owner:
    return Owner(f"{number:064x}", name)


def test_a_container_is_called_by_name_short_id_and_alias_on_its_network() -> None:
    leases = Leases()
    box = Owner("ab" * 32, "Web")
    leases[box.id] = box, lease(endpoint("172.30.0.2", NET, "Front", address6="fd30::2"))
    for name in ("web", "WEB", "abababababab", "front", "web.app", "Front.APP"):
        assert leases.addresses(NET, name, "") == ["172.30.0.2", "fd30::2"]
    assert leases.addresses(OTHER, "web", "") is None
    assert leases.addresses(NET, "app", "") is None
    assert leases.name(NET, "172.30.0.2") == leases.name(NET, "fd30::2") == "Web.app"
    assert leases.name(OTHER, "172.30.0.2") is None


def test_nobody_has_a_name_on_the_default_network() -> None:
    leases = Leases()
    box = owner(1, "web")
    leases[box.id] = box, lease(endpoint("172.30.0.2", DEFAULT))
    assert leases.addresses(DEFAULT, "web", "") is None
    assert leases.name(DEFAULT, "172.30.0.2") is None


def test_servers_are_those_of_the_container_that_asks() -> None:
    leases = Leases()
    one, two = owner(1, "one"), owner(2, "two")
    leases[one.id] = one, lease(endpoint("172.30.0.2"), dns=("192.0.2.1",))
    leases[two.id] = two, lease(endpoint("172.30.0.3"))
    assert leases.servers(NET, "172.30.0.2") == ("192.0.2.1",)
    assert leases.servers(NET, "172.30.0.3") == leases.servers(NET, "172.30.0.9") == ()


def test_a_link_is_a_name_for_the_linked_alone_and_comes_first() -> None:
    leases = Leases()
    one, two, three = owner(1, "one"), owner(2, "two"), owner(3, "three")
    leases[one.id] = one, lease(endpoint("172.30.0.2"))
    leases[three.id] = three, lease(endpoint("172.30.0.4"))
    linked = Lease(endpoints=(endpoint("172.30.0.3"),), links=(("DB", "One"), ("three", "one")))
    leases[two.id] = two, linked
    assert leases.addresses(NET, "db", "172.30.0.3") == ["172.30.0.2"]
    assert leases.addresses(NET, "three", "172.30.0.3") == ["172.30.0.2"]
    assert leases.addresses(NET, "db", "172.30.0.4") is None
    assert leases.addresses(NET, "three", "172.30.0.4") == ["172.30.0.4"]
    assert Lease.from_json(linked.to_json()) == linked
    old = linked.to_json()
    del old["links"]
    assert Lease.from_json(old).links == ()
    del leases[one.id]
    assert leases.addresses(NET, "db", "172.30.0.3") is None


def test_an_address_belongs_to_its_next_container_when_the_last_one_goes_later() -> None:
    leases = Leases()
    old, new = owner(1, "old"), owner(2, "new")
    leases[old.id] = old, lease(endpoint("172.30.0.2"))
    leases[new.id] = new, lease(endpoint("172.30.0.2"))
    del leases[old.id]
    assert leases.name(NET, "172.30.0.2") == "new.app"
    assert leases.addresses(NET, "old", "") is None


def test_a_changed_lease_keeps_what_stays_and_gains_what_is_new() -> None:
    leases = Leases()
    box, first = owner(1, "web"), endpoint("172.30.0.2")
    leases[box.id] = box, lease(first)
    leases[box.id] = box, lease(first, endpoint("172.31.0.2", OTHER, "back"))
    assert leases.addresses(NET, "web", "") == ["172.30.0.2"]
    assert leases.addresses(OTHER, "back", "") == ["172.31.0.2"]
    leases[box.id] = box, lease(first)
    assert leases.addresses(NET, "web", "") == ["172.30.0.2"]
    assert leases.addresses(OTHER, "web", "") is None
    assert leases.name(OTHER, "172.31.0.2") is None


def test_the_tables_say_what_the_leases_say_after_any_changes() -> None:
    """Compared with a look at every lease."""
    source = random.Random(3)
    leases = Leases()
    for step in range(600):
        box = owner(step % 40, f"c{step % 40}")
        if source.random() < 0.3:
            leases.pop(box.id, None)
        else:
            made = [
                endpoint(f"172.30.{step // 200}.{step % 200}", network, *aliases)
                for network in source.sample([NET, OTHER, DEFAULT], source.randrange(3))
                for aliases in [source.sample(["web", "db", "c1"], source.randrange(3))]
            ]
            leases[box.id] = box, lease(*made)
        for network in (NET, OTHER):
            for name in ("web", "db", "c1", "c7"):
                found = leases.addresses(network, name, "") or []
                slow = [
                    one.address
                    for who, what in leases.values()
                    for one in what.endpoints
                    if one.network == network and name in (who.name, *one.aliases)
                ]
                assert sorted(found) == sorted(slow)
    for each in list(leases):
        del leases[each]
    assert not leases
    assert all(leases.addresses(NET, name, "") is None for name in ("web", "db", "c1"))
