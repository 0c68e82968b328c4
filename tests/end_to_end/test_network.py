"""Networks from the command line."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest

from end_to_end.client import Client, eventually
from end_to_end.daemon import Daemon
from patience import patient

pytestmark = pytest.mark.needs("root", "netns", "overlay")

ANSWER = "while true; do echo hello from $(hostname) | nc -l -p 80; done"


def said(address: str, port: int) -> str:
    """What a server says; tried until it listens."""
    deadline = time.monotonic() + patient(5)
    while True:
        try:
            with socket.create_connection((address, port), patient(2)) as client:
                return client.makefile().readline().strip()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize("address", ["127.0.0.1", "host"])
def test_the_netcat_example_of_0_1_5_works_with_localhost_too(dockpy: Client, address: str) -> None:
    job = dockpy("run", "-d", "-p", "4444", "base", "/bin/nc", "-l", "-p", "4444").out.strip()
    port = int(dockpy("port", job, "4444").out)
    if address == "host":
        gateway = "{{.NetworkSettings.Gateway}}"
        address = dockpy("inspect", "-f", gateway, job).out.strip()
    deadline = time.monotonic() + patient(5)
    while True:
        with socket.create_connection((address, port), patient(2)) as client:
            client.sendall(b"hello world\n")
            client.shutdown(socket.SHUT_WR)
            if dockpy("wait", job).out == "0\n" or time.monotonic() > deadline:
                break
    assert dockpy("logs", job).out == "hello world\n"


def test_ports_are_shown_by_port_ps_and_inspect(dockpy: Client) -> None:
    job = dockpy(
        *("run", "-d", "--name", "web", "-p", "127.0.0.1:18090:80", "-p", "18091:53/udp"),
        *("--expose", "9000", "base", "sh", "-c", ANSWER),
    ).out.strip()
    assert dockpy("port", "web").lines == [
        "53/udp -> 0.0.0.0:18091",
        "80/tcp -> 127.0.0.1:18090",
    ]
    assert dockpy("port", "web", "80/tcp").out == "127.0.0.1:18090\n"
    assert dockpy("port", "web", "80").out == "18090\n"
    missing = dockpy("port", "web", "81")
    assert (missing.code, missing.out) == (1, "")
    assert "81/tcp" in missing.err
    shown = dockpy("ps", "--format", "{{.Ports}}").out
    assert shown == "0.0.0.0:18091->53/udp, 127.0.0.1:18090->80/tcp, 9000/tcp\n"
    values = json.loads(dockpy("inspect", job).out)[0]["NetworkSettings"]
    assert values["Ports"]["80/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "18090"}]
    assert values["Ports"]["9000/tcp"] is None
    assert values["Networks"]["bridge"]["IPAddress"] == values["IPAddress"] != ""
    assert said("127.0.0.1", 18090) == f"hello from {job[:12]}"
    second = dockpy("run", "--rm", "-p", "18090:80", "base", "true")
    assert second.code == 125
    assert "port 18090/tcp is in use by container web" in second.err
    assert dockpy("ps", "-aq").lines == [job[:12]]


def test_networks_are_made_listed_inspected_and_removed(dockpy: Client) -> None:
    made = dockpy(
        *("network", "create", "--subnet", "10.88.77.0/24", "--label", "a=b", "back"),
    ).out.strip()
    assert dockpy("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").lines == [
        "back bridge local",
        "bridge bridge local",
        "host host local",
        "none null local",
    ]
    assert dockpy("network", "ls", "-q", "-f", "label=a").out == f"{made[:12]}\n"
    dockpy("run", "-d", "--name", "one", "--network", "back", "base", "sleep", "600")
    values = json.loads(dockpy("network", "inspect", "back").out)[0]
    assert values["IPAM"]["Config"] == [{"Subnet": "10.88.77.0/24", "Gateway": "10.88.77.1"}]
    assert [one["Name"] for one in values["Containers"].values()] == ["one"]
    refused = dockpy("network", "rm", "back")
    assert refused.code == 1
    assert "in use by one" in refused.err
    assert dockpy("rm", "-f", "one").code == 0
    assert dockpy("network", "rm", "back").code == 0, "at once, as nobody runs in it any more"
    assert "no such network" in dockpy("network", "inspect", "back").err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("network", "create", "host"), "every engine has"),
        (("network", "create", "--subnet", "10.0.0.0/31", "n"), "between /8 and /29"),
        (("network", "create", "--subnet", "127.0.0.0/16", "n"), "addresses that are routed"),
        (("network", "create", "--gateway", "10.0.0.1", "n"), "--gateway needs --subnet"),
        (("network", "create", "-d", "overlay", "n"), "bridge expected"),
        (("network", "create", "--mtu", "9", "n"), "between 576 and 65535"),
        (("network", "rm", "bridge"), "stays"),
        (("network", "rm", "host"), "stays"),
        (("network", "nonsense"), "not a dockpy command"),
        (("run", "--network", "nowhere", "base", "true"), "no such network: nowhere"),
        (("run", "-p", "1:2:3:4", "base", "true"), "not an IP address"),
    ],
)
def test_a_mistake_is_told_in_one_line(dockpy: Client, words: tuple[str, ...], text: str) -> None:
    result = dockpy(*words)
    assert result.code != 0
    assert text in result.err
    assert result.err.count("\n") == 1
    assert dockpy("ps", "-aq").out == ""
    assert dockpy("network", "ls", "-q", "-f", "type=custom").out == ""


def test_a_network_goes_right_after_its_last_container(dockpy: Client) -> None:
    for number in range(8):
        dockpy.ok("network", "create", f"net{number}")
        for member in range(4):
            name = f"in{number}-{member}"
            dockpy.ok(
                *("run", "-d", "--name", name, "--network", f"net{number}", "base", "sleep", "600")
            )
    names = [f"in{number}-{member}" for number in range(8) for member in range(4)]
    dockpy.ok("rm", "-f", *names[:16])
    assert dockpy.ok("network", "rm", "net0", "net1", "net2", "net3").lines == [
        f"net{number}" for number in range(4)
    ]
    dockpy.ok("rm", "-f", *names[16:28])
    assert dockpy.ok("network", "prune").lines == ["net4", "net5", "net6"], "not one in use"
    dockpy.ok("rm", "-f", *names[28:])
    assert dockpy.ok("network", "prune").lines == ["net7"]


def test_connect_and_disconnect_while_it_runs(dockpy: Client) -> None:
    dockpy("network", "create", "side")
    dockpy("run", "-d", "--name", "box", "base", "sleep", "600")
    assert dockpy("network", "connect", "--alias", "other", "side", "box").code == 0
    names = "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}"
    assert dockpy("inspect", "-f", names, "box").out.split() == ["bridge", "side"]
    assert "eth1" in dockpy("exec", "box", "ip", "-o", "link").out
    assert dockpy("network", "disconnect", "side", "box").code == 0
    assert "eth1" not in dockpy("exec", "box", "ip", "-o", "link").out
    assert dockpy("network", "prune").out == "side\n"


def test_a_killed_daemon_loses_no_connection_and_its_successor_knows_every_port(
    own_daemon: Daemon,
) -> None:
    client = own_daemon.client
    script = "while true; do nc -l -p 80 -e cat; done"
    job = client("run", "-d", "-p", "18095:80", "base", "sh", "-c", script).out.strip()
    with connected("127.0.0.1", 18095) as link:
        link.sendall(b"before\n")
        lines = link.makefile()
        assert lines.readline() == "before\n"
        own_daemon.stop(signal.SIGKILL)
        link.sendall(b"without\n")
        assert lines.readline() == "without\n"
        own_daemon.start()
        assert client("port", job, "80").out == "18095\n"
        link.sendall(b"after\n")
        assert lines.readline() == "after\n"
        lines.close()
    taken = client("run", "--rm", "-p", "18095:80", "base", "true")
    assert taken.code == 125
    assert "in use by container" in taken.err
    client("rm", "-f", job)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 18095), patient(2))


def test_ports_and_bridges_of_what_ended_without_an_engine_are_given_back(
    own_daemon: Daemon,
) -> None:
    client = own_daemon.client
    client.ok("run", "-d", "--name", "short", "-p", "18096:80", "base", "sleep", "0.5")
    own_daemon.stop(signal.SIGKILL)
    time.sleep(1)
    own_daemon.start()
    eventually(lambda: client.field("short", "{{.State.Running}}") == "false", "its end is learnt")
    assert client.ok("run", "--rm", "-p", "18096:80", "base", "echo", "free").out == "free\n"
    told = json.loads(client.ok("network", "inspect", "bridge").out)
    bridge = told[0]["Options"]["com.docker.network.bridge.name"]
    assert bridge in [name for _, name in socket.if_nameindex()]
    client.remove_all()
    own_daemon.stop()
    assert bridge not in [name for _, name in socket.if_nameindex()]


def connected(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + patient(5)
    while True:
        try:
            link = socket.create_connection((address, port), patient(5))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return link
