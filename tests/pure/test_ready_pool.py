"""What is made ahead, taken, and given back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from dockpy import namespaces
from dockpy.errors import KernelError
from dockpy.namespaces import ReadyPool
from patience import patient


class Things:
    """A pool of numbers, and what became of them."""

    def __init__(self, ready: int) -> None:
        self.numbers = itertools.count(1)
        self.dropped: list[int] = []
        self.pool: ReadyPool[int] = ReadyPool(
            "things", lambda: next(self.numbers), self.dropped.append, ready
        )


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patient(10)
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def things() -> Iterator[Things]:
    made = Things(3)
    yield made
    made.pool.close()


def test_the_first_take_begins_and_the_pool_fills_itself(things: Things) -> None:
    assert things.pool.take() is None
    until(lambda: things.pool.count == 3)
    assert [things.pool.take() for _ in range(3)] == [1, 2, 3]
    until(lambda: things.pool.count == 3)
    assert things.dropped == []


def test_what_is_given_back_is_taken_again_as_late_as_possible(things: Things) -> None:
    things.pool.begin()
    until(lambda: things.pool.full)
    first = things.pool.take()
    assert first is not None
    assert things.pool.give(first)
    taken = [things.pool.take() for _ in range(3)]
    assert first in taken
    assert taken[0] != first


def test_a_pool_takes_back_only_so_many(things: Things, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "MOST", 4)
    things.pool.begin()
    until(lambda: things.pool.full)
    assert things.pool.give(100)
    assert not things.pool.give(101)
    assert things.dropped == []  # it stays the caller's


def test_when_nobody_asks_any_more_the_surplus_goes(
    things: Things, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "QUIET", 0.05)
    things.pool.take()
    until(lambda: things.pool.full)
    for number in range(100, 105):
        assert things.pool.give(number)
    until(lambda: things.pool.count == 3)
    assert len(things.dropped) == 5
    assert things.pool.take() not in things.dropped


def test_nothing_is_taken_back_before_it_began_or_after_its_end() -> None:
    things = Things(3)
    assert not things.pool.give(100)
    things.pool.begin()
    until(lambda: things.pool.full)
    things.pool.close()
    assert sorted(things.dropped) == [1, 2, 3]
    assert not things.pool.give(100)
    assert things.pool.take() is None


def test_what_cannot_be_made_is_tried_again_at_the_next_take() -> None:
    tries = []

    def make() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise KernelError("make", 12)
        return len(tries)

    pool: ReadyPool[int] = ReadyPool("things", make, lambda _: None, 2)
    assert pool.take() is None
    until(lambda: pool._thread is None)
    assert pool.take() is None
    until(lambda: pool.count == 2)
    pool.close()
