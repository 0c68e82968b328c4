"""Detach keys, slow and obvious: look for the sequence in all that was typed."""

from __future__ import annotations


def copied(typed: bytes, keys: bytes) -> tuple[bytes, bool]:
    """What passes on of `typed`, and whether the keys ended it."""
    if not keys or keys not in typed:
        return typed, False
    return typed[: typed.index(keys)], True
