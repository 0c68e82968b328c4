"""A real daemon, driven by the real client; one per module, on a root of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from end_to_end.daemon import Daemon, running_daemon
from roots import pack


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(module_leaves_nothing: None) -> None:
    """Counts before and after each module's daemon."""


@pytest.fixture(autouse=True)
def _leaves_nothing(leaves_nothing: None) -> None:
    """Counts before and after each test."""


@pytest.fixture(scope="module")
def base_archive(tiny_archive: Path) -> Path:
    """What the module's daemon has as `base`; a module may have its own."""
    return tiny_archive


@pytest.fixture(scope="module")
def daemon(
    real_tmp: Path,
    short_run: Callable[[], Path],
    base_archive: Path,
    _module_leaves_nothing: None,
) -> Iterator[Daemon]:
    """The module's daemon, with the image `base`."""
    root = Path(tempfile.mkdtemp(prefix="daemon-", dir=real_tmp))
    with running_daemon(root, short_run(), base_archive) as running:
        yield running


@pytest.fixture
def own_daemon(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Daemon]:
    """A daemon for one test that is going to hurt it."""
    root = Path(tempfile.mkdtemp(prefix="daemon-", dir=real_tmp))
    with running_daemon(root, short_run(), tiny_archive) as running:
        yield running


@pytest.fixture
def dockpy(daemon: Daemon, _leaves_nothing: None) -> Iterator[Client]:
    """The client of the module's daemon. The test's containers and images are removed after it."""
    yield daemon.client
    daemon.client.remove_all()
    daemon.client.remove_images("base")
    eventually(
        lambda: not any(daemon.client.traces().values()),
        f"nothing is left of the test's containers ({daemon.client.traces()})",
    )


@pytest.fixture
def packed_root(tiny_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a tar of the tiny root; the argument is tar's own letter for the compression."""

    def make(letter: str) -> Path:
        target = tmp_path / f"root.tar{letter}"
        return pack(tiny_root, target, *([f"-{letter}"] if letter else []))

    return make
