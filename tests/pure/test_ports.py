"""What -p takes, and how published ports are shown."""

from __future__ import annotations

import pytest

from dockpy.errors import NotFound, UsageError
from dockpy.network.ports import (
    Binding,
    Published,
    binding_map,
    bindings,
    column,
    lookup,
    numbers,
    parse_expose,
    parse_publish,
    port_lines,
    port_map,
    spec_text,
)

WEB = Published(80, "tcp", "", 8080)
LOCAL = Published(53, "udp", "127.0.0.1", 5353)
LOCAL6 = Published(443, "tcp", "::1", 8443)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("80", [Binding(80)]),
        (":80", [Binding(80)]),
        ("0:80", [Binding(80)]),
        ("8080:80", [Binding(80, first=8080, last=8080)]),
        ("8080:80/UDP", [Binding(80, "udp", first=8080, last=8080)]),
        ("8080:80/sctp", [Binding(80, "sctp", first=8080, last=8080)]),
        ("127.0.0.1:8080:80", [Binding(80, "tcp", "127.0.0.1", 8080, 8080)]),
        ("127.0.0.1::80", [Binding(80, "tcp", "127.0.0.1")]),
        ("[::1]:8080:80", [Binding(80, "tcp", "::1", 8080, 8080)]),
        ("[::1]::80", [Binding(80, "tcp", "::1")]),
        ("::1:8080:80", [Binding(80, "tcp", "::1", 8080, 8080)]),
        ("[0:0:0:0:0:0:0:1]:8080:80", [Binding(80, "tcp", "::1", 8080, 8080)]),
        ("[::ffff:127.0.0.1]:8080:80", [Binding(80, "tcp", "127.0.0.1", 8080, 8080)]),
        ("0.0.0.0:8080:80", [Binding(80, "tcp", "0.0.0.0", 8080, 8080)]),
        ("8000-8010:80", [Binding(80, first=8000, last=8010)]),
        ("80-81", [Binding(80), Binding(81)]),
        (
            "8000-8001:80-81/udp",
            [
                Binding(80, "udp", first=8000, last=8000),
                Binding(81, "udp", first=8001, last=8001),
            ],
        ),
        ("published=8080,target=80", [Binding(80, first=8080, last=8080)]),
        (
            "target=53,published=5353,protocol=udp,host_ip=127.0.0.1,mode=host",
            [Binding(53, "udp", "127.0.0.1", 5353, 5353)],
        ),
        ("target=80", [Binding(80)]),
    ],
)
def test_every_way_of_publishing_is_understood(text: str, wanted: list[Binding]) -> None:
    assert list(parse_publish(text)) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a port"),
        ("http", "not a port"),
        ("80/icmp", "tcp, udp, sctp"),
        ("0", "from 1 to 65535"),
        ("65536", "from 1 to 65535"),
        ("8080:65536", "from 1 to 65535"),
        ("99999:80", "from 1 to 65535"),
        ("8010-8000:80", "goes backwards"),
        ("0-10:80", "begins at 1"),
        ("8000-8002:80-81", "same length"),
        ("localhost:8080:80", "not an IP address"),
        ("256.0.0.1:8080:80", "not an IP address"),
        ("[::1:8080:80", "[ADDRESS]:PORT:PORT"),
        ("[::1]80", "[ADDRESS]:PORT:PORT"),
        ("[::1]:80", "two colons"),
        ("224.0.0.1:80:80", "nothing can be published"),
        ("[fe80::1%eth0]:80:80", "nothing can be published"),
        ("٨٠", "not a port"),
        ("-80:80", "not a port"),
        ("8080: 80", "not a port"),
        ("published=8080", "target=PORT is missing"),
        ("target=80,port=8080", "none of"),
        ("target=80,mode=swarm", "host or ingress"),
    ],
)
def test_what_cannot_be_published_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_publish(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_repeats_nothing() -> None:
    with pytest.raises(UsageError, match=r"^'abc' is not a port such as"):
        parse_publish("abc")
    with pytest.raises(UsageError, match=r"^'80:abc': 'abc' is not a port such as"):
        parse_publish("80:abc")


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1", "fd09::1"])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (8080, 8080), (8000, 8010)])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_a_record_keeps_means_the_same(
    address: str, first: int, last: int, protocol: str
) -> None:
    one = Binding(80, protocol, address, first, last)
    assert parse_publish(spec_text(one)) == (one,)


def test_publish_all_adds_exposed_ports_that_are_not_named() -> None:
    found = bindings(["8080:80", "8080:80"], ["80/tcp", "53/udp"], publish_all=True)
    assert found == (Binding(80, first=8080, last=8080), Binding(53, "udp"))
    assert bindings(["8080:80"], ["53/udp"]) == found[:1]


def test_exposed_ranges_are_ports() -> None:
    assert parse_expose("7000-7002/udp") == ("7000/udp", "7001/udp", "7002/udp")


def test_port_shows_where_each_port_leads() -> None:
    lines = port_lines([WEB, LOCAL, LOCAL6])
    assert lines == [
        "53/udp -> 127.0.0.1:5353",
        "80/tcp -> 0.0.0.0:8080",
        "443/tcp -> [::1]:8443",
    ]
    assert port_lines([WEB], ipv6=True) == ["80/tcp -> 0.0.0.0:8080", "80/tcp -> [::]:8080"]


def test_port_of_one_port_is_found_or_not_found() -> None:
    assert lookup([WEB, LOCAL], "53/udp") == ["127.0.0.1:5353"]
    assert numbers([WEB, Published(80, "tcp", "::1", 8080)], "80") == ["8080"]
    for missing in ("53", "80/udp"):
        with pytest.raises(NotFound, match=missing):
            lookup([WEB, LOCAL], missing)


def test_ps_joins_runs_of_ports() -> None:
    run = [Published(7000 + n, "tcp", "", 8000 + n) for n in range(3)]
    assert column([*run, WEB], ["80/tcp", "9000/tcp", "9001/tcp"]) == (
        "0.0.0.0:8000-8002->7000-7002/tcp, 0.0.0.0:8080->80/tcp, 9000-9001/tcp"
    )


def test_inspect_shows_what_was_asked_and_what_was_given() -> None:
    assert port_map([WEB, LOCAL], ["80/tcp", "443/tcp"]) == {
        "443/tcp": None,
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5353"}],
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
    }
    asked = bindings(["8000-8010:80", "127.0.0.1::53/udp"])
    assert binding_map(asked) == {
        "53/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
        "80/tcp": [{"HostIp": "", "HostPort": "8000-8010"}],
    }
