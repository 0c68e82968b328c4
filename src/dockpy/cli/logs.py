"""logs: what a container wrote."""

from __future__ import annotations

import time

from dockpy.cli import options
from dockpy.cli.command import Option, Switch, command
from dockpy.cli.session import LEFT_BY_PIPE, Session
from dockpy.cli.times import parse_moment
from dockpy.errors import UsageError


def parse_tail(text: str) -> int:
    """A number of lines; -1 for `all` and, as Docker takes them, negative numbers."""
    if text == "all":
        return -1
    try:
        return max(int(text), -1)
    except ValueError as error:
        raise UsageError("a number of lines or 'all' expected") from error


@command(
    "logs",
    "Show what a container wrote.\n\nIts standard error goes to yours.",
    Switch("-f", "--follow", help="Go on until the program ends"),
    Option("--since", help="Only from this time on", metavar="TIME|DURATION"),
    Option(
        "-n",
        "--tail",
        help="Only the last N lines (default all)",
        parse=parse_tail,
        metavar="N|all",
        default=-1,
    ),
    Switch("-t", "--timestamps", help="Put the time before each line"),
    Option("--until", help="Only before this time", metavar="TIME|DURATION"),
    options.container(),
    interruptible=True,
)
def logs(
    session: Session,
    *,
    container: str,
    follow: bool,
    since: str | None,
    tail: int,
    timestamps: bool,
    until: str | None,
) -> int:
    now = time.time()
    found = session.runtime.get(container)
    first = None if since is None else parse_moment("--since", since, now)
    last = None if until is None else parse_moment("--until", until, now)
    if follow and not found.state.running:
        follow = False
    with session.events.interruption() as interruption:
        try:
            found.copy_log(
                session.stdout,
                session.stderr,
                since=first,
                until=last,
                tail=None if tail < 0 else tail,
                timestamps=timestamps,
                follow=follow,
                stop=interruption.descriptor if follow else None,
            )
        except BrokenPipeError:
            return LEFT_BY_PIPE
        return interruption.exit_code
