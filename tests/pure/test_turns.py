"""Turns at a container's files: one after the other, and who holds them up learns of it."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from dockpy.turns import Turns
from patience import patient


@pytest.fixture
def turns() -> Turns:
    return Turns()


def told(wanted: int, seconds: float = 0.0) -> bool:
    return bool(select.select([wanted], [], [], seconds)[0])


def in_turn(turns: Turns) -> None:
    with turns:
        pass


def in_turn_alone(turns: Turns) -> None:
    with turns:
        turns.alone()


def waiting(move: Callable[[Turns], None], turns: Turns) -> Future[None]:
    outcome: Future[None] = Future()

    def work() -> None:
        move(turns)
        outcome.set_result(None)

    threading.Thread(target=work, name="mover").start()
    return outcome


def test_who_holds_a_turn_is_told_of_the_next_one(turns: Turns) -> None:
    with turns.held() as wanted:
        assert not told(wanted)
        with turns:  # one's own next move is nobody who waits
            assert not told(wanted)
        next_one = waiting(in_turn, turns)
        assert told(wanted, patient(10))
        assert not next_one.done()
    next_one.result(patient(10))


def test_who_shares_holds_up_who_must_be_alone_and_nobody_else(turns: Turns) -> None:
    with turns.shared() as first, turns.shared() as second:
        in_turn(turns)
        assert not told(first)
        alone = waiting(in_turn_alone, turns)
        assert told(first, patient(10))
        assert told(second, patient(10))
        with turns.shared() as third:
            assert told(third)
        assert not alone.done()
    alone.result(patient(10))
    with turns.shared() as later:
        assert not told(later)
