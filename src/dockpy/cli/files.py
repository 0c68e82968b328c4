"""commit diff export: what a container made of its files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from dockpy.cli.change import apply_changes, parse_seed_config
from dockpy.cli.command import Operand, Option, Switch, command
from dockpy.cli.images import name_of
from dockpy.cli.interrupting import Work, interruptible
from dockpy.cli.session import ClientGone, Session
from dockpy.errors import KernelError, RequestError, UsageError


@command(
    "commit",
    "Make an image of a container's files.\n\n"
    "Its processes stand still while the files are read, unless --pause=false. What containers of "
    "the image get when nothing is said is what this one has, and what --change says.",
    Option("-a", "--author", help="Who made it", metavar="TEXT", default=""),
    Option(
        "-c",
        "--change",
        help="Preset as a Dockerfile does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER ...",
        metavar="INSTRUCTION",
        multiple=True,
    ),
    Option("-m", "--message", help="Comment kept with the image", metavar="TEXT", default=""),
    Switch(
        "-p", "--pause", help="Let its processes wait meanwhile (on unless =false)", default=True
    ),
    Option(
        "--run",
        help='Presets in JSON, as the first Docker had them, such as \'{"Cmd": ["cat"]}\'',
        metavar="JSON",
        default="",
    ),
    Operand("container", "container"),
    Operand("name", "repository[:tag]", required=False),
    Operand("tag", "tag", required=False),
    interruptible=True,
)
def commit(
    session: Session,
    *,
    container: str,
    name: str | None,
    tag: str | None,
    author: str,
    change: tuple[str, ...],
    message: str,
    pause: bool,
    run: str,
) -> int:
    found = session.runtime.get(container)
    config = apply_changes(parse_seed_config(found.config, run), change)
    repository, chosen = name_of(name, tag)
    with interruptible(session) as work:
        image = session.runtime.commit(
            found,
            repository,
            chosen,
            comment=message,
            author=author,
            config=config,
            pause=pause,
            stop=work.stop,
        )
    session.write(f"sha256:{image.id}\n")
    return 0


@command(
    "diff",
    "List what changed in a container's files: A added, C changed, D deleted.",
    Operand("container", "container"),
)
def diff(session: Session, *, container: str) -> int:
    session.write(session.runtime.get(container).change_lines().decode("utf-8", "replace"))
    return 0


@command(
    "export",
    "Write all of a container's files as a tar archive, to stdout or a file.",
    Option("-o", "--output", help="Write to a file", metavar="FILE", default=""),
    Operand("container", "container"),
    interruptible=True,
)
def export(session: Session, *, container: str, output: str) -> int:
    found = session.runtime.get(container)
    with interruptible(session) as work, archive_output(session, output, work) as out:
        found.export(out)
    return 0


@contextmanager
def archive_output(session: Session, path: str, work: Work) -> Iterator[int]:
    """Where an archive goes: a file, which is not left there when it fails, or stdout.

    UsageError for a terminal; ClientGone when nobody reads it.
    """
    if not path:
        if session.stdout_tty:
            raise UsageError("stdout is a terminal; name a file with -o, or redirect it")
        if session.stdout < 0:
            raise RequestError("stdout is closed; name a file with -o")
        try:
            yield work.output(session.stdout, leaves=True)
        except KernelError as refusal:
            if refusal.errno == errno.EPIPE:
                raise ClientGone from refusal
            raise
        return
    existed = exists(session, path)
    descriptor = session.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if regular:
            os.ftruncate(descriptor, 0)
        try:
            yield work.output(descriptor, leaves=not regular)
        except BaseException:
            if regular and not existed:
                session.unlink(path)
            elif regular:
                os.ftruncate(descriptor, 0)
            raise
    finally:
        os.close(descriptor)


def exists(session: Session, path: str) -> bool:
    """Whether something has that name on the caller's side."""
    try:
        os.stat(path, dir_fd=session.cwd, follow_symlinks=False)
    except OSError:
        return False
    return True
