"""A container that asks for its own published port by the host's address, through the engine.

Where bridged frames meet the rules for packets, such a frame must go back over its own cable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dockpy import Config, Runtime
from dockpy.network.cables import step_name
from dockpy.network.values import NetworkSettings
from dockpy.places import network_settings
from engines import running_engine, warm
from netns import Namespace

pytestmark = pytest.mark.needs("root", "netns", "ip", "overlay")

HOST, HOST6 = "10.9.0.1", "fd09::1"
SERVER = "(while true; do echo hello | nc -l -p 80; done) >/dev/null 2>&1 &"
ASK = """
n=0
until said=$(nc -w 1 {address} {port} </dev/null) && [ -n "$said" ]; do
  n=$((n+1)); [ $n -lt 5 ] || exit 1; usleep 100000
done
echo "$said"
"""


@pytest.fixture(scope="module", params=[True, False], ids=["bridge-through-rules", "bridge"])
def runtime(
    request: pytest.FixtureRequest,
    _module_leaves_nothing: None,
    real_tmp: Path,
    short_run: Callable[[], Path],
    tiny_archive: Path,
) -> Iterator[Runtime]:
    """An engine with IPv6 on a host that has an address on a link."""
    with closing(Namespace()) as host, host.inside():
        host.ip(
            "link add lan type bridge",
            f"addr add {HOST}/24 dev lan",
            f"addr add {HOST6}/64 dev lan nodad",
            "link set lan up",
        )
        for name in ("iptables", "ip6tables"):
            try:
                host.set(f"bridge/bridge-nf-call-{name}", str(int(request.param)))
            except FileNotFoundError:
                if request.param:
                    pytest.skip("br_netfilter is not loaded")

        def told(root: Path) -> NetworkSettings:
            return replace(network_settings(root), subnet6="fd31::/64")

        with running_engine(real_tmp, short_run(), tiny_archive, told) as made:
            warm(made)
            made.networks.create("plain")  # with it comes the resolver's thread
            made.create(Config(image="base", cmd=("true",), network_mode="plain")).run()
            yield made


@pytest.mark.parametrize("address", [HOST, HOST6])
def test_a_container_reaches_its_own_published_port(runtime: Runtime, address: str) -> None:
    script = SERVER + ASK.format(address=address, port=18086)
    config = Config(image="base", cmd=("sh", "-c", script), port_specs=("18086:80",))
    container = runtime.create(config)
    try:
        assert container.output().decode() == "hello\n"
    finally:
        runtime.destroy(container, force=True)


def test_a_frame_that_may_come_back_is_not_taken_for_somebody_elses_address(
    runtime: Runtime,
) -> None:
    """The container's own question whether its link-local address is free comes back to it."""
    script = "sleep 2; ip -6 -o addr show dev eth0"
    container = runtime.create(Config(image="base", cmd=("sh", "-c", script)))
    try:
        lines = container.output().decode().splitlines()
    finally:
        runtime.destroy(container, force=True)
    assert len(lines) == 2
    assert not [line for line in lines if "dadfailed" in line or "tentative" in line]


def test_the_step_that_was_refused_is_named() -> None:
    assert step_name(5) == "note the address"
    assert step_name(11) == "set up the network inside the container"


def test_a_network_without_ipv6_is_made_where_localhost_is_published_by_ipv6(
    runtime: Runtime,
) -> None:
    config = Config(image="base", cmd=("true",), network_mode="plain", auto_remove=True)
    assert runtime.create(config).run() == 0
