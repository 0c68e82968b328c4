"""What all tests share: needs, tiny roots, and for kernel tests the count of what is left.

Fixtures that run an engine: `engine` (in-process, per test). The ones that run the real command
line are in end_to_end/.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import leftovers
from needs import PROBES, Needs, debian_root_path, docker_profile_path, real_directory
from roots import make_tiny_root, pack

if TYPE_CHECKING:
    from dockpy import Runtime


# -- needs -------------------------------------------------------------------------------------

CLONE_NEWNET = 0x40000000  # unshare(2)
NEEDS = pytest.StashKey[Needs]()


def pytest_configure(config: pytest.Config) -> None:
    leave_host_network()
    config.stash[NEEDS] = Needs(PROBES, require_all=os.environ.get("DOCKPY_REQUIRE_ALL") == "1")


def leave_host_network() -> None:
    """All tests run in a network namespace of their own: the engines' bridges, rules and routing
    never touch the host's. Without root the tests that need it are skipped anyway."""
    if os.geteuid() or os.environ.get("DOCKPY_TEST_NETWORK") == "own":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        return  # not allowed here: what needs a network says so itself
    os.environ["DOCKPY_TEST_NETWORK"] = "own"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def wanted(item: pytest.Item) -> list[str]:
    """Every name an item's `needs` marks ask for; a hyphen is as good as an underscore."""
    marks = item.iter_markers("needs")
    return [str(name).replace("-", "_") for mark in marks for name in mark.args]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needs = config.stash[NEEDS]
    unknown = {
        f"{item.nodeid}: no probe is called {name!r} (see tests/needs.py)"
        for item in items
        for name in wanted(item)
        if name not in needs.known
    }
    if unknown:
        raise pytest.UsageError("\n".join(sorted(unknown)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needs = item.config.stash[NEEDS]
    for name in wanted(item):
        missing = needs.missing(name)
        if missing is None:
            continue
        if needs.require_all:
            pytest.fail(f"DOCKPY_REQUIRE_ALL=1, but {name} is missing: {missing}", pytrace=False)
        pytest.skip(f"needs {name}: {missing}")


# -- what is left ------------------------------------------------------------------------------


def counts_host() -> bool:
    return os.environ.get("DOCKPY_COUNT_HOST") == "1"


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Fails a test that leaves descriptors, children, mounts, cgroups ... behind."""
    before = leftovers.around_test(host=counts_host())
    yield
    extra = leftovers.left(before)
    assert not extra, "left behind: " + "; ".join(extra)


@pytest.fixture(scope="module")
def module_leaves_nothing() -> Iterator[None]:
    """The same around a whole module and its shared fixtures."""
    before = leftovers.around_module(host=counts_host())
    yield
    extra = leftovers.left(before)
    assert not extra, "left behind by the module: " + "; ".join(extra)


# -- roots and archives ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_tmp() -> Iterator[Path]:
    """A directory on a file system that can hold an overlay's upper; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="dockpy-tests-", dir=real_directory()) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def tiny_root(real_tmp: Path) -> Path:
    """A busybox root in a directory. Read only by agreement: copy it to change it."""
    return make_tiny_root(real_tmp / "tiny-root")


@pytest.fixture(scope="session")
def tiny_archive(real_tmp: Path, tiny_root: Path) -> Path:
    """The busybox root as an uncompressed tar."""
    return pack(tiny_root, real_tmp / "tiny.tar")


@pytest.fixture(scope="session")
def debian_root() -> Path:
    """A Debian root directory made by debootstrap. Read only by agreement; needs debian_root."""
    return debian_root_path()


@pytest.fixture(scope="session")
def docker_profile() -> Path:
    """The published seccomp profile as JSON. Mark needs docker_profile."""
    return docker_profile_path()


# -- engines -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def short_run() -> Iterator[Callable[[], Path]]:
    """Makes run directories: on a tmpfs, with paths short enough for a socket's 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dockpy-test-", dir=_run_place()) as name:
        numbers = itertools.count()
        yield lambda: Path(name, str(next(numbers)))


def _run_place() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


@pytest.fixture
def engine(real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path) -> Iterator[Runtime]:
    """An engine in this process on a root of its own, with the busybox root as image `base`."""
    from engines import running_engine

    with running_engine(real_tmp, short_run(), tiny_archive) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def module_engine(
    module_leaves_nothing: None,
    real_tmp: Path,
    short_run: Callable[[], Path],
    tiny_archive: Path,
) -> Iterator[Runtime]:
    """As `engine`, for a module whose tests remove their containers: half a second less each.

    It is warm, so that no test is blamed for threads made on first use.
    """
    from engines import running_engine, warm

    with running_engine(real_tmp, short_run(), tiny_archive) as runtime:
        warm(runtime)
        yield runtime
