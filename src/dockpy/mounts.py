"""Detached mounts and paths inside a container's root. Each descriptor belongs to the caller.

A detached mount is in no mount table: it vanishes with its last descriptor, whatever happens to us.
Source: fsopen(2), open_tree(2), openat2(2); the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from dockpy._mount import (
    MOUNT_STEPS,
    try_clone,
    try_files,
    try_leave_mounts,
    try_mount,
    try_new,
    try_open,
    try_terminal,
)
from dockpy.errors import KernelError, StoreError

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
LONGEST_OPTION = 255
"""Of one value given to fsconfig(2)."""
MOST_LOWERS = 500
"""Of one overlay: OVL_MAX_STACK in the kernel's fs/overlayfs."""


class MountRefused(KernelError):
    """A file system the kernel did not make; `words` is its own explanation, often empty."""

    def __init__(self, step: str, err: int, path: str | None = None, words: str = "") -> None:
        super().__init__(step, err, path)
        self.words = words

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.words}" if self.words else super().__str__()


class VolatileUpper(StoreError):
    """An upper directory that was mounted without flushing: it may lack what was written to it.

    Throw it away; or look at its files and remove `work/work/incompat/volatile` to recover it.
    """


def overlay(lowers: Sequence[Path], upper: Path | str, work: Path | str, *, volatile: bool) -> int:
    """A detached, writable overlay without device nodes; `lowers` are top-most first.

    `volatile` skips every flush: for uppers that are thrown away. Up to 500 lowers, and up to 999
    since Linux 6.15, which lays an overlay on another that is detached. Raises MountRefused with
    the kernel's own words, VolatileUpper for an upper that was mounted so before.
    """
    if os.path.exists(f"{work}/work/incompat/volatile"):
        raise VolatileUpper(
            f"{upper} was mounted without flushing and may have lost data; "
            f"throw it away, or check its files and remove {work}/work/incompat/volatile"
        )
    return _overlay(lowers, (upper, work), volatile)


def overlay_view(lowers: Sequence[Path]) -> int:
    """A detached overlay that only shows what `lowers` are together, top-most first, at least two.

    One of them may be the upper of a container that runs: what it writes may or may not be seen.
    """
    return _overlay(lowers, None, False)


Writable = tuple[Path | str, Path | str] | None
"""Upper and work directory, or a view of the lowers alone."""


def _overlay(lowers: Sequence[Path], writable: Writable, volatile: bool) -> int:
    if len(lowers) > MOST_LOWERS:
        below = _overlay(lowers[MOST_LOWERS - 1 :], None, False)
        try:
            seen = Path(f"/proc/self/fd/{below}")
            return _overlay([*lowers[: MOST_LOWERS - 1], seen], writable, volatile)
        finally:
            os.close(below)
    try:
        return _overlay_in_parts(lowers, writable, volatile)
    except MountRefused as refusal:
        # Linux before 6.7 takes its lowers in one text only; before 6.5 it does not say so
        if refusal.errno != errno.EINVAL:
            raise
        try:
            return _overlay_in_one_page(lowers, writable, volatile)
        except MountRefused as second:
            raise (refusal if second.errno == errno.EINVAL else second) from None


def _overlay_in_parts(lowers: Sequence[Path], writable: Writable, volatile: bool) -> int:
    """By fsconfig(2). What its values escape differs between kernels: such names are not given."""
    opened: list[int] = []

    def name(path: Path | str) -> bytes:
        text = os.fsencode(path)
        if len(text) <= LONGEST_OPTION and not any(one in text for one in b":,\\"):
            return text
        opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return b"/proc/self/fd/%d" % opened[-1]

    try:
        options: list[tuple[bytes, bytes | None]] = [(b"source", b"overlay")]
        options += [(b"lowerdir+", name(lower)) for lower in lowers]
        for key, path in zip((b"upperdir", b"workdir"), writable or (), strict=False):
            options.append((key, name(path)))
        if volatile:
            options.append((b"volatile", None))
        tree, step, err, words, index = try_new(b"overlay", options, NODEV)
    finally:
        for one in opened:
            os.close(one)
    if tree >= 0:
        return tree
    about = dict(enumerate((*lowers, *(writable or ())), start=1)).get(
        index, (writable or lowers)[0]
    )
    raise MountRefused(f"mount overlay: {MOUNT_STEPS[step]}", err, str(about), words)


def overlay_in_one_page(
    lowers: Sequence[Path], upper: Path | str, work: Path | str, *, volatile: bool
) -> int:
    """As `overlay`, the way that Linux before 6.7 knows: fewer lowers."""
    return _overlay_in_one_page(lowers, (upper, work), volatile)


def _overlay_in_one_page(lowers: Sequence[Path], writable: Writable, volatile: bool) -> int:
    """The same by mount(2), whose options share a page: names are numbers of descriptors.

    The numbers mean something in /proc/self/fd only, and mount(2) mounts somewhere: both happens in
    a thread with mounts and a working directory of its own, which ends with this call.
    """
    outcome: list[int | KernelError] = []

    def mount() -> None:
        opened: list[int] = []
        try:
            _leave_mounts()
            for path in (*lowers, *(writable or ())):
                opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
            os.chdir("/proc/self/fd")
            numbers = [b"%d" % one for one in opened]
            options = [b"lowerdir=" + b":".join(numbers[: len(lowers)])]
            for key, number in zip((b"upperdir", b"workdir"), numbers[len(lowers) :], strict=False):
                options.append(key + b"=" + number)
            if volatile:
                options.append(b"volatile")
            place = (writable or lowers)[0]
            tree, step, err = try_mount(b"overlay", os.fsencode(place), b",".join(options))
            if step:
                raise MountRefused(f"mount overlay: {MOUNT_STEPS[step]}", err, str(place))
            outcome.append(tree)
        except KernelError as refusal:
            outcome.append(refusal)
        except OSError as error:
            outcome.append(MountRefused("open layer", error.errno or 0, error.filename))
        finally:
            for one in opened:
                os.close(one)

    thread = threading.Thread(target=mount, name="overlay")
    thread.start()
    thread.join()
    if isinstance(outcome[0], KernelError):
        raise outcome[0]
    return outcome[0]


def _leave_mounts() -> None:
    step, err = try_leave_mounts()
    if step:
        raise KernelError(MOUNT_STEPS[step], err)


def devpts() -> tuple[int, int, int]:
    """A detached devpts of its own and its first terminal: mount, master, slave.

    The master does not block. The group of terminals is 5 (`tty`), as everywhere.
    """
    options: list[tuple[bytes, bytes | None]] = [
        (b"ptmxmode", b"0666"),
        (b"mode", b"0620"),
        (b"gid", b"5"),
    ]
    tree, step, err, words, _ = try_new(b"devpts", options, NOSUID | NOEXEC)
    if tree < 0:
        raise MountRefused(f"mount devpts: {MOUNT_STEPS[step]}", err, words=words)
    master, slave, step, err = try_terminal(tree)
    if step:
        os.close(tree)
        raise KernelError(MOUNT_STEPS[step], err)
    return tree, master, slave


def terminal_in(root: int) -> tuple[int, int]:
    """A new terminal of a running container's own devpts, by its root: master, slave.

    The master does not block. OSError when there is no such devpts.
    """
    place = open_in_root(root, "dev/pts", os.O_PATH | os.O_DIRECTORY)
    try:
        if os.stat("ptmx", dir_fd=place, follow_symlinks=False).st_rdev != os.makedev(5, 2):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), "/dev/pts/ptmx")
        master, slave, step, err = try_terminal(place)
    finally:
        os.close(place)
    if step:
        raise KernelError(MOUNT_STEPS[step], err)
    return master, slave


def clone_tree(path_fd: int, *, recursive: bool = True, read_only: bool = False) -> int:
    """A detached copy of the mounts at an open path (O_PATH is enough), as bind mounts are.

    `recursive`: with what is mounted below it; `read_only` then covers all of it.
    """
    tree, step, err = try_clone(path_fd, recursive, RDONLY if read_only else 0)
    if tree < 0:
        raise KernelError(MOUNT_STEPS[step], err)
    return tree


def small_files(directory: str, files: Sequence[tuple[str, str]]) -> list[int]:
    """Write (name, text) files into a directory, made if missing; a detached mount of each.

    One call for what is on the way of every start. KernelError names the step.
    """
    made, step, err = try_files(
        os.fsencode(directory), [(os.fsencode(name), text.encode()) for name, text in files]
    )
    if step:
        for descriptor in made:
            os.close(descriptor)
        raise KernelError(MOUNT_STEPS[step], err, directory)
    return made


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
    view = memoryview(Path(__file__).with_name("_init").read_bytes())
    program = os.memfd_create("init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    while view:
        view = view[os.write(program, view) :]
    os.fchmod(program, 0o555)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(program, fcntl.F_ADD_SEALS, seals)
    return program
