"""The copy that ends at the detach keys, beside the slow reference."""

from __future__ import annotations

import os
import random
import threading

import pytest

from dockpy._copy import escapable_copy
from reference import escapable


def through(chunks: list[bytes], keys: bytes) -> tuple[bytes, tuple[int, bool, int]]:
    """What comes out when `chunks` go in one by one, and what the copy says."""
    source, feed = os.pipe()
    drain, target = os.pipe()
    said: list[tuple[int, bool, int]] = []
    thread = threading.Thread(target=lambda: said.append(escapable_copy(source, target, keys)))
    thread.start()
    for chunk in chunks:
        os.write(feed, chunk)
        if chunk != chunks[-1]:
            _until_taken(feed, thread)
    os.close(feed)
    thread.join()
    os.close(target)
    out = b""
    while more := os.read(drain, 65536):
        out += more
    os.close(source)
    os.close(drain)
    return out, said[0]


def _until_taken(feed: int, thread: threading.Thread) -> None:
    """Chunks are read one by one, as keys are typed."""
    import array
    import fcntl
    import termios

    left = array.array("i", [1])
    while left[0] and thread.is_alive():
        fcntl.ioctl(feed, termios.FIONREAD, left)


@pytest.mark.parametrize("seed", range(60))
def test_keys_are_found_as_in_the_whole_text_whatever_the_reads(seed: int) -> None:
    chance = random.Random(seed)
    letters = b"ab" if seed % 2 else b"\x10\x11x"
    keys = bytes(chance.choice(letters) for _ in range(chance.randrange(0, 6)))
    typed = bytes(chance.choice(letters) for _ in range(chance.randrange(1, 30)))
    chunks = []
    rest = typed
    while rest:
        size = chance.randrange(1, 6)
        chunks.append(rest[:size])
        rest = rest[size:]
    expected, detached = escapable.copied(typed, keys)
    out, said = through(chunks, keys)
    assert out == expected
    assert said == (len(expected), detached, 0)


def test_every_byte_passes() -> None:
    data = bytes(range(256)) * 20
    assert through([data], b"\x10\x11\x12") == (
        escapable.copied(data, b"\x10\x11\x12")[0],
        (16, True, 0),
    )
    assert through([data], b"")[0] == data


def test_broken_target_is_told_as_its_errno() -> None:
    import errno

    source, feed = os.pipe()
    drain, target = os.pipe()
    os.close(drain)
    os.write(feed, b"x")
    assert escapable_copy(source, target, b"") == (0, False, errno.EPIPE)
    for one in (source, feed, target):
        os.close(one)


def test_keys_that_are_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        escapable_copy(0, 1, b"x" * 33)
