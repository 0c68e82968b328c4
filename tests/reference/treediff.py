"""The slow, obvious comparison of two whole trees, as Docker's documentation of `diff` has it."""

from __future__ import annotations

import os
import stat


def treediff(old: str, new: str) -> list[str]:
    """`A`, `C` or `D`, a blank and the absolute path, sorted by the path's bytes."""
    found: list[tuple[bytes, str]] = []
    _compare(os.fsencode(old), os.fsencode(new), b"", found)
    return [f"{kind} {os.fsdecode(path)}" for path, kind in sorted(found)]


def _compare(old: bytes, new: bytes, path: bytes, found: list[tuple[bytes, str]]) -> bool:
    """Whether anything differs in this directory of both trees."""
    names_old, names_new = set(os.listdir(old)), set(os.listdir(new))
    before = len(found)
    for name in names_old - names_new:
        found.append((path + b"/" + name, "D"))
    for name in names_new - names_old:
        _added(os.path.join(new, name), path + b"/" + name, found)
    for name in names_old & names_new:
        one, other = os.path.join(old, name), os.path.join(new, name)
        here = path + b"/" + name
        differs = _differ(one, other)
        kinds = [stat.S_IFMT(os.lstat(each).st_mode) for each in (one, other)]
        if kinds == [stat.S_IFDIR] * 2:
            differs = _compare(one, other, here, found) or differs
        elif kinds[1] == stat.S_IFDIR:
            for below in os.listdir(other):
                _added(os.path.join(other, below), here + b"/" + below, found)
        if differs:
            found.append((here, "C"))
    return len(found) > before


def _added(new: bytes, path: bytes, found: list[tuple[bytes, str]]) -> None:
    found.append((path, "A"))
    if stat.S_ISDIR(os.lstat(new).st_mode):
        for name in os.listdir(new):
            _added(os.path.join(new, name), path + b"/" + name, found)


def _differ(old: bytes, new: bytes) -> bool:
    one, other = os.lstat(old), os.lstat(new)
    for value in ("st_mode", "st_uid", "st_gid", "st_rdev"):
        if getattr(one, value) != getattr(other, value):
            return True
    if not stat.S_ISDIR(one.st_mode) and not stat.S_ISBLK(one.st_mode):
        if one.st_size != other.st_size:
            return True
        times = [divmod(each.st_mtime_ns, 10**9) for each in (one, other)]
        if times[0][0] != times[1][0]:
            return True
        if times[0][1] != times[1][1] and times[0][1] and times[1][1]:
            return True
    return _capability(old) != _capability(new)


def _capability(path: bytes) -> bytes:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError:
        return b""
