"""Who a container runs as: users and groups by the container's own files.

The files come from the image and are hostile: their size is bounded, a line that is not an entry is
passed over, and all is found by patterns that go over the bytes once. No NSS, no library look-up.

Sources: passwd(5), group(5), setgroups(2), and how Docker reads `--user` (github.com/moby/sys/user,
GetExecUser): digits are always an id, never a name; the first of several entries counts; a group
that is asked for leaves no others; an id needs no entry, its group is then 0. The main group is
among the supplementary ones, as since Docker 20.10.18 (CVE-2022-36109: without it a program could
leave it by way of a setgid program, and gain what is forbidden to that group).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dockpy.errors import RequestError

FILE_LIMIT = 8 << 20
"""Bytes of a passwd or group file."""
SPEC_LIMIT = 512
LARGEST_ID = (1 << 31) - 1
GROUP_LIMIT = 65536
"""NGROUPS_MAX, setgroups(2)."""
PASSWD, GROUP = "/etc/passwd", "/etc/group"

OpenFile = Callable[[str], BinaryIO | None]

_ANY_NAME = rb"[^:\n]++"
_USER = rb"^[ \t]*+(%b):[^:\n]*+:(%b):(\d{1,32}+):[^:\n]*+:([^:\n]*+)"
_GROUP = rb"^[ \t]*+%b:[^:\n]*+:(\d{1,32}+)(?:[:\s]|\Z)"
_MEMBER = rb"^[ \t]*+[^:\n]++:[^:\n]*+:(\d{1,32}+):(?:[^\n]*,)?%b(?:,[^\n]*+|\r)?$"


@dataclass(frozen=True, slots=True)
class Identity:
    """Numbers for the kernel, and the home directory for the environment.

    `groups` are the supplementary ones for setgroups(2), `gid` the first of them.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _User:
    uid: int
    gid: int
    home: str = "/"
    name: bytes = b""


def resolve(spec: str, open_file: OpenFile) -> Identity:
    """The identity behind "", NAME, UID, NAME:GROUP or UID:GID.

    `open_file` gives a binary file for /etc/passwd or /etc/group, or None when there is none; it is
    read to the end and closed. RequestError when a name is not there, a number is out of range, or
    a file is too large or cannot be read.
    """
    user_text, _, group_text = spec.partition(":")
    if len(spec) > SPEC_LIMIT or ":" in group_text or not spec.isprintable():
        raise RequestError(f"bad user {spec[:80]!r}; write USER, UID, USER:GROUP or UID:GID")
    user = _find_user(user_text or "0", open_file)
    if group_text:
        gid = _find_group(group_text, open_file)
        return Identity(user.uid, gid, (gid,), user.home)
    groups = dict.fromkeys([user.gid])
    for gid in _memberships(user.name, open_file):
        groups[gid] = None
        if len(groups) > GROUP_LIMIT:
            name = user.name.decode(errors="replace")
            raise RequestError(
                f"user {name!r} is in more groups of the container than the kernel's {GROUP_LIMIT}"
            )
    return Identity(user.uid, user.gid, tuple(groups), user.home)


def _find_user(text: str, open_file: OpenFile) -> _User:
    number = _asked_number("user", text)
    if number is None:
        wanted = _USER % (re.escape(text.encode()), rb"\d{1,32}+")
    else:
        wanted = _USER % (_ANY_NAME, b"0*+%d" % number if number else rb"0++")
    for found in re.finditer(wanted, _read(PASSWD, open_file), re.MULTILINE):
        uid, gid = _number(found[2]), _number(found[3])
        if uid is not None and gid is not None:
            return _User(uid, gid, _home(found[4]), found[1])
    if number is not None:
        return _User(number, 0)
    raise RequestError(f"no user {text!r} in the container's {PASSWD}; name another or use an id")


def _find_group(text: str, open_file: OpenFile) -> int:
    number = _asked_number("group", text)
    if number is not None:
        return number
    wanted = _GROUP % re.escape(text.encode())
    for found in re.finditer(wanted, _read(GROUP, open_file), re.MULTILINE):
        gid = _number(found[1])
        if gid is not None:
            return gid
    raise RequestError(f"no group {text!r} in the container's {GROUP}; name another or use an id")


def _memberships(name: bytes, open_file: OpenFile) -> Iterator[int]:
    """Ids of the groups that list the user, in the order of the file."""
    if not name:
        return
    for found in re.finditer(_MEMBER % re.escape(name), _read(GROUP, open_file), re.MULTILINE):
        gid = _number(found[1])
        if gid is not None:
            yield gid


def _read(path: str, open_file: OpenFile) -> bytes:
    file = open_file(path)
    if file is None:
        return b""
    content = bytearray()
    try:
        with file:
            while chunk := file.read(FILE_LIMIT + 1 - len(content)):
                content += chunk
    except OSError as error:
        raise RequestError(f"cannot read the container's {path}: {error.strerror}") from error
    if len(content) > FILE_LIMIT:
        raise RequestError(f"the container's {path} has more than {FILE_LIMIT >> 20} MiB")
    return bytes(content)


def _asked_number(what: str, text: str) -> int | None:
    """The id that was asked for; None for a name. RequestError when it is out of range."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        return None
    number = _number(text.encode())
    if number is None:
        raise RequestError(f"{what} id {text[:80]} is out of range; use 0 to {LARGEST_ID}")
    return number


def _number(digits: bytes) -> int | None:
    if not digits.isdigit() or len(digits) > 32:
        return None
    value = int(digits)
    return value if value <= LARGEST_ID else None


def _home(field: bytes) -> str:
    home = field.rstrip(b"\r").decode("utf-8", "surrogateescape")
    return home if home and "\0" not in home else "/"
