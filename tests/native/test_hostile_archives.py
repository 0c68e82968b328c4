"""Archives that mean harm: each known class of it, unpacked both ways; nothing outside changes.

The classes are those of the CVEs of tar, libarchive, Python's tarfile, Go's archive/tar, node-tar
and the container engines: names that lead out, links that lead out and are written through, hard
links to what is not the archive's, numbers and maps that lie, and archives that are small until
they are read.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from dockpy import archive
from dockpy._below import remove_tree
from dockpy.archive import Budget
from dockpy.errors import BadArchive, KernelError
from hostile import Scene, device, folder, hard, link
from reference.tarblocks import END, file, header, long_name, octal, padded, pax, pax_record, seal

pytestmark = pytest.mark.needs("root", "mknod")


@pytest.fixture(autouse=True)
def _no_deep_trees(tmp_path: Path) -> Iterator[None]:
    """pytest's own cleaning calls itself once for each directory; ours does not."""
    yield
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def raw_header(**fields: tuple[int, bytes]) -> bytes:
    """A header with some bytes at some offsets, and a right checksum."""
    block = bytearray(header(b"f"))
    for offset, value in fields.values():
        block[offset : offset + len(value)] = value
    return seal(bytes(block))


def old_sparse(pairs: list[tuple[bytes, bytes]], real: bytes, *, more: bool = False) -> bytes:
    """A header in GNU's old sparse format; its fields as they are."""
    block = bytearray(header(b"s", b"S", size=512, magic=b"ustar  \0"))
    for i, (offset, size) in enumerate(pairs):
        block[386 + 24 * i : 410 + 24 * i] = offset + size
    block[482] = more
    block[483:495] = real
    return seal(bytes(block))


def sparse(data: bytes, numbers: bytes, size: int = 10, **more: bytes) -> bytes:
    """A file in PAX sparse format 0.1."""
    records = {b"GNU.sparse.map": numbers, b"GNU.sparse.size": b"%d" % size}
    return pax(records) + file(b"f", data)


def sparse_one(data: bytes, real: bytes = b"9") -> bytes:
    """A file in PAX sparse format 1.0, its map at the start of the data."""
    return pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": real}) + file(b"f", data)


OVERFLOW = b"\x80" + b"\xff" * 11
HUGE = octal((1 << 63) - 1, 12)

BROKEN_CHECKSUM = bytearray(file(b"good", b"x") + file(b"lies", b"y") + END)
BROKEN_CHECKSUM[1024] ^= 1

OUT_OF_TURN = pax_record(b"GNU.sparse.size", b"9") + pax_record(b"GNU.sparse.numbytes", b"1")

REFUSED: dict[str, tuple[bytes, str]] = {
    "dotdot": (file(b"../evil", b"x"), "'..'"),
    "dotdot inside": (file(b"a/../../evil", b"x"), "'..'"),
    "dotdot at the end": (folder(b"a/.."), "'..'"),
    "absolute": (file(b"/etc/evil", b"x"), "absolute"),
    "absolute after dot": (file(b".//etc/evil", b"x"), "empty"),
    "dot inside": (file(b"a/./b", b"x"), "'.'"),
    "empty name": (file(b"", b"x"), "empty"),
    "empty part": (file(b"a//b", b"x"), "empty"),
    "root as file": (file(b"./", b"") + link(b".", b"/"), "root"),
    "root as link": (link(b"./.", b"/etc"), "root"),
    "pax dotdot": (pax({b"path": b"../evil"}) + file(b"good", b"x"), "'..'"),
    "pax absolute": (pax({b"path": b"/evil"}) + file(b"good", b"x"), "absolute"),
    "pax NUL": (pax({b"path": b"a\0b"}) + file(b"good", b"x"), "NUL"),
    "pax NUL in link": (pax({b"linkpath": b"a\0b"}) + link(b"good", b"x"), "NUL"),
    "gnu dotdot": (long_name(b"x/" * 60 + b"../" * 70 + b"evil") + file(b"good", b"x"), "'..'"),
    "sparse name": (pax({b"GNU.sparse.name": b"../evil"}) + file(b"good", b"x"), "'..'"),
    "name too long": (pax({b"path": b"x" * 256}) + file(b"good", b"x"), "too long"),
    "path too long": (pax({b"path": b"x/" * 2100 + b"y"}) + file(b"good", b"x"), "too long"),
    "hard link out": (hard(b"evil", b"../outside/secret"), "'..'"),
    "hard link absolute": (hard(b"evil", b"/etc/passwd"), "absolute"),
    "hard link through link": (
        link(b"d", b"../outside") + hard(b"evil", b"d/secret"),
        "target is not in the archive",
    ),
    "hard link to directory": (folder(b"d") + hard(b"evil", b"d"), "is a directory"),
    "hard link to root": (hard(b"evil", b"."), "is a directory"),
    "hard link to nothing": (hard(b"evil", b"none"), "not in the archive"),
    "hard link without target": (hard(b"evil", b""), "no target"),
    "link without target": (link(b"evil", b""), "no target"),
    "through a file": (file(b"f", b"x") + file(b"f/evil", b"x"), "not a directory"),
    "through a dead link": (link(b"l", b"../outside") + file(b"l/evil", b"x"), "not a directory"),
    "through a loop": (link(b"l", b"l") + file(b"l/evil", b"x"), "too many symbolic links"),
    "through a file link": (
        file(b"f", b"x") + link(b"l", b"f") + file(b"l/evil", b"x"),
        "not a directory",
    ),
    "bare whiteout": (file(b".wh.", b""), "whiteout"),
    "whiteout of dot": (file(b"a/.wh..", b""), "whiteout"),
    "whiteout of dotdot": (file(b"a/.wh...", b""), "whiteout"),
    "inside a whiteout": (file(b".wh.a/b", b"x"), "whiteout"),
    "negative size": (header(b"f", size_field=octal(-1, 12)) + END, "negative"),
    "pax negative size": (pax({b"size": b"-1"}) + file(b"f", b"x"), "negative"),
    "pax huge size": (pax({b"size": b"9" * 30}) + file(b"f", b"x"), "negative or impossible"),
    "huge size": (header(b"f", size_field=octal((1 << 63) - 1, 12)), "more bytes than allowed"),
    "number lies": (header(b"f", size_field=b"12x45678901\0"), "number"),
    "id of nobody": (file(b"f", uid=(1 << 32) - 1), "user or group"),
    "negative id": (file(b"f", uid=-1), "user or group"),
    "pax id": (pax({b"uid": b"99999999999"}) + file(b"f"), "user or group"),
    "device number": (header(b"f", b"3", major=1 << 12), "device number"),
    "checksum lies": (bytes(BROKEN_CHECKSUM), "checksum"),
    "unknown type": (header(b"f", b"Z"), "unknown type"),
    "multi-volume": (header(b"f", b"M"), "unknown type"),
    "global path": (pax({b"path": b"evil"}, b"g") + file(b"good", b"x"), "global"),
    "global size": (pax({b"size": b"0"}, b"g") + file(b"good", b"x"), "global"),
    "global attribute": (pax({b"SCHILY.xattr.user.a": b"b"}, b"g") + file(b"good"), "global"),
    "pax length lies": (header(b"x", b"x", size=12) + b"99 path=evil".ljust(512, b"\0"), "PAX"),
    "pax length zero": (header(b"x", b"x", size=9) + b"0 path=a\n".ljust(512, b"\0"), "PAX"),
    "pax without equals": (header(b"x", b"x", size=8) + b"8 patha\n".ljust(512, b"\0"), "PAX"),
    "pax without newline": (header(b"x", b"x", size=9) + b"9 path=ab".ljust(512, b"\0"), "PAX"),
    "pax key with NUL": (pax({b"pa\0th": b"x"}) + file(b"f"), "PAX"),
    "pax too big": (pax({b"comment": b"x" * (2 << 20)}) + file(b"f"), "metadata"),
    "pax declared too big": (header(b"x", b"x", size=1 << 40), "metadata"),
    "attributes too big": (
        b"".join(pax({b"SCHILY.xattr.user.%d" % i: b"x" * 60_000}) for i in range(20)) + file(b"f"),
        "metadata",
    ),
    "attribute too big": (pax({b"SCHILY.xattr.user.a": b"x" * 65_537}) + file(b"f"), "attribute"),
    "attribute name": (pax({b"SCHILY.xattr." + b"x" * 256: b"x"}) + file(b"f"), "attribute"),
    "attribute name, decoded": (
        pax({b"SCHILY.xattr." + b"%3D" * 256: b"x"}) + file(b"f"),
        "attribute",
    ),
    "long name too big": (header(b"x", b"L", size=1 << 33, magic=b"ustar  \0"), "metadata"),
    "sparse overlap": (
        pax({b"GNU.sparse.map": b"0,5,3,5", b"GNU.sparse.size": b"10"}) + file(b"f", b"x" * 10),
        "sparse",
    ),
    "sparse beyond": (
        pax({b"GNU.sparse.map": b"5,10", b"GNU.sparse.size": b"10"}) + file(b"f", b"x" * 10),
        "sparse",
    ),
    "sparse other size": (
        pax({b"GNU.sparse.map": b"0,5", b"GNU.sparse.size": b"10"}) + file(b"f", b"x" * 10),
        "sparse",
    ),
    "sparse bomb": (
        pax({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"9" * 18}) + file(b"f", b"x"),
        "more bytes",
    ),
    "sparse map lies": (
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"9"}) + file(b"f", b"9\n" * 256),
        "sparse",
    ),
    "sparse map missing": (
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"9"}) + file(b"f", b"1\n0\n"),
        "sparse",
    ),
    "base-256 size overflows": (raw_header(size=(124, OVERFLOW)), "number"),
    "base-256 size too long": (raw_header(size=(124, b"\x80\1" + bytes(10))), "number"),
    "base-256 size negative": (raw_header(size=(124, b"\xff" * 12)), "negative"),
    "base-256 id huge": (raw_header(uid=(108, b"\x80" + b"\x7f" * 7)), "user or group"),
    "base-256 id negative": (raw_header(gid=(116, b"\xff" * 8)), "user or group"),
    "octal with a sign": (raw_header(size=(124, b"-0000000001\0")), "number"),
    "octal of spaces and text": (raw_header(mode=(100, b"   0x1  ")), "number"),
    "checksum of nothing": (header(b"f")[:148] + b"        " + header(b"f")[156:], "checksum"),
    "block number device": (raw_header(kind=(156, b"4"), major=(329, b"\xff" * 8)), "device"),
    "pax size too small": (pax({b"size": b"1"}) + file(b"f", b"x" * 600), "checksum"),
    "pax size too large": (pax({b"size": b"5000"}) + file(b"f", b"x") + END, "middle"),
    "pax size with a sign": (pax({b"size": b"+1"}) + file(b"f", b"x"), "negative or impossible"),
    "pax size with a space": (pax({b"size": b" 1"}) + file(b"f", b"x"), "negative or impossible"),
    "pax time": (pax({b"mtime": b"1e9"}) + file(b"f"), "PAX"),
    "pax negative record": (header(b"x", b"x", size=9) + padded(b"-9 path=a"), "PAX"),
    "pax record of twenty digits": (
        header(b"x", b"x", size=30) + padded(b"1" * 20 + b" a=b\n"),
        "PAX",
    ),
    "pax record over the end": (
        header(b"x", b"x", size=20) + padded(pax_record(b"path", b"x" * 30)),
        "PAX",
    ),
    "pax hard link out": (pax({b"linkpath": b"../outside/secret"}) + hard(b"h", b"x"), "'..'"),
    "gnu hard link out": (long_name(b"../outside/secret", b"K") + hard(b"h", b"x"), "'..'"),
    "gnu long name of nothing": (long_name(b"") + file(b"good"), "empty"),
    "hard link onto the outside by a link": (
        link(b"d", b"/outside") + folder(b"outside") + hard(b"evil", b"d/secret"),
        "not in the archive",
    ),
    "hard link with a slash": (file(b"f") + hard(b"evil", b"/f"), "absolute"),
    "hard link to a directory of links": (
        folder(b"d") + link(b"l", b"d") + hard(b"evil", b"l/."),
        "'.'",
    ),
    "a device as parent": (device(b"null") + file(b"null/evil"), "not a directory"),
    "a fifo as parent": (header(b"pipe", b"6") + file(b"pipe/evil"), "not a directory"),
    "a whiteout as parent": (file(b".wh.a") + file(b"a/evil"), "not a directory"),
    "a socket": (header(b"f", b"s"), "unknown type"),
    "access list": (pax({b"SCHILY.acl.access": b"user::rwz"}) + file(b"f"), "access control"),
    "access list without others": (
        pax({b"SCHILY.acl.access": b"user::rwx,group::r--"}) + file(b"f"),
        "access control",
    ),
    "access list of nobody": (
        pax({b"SCHILY.acl.access": b"u::r,u:x:r:4294967295,g::r,m::r,o::r"}) + file(b"f"),
        "access control",
    ),
    "global access list": (
        pax({b"SCHILY.acl.access": b"user::rwx,group::rwx,other::rwx"}, b"g") + file(b"f"),
        "global",
    ),
    "old sparse negative": (
        old_sparse([(octal(-512, 12), octal(512, 12))], octal(512, 12)) + bytes(512),
        "sparse",
    ),
    "old sparse overflow": (
        old_sparse([(HUGE, octal(512, 12))], octal(512, 12)) + bytes(512),
        "sparse",
    ),
    "old sparse sizes overflow": (
        old_sparse([(octal(0, 12), HUGE), (HUGE, HUGE)], HUGE) + bytes(512),
        "more bytes",
    ),
    "old sparse negative size": (
        old_sparse([(octal(0, 12), octal(-1, 12)), (octal(0, 12), octal(513, 12))], octal(512, 12))
        + bytes(512),
        "sparse",
    ),
    "old sparse real size negative": (
        old_sparse([(octal(0, 12), octal(512, 12))], octal(-1, 12)) + bytes(512),
        "more bytes",
    ),
    "old sparse extension missing": (
        old_sparse([(octal(0, 12), octal(512, 12))], octal(512, 12), more=True),
        "middle",
    ),
    "sparse backwards": (sparse(b"x" * 4, b"6,2,0,2"), "sparse"),
    "sparse sum overflows": (
        sparse(b"x", b"%d,1,%d,1" % (10**17, 10**17 + 1), 10**17 + 2),
        "bytes",
    ),
    "sparse letters": (sparse(b"x", b"0,a"), "sparse"),
    "sparse without a size": (pax({b"GNU.sparse.map": b"0,1"}) + file(b"f", b"x"), "sparse"),
    "sparse of a later version": (
        pax({b"GNU.sparse.major": b"2", b"GNU.sparse.realsize": b"1"}) + file(b"f", b"x" * 512),
        "sparse",
    ),
    "sparse count lies": (sparse_one(padded(b"3\n0\n1\n") + b"x"), "sparse"),
    "sparse count of millions": (sparse_one(padded(b"99999999\n")), "sparse"),
    "sparse number without end": (sparse_one(b"1" * 1024), "sparse"),
    "sparse empty lines": (sparse_one(b"\n" * 512), "sparse"),
    "sparse offset and size out of turn": (
        header(b"x", b"x", size=len(OUT_OF_TURN)) + padded(OUT_OF_TURN) + file(b"f", b"x"),
        "sparse",
    ),
    "nothing": (b"", "empty"),
    "one byte": (b"x", "not a tar archive"),
    "text": (b"#!/bin/sh\n" * 100, "not a tar archive"),
    "ends in a header": (file(b"f", b"x")[:300], "not a tar archive"),
    "ends in a second header": (file(b"f", b"x") + header(b"g")[:300], "middle"),
    "ends in data": (header(b"f", size=5000) + b"x" * 100, "middle"),
    "ends in padding": (header(b"f", size=5) + b"x" * 5, "middle"),
    "ends in an extended header": (pax({b"path": b"x"})[:600], "middle"),
    "ends after an extended header": (pax({b"path": b"x"}), "middle"),
    "end mark after an extended header": (pax({b"path": b"x"}) + END, "middle"),
    "endless zeros": (file(b"f", b"x") + bytes(17 << 20), "end mark"),
}


@pytest.mark.parametrize("by_hand", [False, True], ids=["openat2", "by-hand"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    case: str, by_hand: bool, scene: Scene
) -> None:
    data, words = REFUSED[case]
    with pytest.raises(BadArchive) as caught:
        scene.extract(
            folder(b"before") + data if data and case not in NO_PREFIX else data, by_hand=by_hand
        )
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not scene.target.exists()
    scene.check_outside()


NO_PREFIX = {"nothing", "one byte", "text", "ends in a header"}


def test_a_sparse_map_with_half_a_pair_is_refused(scene: Scene) -> None:
    data = pax({b"GNU.sparse.map": b"0,5,3", b"GNU.sparse.size": b"9"}) + file(b"f", b"x" * 5)
    with pytest.raises(BadArchive, match="sparse"):
        scene.extract(data + END)
    assert not scene.target.exists()


CONTAINED: dict[str, tuple[bytes, Callable[[Path], bool]]] = {
    "write through an absolute link": (
        link(b"l", b"/outside") + folder(b"outside") + file(b"l/secret", b"new"),
        lambda t: (t / "outside" / "secret").read_bytes() == b"new",
    ),
    "write through dotdot": (
        folder(b"outside") + link(b"l", b"../../outside") + file(b"l/secret", b"new"),
        lambda t: (t / "outside" / "secret").read_bytes() == b"new",
    ),
    "write over a link": (
        link(b"secret", b"../outside/secret") + file(b"secret", b"new"),
        lambda t: (t / "secret").read_bytes() == b"new" and not (t / "secret").is_symlink(),
    ),
    "directory over a link": (
        link(b"d", b"../outside") + folder(b"d") + file(b"d/secret", b"new"),
        lambda t: not (t / "d").is_symlink() and (t / "d" / "secret").read_bytes() == b"new",
    ),
    "a parent becomes a link": (
        folder(b"a") + file(b"a/x", b"1") + link(b"a", b"b") + folder(b"b") + file(b"a/x", b"2"),
        lambda t: (t / "b" / "x").read_bytes() == b"2" and (t / "a").is_symlink(),
    ),
    "a parent becomes a link out": (
        folder(b"a")
        + file(b"a/x", b"1")
        + folder(b"outside")
        + link(b"a", b"/outside")
        + file(b"a/secret", b"2"),
        lambda t: (t / "outside" / "secret").read_bytes() == b"2",
    ),
    "hard link to a link": (
        link(b"l", b"../outside/secret") + hard(b"h", b"l") + file(b"h", b"new"),
        lambda t: (t / "l").is_symlink() and (t / "h").read_bytes() == b"new",
    ),
    "hard link to a link keeps the link": (
        link(b"l", b"../outside/secret") + hard(b"h", b"l"),
        lambda t: os.readlink(t / "h") == "../outside/secret",
    ),
    "hard link to itself": (
        file(b"f", b"x") + hard(b"f", b"f"),
        lambda t: (t / "f").read_bytes() == b"x",
    ),
    "mode of a linked directory": (
        link(b"d", b"../outside") + header(b"d/", b"5", mode=0o777),
        lambda t: not (t / "d").is_symlink(),
    ),
    "a device is replaced, not written": (
        header(b"null", b"3", mode=0o666, major=1, minor=3) + file(b"null", b"x" * 10),
        lambda t: stat.S_ISREG((t / "null").lstat().st_mode) and (t / "null").stat().st_size == 10,
    ),
    "a fifo is replaced, not opened": (
        header(b"pipe", b"6") + file(b"pipe", b"x"),
        lambda t: (t / "pipe").read_bytes() == b"x",
    ),
    "file over a full directory": (
        folder(b"d") + file(b"d/a", b"1") + file(b"d", b"2"),
        lambda t: (t / "d").read_bytes() == b"2",
    ),
    "every kind one after the other": (
        file(b"n", b"1") + folder(b"n") + link(b"n", b"/") + header(b"n", b"6") + folder(b"n"),
        lambda t: (t / "n").is_dir() and not (t / "n").is_symlink(),
    ),
    "a written hard link does not change its target": (
        file(b"a", b"1") + hard(b"b", b"a") + file(b"b", b"2"),
        lambda t: (t / "a").read_bytes() == b"1",
    ),
    "names that differ in case": (
        link(b"Link", b"/outside") + folder(b"outside") + file(b"link/secret", b"new"),
        lambda t: (t / "link" / "secret").read_bytes() == b"new" and not (t / "link").is_symlink(),
    ),
    "leading dots": (
        folder(b"./") + file(b"././a", b"1") + file(b"./b/c", b"2"),
        lambda t: (t / "a").exists() and (t / "b" / "c").exists(),
    ),
    "link with data size": (
        header(b"l", b"2", link=b"x", size=5000) + file(b"f", b"x"),
        lambda t: (t / "l").is_symlink() and (t / "f").exists(),
    ),
    "a NUL ends a name": (
        raw_header(name=(0, b"good\0/../../outside/secret")),
        lambda t: os.listdir(t) == ["good"],
    ),
    "only a dot": (folder(b".", mode=0o700) + folder(b"./"), lambda t: os.listdir(t) == []),
    "hard link onto a device": (
        device(b"null") + hard(b"h", b"null") + file(b"h", b"x" * 10),
        lambda t: (
            stat.S_ISCHR((t / "null").lstat().st_mode) and (t / "h").read_bytes() == b"x" * 10
        ),
    ),
    "a hard link's own mode and owner": (
        file(b"a", b"1", mode=0o644) + hard(b"b", b"a", mode=0o6777, uid=1000),
        lambda t: stat.S_IMODE((t / "a").stat().st_mode) == 0o644 and (t / "a").stat().st_uid == 0,
    ),
    "a directory, a link, a directory": (
        folder(b"d")
        + file(b"d/x", b"1")
        + link(b"d", b"/outside")
        + folder(b"d")
        + file(b"d/secret", b"2"),
        lambda t: os.listdir(t / "d") == ["secret"] and not (t / "d").is_symlink(),
    ),
    "a grandparent becomes a link": (
        folder(b"a/b/c")
        + file(b"a/b/c/x", b"1")
        + folder(b"real")
        + link(b"a", b"real")
        + file(b"a/b/c/x", b"2"),
        lambda t: (t / "real" / "b" / "c" / "x").read_bytes() == b"2",
    ),
    "a hard link takes the place of a parent": (
        folder(b"a") + file(b"a/x") + link(b"l", b"../outside") + hard(b"a", b"l"),
        lambda t: os.readlink(t / "a") == "../outside",
    ),
    "a link's text in the proc file system": (
        link(b"fd", b"/proc/self/fd/3") + link(b"cwd", b"/proc/self/cwd/outside/secret"),
        lambda t: (t / "fd").is_symlink(),
    ),
    "attributes of a link stay with the link": (
        pax({b"SCHILY.xattr.trusted.mark": b"1"}) + link(b"l", b"../outside/secret"),
        lambda t: (t / "l").is_symlink(),
    ),
    "an opaque mark by way of a link": (
        folder(b"d") + link(b"l", b"d") + file(b"l/.wh..wh..opq"),
        lambda t: os.getxattr(t / "d", "trusted.overlay.opaque") == b"y",
    ),
    "an opaque mark of another kind": (
        folder(b"d") + link(b"d/.wh..wh..opq", b"../../outside") + folder(b"d/.wh..wh..opq/x"),
        lambda t: os.listdir(t / "d") == [],
    ),
    "a whiteout with content": (
        file(b".wh.gone", b"x" * 2000) + file(b"next", b"1"),
        lambda t: (t / "next").read_bytes() == b"1" and (t / "gone").lstat().st_size == 0,
    ),
    "a whiteout of a link": (
        link(b"l", b"../outside/secret") + file(b".wh.l"),
        lambda t: (t / "l").is_symlink(),
    ),
    "a hard link to a whiteout": (
        file(b".wh.gone") + hard(b"h", b"gone") + file(b"h", b"x"),
        lambda t: stat.S_ISCHR((t / "gone").lstat().st_mode) and (t / "h").read_bytes() == b"x",
    ),
    "the type of a hard link named as a whiteout": (
        file(b"a", b"1") + hard(b".wh.b", b"a"),
        lambda t: stat.S_ISCHR((t / "b").lstat().st_mode),
    ),
    "magic link text": (
        link(b"self", b"/proc/self/root") + folder(b"proc/self/root") + file(b"self/x", b"1"),
        lambda t: (t / "proc" / "self" / "root" / "x").exists(),
    ),
}


@pytest.mark.parametrize("by_hand", [False, True], ids=["openat2", "by-hand"])
@pytest.mark.parametrize("case", CONTAINED)
def test_a_tricky_archive_stays_inside(case: str, by_hand: bool, scene: Scene) -> None:
    data, holds = CONTAINED[case]
    scene.extract(data + END, by_hand=by_hand)
    assert holds(scene.target)
    scene.check_outside()


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_stream_into_a_directory_with_content_stays_in_it(
    case: str, scene: Scene
) -> None:
    scene.merge(folder(b"d") + file(b"d/mine", b"mine") + link(b"out", b"../outside") + END)
    if "whiteout" in case:  # ordinary names here
        scene.merge(REFUSED[case][0])
    else:
        with pytest.raises((BadArchive, KernelError)):
            scene.merge(REFUSED[case][0])
    assert (scene.target / "d" / "mine").read_bytes() == b"mine"
    scene.check_outside()


def test_an_archive_cut_anywhere_is_refused_or_ends_with_a_whole_entry(scene: Scene) -> None:
    entries = [
        folder(b"d"),
        pax({b"path": b"d/long", b"mtime": b"1.5"}) + file(b"x", b"y" * 1300),
        long_name(b"d/" + b"n" * 150) + file(b"x", b"z"),
        old_sparse([(octal(0, 12), octal(512, 12))], octal(9000, 12)) + b"s" * 512,
        link(b"l", b"d"),
        file(b"last", b"!" * 512),
    ]
    data = b"".join(entries)
    whole = {0: 0}
    for count in range(1, len(entries) + 1):
        whole[len(b"".join(entries[:count]))] = count
    for cut in [*range(0, len(data), 512), *range(1, len(data), 317)]:
        if cut not in whole or cut == 0:
            with pytest.raises(BadArchive, match=r"middle|empty|not a tar"):
                scene.extract(data[:cut])
            assert not scene.target.exists()
        else:
            assert scene.extract(data[:cut]).entries == whole[cut]
            archive.remove(scene.target)
    scene.check_outside()


def test_two_thousand_levels_are_made_and_removed_again(scene: Scene) -> None:
    name = b"/".join([b"d"] * 2047)
    for by_hand in (False, True):
        scene.extract(pax({b"path": name}) + file(b"x", b"deep") + END, by_hand=by_hand)
        archive.remove(scene.target)
        with pytest.raises(BadArchive, match="too long"):
            scene.extract(pax({b"path": name + b"/ee"}) + file(b"x") + END, by_hand=by_hand)
        assert not scene.target.exists()
    scene.check_outside()


def test_thousands_of_names_as_long_as_they_may_be_are_unpacked(scene: Scene) -> None:
    top = b"/".join([b"p" * 250] * 15)
    data = b"".join(
        pax({b"path": top + b"/" + b"%0250d" % number}) + file(b"x") for number in range(4096)
    )
    assert scene.extract(data + END).entries == 4096


def test_one_name_that_asks_for_many_directories_uses_up_the_budget(scene: Scene) -> None:
    data = pax({b"path": b"/".join([b"d"] * 1000)}) + file(b"x")
    with pytest.raises(BadArchive, match="more entries"):
        scene.extract(data + END, limits=Budget(entries=900))
    assert not scene.target.exists()
    scene.extract(data + END, limits=Budget(entries=1000))


def endless(piece: bytes, size: int) -> Iterator[bytes]:
    """Compressed, so that little becomes much."""
    compressor = zstandard.ZstdCompressor().compressobj()
    block = piece * (1 + (1 << 20) // len(piece))
    for _ in range(size // len(block) + 1):
        yield compressor.compress(block)
    yield compressor.flush()


@pytest.mark.parametrize(
    "piece",
    [
        pax({b"comment": b"x" * 100}),
        long_name(b"x"),
        header(b"label", b"V"),
        file(b".wh.a", b"x" * 4096),
    ],
    ids=["headers before no entry", "long names", "labels", "whiteouts with content"],
)
def test_a_stream_of_what_is_no_content_ends_at_a_budget(piece: bytes, scene: Scene) -> None:
    small = b"".join(endless(piece, 80 << 20))
    assert len(small) < 1 << 20
    with pytest.raises(BadArchive, match=r"more besides its files|more entries"):
        scene.extract(small, limits=Budget(entries=3000))
    assert not scene.target.exists()


def test_a_sparse_map_that_goes_on_for_ever_ends_at_a_budget(scene: Scene) -> None:
    start = old_sparse([], octal(512, 12), more=True)
    blocks = b"".join(endless(bytes(504) + b"\1" + bytes(7), 80 << 20))
    frame = zstandard.compress(start)
    with pytest.raises(BadArchive, match="more besides its files"):
        scene.extract(frame + blocks, limits=Budget(entries=10))
    pairs = b"".join(octal(n, 12) + octal(0, 12) for n in range(21)) + b"\1" + bytes(7)
    with pytest.raises(BadArchive, match="sparse"):
        scene.extract(frame + b"".join(endless(pairs, 40 << 20)))
    assert not scene.target.exists()


@pytest.mark.parametrize("times", [1000, 10**12])
def test_a_bomb_of_holes_takes_no_room(times: int, scene: Scene) -> None:
    data = sparse(b"x", b"0,1", size=times)
    if times > Budget().size:
        with pytest.raises(BadArchive, match="more bytes"):
            scene.extract(data + END)
    else:
        scene.extract(data + END)
        assert (scene.target / "f").stat().st_size == times


def test_removing_cannot_be_led_out_by_names_that_look_like_its_own(tmp_path: Path) -> None:
    deep = tmp_path / "tree" / "/".join(["d"] * 40)
    deep.mkdir(parents=True)
    for name in (".removing-1", ".removing-2"):
        (tmp_path / "tree" / name).symlink_to("/etc")
        (deep / name).mkdir()
    top = os.open(tmp_path, os.O_RDONLY)
    assert remove_tree(top, b"tree") == 0
    os.close(top)
    assert os.listdir(tmp_path) == []
    assert stat.S_ISDIR(os.stat("/etc").st_mode)


def test_what_a_failed_extraction_made_is_removed_whatever_it_was(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    locked = folder(b"locked", mode=0) + file(b"locked/f", mode=0) + device(b"locked/null")
    for data, _ in CONTAINED.values():
        with pytest.raises(BadArchive, match=r"'\.\.'"):
            scene.extract(data + locked + file(b"../evil"))
        assert not scene.target.exists()
    scene.check_outside()
