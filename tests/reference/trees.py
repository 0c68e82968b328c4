"""Trees with everything a file system can hold, made at random or on purpose."""

from __future__ import annotations

import os
import random
import socket
import stat
from pathlib import Path

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""security.capability, cap_net_raw and no more."""
NAMES = [
    b"a",
    b"b",
    b"sub",
    b"\xff\xfe",
    "ü".encode(),
    b"with space",
    b"new\nline",
    b"l" * 120,
    b"a-b",
]


def acl(user: int) -> bytes:
    """system.posix_acl_access: the owner rwx, `user` r, the group r, all others nothing."""
    entries = [(1, 7, -1), (2, 4, user), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    packed = b"".join(
        tag.to_bytes(2, "little")
        + bits.to_bytes(2, "little")
        + (one & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, bits, one in entries
    )
    return (2).to_bytes(4, "little") + packed


def random_tree(seed: int, root: Path, *, layer: bool = False) -> None:
    """Some hundred entries below the new directory; `layer`: with the marks of an upper."""
    dice = random.Random(seed)
    root.mkdir()
    directories = [os.fsencode(root)]
    files: list[bytes] = []
    for _ in range(dice.randrange(20, 120)):
        path = os.path.join(dice.choice(directories), dice.choice(NAMES))
        if dice.random() < 0.5:
            path += b"%d" % dice.randrange(100)
        if os.path.lexists(path):
            continue
        kind = dice.randrange(12)
        if kind < 3:
            os.mkdir(path)
            directories.append(path)
            if layer and dice.random() < 0.3:
                os.setxattr(path, "trusted.overlay.opaque", b"y")
        elif kind < 7:
            with open(path, "wb") as file:
                file.write(dice.randbytes(dice.choice([0, 1, 511, 512, 513, 4096, 70_000])))
            files.append(path)
        elif kind == 7:
            os.symlink(dice.choice([b"a", b"../" * 40 + b"x", b"t" * 3000, b"\xff"]), path)
            files.append(path)
        elif kind == 8 and files:
            os.link(dice.choice(files), path, follow_symlinks=False)
        elif kind == 9:
            device = os.makedev(dice.choice([1, 4000]), dice.choice([3, 700_000]))
            os.mknod(path, dice.choice([stat.S_IFCHR, stat.S_IFBLK]) | 0o660, device)
            files.append(path)
        elif kind == 10:
            os.mkfifo(path)
        elif layer:
            os.mknod(path, stat.S_IFCHR, 0)
    for path in [*files, *reversed(directories)]:
        decorate(dice, path)


def decorate(dice: random.Random, path: bytes) -> None:
    """Owner, mode, attributes and time, as far as the kind of file has them."""
    os.chown(
        path, dice.choice([0, 1000, 3_000_000]), dice.choice([0, 5, 1 << 31]), follow_symlinks=False
    )
    mode = os.lstat(path).st_mode
    if not stat.S_ISLNK(mode):
        os.chmod(path, dice.choice([0o644, 0o755, 0o4711, 0o2750, 0o1777, 0o700]))
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        if dice.random() < 0.2:
            os.setxattr(path, "user.note", dice.randbytes(dice.randrange(300)))
            os.setxattr(path, "user.a", b"\n=\0")
        if dice.random() < 0.1:
            os.setxattr(path, "system.posix_acl_access", acl(dice.randrange(1000)))
    if stat.S_ISREG(mode) and dice.random() < 0.2:
        os.setxattr(path, "security.capability", CAPABILITY)
    if dice.random() < 0.3:
        os.setxattr(path, "trusted.note", b"t", follow_symlinks=False)
    time = dice.choice([10**18, 10**18 + 1, -(10**9), -1_500_000_000, 5 * 10**18 + 123_456_700, 0])
    os.utime(path, ns=(time, time), follow_symlinks=False)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
