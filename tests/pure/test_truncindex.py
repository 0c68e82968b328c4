"""Identifiers by any unique prefix."""

from __future__ import annotations

import os
import random
import threading

import pytest

from dockpy.errors import AmbiguousPrefix, NotFound, UsageError
from dockpy.truncindex import TruncIndex

FIRST, SECOND, THIRD = "19b36c2c326ccc11", "19b36c6ef1a1d3e5", "ffff"


def index() -> TruncIndex:
    return TruncIndex("thing", [FIRST, SECOND, THIRD])


def test_any_unique_prefix_finds_its_identifier() -> None:
    for length in range(len("19b36c") + 1, len(FIRST) + 1):
        assert index().get(FIRST[:length]) == FIRST
    assert index().get("f") == THIRD


def test_a_prefix_of_several_is_ambiguous_and_says_of_how_many() -> None:
    with pytest.raises(AmbiguousPrefix) as caught:
        index().get("19b36c")
    assert (caught.value.prefix, caught.value.matches) == ("19b36c", 2)


def test_a_whole_identifier_wins_over_longer_ones_that_begin_with_it() -> None:
    found = TruncIndex("thing", ["ab", "abc", "abd"])
    assert found.get("ab") == "ab"
    with pytest.raises(AmbiguousPrefix):
        found.get("a")


@pytest.mark.parametrize("reference", ["2", "19b36d", FIRST + "0", "\U0010ffff", " 19b", "FFFF"])
def test_what_is_not_there_is_named_with_its_kind(reference: str) -> None:
    with pytest.raises(NotFound) as caught:
        index().get(reference)
    assert (caught.value.kind, caught.value.reference) == ("thing", reference)


def test_an_empty_prefix_is_no_prefix_even_of_a_single_identifier() -> None:
    with pytest.raises(UsageError, match="empty thing id"):
        TruncIndex("thing", ["ab"]).get("")
    with pytest.raises(UsageError, match="empty thing id"):
        TruncIndex("thing").add("")


def test_what_was_removed_is_gone_and_makes_others_unique() -> None:
    found = index()
    found.remove(FIRST)
    assert found.get("19b36c") == SECOND
    assert FIRST not in found
    with pytest.raises(NotFound):
        found.remove(FIRST)
    with pytest.raises(NotFound):
        found.remove("19b36c")
    assert len(found) == 2


def test_adding_twice_is_adding_once() -> None:
    found = index()
    found.add(THIRD)
    assert len(found) == 3
    assert found.get("ff") == THIRD


def test_it_agrees_with_a_plain_set() -> None:
    chance = random.Random(7)
    found, plain = TruncIndex("thing"), set[str]()
    for _ in range(3000):
        identifier = "".join(chance.choices("ab", k=chance.randrange(1, 9)))
        if chance.random() < 0.6:
            found.add(identifier)
            plain.add(identifier)
        elif identifier in plain:
            found.remove(identifier)
            plain.remove(identifier)
        matches = [each for each in plain if each.startswith(identifier)]
        if identifier in plain or len(matches) == 1:
            assert found.get(identifier) == (identifier if identifier in plain else matches[0])
        elif matches:
            with pytest.raises(AmbiguousPrefix) as caught:
                found.get(identifier)
            assert caught.value.matches == len(matches)
        else:
            with pytest.raises(NotFound):
                found.get(identifier)
    assert len(found) == len(plain)


def test_threads_may_add_remove_and_look_up_at_once() -> None:
    found = TruncIndex("thing")
    problems: list[BaseException] = []

    def work(own: list[str]) -> None:
        try:
            for identifier in own:
                found.add(identifier)
                assert found.get(identifier[:40]) == identifier
            for identifier in own[::2]:
                found.remove(identifier)
        except BaseException as error:
            problems.append(error)

    shares = [[os.urandom(32).hex() for _ in range(300)] for _ in range(4)]
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(found) == 4 * 150
    assert all(identifier in found for share in shares for identifier in share[1::2])
