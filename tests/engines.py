"""Engines in the test's own process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dockpy import Config, Runtime
from dockpy.container import Container
from dockpy.network.values import NetworkSettings
from patience import patient


@contextlib.contextmanager
def running_engine(
    directory: Path,
    run: Path,
    archive: Path,
    network: Callable[[Path], NetworkSettings] | None = None,
) -> Iterator[Runtime]:
    """An engine on a new root below `directory`, which `network` is asked about, with the archive
    as image `base`; what runs at the end is killed and removed."""
    root = Path(tempfile.mkdtemp(prefix="engine-", dir=directory))
    try:
        with Runtime(root, run=run, network=network(root) if network else None) as runtime:
            with open(archive, "rb") as source:
                runtime.import_image(source, "base")
            yield runtime
            for container in runtime.list():
                runtime.destroy(container, force=True)
    finally:
        shutil.rmtree(root)


def warm(runtime: Runtime) -> None:
    """One container has come and gone: threads and cables that the first use makes are there."""
    first = runtime.create(Config(image="base", cmd=("touch", "/written")))
    first.run()
    runtime.destroy(first)
    runtime._janitor.drain()
    runtime.networks.prepare()
    deadline = time.monotonic() + patient(5)
    while time.monotonic() < deadline and (
        os.listdir(runtime.root / "containers") or not runtime.networks.ready
    ):
        time.sleep(0.01)


def settled(runtime: Runtime) -> None:
    """The ends of all containers are dealt with."""
    deadline = time.monotonic() + patient(10)
    while runtime.info().backlog and time.monotonic() < deadline:
        time.sleep(0.01)


def address_of(runtime: Runtime, container: Container) -> str:
    """A running container's own, in its first network."""
    lease = runtime.networks.lease(container.id)
    assert lease is not None
    return lease.addresses[0]
