"""From arguments to an exit code: finds the command, runs it, makes one line of every error."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence

from dockpy.cli import (
    copy,
    execute,
    files,
    history,
    images,
    inspect,
    lifecycle,
    listing,
    logs,
    network,
    port,
    registry,
    removing,
    saving,
    system,
)
from dockpy.cli import run as running
from dockpy.cli.command import Command, ShowHelp
from dockpy.cli.session import LEFT_BY_PIPE, ClientGone, Session
from dockpy.cli.transfers import Interrupted
from dockpy.errors import DockpyError, UsageError
from dockpy.model import VERSION
from dockpy.trace import DAEMON

log = logging.getLogger(__name__)
ENGINE_ERROR = 125
COMMANDS: dict[str, Command] = {
    str(one.name): one
    for one in (
        running.run,
        running.create,
        lifecycle.start,
        lifecycle.stop,
        lifecycle.restart,
        lifecycle.kill,
        lifecycle.wait,
        lifecycle.attach,
        lifecycle.rm,
        execute.exec_,
        listing.ps,
        logs.logs,
        inspect.inspect,
        copy.cp,
        files.commit,
        files.diff,
        files.export,
        history.history,
        images.images,
        images.import_,
        saving.load,
        saving.save,
        images.tag,
        removing.rmi,
        registry.pull,
        registry.push,
        registry.login,
        registry.logout,
        port.port,
        network.create,
        network.ls,
        network.inspect,
        network.rm,
        network.connect,
        network.disconnect,
        network.prune,
        system.info,
        system.version,
        system.daemon,
    )
}


GROUPS = frozenset(name.partition(" ")[0] for name in COMMANDS if " " in name)
"""Words that want another one behind them to be a command."""


def run(session: Session, argv: Sequence[str]) -> int:
    """Run one command line (without the program's own name); the exit code. Never raises.

    Called from many threads at once, one session each. Blocks as long as the command takes.
    """
    try:
        return dispatch(session, argv)
    except ClientGone:
        return LEFT_BY_PIPE
    except Exception as error:
        log.exception("the command %r failed in a way nobody foresaw", list(argv[:1]))
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        session.error(f"dockpy: internal error: {what}; the daemon's log says more")
        return ENGINE_ERROR


def dispatch(session: Session, argv: Sequence[str]) -> int:
    """As `run`, and raises what nobody foresaw."""
    name = argv[0] if argv else "help"
    if name in ("help", "--help", "-help", "-h"):
        return show_help(session, argv[1:])
    if name in ("--version", "-version", "-v"):
        session.write(f"dockpy version {VERSION}\n")
        return 0
    if name in ("-d", "--daemon", "-daemon", "-d=true"):
        name = "daemon"
    rest = argv[1:]
    if name in GROUPS:
        if not rest or rest[0] in ("--help", "-h", "-help", "help"):
            return show_group(session, name)
        name, rest = f"{name} {rest[0]}", rest[1:]
    command = COMMANDS.get(name)
    if command is None:
        session.events.let_go()
        session.error(f"dockpy: {unknown(name)}")
        return ENGINE_ERROR
    if not command.interruptible:
        session.events.let_go()
    try:
        values = command.parse(rest)
    except ShowHelp:
        session.write(command.help_text())
        return 0
    except UsageError as error:
        return refuse(session, command, error)
    try:
        session.trace.mark(DAEMON, "command line parsed")
        return command.action(session, **values)
    except Interrupted as end:
        return end.code
    except UsageError as error:
        return refuse(session, command, error)
    except DockpyError as error:
        session.error(f"dockpy: {one_line(error)}")
        return error.exit_code if command.failure is None else command.failure


def refuse(session: Session, command: Command, error: UsageError) -> int:
    """One line about a command line that does not make sense."""
    session.error(f"dockpy: {one_line(error)}; see 'dockpy {command.name} --help'")
    return ENGINE_ERROR


def unknown(name: str) -> str:
    """What to say about a verb there is not."""
    if name.startswith("-"):
        return f"unknown flag {name}; see dockpy --help"
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.75)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{name!r} is not a dockpy command{hint}; see dockpy --help"


def one_line(error: Exception) -> str:
    """The error's text, whatever file names it holds, in one line."""
    return " ".join(str(error).splitlines())


def show_help(session: Session, words: Sequence[str]) -> int:
    """help, and help of one command."""
    names = [word for word in words if not word.startswith("-")]
    if not names:
        session.write(overview())
        return 0
    if names[0] in GROUPS and len(names) == 1:
        return show_group(session, names[0])
    name = " ".join(names[:2]) if names[0] in GROUPS else names[0]
    command = COMMANDS.get(name)
    if command is None:
        session.error(f"dockpy: {unknown(name)}")
        return ENGINE_ERROR
    session.write(command.help_text())
    return 0


def show_group(session: Session, group: str) -> int:
    """The commands that begin with a word."""
    found = {name: one for name, one in COMMANDS.items() if name.partition(" ")[0] == group}
    width = max(map(len, found))
    lines = [
        f"Usage: dockpy {group} COMMAND [OPTIONS] [ARGUMENTS]",
        "",
        *(f"  {name:<{width}}  {one.short_help}" for name, one in sorted(found.items())),
        "",
        f"'dockpy {group} COMMAND --help' tells about one command.",
    ]
    session.write("\n".join(lines) + "\n")
    return 0


def overview() -> str:
    """What `dockpy --help` shows."""
    width = max(len(name) for name in (*COMMANDS, "--version"))
    lines = [
        "Usage: dockpy COMMAND [OPTIONS] [ARGUMENTS]",
        "",
        "Runs programs in containers.",
        "",
        "Commands:",
        *(f"  {name:<{width}}  {one.short_help}" for name, one in sorted(COMMANDS.items())),
        "",
        "Options:",
        f"  {'--version':<{width}}  Print the version",
        f"  {'-d':<{width}}  Run the daemon in the foreground, as 'dockpy daemon' does",
        "",
        "'dockpy COMMAND --help' tells about one command.",
    ]
    return "\n".join(lines) + "\n"
