"""The slow, obvious unpacker: tarfile reads, names are resolved as text, one step at a time."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
from decimal import Decimal

OVERLAY = ("trusted.overlay.", "user.overlay.")
Snapshot = dict[str, tuple[object, ...]]


class Refused(Exception):
    """This archive must not be unpacked."""


def untar(data: bytes, root: str, *, whiteouts: bool = True) -> None:
    """Unpack into the empty directory `root`. Raises Refused."""
    directories: list[tuple[str, int, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        for member in tar:
            parts = normalise(member.name)
            if not parts:
                if not member.isdir():
                    raise Refused("root")
                directories.append((root, os.lstat(root).st_ino, member))
                continue
            path = os.path.join(parent_of(root, parts), parts[-1])
            if whiteouts and parts[-1].startswith(".wh."):
                _whiteout(path)
                continue
            _entry(tar, member, root, path, directories, whiteouts)
    for path, inode, member in directories:
        if os.path.isdir(path) and not os.path.islink(path) and os.lstat(path).st_ino == inode:
            _attributes(path, member)


def normalise(name: str) -> list[str]:
    """The components of a name; [] is the root."""
    if not name or name.startswith("/") or "\0" in name:
        raise Refused(name)
    parts = name.rstrip("/").split("/")
    while parts and parts[0] == ".":
        del parts[0]
    if any(part in ("", ".", "..") or len(os.fsencode(part)) > 255 for part in parts):
        raise Refused(name)
    return parts


def resolve(root: str, parts: list[str], *, make: bool) -> list[str]:
    """Real components below the root of a directory, links followed as if root were /."""
    real: list[str] = []
    todo = list(parts)
    links = 0
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            real = real[:-1]
            continue
        path = os.path.join(root, *real, part)
        if os.path.islink(path):
            links += 1
            if links > 40:
                raise Refused("links")
            target = os.readlink(path)
            if target.startswith("/"):
                real = []
            todo = target.split("/") + todo
            continue
        if not os.path.lexists(path):
            # Only what the archive itself names is made, not where a dead link points.
            if not make or links_pending(todo, parts):
                raise Refused("missing")
            os.mkdir(path, 0o755)
        if not os.path.isdir(path):
            raise Refused("not a directory")
        real.append(part)
    return real


def links_pending(todo: list[str], parts: list[str]) -> bool:
    """Whether what is left is not simply the end of the name: we are inside a link's text."""
    return todo != parts[len(parts) - len(todo) :]


def parent_of(root: str, parts: list[str]) -> str:
    done: list[str] = []
    for part in parts[:-1]:
        path = os.path.join(root, *done, part)
        if os.path.islink(path):
            done = resolve(root, [*done, part], make=False)
        elif not os.path.lexists(path):
            os.mkdir(path, 0o755)
            done.append(part)
        elif os.path.isdir(path):
            done.append(part)
        else:
            raise Refused("not a directory")
    return os.path.join(root, *done)


def _whiteout(path: str) -> None:
    directory, name = os.path.split(path)
    if name == ".wh..wh..opq":
        os.setxattr(directory, "trusted.overlay.opaque", b"y")
    elif name.startswith(".wh..wh."):
        pass
    elif name[4:] in ("", ".", ".."):
        raise Refused(name)
    else:
        hidden = os.path.join(directory, name[4:])
        if not os.path.lexists(hidden):
            os.mknod(hidden, stat.S_IFCHR, 0)
        elif os.path.isdir(hidden) and not os.path.islink(hidden):
            os.setxattr(hidden, "trusted.overlay.opaque", b"y")


def _entry(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    root: str,
    path: str,
    directories: list[tuple[str, int, tarfile.TarInfo]],
    whiteouts: bool,
) -> None:
    if member.isdir():
        opaque = False
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):
            opaque = whiteouts and is_whiteout(path)
            os.unlink(path)
        if not os.path.lexists(path):
            os.mkdir(path, 0o700)
        if opaque:
            os.setxattr(path, "trusted.overlay.opaque", b"y")
        _xattrs(path, member)
        directories.append((path, os.lstat(path).st_ino, member))
        return
    if member.islnk():
        parts = normalise(member.linkname)
        real = resolve(root, parts[:-1], make=False)
        target = os.path.join(root, *real, parts[-1])
        if not os.path.lexists(target) or (os.path.isdir(target) and not os.path.islink(target)):
            raise Refused("hard link")
        if os.path.lexists(path) and os.path.samestat(os.lstat(path), os.lstat(target)):
            return
        _remove(path)
        if not os.path.lexists(target):
            raise Refused("hard link's target was in what it replaces")
        os.link(target, path, follow_symlinks=False)
        return
    _remove(path)
    if member.issym():
        os.symlink(member.linkname, path)
    elif member.isfifo():
        os.mkfifo(path)
    elif member.ischr() or member.isblk():
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        os.mknod(path, kind, os.makedev(member.devmajor, member.devminor))
    elif member.isreg():
        source = tar.extractfile(member)
        assert source is not None
        with open(path, "xb") as target_file:
            target_file.write(source.read())
    else:
        raise Refused("type")
    _attributes(path, member)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            _remove(os.path.join(path, name))
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _xattrs(path: str, member: tarfile.TarInfo) -> None:
    for key, value in member.pax_headers.items():
        name = key.removeprefix("SCHILY.xattr.")
        if name != key and not name.startswith(OVERLAY):
            raw = value.encode("utf-8", "surrogateescape")
            name = re.sub("%(3D|25)", lambda found: chr(int(found[1], 16)), name)
            os.setxattr(path, name, raw, follow_symlinks=False)


def _attributes(path: str, member: tarfile.TarInfo) -> None:
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not os.path.islink(path):
        os.chmod(path, member.mode & 0o7777)
        if not os.path.isdir(path):
            _xattrs(path, member)
    nanoseconds = int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 10**9)
    os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


def is_whiteout(path: str) -> bool:
    info = os.lstat(path)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def snapshot(root: str, *, times: bool = True) -> Snapshot:
    """All that can be seen of a tree; equal trees give equal values. Parents the archive does
    not list and whiteouts have the time of unpacking: `times` off leaves such out."""
    found: Snapshot = {}
    inodes: dict[int, list[str]] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in [b"", *names, *files] if directory == os.fsencode(root) else [*names, *files]:
            path = os.path.join(directory, name) if name else directory
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            shown = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            content: object = None
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind != stat.S_IFDIR:
                content = info.st_rdev
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            made_up = kind == stat.S_IFDIR or (kind == stat.S_IFCHR and info.st_rdev == 0)
            time = info.st_mtime_ns if times or not made_up else None
            inodes.setdefault(info.st_ino, []).append(shown)
            found[shown] = (info.st_mode, info.st_uid, info.st_gid, time, content, attributes)
    for same in inodes.values():
        for shown in same:
            found[shown] += (tuple(sorted(same)),)
    return found
