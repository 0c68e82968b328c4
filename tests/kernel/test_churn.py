"""What very many starts must not leave in the engine's own process."""

from __future__ import annotations

import gc
import sys

import pytest

from dockpy import Config, Runtime

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

STARTS = 8


def start(runtime: Runtime, config: Config) -> str:
    """A whole life; the container's id."""
    container = runtime.create(config)
    container.start()
    assert container.wait() == 0
    runtime.destroy(container)
    return container.id


@pytest.mark.parametrize(
    "network", ["none", pytest.param("bridge", marks=pytest.mark.needs("ip", "nft"))]
)
@pytest.mark.parametrize("auto_remove", [False, True])
def test_no_name_of_a_start_gets_into_the_interpreters_table(
    engine: Runtime, monkeypatch: pytest.MonkeyPatch, network: str, auto_remove: bool
) -> None:
    """Its slots are not used again but by making a new one, megabytes of memory each time."""
    config = Config(image="base", cmd=("true",), network_mode=network)
    start(engine, config)  # what is named at the first start only
    engine._janitor.drain()
    names: list[str] = []
    intern = sys.intern

    def spy(name: str, /) -> str:
        names.append(name)
        return intern(name)

    monkeypatch.setattr(sys, "intern", spy)
    ids = []
    for _ in range(STARTS):
        container = engine.create(config.with_(auto_remove=auto_remove))
        ids.append(container.id)
        container.start()
        container.wait()
        if not auto_remove:
            engine.destroy(container)
        engine._janitor.drain()
    monkeypatch.undo()
    assert len(set(names)) < STARTS
    assert not [name for name in names if any(one[:12] in name for one in ids)]


def test_a_start_leaves_nothing_to_the_collector(engine: Runtime) -> None:
    """What only it can free stays until it comes by: memory for all that was done meanwhile."""
    config = Config(image="base", cmd=("true",), network_mode="none")
    start(engine, config)
    engine._janitor.drain()
    gc.collect()
    gc.disable()
    try:
        for _ in range(STARTS):
            start(engine, config)
        engine._janitor.drain()
        assert gc.collect() < STARTS
    finally:
        gc.enable()
