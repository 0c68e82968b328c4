"""cp: files between a container and the host."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dockpy import copying
from dockpy.cli.command import Operand, Switch, command
from dockpy.cli.interrupting import Work, interruptible
from dockpy.cli.rights import rights_of
from dockpy.cli.session import ClientGone, Session
from dockpy.errors import KernelError, RequestError, UsageError

ROOT = (0, 0)


@command(
    "cp",
    "Copy files between a container and the host.\n\n"
    "One side is CONTAINER:PATH, the other a path here, or - for a tar stream. A directory is "
    "copied into one that is there, and becomes one that is not; SOURCE/. means its contents. "
    "What is copied into a container belongs to root there, what comes out to you, unless -a.\n\n"
    "Commands that start or remove the container wait until it is copied. A tar stream that stands "
    "still while they wait is given up after 2 seconds.",
    Switch("-a", "--archive", help="Keep owners; and setuid bits, file capabilities, devices"),
    Switch("-L", "--follow-link", help="Copy what a link leads to, not the link"),
    Switch("-q", "--quiet", help="Say nothing (always so)"),
    Operand("source", "source"),
    Operand("target", "target"),
    interruptible=True,
)
def cp(
    session: Session, *, source: str, target: str, archive: bool, follow_link: bool, quiet: bool
) -> int:
    del quiet
    from_container, to_container = split(source), split(target)
    if (from_container is None) == (to_container is None):
        raise UsageError("one side must be CONTAINER:PATH, the other a path of the host or -")
    with interruptible(session) as work, ExitStack() as opened:
        if from_container is not None:
            inside = opened.enter_context(container_side(session, *from_container, writable=False))
            if target == "-":
                stream_out(session, inside, follow_link, work)
                return 0
            there = opened.enter_context(host_side(session, target))
            owner = None if archive else (session.uid, session.gid)
            copying.copy(inside, there, follow=follow_link, owner=owner, stop=work.stop)
            return 0
        assert to_container is not None
        owner = None if archive else ROOT
        if source == "-" and (session.stdin < 0 or session.stdin_tty):
            raise UsageError("pipe a tar archive into stdin, or name a file")
        inside = opened.enter_context(container_side(session, *to_container, writable=True))
        if source == "-":
            copying.copy_in(work.source(session.stdin), inside)
            return 0
        there = opened.enter_context(host_side(session, source))
        copying.copy(there, inside, follow=follow_link, owner=owner, stop=work.stop)
    return 0


def split(text: str) -> tuple[str, str] | None:
    """Container and path; None for a path of the host: without a colon, or with / or . in front."""
    name, colon, path = text.partition(":")
    if not colon or not name or text.startswith(("/", ".")) or "/" in name:
        return None
    if not path:
        raise UsageError(f"{text}: name a path in the container")
    return name, path


@contextmanager
def container_side(
    session: Session, name: str, path: str, *, writable: bool
) -> Iterator[copying.Side]:
    """A path in a container; a relative one begins at its root, as with Docker."""
    found = session.runtime.get(name)
    config = found.config
    if not found.state.running:
        mounts = (*(one.target for one in config.binds), *config.tmpfs)
        if (point := copying.hidden_by(path, mounts)) is not None:
            raise RequestError(
                f"{point} in {name} is a mount that is there while it runs; start it"
            )
    with found.root(writable=writable) as root:
        yield copying.Side(
            root.directory, posixpath.join("/", path), f"{name}:{path}", wanted=root.wanted
        )


@contextmanager
def host_side(session: Session, path: str) -> Iterator[copying.Side]:
    """A path of the host, with the caller's rights there."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        whole = path if path.startswith("/") else f"{session.directory().rstrip('/')}/{path}"
        yield copying.Side(
            root, whole, path, lambda: rights_of(session.uid, session.gid, session.groups)
        )
    finally:
        os.close(root)


def stream_out(session: Session, inside: copying.Side, follow: bool, work: Work) -> None:
    """A tar stream to stdout. ClientGone when nobody reads it."""
    if session.stdout < 0:
        raise RequestError("stdout is closed; name a file")
    if session.stdout_tty:
        raise UsageError("stdout is a terminal; redirect it, or name a file")
    try:
        out = work.output(session.stdout, leaves=True)
        copying.copy_out(inside, out, follow=follow, stop=work.stop)
    except KernelError as refusal:
        if refusal.errno == errno.EPIPE:
            raise ClientGone from refusal
        raise
