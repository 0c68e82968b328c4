"""Where the files of a plain tar lie in it. Pure.

Only what archives of images are made of by today's tools is understood: plain files and
directories, ustar names, PAX records for names and sizes. For everything else, and everything odd,
the answer is None, and the archive is unpacked, which is slower and knows every dialect.
Source: pax(1) of POSIX, "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

from collections.abc import Callable

BLOCK = 512
ENTRY_LIMIT = 50_000
_METADATA_LIMIT = 64 << 10
_HARMLESS = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}
_NUMBERS = ((148, 156), (100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345))
"""The checksum first; mode, owner, time, device."""
_FILE, _DIRECTORY, _EXTENDED = (b"0", b"\0"), b"5", b"x"


def index(
    read: Callable[[int, int], bytes], size: int, *, limit: int = ENTRY_LIMIT
) -> dict[str, tuple[int, int]] | None:
    """Offset and size of each file by its name; None for what is not plain.

    `read` gives bytes by count and offset; `size`: bytes of the archive; `limit`: of its files.
    """
    found: dict[str, tuple[int, int]] = {}
    records: dict[str, str] = {}
    at = 0
    while at + BLOCK <= size:
        header = read(BLOCK, at)
        at += BLOCK
        if not any(header):
            return None if records else found
        length = _number(header[124:136]) if _is_header(header) else None
        kind = header[156:157]
        if length is None or len(found) >= limit:
            return None
        if kind == _EXTENDED:
            if records or length > _METADATA_LIMIT or at + length > size:
                return None
            parsed = _records(read(length, at))
            if parsed is None:
                return None
            records = parsed
        else:
            if "size" in records:
                if not records["size"].isascii() or not records["size"].isdecimal():
                    return None
                length = int(records["size"])
            told = records.get("path") or _name(header)
            name = None if kind in _FILE and told.endswith("/") else plain(told)
            records = {}
            if name is None or at + length > size:
                return None
            if kind in _FILE and name and name not in found:
                found[name] = (at, length)
            elif kind != _DIRECTORY or length:
                return None
        at += -(-length // BLOCK) * BLOCK
    return None  # the end is missing


def _is_header(header: bytes) -> bool:
    if len(header) != BLOCK or header[257:265] != b"ustar\x0000":
        return False
    numbers = [_number(header[start:end]) for start, end in _NUMBERS]
    told, *others = numbers
    return None not in others and told == sum(header) - sum(header[148:156]) + 8 * 0x20


def _number(field: bytes) -> int | None:
    """None also for what is not octal, such as GNU's own way beyond 8 GiB."""
    digits = field.rstrip(b" \0").lstrip(b" ") or b"0"
    return int(digits, 8) if set(digits) <= set(b"01234567") else None


def _name(header: bytes) -> str:
    name, prefix = (header[a:b].partition(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("ascii", "replace").replace("\ufffd", "\0")


def plain(name: str) -> str | None:
    """The name without what says nothing; "" for the archive's own top; None for an odd one."""
    if name in (".", "./"):
        return ""
    parts = name.removeprefix("./").removesuffix("/").split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        return None
    return "/".join(parts)


def _records(data: bytes) -> dict[str, str] | None:
    found: dict[str, str] = {}
    while data:
        count, blank, _ = data.partition(b" ")
        if not blank or not count.isdigit() or len(count) > 8:
            return None
        end = int(count)
        key, equals, value = data[len(count) + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            return None
        try:
            name, text = key.decode(), value.decode()
        except UnicodeDecodeError:
            return None
        if name in ("path", "size"):
            if name in found or not text:
                return None
            found[name] = text
        elif name not in _HARMLESS:
            return None
        data = data[end:]
    return found
