"""Every kernel test leaves the machine as it found it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import pytest

from dockpy import Config, Runtime
from dockpy.errors import KernelError
from dockpy.network.nfnetlink import Netfilter
from dockpy.network.nft import Family
from engines import settled


@pytest.fixture(autouse=True)
def _leaves_nothing(leaves_nothing: None) -> None:
    """Counts before and after each test."""


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing(module_leaves_nothing: None) -> None:
    """Counts before and after each module's shared fixtures."""


@pytest.fixture(scope="module")
def warm_engine(module_engine: Runtime) -> Runtime:
    """The resolver's thread is there: no test is blamed for it."""
    network = module_engine.networks.create("warm")
    container = module_engine.create(Config(image="base", cmd=("true",), network_mode="warm"))
    container.run()
    module_engine.destroy(container)
    settled(module_engine)
    module_engine.networks.remove(network)
    return module_engine


@pytest.fixture
def networked(warm_engine: Runtime, leaves_nothing: None) -> Iterator[Runtime]:
    """An engine whose containers and networks go with the test."""
    yield warm_engine
    for container in warm_engine.list():
        warm_engine.destroy(container, force=True)
    settled(warm_engine)
    for network in warm_engine.networks.all():
        if not network.default:
            warm_engine.networks.remove(network)


@pytest.fixture
def no_bridge_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without nftables for bridges."""
    real = Netfilter.commit

    def commit(self: Netfilter, messages: Sequence[bytes], step: str) -> None:
        if any(one[16] == Family.BRIDGE for one in messages):  # nfgenmsg behind nlmsghdr
            raise KernelError(step, errno.ENOENT)
        real(self, messages, step)

    monkeypatch.setattr(Netfilter, "commit", commit)
