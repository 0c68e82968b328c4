"""Detached mounts and paths inside a container's root. Each descriptor belongs to the caller.

A detached mount is in no mount table: it vanishes with its last descriptor, whatever happens to us.
Source: fsopen(2), open_tree(2), openat2(2); the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from dockpy._mount import MOUNT_STEPS, try_clone, try_new, try_open, try_terminal
from dockpy.errors import KernelError, StoreError

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
PAGE = 4096
"""Before Linux 6.8 all options of an overlay share one page."""


class VolatileUpper(StoreError):
    """An upper directory that was mounted without flushing and whose mount ended with the host."""


def overlay(lowers: Sequence[Path], upper: Path, work: Path, *, volatile: bool) -> int:
    """A detached, writable overlay without device nodes; `lowers` are top-most first.

    `volatile` skips every flush: for uppers that are thrown away. Any number of lowers the kernel
    takes (500 and one page of names before Linux 6.8). Raises KernelError with the kernel's own
    words, VolatileUpper for an upper that a crash left unflushed.
    """
    if not volatile and (work / "work" / "incompat" / "volatile").exists():
        raise VolatileUpper(f"{upper} was never flushed and the host went down; remove it")
    top: list[tuple[bytes, bytes | None]] = [
        (b"source", b"overlay"),
        (b"upperdir", escape(upper)),
        (b"workdir", escape(work)),
    ]
    if volatile:
        top.append((b"volatile", None))
    each = [(b"lowerdir+", bytes(lower)) for lower in lowers]
    tree, step, err, words, index = try_new(b"overlay", [*each, *top], NODEV)
    if tree < 0 and err == errno.EINVAL and index == 0 and MOUNT_STEPS[step] == "set mount option":
        tree, step, err, words = _overlay_in_one_page(lowers, top)
    if tree < 0:
        refusal = KernelError(f"mount overlay: {MOUNT_STEPS[step]}", err, str(upper))
        if words:
            refusal.add_note(words)
        raise refusal
    return tree


def _overlay_in_one_page(
    lowers: Sequence[Path], top: list[tuple[bytes, bytes | None]]
) -> tuple[int, int, int, str]:
    """For kernels that know only one `lowerdir`; long lists are named through descriptors."""
    joined = b":".join(escape(lower) for lower in lowers)
    opened: list[int] = []
    try:
        if len(joined) > PAGE - 512:
            opened = [os.open(lower, os.O_PATH | os.O_CLOEXEC) for lower in lowers]
            joined = b":".join(b"/proc/self/fd/%d" % one for one in opened)
        tree, step, err, words, _ = try_new(b"overlay", [(b"lowerdir", joined), *top], NODEV)
        return tree, step, err, words
    finally:
        for one in opened:
            os.close(one)


def escape(path: Path) -> bytes:
    """A path as overlay's option parser wants it."""
    return bytes(path).replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")


def devpts() -> tuple[int, int, int]:
    """A detached devpts of its own and its first terminal: mount, master, slave.

    The master does not block. The group of terminals is 5 (`tty`), as everywhere.
    """
    options: list[tuple[bytes, bytes | None]] = [
        (b"ptmxmode", b"0666"),
        (b"mode", b"0620"),
        (b"gid", b"5"),
    ]
    tree, step, err, _, _ = try_new(b"devpts", options, NOSUID | NOEXEC)
    if tree < 0:
        raise KernelError(f"mount devpts: {MOUNT_STEPS[step]}", err)
    master, slave, step, err = try_terminal(tree)
    if step:
        os.close(tree)
        raise KernelError(MOUNT_STEPS[step], err)
    return tree, master, slave


def clone_tree(path_fd: int, *, recursive: bool = True, read_only: bool = False) -> int:
    """A detached copy of the mounts at an open path (O_PATH is enough), as bind mounts are."""
    tree, step, err = try_clone(path_fd, recursive, RDONLY if read_only else 0)
    if tree < 0:
        raise KernelError(MOUNT_STEPS[step], err)
    return tree


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as a process whose root is `root_fd` would; links cannot lead out.

    OSError as open(2); ELOOP for a magic link such as /proc/self/fd/N.
    """
    descriptor, err = try_open(root_fd, os.fsencode(path), flags, mode)
    if descriptor < 0:
        raise OSError(err, os.strerror(err), path)
    return descriptor


def init_program() -> int:
    """A sealed memfd of the static init, which reaps and passes signals on as PID 1."""
    source = Path(__file__).with_name("_init")
    program = os.memfd_create("init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(source.read_bytes())
    while view:
        view = view[os.write(program, view) :]
    os.fchmod(program, 0o555)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(program, fcntl.F_ADD_SEALS, seals)
    return program
