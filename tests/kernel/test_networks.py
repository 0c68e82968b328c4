"""Containers in networks, through the engine: addresses, names, ports, what is given back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dockpy import Config, Runtime
from dockpy.container import Container
from dockpy.errors import Conflict, KernelError, NotFound, UsageError
from dockpy.network.addresses import PoolExhausted
from dockpy.network.values import Wish
from engines import address_of, settled
from nameserver import always, serving
from netns import Namespace
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "ip", "overlay")

ANSWER = "while true; do echo hello from $(hostname) | nc -l -p 80; done"


def talk(address: str, port: int = 80) -> str:
    """Shell words that print what a server says; the server is away between two clients, and
    one that just leaves may take a connection and say nothing."""
    return (
        f'n=0; until said=$(nc {address} {port} </dev/null) && [ -n "$said" ]; do '
        'n=$((n+1)); [ $n -lt 300 ] || exit 1; usleep 10000; done; echo "$said"'
    )


@pytest.fixture(name="runtime")
def given(networked: Runtime) -> Runtime:
    return networked


@contextlib.contextmanager
def running(
    runtime: Runtime, *cmd: str, name: str | None = None, **values: object
) -> Iterator[Container]:
    config = Config(image="base", cmd=cmd or ("sleep", "600")).with_(**values)
    container = runtime.create(config, name)
    container.start()
    yield container
    runtime.destroy(container, force=True)
    settled(runtime)


def output(runtime: Runtime, script: str, **values: object) -> str:
    """What a program in a new container writes; it must end well."""
    container = runtime.create(Config(image="base", cmd=("sh", "-c", script)).with_(**values))
    try:
        text = container.output().decode()
        assert container.wait() == 0, text
        return text
    finally:
        runtime.destroy(container, force=True)
        settled(runtime)


def written(container: Container) -> str:
    """Its log."""
    return b"".join(entry.message for entry in container.read_log()).decode()


def ask(address: str, port: int, seconds: float = 5.0) -> str:
    """What a server says; tried until it listens."""
    deadline = time.monotonic() + patient(seconds)
    while True:
        try:
            with socket.create_connection((address, port), patient(2)) as client:
                return client.makefile().readline().strip()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


# -- addresses ---------------------------------------------------------------------------------


def test_a_container_has_an_address_a_route_and_its_name_in_etc_hosts(runtime: Runtime) -> None:
    script = "ip -4 -o addr show eth0 | awk '{print $4}'; ip route | head -1; tail -1 /etc/hosts"
    address, route, hosts = output(runtime, script, hostname="box").splitlines()
    network = runtime.networks.get("bridge")
    gateway = str(next(network.segments()).gateway)
    assert route.split()[:5] == ["default", "via", gateway, "dev", "eth0"]
    assert hosts.split() == [address.partition("/")[0], "box"]


def test_neighbours_are_known_and_never_asked_for(runtime: Runtime) -> None:
    assert "PERMANENT" in output(runtime, "ip neigh")


@contextlib.contextmanager
def frames(container: Container) -> Iterator[socket.socket]:
    """A socket for whole frames on a container's cable."""
    there = Namespace(own=False, process=str(container.state.pid))
    with closing(there), there.inside():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with link:
        link.bind(("eth0", 0))
        yield link


def test_the_host_learns_no_neighbours_past_the_bridge(runtime: Runtime) -> None:
    """Frames for a group of the bridge's own arrive at the host's end of the cable; there would be
    room for 1,024 neighbours of the whole host."""
    gateway = socket.inet_aton(str(next(runtime.networks.get("bridge").segments()).gateway))
    with running(runtime) as container, frames(container) as link:
        own = link.getsockname()[4]
        for last in (0, 2, 3, 0xE):
            who = own + socket.inet_aton(f"10.1.2.{last}")
            ask_for = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + who + bytes(6) + gateway
            link.send(b"\x01\x80\xc2\0\0" + bytes([last]) + own + b"\x08\x06" + ask_for)
        here = Namespace(own=False)
        with closing(here):
            assert "10.1.2." not in here.run("ip", "neigh")


def test_a_container_does_not_get_what_is_for_another(runtime: Runtime) -> None:
    """A bridge sends to where it last saw a hardware address as the sender, unless it is told."""
    server = ("sh", "-c", ANSWER)
    with running(runtime, *server, hostname="victim") as victim, running(runtime) as thief:
        address = address_of(runtime, victim)
        assert ask(address, 80) == "hello from victim"
        with frames(victim) as one, frames(thief) as link:
            stolen = one.getsockname()[4]
            own = socket.inet_aton(address_of(runtime, thief))
            packet = (
                struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + own + own[:3] + b"\xc8"
            )
            packet += struct.pack("!HHHH", 4000, 4000, 8, 0)
            for target in (b"\xff" * 6, b"\x01\x80\xc2\0\0\x0e", b"\x02aaaaa"):
                link.send(target + stolen + b"\x08\0" + packet)
            here = Namespace(own=False)
            with closing(here):
                learnt = here.run("bridge", "fdb").splitlines()
            places = {line.split()[2] for line in learnt if line.startswith(stolen.hex(":"))}
            assert len(places) == 1
        assert ask(address, 80) == "hello from victim"


def test_containers_reach_each_other_and_the_host_reaches_them(runtime: Runtime) -> None:
    with running(runtime, "sh", "-c", ANSWER, hostname="server") as server:
        address = address_of(runtime, server)
        assert ask(address, 80) == "hello from server"
        assert output(runtime, talk(address)) == "hello from server\n"


def test_addresses_that_were_used_are_given_back_and_used_again_late(runtime: Runtime) -> None:
    script = "nc 127.0.0.1 9 </dev/null; sleep 600"
    seen = set()
    for _ in range(3):
        with running(runtime, "sh", "-c", script) as container:
            seen.add(address_of(runtime, container))
            container.kill()
        assert runtime.networks.lease(container.id) is None
    assert len(seen) == 3


def test_a_full_network_says_so_by_name_and_has_room_again(runtime: Runtime) -> None:
    runtime.networks.create("tiny", subnet="10.77.7.0/29")
    with contextlib.ExitStack() as five:
        for _ in range(5):
            five.enter_context(running(runtime, network_mode="tiny"))
        sixth = runtime.create(Config(image="base", cmd=("true",), network_mode="tiny"))
        with pytest.raises(PoolExhausted, match="network tiny: every address"):
            sixth.start()
        assert any("network tiny: 5 of the 5 addresses" in one for one in runtime.info().warnings)
        assert sixth.state.status.value == "created"
    assert sixth.run() == 0
    settled(runtime)
    assert not any("network tiny" in one for one in runtime.info().warnings)


def test_an_asked_for_address_is_had_by_one_only(runtime: Runtime) -> None:
    runtime.networks.create("fixed", subnet="10.77.8.0/24", gateway="10.77.8.254")
    with running(runtime, network_mode="fixed", ip_address="10.77.8.9") as one:
        assert address_of(runtime, one) == "10.77.8.9"
        for wrong in ("10.77.8.9", "10.77.8.254", "10.77.8.0", "10.99.0.1"):
            with (
                pytest.raises(Conflict, match=wrong),
                running(runtime, network_mode="fixed", ip_address=wrong),
            ):
                pass
            for left in runtime.list()[:-1]:
                runtime.destroy(left)


def test_a_network_larger_than_a_bridge_goes_on_in_a_second_one(runtime: Runtime) -> None:
    network = runtime.networks.create("wide", subnet="10.80.0.0/21")
    with running(runtime, "sh", "-c", ANSWER, network_mode="wide", hostname="near") as near:
        far_address = "10.80.4.9"
        with running(
            runtime, "sh", "-c", ANSWER, network_mode="wide", ip_address=far_address, hostname="far"
        ):
            assert {f"{network.bridge}", f"{network.bridge}.4"} <= links()
            near_address = address_of(runtime, near)
            assert ask(far_address, 80) == "hello from far"
            script = talk(far_address)
            assert output(runtime, script, network_mode="wide") == "hello from far\n"
            other_way = output(
                runtime,
                talk(near_address),
                network_mode="wide",
                ip_address="10.80.4.10",
            )
            assert other_way == "hello from near\n"


def bridges() -> set[str]:
    """Links without cables: other engines replace those they have ready."""
    return {name for name in links() if not name.startswith("dv")}


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_ipv6_addresses_work_at_once(runtime: Runtime) -> None:
    runtime.networks.create("six", subnet6="fd77:1::/64")
    with running(runtime, network_mode="six") as first:
        lease = runtime.networks.lease(first.id)
        assert lease is not None
        address, gateway = lease.addresses[1], lease.endpoints[0].gateway6
        assert address.startswith("fd77:1::")
        with socket.create_server((gateway, 8086), family=socket.AF_INET6) as server:
            server.settimeout(patient(5))
            script = f"ip -6 -o addr show eth0 scope global; nc {gateway} 8086 </dev/null"
            client = runtime.create(
                Config(image="base", cmd=("sh", "-c", script), network_mode="six")
            )
            client.start()
            there, peer = server.accept()
            there.close()
            assert client.wait() == 0
            text = "".join(one.message.decode() for one in client.read_log())
            assert "tentative" not in text
            assert peer[0] in text


# -- who reaches whom --------------------------------------------------------------------------


def test_containers_of_different_networks_do_not_reach_each_other(runtime: Runtime) -> None:
    runtime.networks.create("apart")
    with running(runtime, "sh", "-c", ANSWER) as server:
        address = address_of(runtime, server)
        ask(address, 80)
        script = f"nc -w 1 {address} 80 </dev/null && echo reached || echo refused"
        assert output(runtime, script, network_mode="apart") == "refused\n"


def test_an_internal_network_has_no_way_out_and_no_ports(runtime: Runtime) -> None:
    runtime.networks.create("inside", internal=True)
    assert "default" not in output(runtime, "ip route", network_mode="inside")
    with (
        pytest.raises(Conflict, match="internal"),
        running(runtime, network_mode="inside", port_specs=("80",)),
    ):
        pass


def test_the_network_of_another_container_is_the_same_one(runtime: Runtime) -> None:
    with running(runtime, "sh", "-c", ANSWER, name="main", hostname="both") as main:
        script = f"{talk('127.0.0.1')}; hostname; ip -o -4 addr show eth0"
        text = output(runtime, script, network_mode="container:main")
        assert text.splitlines()[:2] == ["hello from both", "both"]
        assert address_of(runtime, main) in text
    with pytest.raises((Conflict, NotFound)):
        output(runtime, "true", network_mode="container:main")


def test_host_and_none_are_what_they_say(runtime: Runtime) -> None:
    assert output(runtime, "ip -o link | wc -l", network_mode="none") == "1\n"
    shown = output(runtime, "ip -o link | cut -d: -f2", network_mode="host").split()
    assert "lo" in shown
    assert not any(one.startswith("eth0@") for one in shown)


def test_a_link_gives_another_name_to_a_running_container(runtime: Runtime) -> None:
    with running(runtime, "sh", "-c", ANSWER, name="database", hostname="database"):
        script = f"{talk('db')}; {talk('database')}"
        text = output(runtime, script, links=("database:db",))
        assert text == "hello from database\n" * 2
    with pytest.raises((Conflict, NotFound)):
        output(runtime, "true", links=("database:db",))


def test_a_running_container_is_put_into_a_network_and_taken_out(runtime: Runtime) -> None:
    network = runtime.networks.create("extra")
    with running(runtime, "sh", "-c", ANSWER, hostname="moved", name="moved") as server:
        runtime.join_network(server, network, Wish(address=""))
        lease = runtime.networks.lease(server.id)
        assert lease is not None
        extra = lease.endpoints[1]
        assert (extra.inside, extra.network_name) == ("eth1", "extra")
        script = talk(extra.address)
        assert output(runtime, script, network_mode="extra") == "hello from moved\n"
        with pytest.raises(Conflict, match="already"):
            runtime.join_network(server, network, Wish())
        server.restart(0)
        settled(runtime)
        again = runtime.networks.lease(server.id)
        assert again is not None
        assert [one.network_name for one in again.endpoints] == ["bridge", "extra"]
        runtime.leave_network(server, network)
        left = runtime.networks.lease(server.id)
        assert left is not None
        assert [one.network_name for one in left.endpoints] == ["bridge"]
        assert again.endpoints[1].cable not in links()  # the first one goes with its namespace
        with pytest.raises(Conflict, match="not in network"):
            runtime.leave_network(server, network)


def test_a_network_in_use_is_not_removed(runtime: Runtime) -> None:
    network = runtime.networks.create("busy")
    with (
        running(runtime, network_mode="busy", name="user"),
        pytest.raises(Conflict, match="in use by user"),
    ):
        runtime.networks.remove(network)
    runtime.networks.remove(network)
    assert network.bridge not in links()
    with pytest.raises(NotFound):
        runtime.networks.get("busy")
    with pytest.raises(Conflict, match="stays"):
        runtime.networks.remove(runtime.networks.get("bridge"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"network_mode": "moon"}, "no such network: moon"),
        ({"network_mode": "none", "port_specs": ("80",)}, "-p needs a network of the container"),
        ({"network_mode": "host", "mac_address": "02:00:00:00:00:01"}, "--mac-address needs"),
        ({"network_aliases": ("db",)}, "--network-alias works in networks that you made"),
        ({"ip_address": "172.30.0.9"}, "--ip works in networks that you made"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    runtime: Runtime, values: dict[str, object], text: str
) -> None:
    with pytest.raises((UsageError, NotFound), match=text):
        runtime.create(Config(image="base", cmd=("true",)).with_(**values))
    assert runtime.list() == []


# -- names -------------------------------------------------------------------------------------


def answers(runtime: Runtime, name: str, **values: object) -> list[str]:
    """Addresses that a name has inside a new container; none when it is unknown."""
    script = f"busybox nslookup {name} 2>&1 || true"
    text = output(runtime, script, **values).partition("Name:")[2]
    return [
        line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("Address") and line
    ]


def test_containers_of_one_network_find_each_other_by_name_and_alias(runtime: Runtime) -> None:
    runtime.networks.create("names", subnet6="fd77:2::/64")
    values = {"network_mode": "names", "network_aliases": ("database", "Sql")}
    with running(runtime, name="store", **values) as store:
        lease = runtime.networks.lease(store.id)
        assert lease is not None
        for name in ("store", "STORE", "database", "sql", store.short_id, "store.names"):
            assert sorted(answers(runtime, name, network_mode="names")) == sorted(lease.addresses)
        resolv = output(runtime, "cat /etc/resolv.conf", network_mode="names")
        first = lease.endpoints[0]
        assert resolv.splitlines()[:2] == [
            f"nameserver {first.gateway}",
            f"nameserver {first.gateway6}",
        ]
        assert answers(runtime, "store") == [], "not from another network"
    assert answers(runtime, "store", network_mode="names") == [], "not once it is gone"


def test_other_names_are_asked_of_the_servers_a_container_was_given(runtime: Runtime) -> None:
    runtime.networks.create("asks")
    with (
        closing(Namespace(own=False)) as here,
        serving(here, "127.0.0.9", always("192.0.2.5")) as server,
    ):
        found = answers(runtime, "name.test", network_mode="asks", dns=("127.0.0.9",))
        assert found == ["192.0.2.5"]
        assert "name.test" in {query.name for query in server.heard}


def test_a_link_in_a_network_of_a_user_leads_to_its_container_wherever_it_is(
    runtime: Runtime,
) -> None:
    runtime.networks.create("linked")
    sought = "busybox nslookup sql 2>/dev/null | sed -n '/^Name/,$s/^Address: //p'"
    script = f"""
        cat /etc/hosts; first=$({sought}); echo "first $first"; n=0
        until then=$({sought}); [ -n "$then" ] && [ "$then" != "$first" ]; do
          n=$((n+1)); [ $n -lt 100 ] || exit 1; usleep 100000
        done
        echo "then $then"
    """
    with (
        running(runtime, name="database", network_mode="linked") as database,
        running(
            runtime, "sh", "-c", script, network_mode="linked", links=("database:sql",)
        ) as asking,
    ):
        before = address_of(runtime, database)
        deadline = time.monotonic() + patient(10)
        while "first" not in (said := written(asking)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert f"first {before}\n" in said
        database.restart(0)
        after = address_of(runtime, database)
        assert after != before
        assert asking.wait(patient(20)) == 0
        said = written(asking)
        assert f"then {after}\n" in said
        assert "sql" not in said.partition("first")[0], "a line in /etc/hosts would be wrong now"
        assert answers(runtime, "sql", network_mode="linked") == [], "nobody else calls it so"


def test_a_link_to_a_container_out_of_reach_is_refused(runtime: Runtime) -> None:
    runtime.networks.create("island")
    with running(runtime, name="far", network_mode="island") as far:
        with pytest.raises(Conflict, match="far is not in network bridge; connect it first"):
            output(runtime, "true", links=("far",))
        far.kill()
        far.wait()
        with pytest.raises(Conflict, match="far does not run"):
            output(runtime, "true", network_mode="island", links=("far",))


def test_a_container_put_into_a_network_is_found_there(runtime: Runtime) -> None:
    network = runtime.networks.create("later")
    with running(runtime, name="mover") as mover:
        runtime.join_network(mover, network, Wish(aliases=("also",)))
        lease = runtime.networks.lease(mover.id)
        assert lease is not None
        assert answers(runtime, "also", network_mode="later") == [lease.endpoints[1].address]


# -- ports -------------------------------------------------------------------------------------


def test_a_published_port_answers_on_localhost_and_ends_with_the_container(
    runtime: Runtime,
) -> None:
    values = {"port_specs": ("18080:80",), "hostname": "web"}
    with running(runtime, "sh", "-c", ANSWER, **values) as web:
        lease = runtime.networks.lease(web.id)
        assert lease is not None
        assert [(one.host_port, one.port) for one in lease.published] == [(18080, 80)]
        assert ask("127.0.0.1", 18080) == "hello from web"
        gateway = lease.endpoints[0].gateway
        assert output(runtime, talk(gateway, 18080)) == "hello from web\n"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 18080), patient(2))


def test_a_taken_port_is_refused_with_the_name_of_its_owner(runtime: Runtime) -> None:
    with running(runtime, name="first", port_specs=("18081:80",)):
        second = runtime.create(Config(image="base", cmd=("true",), port_specs=("18081:81",)))
        with pytest.raises(Conflict, match="18081/tcp is in use by container first"):
            second.start()
    assert second.run() == 0
    with socket.create_server(("127.0.0.1", 18082)) as taken:
        third = runtime.create(Config(image="base", cmd=("true",), port_specs=("18082:80",)))
        with pytest.raises(Conflict, match="18082/tcp is in use by"):
            third.start()
        taken.close()
    assert third.run() == 0


def test_all_exposed_ports_are_published_on_free_ones(runtime: Runtime) -> None:
    values = {"exposed_ports": ("80/tcp",), "publish_all": True, "hostname": "all"}
    with running(runtime, "sh", "-c", ANSWER, **values) as web:
        lease = runtime.networks.lease(web.id)
        assert lease is not None
        (one,) = lease.published
        assert one.port == 80
        assert ask("127.0.0.1", one.host_port) == "hello from all"


def test_the_same_port_is_published_again_right_after_its_container_ended(
    runtime: Runtime,
) -> None:
    config = Config(image="base", cmd=("true",), port_specs=("18083:80",), auto_remove=True)
    for _ in range(10):
        assert runtime.create(config).run() == 0


# -- what is given back ------------------------------------------------------------------------


def test_a_start_that_fails_gives_everything_back(runtime: Runtime) -> None:
    with running(runtime):
        pass
    before = runtime.networks.dying()
    wrong = runtime.create(
        Config(image="base", cmd=("/no/such/program",), port_specs=("18084:80",))
    )
    with pytest.raises(Exception, match="no/such/program"):
        wrong.start()
    assert runtime.networks.lease(wrong.id) is None
    with running(runtime, port_specs=("18084:80",)):
        pass
    deadline = time.monotonic() + patient(10)
    while (dying := runtime.networks.dying()) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert dying <= before


def engine_over(root: Path, run: Path) -> Runtime:
    return Runtime(root, run=run)


def test_the_next_engine_finds_addresses_and_ports_and_the_last_one_leaves_nothing(
    leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> None:
    root, run = real_tmp / "again", short_run()
    before = bridges()
    with engine_over(root, run) as first:
        with open(tiny_archive, "rb") as archive:
            first.import_image(archive, "base")
        network = first.networks.create("kept")
        config = Config(
            image="base",
            cmd=("sh", "-c", ANSWER),
            port_specs=("18085:80",),
            hostname="stays",
            network_mode="kept",
        )
        container = first.create(config, "stays")
        container.start()
        lease = first.networks.lease(container.id)
        assert ask("127.0.0.1", 18085) == "hello from stays"
    assert ask("127.0.0.1", 18085) == "hello from stays", "with no engine at all"
    with engine_over(root, run) as second:
        assert second.networks.lease(container.id) == lease
        assert ask("127.0.0.1", 18085) == "hello from stays"
        other = second.create(config.with_(port_specs=("18085:81",)))
        with pytest.raises(Conflict, match="in use by container stays"):
            other.start()
        again = second.create(config.with_(port_specs=()))
        again.start()
        fresh = second.networks.lease(again.id)
        assert fresh is not None
        assert lease is not None
        assert fresh.addresses != lease.addresses
        for one in second.list():
            second.destroy(one, force=True)
        settled(second)
        second.networks.remove(second.networks.get(network.id))
    assert bridges() == before


def test_a_range_the_host_uses_is_not_chosen_and_refused_when_asked_for(
    leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> None:
    from dockpy.places import network_settings

    host = Namespace()
    try:
        with host.inside():
            host.ip(
                "link add other type bridge",
                "addr add 172.30.5.1/24 dev other",
                "link set other up",
            )
            root, run = real_tmp / "clash", short_run()
            with Runtime(root, run=run) as runtime:
                assert runtime.networks.get("bridge").subnet == "172.31.0.0/16"
                with pytest.raises(Conflict, match=r"overlaps 172\.30\.5\.0/24"):
                    runtime.networks.create("user", subnet="172.30.0.0/16")
            told = replace(network_settings(root), bip="172.30.0.1/16")
            with Runtime(root, run=run, network=told) as runtime:
                with open(tiny_archive, "rb") as archive:
                    runtime.import_image(archive, "base")
                container = runtime.create(Config(image="base", cmd=("true",)))
                with pytest.raises(Conflict, match=r"overlaps 172\.30\.5\.0/24, which"):
                    container.start()
                runtime.destroy(container)
    finally:
        host.close()


def test_without_nftables_a_start_with_a_network_fails_and_others_do_not(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("guard the cable", 1)

    monkeypatch.setattr(runtime.networks.firewall, "allow", refuse)
    while (ready := runtime.networks._ready.take()) is not None:
        runtime.networks._drop_cabled(ready)
    container = runtime.create(Config(image="base", cmd=("true",)))
    with pytest.raises(KernelError, match="guard the cable"):
        container.start()
    assert runtime.networks.lease(container.id) is None
    assert output(runtime, "echo none", network_mode="none") == "none\n"
    assert os.path.exists(container.directory)


def test_a_bridge_announces_nothing_to_containers(runtime: Runtime) -> None:
    """Not even in its first seconds: it speaks no IPv6 and looks for no router."""
    network = runtime.networks.create("silent")
    with running(runtime, network_mode="silent"), closing(Namespace(own=False)) as here:
        time.sleep(3)
        (shown,) = json.loads(here.run("ip", "-json", "-s", "link", "show", network.bridge))
    assert shown["stats64"]["tx"]["packets"] == 0
