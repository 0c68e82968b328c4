"""Tar blocks made by hand, for archives no well-behaved program would write."""

from __future__ import annotations

END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    """A number field; base-256 when octal does not fit (or the value is negative)."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = value.to_bytes(width, "big", signed=True)
    return bytes([raw[0] | 0x80]) + raw[1:]


def seal(block: bytes) -> bytes:
    """The block with a right checksum."""
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    return block[:148] + b"%06o\0 " % total + block[156:]


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_000_000_000,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    size_field: bytes | None = None,
) -> bytes:
    """One 512-byte header with a right checksum."""
    block = b"".join(
        [
            name.ljust(100, b"\0"),
            octal(mode, 8),
            octal(uid, 8),
            octal(gid, 8),
            octal(size, 12) if size_field is None else size_field,
            octal(mtime, 12),
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            magic,
            bytes(64),
            octal(major, 8),
            octal(minor, 8),
            prefix.ljust(155, b"\0"),
        ]
    )
    assert len(name) <= 100
    assert len(link) <= 100
    return seal(block.ljust(512, b"\0"))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    """A header and its data."""
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header and its records."""
    body = b"".join(pax_record(key, value) for key, value in records.items())
    return header(b"PaxHeaders/x", kind, size=len(body)) + padded(body)


def pax_record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest)
    while size != len(rest) + len(str(size)):
        size = len(rest) + len(str(size))
    return str(size).encode() + rest


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """GNU's long name (L) or long link (K)."""
    return header(b"././@LongLink", kind, size=len(name) + 1, magic=b"ustar  \0") + padded(
        name + b"\0"
    )
