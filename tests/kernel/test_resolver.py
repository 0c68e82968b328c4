"""The resolver of user networks, asked by real clients across real links."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dockpy.errors import Conflict, KernelError
from dockpy.network import dnsconnections, upstream
from dockpy.network.dnswire import (
    HEADER,
    Query,
    Rcode,
    Type,
    address_answer,
    parse_query,
    read_name,
    read_records,
    renumbered,
    wire_name,
)
from dockpy.network.resolver import Resolver
from nameserver import always, refusing, serving, silent
from netns import Namespace, World
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip")

GATEWAY, LAN = "172.30.0.1", "10.9.0.2"


class Book:
    """Names as the engine gives them."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], list[str]] = {
            ("net", "web"): ["172.30.0.2"],
            ("net", "db"): ["172.30.0.3", "fd30::3"],
            ("net", "many"): [f"172.30.1.{number}" for number in range(100)],
            ("net", "gone"): [],
            ("inside", "far"): ["172.31.0.2"],
        }
        self.own_servers: list[str] = []
        self.asked: list[tuple[str, str, str]] = []

    def addresses(self, network: str, name: str, client: str) -> Sequence[str] | None:
        self.asked.append((network, name, client))
        if name == "broken":
            raise KeyError(name)
        return self.known.get((network, name))

    def name(self, network: str, address: str) -> str | None:
        return {("net", "172.30.0.2"): "web.net"}.get((network, address))

    def servers(self, network: str, client: str) -> Sequence[str]:
        return self.own_servers


@pytest.fixture(scope="module")
def world(_module_leaves_nothing: None) -> Iterator[World]:
    made = World()
    made.lan.ip("addr add 10.9.0.3/24 dev eth0", "addr add 10.9.0.4/24 dev eth0")
    yield made
    made.close()


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def resolver(world: World, book: Book) -> Iterator[Resolver]:
    """Listening on both networks; the second is internal. Passes on to the neighbour."""
    made = Resolver(book)
    with world.host.inside():
        made.listen("net", GATEWAY, within="172.30.0.0/16", internal=False)
        made.listen("net", "fd30::1", within="fd30::/64", internal=False)
        made.listen("inside", "172.31.0.1", within="172.31.0.0/16", internal=True)
    made.servers([LAN])
    yield made
    made.close()


def asked(name: str, kind: int = Type.A, ident: int = 77, udp: int = 0) -> bytes:
    data = HEADER.pack(ident, 0x0100, 1, 0, 0, int(udp > 0)) + wire_name(name)
    data += kind.to_bytes(2, "big") + b"\0\1"
    return data + (b"\0\0\x29" + udp.to_bytes(2, "big") + bytes(6) if udp else b"")


def read(data: bytes) -> tuple[int, list[str]]:
    """The code of an answer, and its addresses."""
    _, flags, questions, count, _, _ = HEADER.unpack_from(data)
    end = read_name(data, 12)[1] + 4 if questions else 12
    found = [
        socket.inet_ntop({4: socket.AF_INET, 16: socket.AF_INET6}[len(each.data)], each.data)
        for each in read_records(data, end, count)
        if each.type in (Type.A, Type.AAAA)
    ]
    return flags & 0xF, found


def ask(
    client: Namespace, name: str, kind: int = Type.A, server: str = GATEWAY
) -> tuple[int, list[str]]:
    """One datagram there, one back."""
    with client.datagrams("::" if ":" in server else "0.0.0.0") as udp:
        udp.settimeout(patient(8))
        udp.sendto(asked(name, kind), (server, 53))
        return read(udp.recv(65535))


def ask_tcp(client: Namespace, name: str) -> tuple[int, list[str]]:
    with client.connect(GATEWAY, 53) as tcp:
        return read(exchange(tcp, asked(name)))


def exchange(tcp: socket.socket, data: bytes) -> bytes:
    tcp.sendall(len(data).to_bytes(2, "big") + data)
    return receive(tcp)


def receive(tcp: socket.socket) -> bytes:
    size = int.from_bytes(tcp.recv(2, socket.MSG_WAITALL), "big")
    return tcp.recv(size, socket.MSG_WAITALL)


def library(
    client: Namespace, tmp_path: Path, *command: str, options: str = ""
) -> subprocess.CompletedProcess[str]:
    """A program whose C library reads a resolv.conf of ours, as in a container."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {GATEWAY}\n{options}")
    place = f"--net=/proc/self/fd/{client.descriptor}"
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return subprocess.run(
        ["nsenter", place, "unshare", "-m", "sh", "-c", script, str(conf), *command],
        capture_output=True,
        text=True,
        check=False,
        pass_fds=(client.descriptor,),
        timeout=patient(30),
    )


# -- names of the network ----------------------------------------------------------------------


def test_a_container_is_found_by_name_on_its_network_alone(
    world: World, resolver: Resolver, book: Book
) -> None:
    assert ask(world.other, "web") == (0, ["172.30.0.2"])
    assert book.asked == [("net", "web", "172.30.0.3")]
    assert ask(world.far, "far", server="172.31.0.1") == (0, ["172.31.0.2"])
    assert ask(world.far, "web", server="172.31.0.1") == (Rcode.NXDOMAIN, [])


def test_names_resolve_in_both_versions_of_ip_and_over_both(
    world: World, resolver: Resolver
) -> None:
    assert ask(world.box, "db", Type.AAAA) == (0, ["fd30::3"])
    assert ask(world.box, "db", Type.A, server="fd30::1") == (0, ["172.30.0.3"])
    assert ask(world.box, "web", Type.AAAA) == (0, [])
    assert ask(world.box, "gone") == (0, [])


def test_the_c_library_finds_names_and_addresses(
    world: World, resolver: Resolver, tmp_path: Path
) -> None:
    found = library(world.box, tmp_path, "getent", "ahosts", "DB").stdout
    assert {line.split()[0] for line in found.splitlines()} == {"172.30.0.3", "fd30::3"}
    assert library(world.box, tmp_path, "getent", "ahosts", "web").stdout.startswith("172.30.0.2")
    assert "web.net" in library(world.box, tmp_path, "getent", "hosts", "172.30.0.2").stdout
    assert library(world.box, tmp_path, "getent", "hosts", "172.30.9.9").returncode == 2


def test_a_name_with_very_many_addresses_is_finished_over_tcp(
    world: World, resolver: Resolver, tmp_path: Path
) -> None:
    found = library(world.box, tmp_path, "getent", "ahostsv4", "many").stdout
    assert len({line.split()[0] for line in found.splitlines()}) == 100
    found = library(world.box, tmp_path, "getent", "ahostsv4", "web", options="options use-vc\n")
    assert found.stdout.startswith("172.30.0.2")


@pytest.mark.needs("musl")
def test_musl_finds_a_name_that_has_one_version_of_ip_only(
    world: World, resolver: Resolver, tmp_path: Path
) -> None:
    source, program = tmp_path / "find.c", tmp_path / "find"
    source.write_text(FIND)
    subprocess.run(["musl-gcc", "-static", "-o", program, source], check=True)
    assert library(world.box, tmp_path, str(program), "web").stdout == "172.30.0.2\n"
    assert "fd30::3\n" in library(world.box, tmp_path, str(program), "db").stdout


FIND = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char text[64];
    if (getaddrinfo(argv[1], 0, &hints, &found) != 0) return 1;
    for (; found; found = found->ai_next) {
        getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        puts(text);
    }
    return 0;
}
"""


def test_names_that_cannot_be_looked_up_are_a_server_failure_and_no_end(
    world: World, resolver: Resolver
) -> None:
    assert ask(world.box, "broken") == (Rcode.SERVFAIL, [])
    assert ask(world.box, "web") == (0, ["172.30.0.2"])


def test_who_is_not_of_the_network_gets_no_answer(world: World, resolver: Resolver) -> None:
    world.lan.ip("route add 172.30.0.0/16 via 10.9.0.1")
    try:
        with world.lan.datagrams() as udp:
            udp.settimeout(0.3)
            udp.sendto(asked("web"), (GATEWAY, 53))
            with pytest.raises(TimeoutError):
                udp.recv(512)
        with world.lan.connect(GATEWAY, 53) as tcp:
            assert tcp.recv(2) == b""
    finally:
        world.lan.ip("route del 172.30.0.0/16")


# -- names of others ---------------------------------------------------------------------------


def test_other_names_are_passed_on_by_the_way_they_came(world: World, resolver: Resolver) -> None:
    with serving(world.lan, LAN, always("192.0.2.7", "2001:db8::7")) as server:
        assert ask(world.box, "example.test") == (0, ["192.0.2.7"])
        assert ask(world.box, "Printer", Type.AAAA) == (0, ["2001:db8::7"])
        assert ask_tcp(world.box, "example.test") == (0, ["192.0.2.7"])
        assert [query.name for query in server.heard] == ["example.test", "printer", "example.test"]
        assert len(server.ports) == 2  # datagrams


def test_an_internal_network_passes_nothing_on(world: World, resolver: Resolver) -> None:
    with serving(world.lan, LAN, always("192.0.2.7")) as server:
        for name in ("example.test", "web"):
            for kind in (Type.A, Type.AAAA):
                assert ask(world.far, name, kind, "172.31.0.1") == (Rcode.NXDOMAIN, [])
        assert not server.heard


def test_the_next_server_is_asked_when_one_refuses_or_is_not_there(
    world: World, resolver: Resolver
) -> None:
    resolver.servers([LAN, "10.9.0.3", "10.9.0.4"])  # nobody is at the second
    with (
        serving(world.lan, LAN, refusing(Rcode.REFUSED)) as first,
        serving(world.lan, "10.9.0.4", always("192.0.2.7")),
    ):
        assert ask(world.box, "a.test") == (0, ["192.0.2.7"])
        assert ask_tcp(world.box, "a.test") == (0, ["192.0.2.7"])
        assert len(first.heard) == 2


def test_a_silent_server_is_given_up_and_asked_last_from_then_on(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "PATIENCE", patient(0.1))
    resolver.servers([LAN, "10.9.0.3"])
    with (
        serving(world.lan, LAN, silent) as first,
        serving(world.lan, "10.9.0.3", always("192.0.2.7")),
    ):
        assert ask(world.box, "a.test") == (0, ["192.0.2.7"])
        assert ask(world.box, "b.test") == (0, ["192.0.2.7"])
        assert [query.name for query in first.heard] == ["a.test"]


def test_a_refusal_is_told_when_nobody_had_better_and_silence_is_a_failure(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "PATIENCE", patient(0.05))
    assert ask(world.box, "a.test") == (Rcode.SERVFAIL, [])  # nobody is there
    with serving(world.lan, LAN, refusing(Rcode.REFUSED)):
        assert ask(world.box, "a.test") == (Rcode.REFUSED, [])
    with serving(world.lan, LAN, silent) as server:
        assert ask(world.box, "a.test") == (Rcode.SERVFAIL, [])
        assert ask_tcp(world.box, "a.test") == (Rcode.SERVFAIL, [])
        assert len(server.heard) >= upstream.TRIES
    resolver.servers([])
    assert ask(world.box, "a.test") == (Rcode.SERVFAIL, [])
    resolver.servers([GATEWAY])  # itself
    assert ask(world.box, "a.test") == (Rcode.SERVFAIL, [])


def test_an_answer_to_another_question_is_not_taken(world: World, resolver: Resolver) -> None:
    def lies_first(query: Query) -> list[bytes]:
        bad = address_answer(query, ["192.0.2.66"], 60)
        other = parse_query(asked("evil.test", ident=query.ident))
        wrong = address_answer(other, ["192.0.2.66"], 60)
        right = address_answer(query, ["192.0.2.7"], 60)
        return [renumbered(bad, query.ident ^ 1), wrong, query.data, b"", b"x", right]

    with serving(world.lan, LAN, lies_first):
        assert ask(world.box, "a.test") == (0, ["192.0.2.7"])


def test_ports_and_ids_of_what_is_passed_on_are_drawn(world: World, resolver: Resolver) -> None:
    with serving(world.lan, LAN, always("192.0.2.7")) as server:
        for _ in range(20):
            ask(world.box, "a.test")
        assert len(set(server.ports)) > 10
        assert len({query.ident for query in server.heard}) > 10


def test_servers_come_from_the_container_or_from_the_hosts_file_as_it_is_now(
    world: World, book: Book, tmp_path: Path
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.53\n")
    made = Resolver(book, conf)
    with world.host.inside():
        made.listen("net", GATEWAY, within="172.30.0.0/16", internal=False)
    try:
        with (
            serving(world.host, "127.0.0.53", always("192.0.2.53")),
            serving(world.lan, LAN, always("192.0.2.7")),
            serving(world.lan, "10.9.0.3", always("192.0.2.8")),
        ):
            assert ask(world.box, "a.test") == (0, ["192.0.2.53"])
            fresh = tmp_path / "fresh"
            fresh.write_text(f"nameserver {LAN}\n")
            os.replace(fresh, conf)
            assert ask(world.box, "a.test") == (0, ["192.0.2.7"])
            book.own_servers = ["10.9.0.3"]
            assert ask(world.box, "a.test") == (0, ["192.0.2.8"])
    finally:
        made.close()


# -- limits ------------------------------------------------------------------------------------


def test_a_client_with_many_open_questions_keeps_nobody_else_waiting(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One floods; it is told so, another still has its name passed on and local names answered."""

    def only_b(query: Query) -> list[bytes]:
        return [address_answer(query, ["192.0.2.7"], 60)] if query.name == "b.test" else []

    monkeypatch.setattr(upstream, "PER_CLIENT", 20)
    monkeypatch.setattr(upstream, "IN_ALL", 20)
    with serving(world.lan, LAN, only_b), world.box.datagrams() as flood:
        for number in range(60):
            flood.sendto(asked(f"a{number}.test", ident=number), (GATEWAY, 53))
        refused = {int.from_bytes(flood.recv(512)[:2], "big") for _ in range(40)}
        assert refused == set(range(20, 60))
        assert ask(world.other, "b.test") == (0, ["192.0.2.7"])
        assert ask(world.box, "web") == (0, ["172.30.0.2"])
        # The place came from the one that had the most: its oldest.
        assert flood.recv(512)[:2] == bytes(2)


def test_one_connection_takes_many_questions_at_once(world: World, resolver: Resolver) -> None:
    with world.box.connect(GATEWAY, 53) as tcp:
        data = b"".join(
            len(one).to_bytes(2, "big") + one
            for one in (asked("web", ident=number) for number in range(100))
        )
        for part in (data[:1], data[1:50], data[50:]):
            tcp.sendall(part)
        tcp.shutdown(socket.SHUT_WR)
        assert {receive(tcp)[:2] for _ in range(100)} == {
            number.to_bytes(2, "big") for number in range(100)
        }
        assert tcp.recv(1) == b""


def test_a_new_connection_takes_the_place_of_the_one_idle_longest(
    world: World, resolver: Resolver
) -> None:
    opened = [world.box.connect(GATEWAY, 53) for _ in range(dnsconnections.PER_CLIENT)]
    try:
        for tcp in opened:
            exchange(tcp, asked("web"))
        exchange(opened[0], asked("web"))
        assert ask_tcp(world.box, "web") == (0, ["172.30.0.2"])
        assert opened[1].recv(1) == b""
        assert read(exchange(opened[0], asked("web")))[0] == 0
    finally:
        for tcp in opened:
            tcp.close()


def test_a_connection_that_says_nothing_whole_is_closed(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsconnections, "IDLE", 0.2)
    with world.box.connect(GATEWAY, 53) as tcp:
        tcp.sendall(b"\0")
        assert tcp.recv(1) == b""


def test_a_client_that_takes_no_answers_is_not_read_for_ever(
    world: World, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsconnections, "IDLE", 0.5)
    one = asked("many")
    data = (len(one).to_bytes(2, "big") + one) * 1_000_000
    with world.box.connect(GATEWAY, 53) as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises((ConnectionError, TimeoutError)):
            tcp.sendall(data)
    assert ask(world.box, "web") == (0, ["172.30.0.2"])


def test_garbage_by_both_ways_leaves_the_resolver_answering(
    world: World, resolver: Resolver
) -> None:
    source = random.Random(5)
    seed = asked("web", udp=1232)
    with world.box.datagrams() as udp:
        for _ in range(1000):
            data = bytearray(seed)
            for _ in range(source.randrange(1, 5)):
                data[source.randrange(len(data))] = source.randrange(256)
            cut = source.randrange(1, len(data) + 1)
            udp.sendto(data[:cut] + source.randbytes(source.randrange(3)), (GATEWAY, 53))
    for _ in range(20):
        with world.box.connect(GATEWAY, 53) as tcp:
            tcp.sendall(source.randbytes(source.randrange(1, 400)))
    assert ask(world.box, "web") == (0, ["172.30.0.2"])
    assert ask_tcp(world.box, "web") == (0, ["172.30.0.2"])


# -- beginning and end -------------------------------------------------------------------------


def test_who_has_the_port_is_named_and_nothing_is_left(world: World, book: Book) -> None:
    made = Resolver(book)
    for taken in (world.host.datagrams("0.0.0.0", 53), world.host.listen(53, "0.0.0.0")):
        named = rf"172\.30\.0\.1 .*\(pid {os.getpid()}\)"
        with taken, world.host.inside(), pytest.raises(Conflict, match=named):
            made.listen("net", GATEWAY, within="172.30.0.0/16", internal=False)
    with world.host.inside():
        with pytest.raises(KernelError) as caught:
            made.listen("net", "172.29.0.1", within="172.29.0.0/16", internal=False)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        made.listen("net", GATEWAY, within="172.30.0.0/16", internal=False)
    made.close()
    made.close()


def test_a_forgotten_network_is_closed_at_once_and_can_come_again(
    world: World, resolver: Resolver
) -> None:
    query = asked("a.test")
    with serving(world.lan, LAN, silent) as server, world.box.connect(GATEWAY, 53) as tcp:
        tcp.sendall(len(query).to_bytes(2, "big") + query)
        with world.box.datagrams() as udp:
            udp.sendto(query, (GATEWAY, 53))
            deadline = time.monotonic() + patient(5)
            while len(server.heard) < 2 and time.monotonic() < deadline:
                time.sleep(0.005)
            assert len(server.heard) >= 2  # both ways have one under way
        resolver.forget("net")
        assert tcp.recv(1) == b""
        assert not world.box.reaches(GATEWAY, 53)
        assert ask(world.far, "far", server="172.31.0.1") == (0, ["172.31.0.2"])
    with world.host.inside():
        resolver.listen("net", GATEWAY, within="172.30.0.0/16", internal=True)
    assert ask(world.box, "web") == (0, ["172.30.0.2"])
    assert ask(world.box, "a.test") == (Rcode.NXDOMAIN, [])
