"""The slow, obvious tar writer: os.walk's way through a tree, every byte told here."""

from __future__ import annotations

import os
import re
import stat

from reference.tarblocks import END, padded, pax_record, seal

PORTABLE = {"security.capability", "system.posix_acl_access", "system.posix_acl_default"}


def retar(root: str, *, name: bytes = b"", layer: bool = False) -> bytes:
    """What `Packer` must write for the directory."""
    first: dict[tuple[int, int], bytes] = {}
    out: list[bytes] = []
    _directory(os.fsencode(root), name + b"/" if name else b"./", first, out, layer)
    return b"".join(out) + END


def _directory(
    path: bytes, shown: bytes, first: dict[tuple[int, int], bytes], out: list[bytes], layer: bool
) -> None:
    info = os.lstat(path)
    out.append(entry(shown, b"5", info, attributes=_attributes(path)))
    inside = b"" if shown == b"./" else shown
    if layer and b"trusted.overlay.opaque" in [os.fsencode(one) for one in os.listxattr(path)]:
        out.append(_mark(inside + b".wh..wh..opq"))
    for name in sorted(os.listdir(path)):
        below = os.path.join(path, name)
        info = os.lstat(below)
        if stat.S_ISDIR(info.st_mode):
            _directory(below, inside + name + b"/", first, out, layer)
        else:
            out.append(_leaf(below, inside, name, info, first, layer))


def _leaf(
    path: bytes,
    inside: bytes,
    name: bytes,
    info: os.stat_result,
    first: dict[tuple[int, int], bytes],
    layer: bool,
) -> bytes:
    overlay = os.listxattr(path, follow_symlinks=False)
    hides = stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
    if layer and (hides or (stat.S_ISREG(info.st_mode) and "trusted.overlay.whiteout" in overlay)):
        return _mark(inside + b".wh." + name)
    if stat.S_ISSOCK(info.st_mode):
        return b""
    shown = inside + name
    if info.st_nlink > 1:
        known = first.setdefault((info.st_dev, info.st_ino), shown)
        if known != shown:
            return entry(shown, b"1", info, link=known)
    attributes = _attributes(path)
    if stat.S_ISLNK(info.st_mode):
        return entry(shown, b"2", info, link=os.readlink(path), attributes=attributes)
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            data = file.read()
        return entry(shown, b"0", info, size=len(data), attributes=attributes) + padded(data)
    kind = {stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}[stat.S_IFMT(info.st_mode)]
    return entry(shown, kind, info, attributes=attributes)


def _attributes(path: bytes) -> dict[bytes, bytes]:
    """Those that belong to the file; neither overlayfs's nor this host's."""
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        user = name.startswith(("user.", "trusted.")) and name.split(".")[1] != "overlay"
        if user or name in PORTABLE:
            found[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
    return dict(sorted(found.items()))


def entry(
    name: bytes,
    kind: bytes,
    info: os.stat_result | None,
    *,
    size: int = 0,
    link: bytes = b"",
    attributes: dict[bytes, bytes] | None = None,
) -> bytes:
    """The headers of one entry; `info` None: nobody's, from 1970, mode 0600."""
    mode, uid, gid, device = 0o600, 0, 0, 0
    seconds, nanoseconds = 0, 0
    if info is not None:
        mode, uid, gid, device = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_rdev
        seconds, nanoseconds = divmod(info.st_mtime_ns, 10**9)
    records: dict[bytes, bytes] = {}
    front, rest = b"", name
    if not name.isascii():
        records[b"path"] = name
    elif len(name) > 100:
        cuts = [at for at in range(1, len(name) - 1) if name[at : at + 1] == b"/"]
        cuts = [at for at in cuts if at <= 155 and len(name) - at - 1 <= 100]
        if cuts:
            front, rest = name[: cuts[0]], name[cuts[0] + 1 :]
        else:
            records[b"path"] = name
    if len(link) > 100 or not link.isascii():
        records[b"linkpath"] = link
    for key, number, limit in (
        (b"size", size, 1 << 33),
        (b"uid", uid, 1 << 21),
        (b"gid", gid, 1 << 21),
    ):
        if number >= limit:
            records[key] = b"%d" % number
    if nanoseconds or not 0 <= seconds < 1 << 33:
        records[b"mtime"] = _time(seconds * 10**9 + nanoseconds)
    for attribute, value in (attributes or {}).items():
        coded = re.sub(rb"%(?=3D|25)", b"%25", attribute).replace(b"=", b"%3D")
        records[b"SCHILY.xattr." + coded] = value
    body = b"".join(pax_record(key, value) for key, value in records.items())
    front_block = b""
    if body:
        front_block = _block(b"././@PaxHeader", b"x", 0o644, 0, 0, len(body), 0) + padded(body)
    is_node = kind in b"34"
    return front_block + _block(
        rest[:100],
        kind,
        mode,
        uid,
        gid,
        size,
        seconds,
        link[:100],
        front,
        (os.major(device), os.minor(device)) if is_node else None,
    )


def _time(nanoseconds: int) -> bytes:
    whole, part = divmod(abs(nanoseconds), 10**9)
    text = b"%d" % whole + (b".%09d" % part).rstrip(b"0") if part else b"%d" % whole
    return b"-" + text if nanoseconds < 0 else text


def _mark(name: bytes) -> bytes:
    return entry(name, b"0", None)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes = b"",
    front: bytes = b"",
    device: tuple[int, int] | None = None,
) -> bytes:
    def octal(value: int, width: int) -> bytes:
        digits = width - 1
        return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)

    nodes = b"".join(octal(one, 8) for one in device) if device else bytes(16)
    return seal(
        b"".join(
            [
                name.ljust(100, b"\0"),
                octal(mode, 8) + octal(uid, 8) + octal(gid, 8),
                octal(size, 12) + octal(seconds, 12) + b" " * 8,
                kind + link.ljust(100, b"\0"),
                b"ustar\x0000" + bytes(64) + nodes,
                front.ljust(155, b"\0") + bytes(12),
            ]
        )
    )
