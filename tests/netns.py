"""Network namespaces for tests: a host with a bridge, containers on it, a neighbour on its link.

Namespaces have no names and no processes: a descriptor keeps each. A socket belongs to the
namespace it was made in, so tests make theirs inside and use them from anywhere.

    lan (10.9.0.2, fd09::2) -- eth0 of host (10.9.0.1, fd09::1)
    host: dockpy0 (172.30.0.1, fd30::1) -- v2: box 172.30.0.2, fd30::2; v3: other 172.30.0.3
          dockpy1 (172.31.0.1)          -- w2: far 172.31.0.2
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from dockpy.network.entries import Bridge, Cable
from dockpy.network.firewall import Firewall
from patience import patient

CLONE_NEWNET = 0x40000000
REFUSED_AFTER = 0.4
"""Seconds without an answer that count as "cannot be reached"."""
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace with its loopback interface up."""

    def __init__(self, *, own: bool = True, process: str = "thread-self") -> None:
        """`own` off: the one a process is in, as it is; the caller's unless told."""
        self.descriptor = (
            _made_in_thread() if own else os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
        )
        if own:
            self.ip("link set lo up")

    def close(self) -> None:
        os.close(self.descriptor)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in the namespace, and so is every thread it starts there."""
        with open("/proc/thread-self/ns/net", "rb") as before:
            enter(self.descriptor)
            try:
                yield
            finally:
                enter(before.fileno())

    def run(self, *command: str, text: str = "") -> str:
        """A program's output; it must succeed."""
        place = f"--net=/proc/self/fd/{self.descriptor}"
        done = subprocess.run(
            ["nsenter", place, *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(self.descriptor,),
            timeout=patient(20),
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def ip(self, *lines: str) -> None:
        self.run("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def set(self, name: str, value: str) -> None:
        with self.inside():
            Path("/proc/sys/net", name).write_text(value)

    def get(self, name: str) -> str:
        with self.inside():
            return Path("/proc/sys/net", name).read_text().strip()

    def listen(self, port: int, address: str = "::") -> socket.socket:
        """A TCP server; on "::" for IPv4 too."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.inside():
            made = socket.create_server(
                (address, port), family=family, dualstack_ipv6=address == "::"
            )
        made.settimeout(patient(5))
        return made

    def datagrams(self, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """A bound UDP socket."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.inside():
            made = socket.socket(family, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(patient(2))
        return made

    def connect(self, address: str, port: int, timeout: float = 0.0) -> socket.socket:
        """A TCP connection. Raises OSError: TimeoutError, ConnectionRefusedError."""
        with self.inside():
            return socket.create_connection((address, port), timeout or patient(5))

    def source_at(self, server: socket.socket, address: str, port: int) -> str:
        """Which address the server sees when this namespace connects; the bytes arrive too."""
        with self.connect(address, port) as client:
            there, peer = server.accept()
            with there:
                there.sendall(b"ok")
                assert client.recv(2) == b"ok"
        return str(peer[0]).removeprefix("::ffff:")

    def reaches(self, address: str, port: int) -> bool:
        """Whether a TCP connection is possible at all."""
        try:
            self.connect(address, port, REFUSED_AFTER).close()
        except OSError:
            return False
        return True


class World:
    """The namespaces of this module's first page, connected."""

    def __init__(self, *, bridged_through_rules: bool = False) -> None:
        self.host, self.lan = Namespace(), Namespace()
        self.box, self.other, self.far = Namespace(), Namespace(), Namespace()
        for one in self.all():
            one.set("ipv6/conf/default/accept_dad", "0")
            one.set("ipv6/conf/default/accept_ra", "0")
        with contextlib.suppress(FileNotFoundError):
            for name in ("iptables", "ip6tables"):
                self.host.set(f"bridge/bridge-nf-call-{name}", "01"[bridged_through_rules])
        hairpin = "on" if bridged_through_rules else "off"
        self.host.ip(
            "link add dockpy0 type bridge",
            "link add dockpy1 type bridge",
            *(f"link add {name} type veth peer name c{name}" for name in ("eth0", *_CABLES)),
            *(f"link set c{name} address {_HARDWARE[name]}" for name in _CABLES),
            "addr add 10.9.0.1/24 dev eth0",
            "addr add fd09::1/64 dev eth0 nodad",
            "addr add 172.30.0.1/16 dev dockpy0",
            "addr add fd30::1/64 dev dockpy0 nodad",
            "addr add 172.31.0.1/16 dev dockpy1",
            *(f"link set {name} up" for name in ("dockpy0", "dockpy1", "eth0")),
            *(f"link set {name} master {bridge}" for name, bridge in _CABLES.items()),
            *(f"link set {name} arp off up" for name in _CABLES),
            *(
                f"link set {name} type bridge_slave hairpin {hairpin} learning off"
                for name in _CABLES
            ),
        )
        for name in _CABLES:
            self.host.run("bridge", "fdb", "add", _HARDWARE[name], "dev", name, "master", "static")
        for end, one in (("ceth0", self.lan), ("cv2", self.box), ("cv3", self.other)):
            self._move(end, one)
        self._move("cw2", self.far)
        self.lan.ip(
            "addr add 10.9.0.2/24 dev eth0",
            "addr add fd09::2/64 dev eth0 nodad",
            "link set eth0 up",
        )
        for one, addresses, gateways in (
            (self.box, ("172.30.0.2/16", "fd30::2/64"), ("172.30.0.1", "fd30::1")),
            (self.other, ("172.30.0.3/16", "fd30::3/64"), ("172.30.0.1", "fd30::1")),
            (self.far, ("172.31.0.2/16",), ("172.31.0.1",)),
        ):
            one.ip(
                *(f"addr add {a} dev eth0{' nodad' * (':' in a)}" for a in addresses),
                "link set eth0 up",
                *(f"route add default via {gateway}" for gateway in gateways),
            )

    def _move(self, end: str, namespace: Namespace) -> None:
        self.host.run(
            "ip",
            "link",
            "set",
            end,
            "name",
            "eth0",
            "netns",
            f"/proc/{os.getpid()}/fd/{namespace.descriptor}",
        )

    def all(self) -> tuple[Namespace, ...]:
        return self.host, self.lan, self.box, self.other, self.far

    def close(self) -> None:
        for one in self.all():
            one.close()


_CABLES = {"v2": "dockpy0", "v3": "dockpy0", "w2": "dockpy1"}
_HARDWARE = {"v2": "02:42:ac:1e:00:02", "v3": "02:42:ac:1e:00:03", "w2": "02:42:ac:1f:00:02"}
BOX = Cable("v2", _HARDWARE["v2"], "172.30.0.2", "fd30::2")
OTHER = Cable("v3", _HARDWARE["v3"], "172.30.0.3", "fd30::3")
FAR = Cable("w2", _HARDWARE["w2"], "172.31.0.2")


def _made_in_thread() -> int:
    """A new namespace, made by a thread that ends at once."""
    found: list[int] = []

    def make() -> None:
        if _libc.unshare(CLONE_NEWNET) == 0:
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found, "no network namespace could be made"
    return found[0]


def enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def guarded(
    world: World,
    *bridges: Bridge,
    cables: Iterable[Cable] = (BOX, OTHER),
    loopback: bool = False,
) -> Firewall:
    """A firewall on the host with those bridges and cables; the caller closes it.

    `loopback`: the host's clients on localhost reach what is behind the bridges.
    """
    firewall = Firewall("dockpy-test")
    with world.host.inside():
        firewall.open()
        for bridge in bridges:
            firewall.attach(bridge)
            if loopback:
                firewall.accept_loopback(bridge.name)
        firewall.allow(*cables)
    return firewall
