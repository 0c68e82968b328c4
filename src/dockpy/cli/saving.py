"""save and load: images in one file."""

from __future__ import annotations

import os

from dockpy.cli.command import Operand, Option, Switch, command
from dockpy.cli.files import archive_output
from dockpy.cli.interrupting import interruptible
from dockpy.cli.session import Session
from dockpy.errors import RequestError, UsageError


@command(
    "save",
    "Write images, with their names and layers, to a tar archive.\n\n"
    "Docker, podman and skopeo read it, as Docker's archive or as an OCI layout. A repository "
    "without a tag means all its names.",
    Option("-o", "--output", help="Write to a file, not to stdout", metavar="FILE", default=""),
    Operand("images", "image", many=True),
    interruptible=True,
)
def save(session: Session, *, images: tuple[str, ...], output: str) -> int:
    with interruptible(session) as work, archive_output(session, output, work) as out:
        session.runtime.save(images, out)
    return 0


@command(
    "load",
    "Take in the images of an archive, from a file or stdin.\n\n"
    "What save wrote, here or in Docker or podman, and OCI layouts; compressed or not.",
    Option("-i", "--input", help="Read from a file, not from stdin", metavar="FILE", default=""),
    Switch("-q", "--quiet", help="Only say what was loaded (always so)"),
    interruptible=True,
)
def load(session: Session, *, input: str, quiet: bool) -> int:
    del quiet
    if input:
        source = session.open(input)
    elif session.stdin < 0:
        raise RequestError("stdin is closed; pipe an archive into it, or name a file with -i")
    elif session.stdin_tty:
        raise UsageError("stdin is a terminal; pipe an archive into it, or name a file with -i")
    else:
        source = session.stdin
    try:
        with interruptible(session) as work:
            loaded = session.runtime.load(work.source(source))
        for one in loaded:
            for name in one.names:
                session.write(f"Loaded image: {name}\n")
            if not one.names:
                session.write(f"Loaded image ID: sha256:{one.image.id}\n")
    finally:
        if input:
            os.close(source)
    return 0
