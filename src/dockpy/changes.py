"""What a container changed in its files, with Docker's answers. Values in, exceptions out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from dockpy._diff import KERNEL_STEPS, TREE_PROBLEMS, Comparison
from dockpy.errors import DockpyError, KernelError, RequestError
from dockpy.model import Change, ChangeKind

__all__ = ["Change", "ChangeKind", "change_lines", "changes"]

MOUNT_POINTS = ("dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf")
"""What every start mounts on: made in the upper when an image deletes it. Docker does not tell it
either; a file with content there, or a directory with files, is a change as any other."""


def changes(
    upper: int, lowers: Sequence[int], *, mount_points: Sequence[str] = MOUNT_POINTS
) -> list[Change]:
    """What the overlayfs upper at descriptor `upper` adds (A), modifies (C) and deletes (D) of what
    the directories `lowers`, top first, show together; sorted by the bytes of the path.

    Paths are absolute inside the container; bytes that are not UTF-8 become surrogates, as
    os.fsdecode has it. Exact when nothing writes to the upper meanwhile; else what is gone is left
    out. Blocks; reads no file. Raises KernelError for what the kernel refuses, RequestError for an
    upper that was mounted with redirect_dir or that is torn apart while it is read.
    """
    comparison = _comparison(upper, lowers, mount_points)
    found = comparison.run()
    if found is None:
        raise _failure(comparison)
    return _values(*found)


def change_lines(
    upper: int, lowers: Sequence[int], *, mount_points: Sequence[str] = MOUNT_POINTS
) -> bytes:
    """What `changes` tells, as text: `A /path` and a newline for each; paths byte for byte.

    For those who print it: 20,000 values and their text would take half the time of finding them.
    Blocks and raises as `changes` does.
    """
    comparison = _comparison(upper, lowers, mount_points)
    found = comparison.lines()
    if found is None:
        raise _failure(comparison)
    return found


def _comparison(upper: int, lowers: Sequence[int], mount_points: Sequence[str]) -> Comparison:
    points = [os.fsencode(point) for point in mount_points]
    return Comparison(upper, list(lowers), mount_points=points)


def _failure(comparison: Comparison) -> DockpyError:
    name = os.fsdecode(b"/" + comparison.name)
    if comparison.problem in TREE_PROBLEMS:
        return RequestError(f"{TREE_PROBLEMS[comparison.problem]} (at {name!r})")
    return KernelError(KERNEL_STEPS[comparison.problem], comparison.error, name)


def _values(paths: bytes, letters: bytes) -> list[Change]:
    """Of 20,000 changes the __init__ of a frozen dataclass would take as long as a third of finding
    them: the slots are filled one after the other."""
    kinds = {ord(kind.value): kind for kind in ChangeKind}
    texts = paths.decode("utf-8", "surrogateescape").split("\0")
    made = [*map(object.__new__, repeat(Change, len(letters)))]
    slots: Mapping[str, Any] = vars(Change)
    deque(map(slots["path"].__set__, made, texts), 0)
    deque(map(slots["kind"].__set__, made, map(kinds.__getitem__, letters)), 0)
    return made
