"""Who a container runs as: users and groups by the container's own files.

The files come from the image and are hostile: sizes, lines and numbers are bounded, a line that is
not an entry is passed over. No NSS, no library look-up. Source: passwd(5), group(5); the rules of
precedence are those of Docker's documentation of --user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dockpy.errors import RequestError

FILE_LIMIT = 8 << 20
LARGEST_ID = (1 << 31) - 1
GROUP_LIMIT = 65536
"""NGROUPS_MAX, setgroups(2)."""

OpenFile = Callable[[str], BinaryIO | None]


@dataclass(frozen=True, slots=True)
class Identity:
    """Numbers for the kernel, and the home directory for the environment."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


def resolve(spec: str, open_file: OpenFile) -> Identity:
    """The identity behind "", NAME, UID, NAME:GROUP or UID:GID.

    `open_file` gives a binary file for /etc/passwd and /etc/group, or None. A name wins over a
    number of the same spelling; a number needs no entry. With a group given, there are no others.
    RequestError when a name is not there or a number is out of range.
    """
    user_text, colon, group_text = spec.partition(":")
    user = _find_user(user_text or "0", open_file)
    if colon and group_text:
        return Identity(user.uid, _find_group(group_text, open_file), (), user.home)
    return Identity(user.uid, user.gid, _memberships(user.name, open_file), user.home)


def _find_user(text: str, open_file: OpenFile) -> _User:
    number = _number(text)
    by_number = None
    for fields in _entries(open_file, "/etc/passwd", 6):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is None or gid is None:
            continue
        if fields[0] == text:
            return _User(fields[0], uid, gid, fields[5] or "/")
        if by_number is None and uid == number:
            by_number = _User(fields[0], uid, gid, fields[5] or "/")
    if by_number is not None:
        return by_number
    if number is not None:
        return _User("", number, 0, "/")
    if text.lstrip("-").isdecimal():
        raise RequestError(f"user id {text} is out of range; use 0 to {LARGEST_ID}")
    raise RequestError(
        f"no user {text!r} in the container's /etc/passwd; name another or use an id"
    )


def _find_group(text: str, open_file: OpenFile) -> int:
    for fields in _entries(open_file, "/etc/group", 3):
        gid = _number(fields[2])
        if fields[0] == text and gid is not None:
            return gid
    number = _number(text)
    if number is not None:
        return number
    if text.lstrip("-").isdecimal():
        raise RequestError(f"group id {text} is out of range; use 0 to {LARGEST_ID}")
    raise RequestError(
        f"no group {text!r} in the container's /etc/group; name another or use an id"
    )


def _memberships(name: str, open_file: OpenFile) -> tuple[int, ...]:
    if not name:
        return ()
    found: dict[int, None] = {}
    for fields in _entries(open_file, "/etc/group", 4):
        gid = _number(fields[2])
        if gid is not None and name in fields[3].split(","):
            found[gid] = None
    if len(found) > GROUP_LIMIT:
        raise RequestError(f"user {name!r} is in more than {GROUP_LIMIT} groups of the container")
    return tuple(found)


def _entries(open_file: OpenFile, path: str, least: int) -> Iterator[list[str]]:
    """Lines of a colon-separated file with at least so many fields, as far as the limit goes."""
    file = open_file(path)
    if file is None:
        return
    with file:
        data = file.read(FILE_LIMIT)
    for line in data.split(b"\n"):
        fields = line.rstrip(b"\r").decode("utf-8", "surrogateescape").split(":")
        if len(fields) >= least and fields[0] and "\0" not in fields[0]:
            yield fields


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= LARGEST_ID else None
