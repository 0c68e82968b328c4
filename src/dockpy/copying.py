"""Files from one root directory to another: `cp` between a container and its host.

Both sides are a descriptor of a root and a path inside it. Paths are resolved there (openat2 with
RESOLVE_IN_ROOT), so no link leads out, also when it is put there in the middle of the copy: what
was looked at is used by its descriptor. The bytes travel as a tar stream.

The rules are those of `docker cp`, as its reference documents them.
"""

from __future__ import annotations

import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO, cast

from dockpy._below import remove_tree
from dockpy.archive import extract_into
from dockpy.errors import DockpyError, KernelError, RequestError
from dockpy.mounts import open_in_root
from dockpy.packing import pack_path, pack_tree
from dockpy.pipes import widen
from dockpy.stoppable import StoppableSource, move

LINKS = 40
"""How many links one path may go through, as the kernel has it."""
Owner = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Side:
    """A path below a root directory, and what errors call it.

    `rights`: a context in which a thread has the rights of whoever may read and write there.
    `wanted`: a descriptor that is readable once others wait until this copy is over; one that
    waits for a client's bytes is then given up, see `dockpy.stoppable`. -1: nobody will.
    """

    root: int
    path: str
    label: str
    rights: Callable[[], AbstractContextManager[None]] = nullcontext
    wanted: int = -1


@dataclass(frozen=True, slots=True)
class Found:
    """What a path leads to: `leaf` in `parent`. `mode`: 0 when nothing is there.

    `leaf` is empty for a directory that has no name (`/`, `..`); `parent` is then that directory.
    `name` is what the path called it, before links were followed; a copy is called that.
    """

    parent: int
    leaf: str
    mode: int
    slash: bool
    contents: bool
    name: str

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def copy(
    source: Side, target: Side, *, follow: bool = False, owner: Owner = None, stop: int = -1
) -> None:
    """Copy a file or a directory with all in it. Blocks.

    `follow`: when the source is a link, what it leads to. `owner`: of everything made, see
    `extract_into`; None keeps the source's. Ended with Cancelled when the descriptor `stop` becomes
    readable. On failure the new name at the target is removed again, if it is one; what was copied
    into directories that were there stays. Raises RequestError, KernelError.
    """
    with ExitStack() as opened:
        with source.rights():
            found = source_of(opened, source, follow=follow)

        def write(out: int) -> None:
            with source.rights():
                pack(found, name, out)

        with target.rights():
            place, name = destination(opened, target, found)
            fresh = bool(name) and not is_there(name, place)
        try:
            # In this order: a new thread has the rights of the one that makes it.
            with packed(write, stop) as stream, target.rights():
                extract_into(stream, place, owner=owner)
        except BaseException:
            if fresh:
                with target.rights():
                    remove_tree(place, os.fsencode(name))  # the failure is the one to report
            raise


def copy_out(source: Side, out: int, *, follow: bool = False, stop: int = -1) -> None:
    """Write a file or a directory as tar to a descriptor, under its own name. Blocks.

    Raises RequestError; KernelError, of EPIPE when nobody reads it. When somebody may want the
    source it is read by a thread of its own, which ends whether or not `out` takes its bytes:
    Conflict, or Cancelled by `stop`.
    """
    with ExitStack() as opened, source.rights():
        found = source_of(opened, source, follow=follow)

        def write(to: int) -> None:
            pack(found, "" if found.contents else found.name, to)

        if source.wanted < 0:
            write(out)
            return
        try:
            with packed(write) as pipe:
                assert isinstance(pipe, int)
                move(pipe, out, stop=stop, wanted=source.wanted)
        except OSError as refusal:
            if isinstance(refusal, KernelError):
                raise
            raise KernelError("write archive", refusal.errno or 0) from refusal


def copy_in(source: BinaryIO | int, target: Side, *, owner: Owner = None) -> None:
    """Unpack a tar stream into a directory that is there. Blocks as `source` does."""
    if isinstance(source, StoppableSource):
        source = cast("BinaryIO", source.giving_way(target.wanted))
    with ExitStack() as opened, target.rights():
        found = find(opened, target, follow=True)
        if not found.mode:
            raise RequestError(f"{target.label}: no such directory; create it first")
        if not found.is_directory:
            raise RequestError(f"{target.label} is not a directory; a tar stream needs one")
        extract_into(source, directory_of(opened, found), owner=owner)


def source_of(opened: ExitStack, side: Side, *, follow: bool) -> Found:
    """What is to be copied. RequestError when there is nothing."""
    found = find(opened, side, follow=follow)
    if not found.mode:
        raise RequestError(f"{side.label}: no such file or directory")
    if found.slash and not found.is_directory:
        raise RequestError(f"{side.label} is not a directory; leave out the slash at its end")
    return found


def hidden_by(path: str, mounts: Iterable[str]) -> str | None:
    """Which of the mount points, if any, has something else below it where `path` leads.

    By the text of the path: links are not looked at. Pure.
    """
    whole = posixpath.normpath(posixpath.join("/", path))
    for one in mounts:
        point = posixpath.normpath(posixpath.join("/", one))
        if whole == point or whole.startswith(f"{point.rstrip('/')}/"):
            return point
    return None


def destination(opened: ExitStack, target: Side, source: Found) -> tuple[int, str]:
    """The directory to unpack into, and the name that the source gets there ("": its contents)."""
    found = find(opened, target, follow=True)
    if found.is_directory:
        return directory_of(opened, found), "" if source.contents else source.name
    if found.mode:
        if source.is_directory:
            raise RequestError(f"cannot copy a directory onto the file {target.label}")
        if found.slash:
            raise RequestError(f"{target.label} is not a directory")
        if not stat.S_ISREG(found.mode):
            raise RequestError(f"{target.label} is a device, fifo or socket; name a file")
        return found.parent, found.leaf
    if found.contents or (found.slash and not source.is_directory):
        raise RequestError(f"{target.label}: no such directory; create it first")
    return found.parent, found.leaf


def find(opened: ExitStack, side: Side, *, follow: bool) -> Found:
    """Resolve a path down to its last name; that one too when `follow`, or when a slash ends it."""
    contents = side.path.endswith("/.") or side.path == "."
    slash = contents or side.path.endswith("/")
    path, name = side.path, ""
    for _ in range(LINKS):
        path = path.rstrip("/")
        while path.endswith("/."):
            path = path[:-2].rstrip("/")
        above, leaf = posixpath.split(path)
        if leaf in ("", ".", ".."):
            parent = open_directory(opened, side, path or "/")
            mode = os.fstat(parent).st_mode
            # What ends in `..` is called as the text of the path says, as Docker does.
            name = name or posixpath.basename(posixpath.normpath(f"/{path}"))
            return Found(parent, "", mode, slash, contents or not name, name)
        name = name or leaf
        parent = open_directory(opened, side, above or "/")
        try:
            mode = os.stat(leaf, dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            mode = 0
        except OSError as error:
            raise RequestError(f"{side.label}: {error.strerror}") from error
        if not stat.S_ISLNK(mode) or not (follow or slash):
            return Found(parent, leaf, mode, slash, contents, name)
        try:
            path = posixpath.join(above, os.readlink(leaf, dir_fd=parent))
        except OSError:
            continue  # somebody took the link away: look again
    raise RequestError(f"{side.label}: too many symbolic links")


def open_directory(opened: ExitStack, side: Side, path: str) -> int:
    """A descriptor of a directory below the side's root, closed with `opened`."""
    try:
        found = open_in_root(side.root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise RequestError(f"{side.label}: no such directory {path}") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"{side.label}: {path}: {why}") from error
    opened.callback(os.close, found)
    return found


def directory_of(opened: ExitStack, found: Found) -> int:
    """A descriptor of the directory that was found, which is no link any more."""
    if not found.leaf:
        return found.parent
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        directory = os.open(found.leaf, flags, dir_fd=found.parent)
    except OSError as error:
        raise RequestError(f"{found.leaf}: {error.strerror}") from error
    opened.callback(os.close, directory)
    return directory


def pack(found: Found, name: str, out: int) -> None:
    """Write what was found as tar under a name ("": the contents of a directory)."""
    if found.leaf and name:
        pack_path(found.parent, os.fsencode(found.leaf), out, name=os.fsencode(name), digest=False)
        return
    with ExitStack() as opened:
        tree = directory_of(opened, found)
        pack_tree(tree, out, name=os.fsencode(name), digest=False)


def is_there(name: str, directory: int) -> bool:
    """Whether a directory has a name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def packed(write: Callable[[int], object], stop: int = -1) -> Iterator[BinaryIO | int]:
    """A source to read what `write` writes to a descriptor; its error is raised at the end.

    Reading raises Cancelled when the descriptor `stop` becomes readable.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    widen(writer)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            write(writer)
        except BaseException as failure:
            failures.append(failure)
        finally:
            os.close(writer)

    packing = threading.Thread(target=work, name="pack", daemon=True)
    packing.start()
    try:
        try:
            yield reader if stop < 0 else cast("BinaryIO", StoppableSource(reader, stop))
        finally:
            os.close(reader)
            packing.join()
    except (DockpyError, OSError):
        raise_first(failures)  # a torn stream is what the reader saw of it
        raise
    raise_first(failures)


def raise_first(failures: list[BaseException]) -> None:
    """Raise the writer's own error, if there is one that the reader did not cause."""
    for failure in failures:
        if not isinstance(getattr(failure, "__cause__", None), BrokenPipeError):
            raise failure
