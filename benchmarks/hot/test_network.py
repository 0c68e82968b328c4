"""The netlink conversation of a start: a container's cable, as it is laid in a namespace."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from benchmarks.hot.contest import Contest
from dockpy.network.cables import Layer
from dockpy.network.values import Endpoint
from netns import Namespace

BRIDGE, GATEWAY, PREFIX = "hot0", "10.211.0.1", 16
HARDWARE = "02:42:0a:d3:00:02"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A network namespace with a bridge; what is laid in it goes with it."""
    one = Namespace()
    one.ip(f"link add {BRIDGE} type bridge", f"addr add {GATEWAY}/{PREFIX} dev {BRIDGE}")
    one.ip(f"link set {BRIDGE} up")
    yield one
    one.close()


def test_cable(host: Namespace, contest: Contest) -> None:
    """Link, both ends up, address, neighbour and route, beside the same through pyroute2."""
    numbers = itertools.count(1)
    with host.inside():
        layer, route = Layer(), IPRoute()
        master = route.link_lookup(ifname=BRIDGE)[0]
        gateway = route.get_links(master)[0].get_attr("IFLA_ADDRESS")

        def place(number: int) -> Endpoint:
            return Endpoint(
                network="hot",
                network_name="hot",
                bridge=BRIDGE,
                cable=f"hot{number}",
                inside="eth0",
                index=2,
                address="10.211.0.2",
                prefix=PREFIX,
                gateway=GATEWAY,
                hardware=HARDWARE,
            )

        def ours() -> float:
            namespace = Namespace()
            endpoint = place(next(numbers))
            began = time.thread_time()
            layer.lay(
                endpoint,
                namespace.descriptor,
                master,
                bytes.fromhex(gateway.replace(":", "")),
                default_route=True,
            )
            took = time.thread_time() - began
            assert "10.211.0.2/16" in namespace.run("ip", "addr", "show", "dev", "eth0")
            namespace.close()
            return took

        def theirs() -> float:
            namespace = Namespace()
            name = f"hot{next(numbers)}"
            with namespace.inside():
                inner = IPRoute()
            began = time.thread_time()
            peer = {
                "ifname": "eth0",
                "index": 2,
                "net_ns_fd": namespace.descriptor,
                "address": HARDWARE,
            }
            route.link("add", ifname=name, kind="veth", master=master, state="up", peer=peer)
            inner.addr("add", index=2, address="10.211.0.2", prefixlen=PREFIX)
            inner.link("set", index=2, state="up")
            inner.neigh("add", ifindex=2, dst=GATEWAY, lladdr=gateway, state="permanent")
            inner.route("add", gateway=GATEWAY)
            took = time.thread_time() - began
            inner.close()
            namespace.close()
            return took

        try:
            contest(ours, theirs, against="pyroute2's messages", rounds=25)
        finally:
            layer.close()
            route.close()
