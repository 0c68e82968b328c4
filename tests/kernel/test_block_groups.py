"""Directories that are told to be kept apart, and the places that are tried for a new one."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import block_groups
from dockpy.block_groups import CHEAP, TRIES, file_cost, is_spread, make_directory, spread
from needs import real_directory
from stores import PLAIN, Store, descriptor

pytestmark = pytest.mark.needs("root")
spreads = pytest.mark.needs("spread_directories")
DEAR = CHEAP * 10


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on the disk that container roots are on."""
    with tempfile.TemporaryDirectory(prefix="dockpy-test-", dir=real_directory()) as path:
        yield Path(path)


def costs(*seconds: float) -> Callable[[Path], float]:
    """What each new place costs, in turn."""
    left = list(seconds)
    return lambda _place: left.pop(0)


def flags(directory: Path) -> str:
    """As lsattr(1) spells them."""
    done = subprocess.run(
        ["lsattr", "-d", str(directory)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]


@spreads
def test_a_directory_is_spread_once_told_and_keeps_its_other_flags(place: Path) -> None:
    subprocess.run(["chattr", "+A", str(place)], check=True)
    before = flags(place)
    assert not is_spread(place)
    assert spread(place)
    assert spread(place)
    assert is_spread(place)
    assert set(flags(place)) == {*before, "T"}


@spreads
def test_directories_in_a_spread_one_are_far_from_each_other(place: Path) -> None:
    """Inode numbers tell the group."""
    plain, told = place / "plain", place / "told"
    plain.mkdir()
    told.mkdir()
    spread(told)
    across = {}
    for parent in (plain, told):
        numbers = [make_directory(parent, "x-").stat().st_ino for _ in range(8)]
        across[parent] = max(numbers) - min(numbers)
    assert across[told] > 8 * across[plain]


@spreads
def test_the_first_cheap_place_is_taken_and_no_other_stays(place: Path) -> None:
    spread(place)
    made = make_directory(place, ".new-", costs(DEAR, DEAR, CHEAP / 2, 0))
    assert os.listdir(place) == [made.name]
    assert made.name.startswith(".new-")
    assert made.stat().st_mode & 0o7777 == 0o700


@spreads
def test_of_dear_places_the_least_dear_is_taken(place: Path) -> None:
    spread(place)
    tried: list[Path] = []

    def cost(one: Path) -> float:
        tried.append(one)
        return DEAR * (2 if len(tried) != 3 else 1)

    made = make_directory(place, "x-", cost)
    assert len(tried) == TRIES
    assert made == tried[2]
    assert os.listdir(place) == [made.name]


@spreads
def test_a_failure_amid_the_trying_leaves_nothing(place: Path) -> None:
    spread(place)
    tried: list[Path] = []

    def cost(one: Path) -> float:
        tried.append(one)
        if len(tried) == 2:
            raise OSError(errno.ENOSPC, "full")
        return DEAR

    with pytest.raises(OSError, match="full"):
        make_directory(place, "x-", cost)
    assert len(tried) == 2
    assert os.listdir(place) == []


@spreads
def test_what_a_file_costs_is_found_with_files_that_go_again(place: Path) -> None:
    assert 0 < file_cost(place) < 1
    assert os.listdir(place) == []


def test_a_plain_directory_is_used_as_it_is(place: Path) -> None:
    def cost(_place: Path) -> float:
        raise AssertionError("tried")

    made = make_directory(place, "x-", cost)
    assert os.listdir(place) == [made.name]


def test_a_file_system_without_the_flag_is_left_alone() -> None:
    assert spread(Path("/proc/self")) is False
    assert is_spread(Path("/proc/self")) is False
    assert spread(Path("/nowhere")) is False


@spreads
def test_layers_are_made_in_places_that_were_tried(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    def cost(one: Path) -> float:
        tried.append(one)
        return DEAR if len(tried) == 1 else 0

    monkeypatch.setattr(block_groups, "file_cost", cost)
    store = Store(place)
    try:
        assert "T" in flags(store.layers.directory)
        with descriptor(PLAIN) as stream:
            staged = store.layers.stage(stream)
        assert staged.directory == tried[1]
        assert not tried[0].exists()
        assert (staged.directory / "diff/a").read_bytes() == b"first"
    finally:
        store.close()
