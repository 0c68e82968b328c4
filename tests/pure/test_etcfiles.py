from __future__ import annotations

import pytest

from dockpy.errors import UsageError
from dockpy.etcfiles import hosts, resolv


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


@pytest.mark.parametrize("pair", ["nocolon", ":1.2.3.4", "name:"])
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
    assert text.splitlines() == ["search b.test c.test", "nameserver 192.0.2.1"]
