from __future__ import annotations

import pytest

from dockpy.errors import UsageError
from dockpy.etcfiles import asks_itself, hosts, nameservers, resolv


def test_hosts_names_localhost_and_the_container_itself() -> None:
    lines = hosts("box", "", ()).splitlines()
    assert "127.0.0.1\tlocalhost" in lines
    assert lines[-1].split() == ["127.0.1.1", "box"]


def test_domain_name_comes_before_the_short_name() -> None:
    assert hosts("box", "example.test", ()).splitlines()[-1].split()[1:] == [
        "box.example.test",
        "box",
    ]


def test_extra_hosts_keep_ipv6_addresses_whole() -> None:
    assert "::5\tdb\n" in hosts("box", "", ("db:::5",))


@pytest.mark.parametrize(
    "pair", ["nocolon", ":1.2.3.4", "name:", "a b:1.2.3.4", "a\n:1.2.3.4", "a:db", "=", ""]
)
def test_bad_extra_host_is_named(pair: str) -> None:
    with pytest.raises(UsageError, match="NAME:ADDRESS"):
        hosts("box", "", (pair,))


def test_resolver_text_is_the_hosts_own_when_nothing_is_asked() -> None:
    assert resolv("nameserver 192.0.2.1\n", (), ()) == "nameserver 192.0.2.1\n"


def test_given_servers_replace_the_hosts_and_keep_its_search() -> None:
    text = resolv("search a.test\nnameserver 192.0.2.1\noptions ndots:2\n", ("192.0.2.9",), ())
    assert text.splitlines() == ["nameserver 192.0.2.9", "search a.test", "options ndots:2"]


def test_given_search_replaces_the_hosts_search() -> None:
    text = resolv("search a.test\nnameserver 192.0.2.1\n", (), ("b.test", "c.test"))
    assert text.splitlines() == ["nameserver 192.0.2.1", "search b.test c.test"]


def test_every_address_of_the_container_has_its_names_and_aliases() -> None:
    text = hosts("box", "", (), addresses=("172.30.0.2", "fd30::2"), aliases=("web", "box", "w"))
    assert text.splitlines()[-2:] == ["172.30.0.2\tbox web w", "fd30::2\tbox web w"]


def test_extra_hosts_take_either_sign_and_brackets() -> None:
    text = hosts("box", "", ("db=10.0.0.1", "six:[fd00::1]", "seven=fd00::2"))
    assert text.splitlines()[-3:] == ["10.0.0.1\tdb", "fd00::1\tsix", "fd00::2\tseven"]


def test_the_word_host_gateway_is_the_host_in_every_version_of_ip() -> None:
    text = hosts("box", "", ("up:host-gateway",), gateways=("172.30.0.1", "fd30::1"))
    assert text.splitlines()[-2:] == ["172.30.0.1\tup", "fd30::1\tup"]
    with pytest.raises(UsageError, match="no way to the host"):
        hosts("box", "", ("up:host-gateway",))


STUB = "# made by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan.test\n"
BEHIND = "nameserver 192.0.2.1\nnameserver fe80::1%eth0\n"


def test_a_loopback_server_is_kept_where_the_hosts_network_is_shared() -> None:
    assert resolv(STUB, (), ()) == STUB


def test_behind_a_loopback_server_those_of_systemd_are_taken() -> None:
    text = resolv(STUB, (), (), own_network=True, systemd_text=BEHIND, fallback=("172.30.0.1",))
    assert text.splitlines() == [
        "nameserver 192.0.2.1",
        "search lan.test",
        "options edns0 trust-ad",
    ]


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "fe80::1%eth0"])
def test_without_a_server_that_can_be_reached_the_fallback_is_asked(server: str) -> None:
    text = resolv(f"nameserver {server}\n", (), (), own_network=True, fallback=("172.30.0.1",))
    assert text == "nameserver 172.30.0.1\n"


@pytest.mark.parametrize(
    ("host", "systemd", "alone"),
    [
        ("nameserver 127.0.0.1\n", "", True),
        ("nameserver 127.0.0.1\nnameserver fe80::1%eth0\n", "nameserver ::1\n", True),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "", False),
        ("nameserver 127.0.0.53\n", BEHIND, False),
        ("search lan.test\n", "", False),
    ],
)
def test_a_host_asks_itself_when_all_its_servers_are_its_own(
    host: str, systemd: str, alone: bool
) -> None:
    assert asks_itself(host, systemd) is alone


def test_servers_that_can_be_reached_are_kept_without_the_others() -> None:
    both = "nameserver ::1\nnameserver 192.0.2.1\n"
    assert resolv(both, (), (), own_network=True, systemd_text=BEHIND) == "nameserver 192.0.2.1\n"
    fine = "# ours\nnameserver 192.0.2.1\n"
    assert resolv(fine, (), (), own_network=True) == fine


def test_given_servers_are_taken_as_they_are_loopback_too() -> None:
    assert resolv(STUB, ("127.0.0.1",), (".",), own_network=True).splitlines() == [
        "nameserver 127.0.0.1",
        "options edns0 trust-ad",
    ]


def test_the_networks_resolver_is_the_only_server_and_asks_for_short_names_first() -> None:
    text = resolv(
        "nameserver 192.0.2.1\nsearch lan.test\noptions ndots:2 timeout:3\n",
        ("192.0.2.9",),
        (),
        resolver=("172.31.0.1",),
        own_network=True,
    )
    assert text.splitlines() == [
        "nameserver 172.31.0.1",
        "search lan.test",
        "options timeout:3 ndots:0",
    ]


def test_a_given_option_replaces_the_hosts_of_its_name_and_the_others_stay() -> None:
    host = "nameserver 192.0.2.1\noptions ndots:2 timeout:3\noptions rotate\nsortlist 10.0.0.0\n"
    assert resolv(host, (), (), ("ndots:5", "rotate")).splitlines() == [
        "nameserver 192.0.2.1",
        "options timeout:3 ndots:5 rotate",
        "sortlist 10.0.0.0",
    ]
    assert "ndots:5" in resolv(host, (), (), ("ndots:5",), resolver=("172.31.0.1",))


def test_the_last_search_counts_and_only_addresses_are_servers() -> None:
    host = "domain a.test\nsearch b.test\n"
    host += ";nameserver 1.1.1.1\n nameserver\t192.0.2.1 x\nnameserver no\n"
    assert nameservers(host) == ["192.0.2.1"]
    assert "search b.test\n" in resolv(host, ("192.0.2.2",), ())
