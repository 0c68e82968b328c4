"""Fixtures of the hot paths' benchmarks."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hot.contest import Benchmark, Contest, run_contest


@pytest.fixture
def contest(benchmark: Benchmark) -> Contest:
    """Measures ours beside a reference."""
    return functools.partial(run_contest, benchmark)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs: no disk in the figures."""
    directory = Path(tempfile.mkdtemp(prefix="dockpy-hot-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a file system that can hold an overlay's upper."""
    directory = Path(tempfile.mkdtemp(prefix="dockpy-hot-", dir="/var/tmp"))
    yield directory
    shutil.rmtree(directory)
