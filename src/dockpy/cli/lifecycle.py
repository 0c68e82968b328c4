"""start stop restart kill wait attach rm: moves of containers that exist."""

from __future__ import annotations

import queue
import signal as signals
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dockpy.cli import options
from dockpy.cli.command import Option, Switch, command
from dockpy.cli.engine import EngineAttachment, EngineContainer
from dockpy.cli.foreground import (
    attach_connected,
    require_terminal,
    start_connected,
    stay,
    streams,
)
from dockpy.cli.session import DEADLY, LEFT_BY_PIPE, Session
from dockpy.errors import Conflict, DockpyError, NoSuchContainer, UsageError
from dockpy.signals import parse_signal

TOGETHER = 16
"""How many containers one command works on at the same time."""


def for_each(session: Session, names: Sequence[str], act: Callable[[str], None]) -> int:
    """Do something to each container and print its name; errors do not stop the others.

    Several are worked on at once; the lines come in the caller's order. The exit code.
    """

    def attempt(name: str) -> DockpyError | None:
        try:
            act(name)
        except DockpyError as error:
            return error
        return None

    code = 0
    with ThreadPoolExecutor(max_workers=min(TOGETHER, len(names))) as pool:
        outcomes = map(attempt, names) if len(names) == 1 else pool.map(attempt, names)
        for name, error in zip(names, outcomes, strict=True):
            if error is None:
                session.write(f"{name}\n")
            else:
                session.error(f"dockpy: {error}")
                code = 1
    return code


@command(
    "start",
    "Start containers that are stopped.",
    Switch("-a", "--attach", help="Connect to its outputs and pass signals on"),
    options.detach_keys(),
    Switch("-i", "--interactive", help="Connect to its stdin"),
    options.sig_proxy(),
    options.containers(),
    failure=None,
    interruptible=True,
)
def start(
    session: Session,
    *,
    containers: tuple[str, ...],
    attach: bool,
    interactive: bool,
    detach_keys: str,
    sig_proxy: bool,
) -> int:
    if attach or interactive:
        if len(containers) > 1:
            raise UsageError("-a and -i work with one container only")
        return start_attached(
            session,
            containers[0],
            interactive=interactive,
            detach_keys=detach_keys,
            sig_proxy=sig_proxy,
        )
    session.events.let_go()

    def act(name: str) -> None:
        container = session.runtime.get(name)
        if not container.state.running:
            container.start()

    return for_each(session, containers, act)


def start_attached(
    session: Session, name: str, *, interactive: bool, detach_keys: str, sig_proxy: bool
) -> int:
    """start -a or -i; a container that runs already is attached to."""
    container = session.runtime.get(name)
    config = container.config
    wanted = ("stdin", "stdout", "stderr") if interactive else ("stdout", "stderr")
    if interactive and not config.open_stdin:
        raise Conflict(f"container {container.name} was made without -i; leave out -i here too")
    require_terminal(session, config, wanted)
    ends = streams(session, config, wanted, detach_keys)

    def connect() -> EngineAttachment:
        if container.state.running:
            return attach_connected(container, ends)
        return start_connected(container, container.start, ends)

    return stay(session, container, connect, wanted, sig_proxy=sig_proxy)


@command(
    "attach",
    "Connect to a running container.\n\nThe exit code is the program's own.",
    options.detach_keys(),
    Switch("--no-stdin", help="Connect to its outputs only"),
    options.sig_proxy(),
    options.container(),
    interruptible=True,
)
def attach(
    session: Session, *, container: str, detach_keys: str, no_stdin: bool, sig_proxy: bool
) -> int:
    found = session.runtime.get(container)
    if not found.state.running:
        raise Conflict(f"container {container} is not running; start it first")
    config = found.config
    stdin = config.open_stdin and not no_stdin
    wanted = ("stdin", "stdout", "stderr") if stdin else ("stdout", "stderr")
    require_terminal(session, config, wanted)
    ends = streams(session, config, wanted, detach_keys)
    return stay(
        session,
        found,
        lambda: attach_connected(found, ends),
        wanted,
        sig_proxy=sig_proxy,
        redraw=True,
    )


@command(
    "stop",
    "Stop running containers.\n\nSends the stop signal, and SIGKILL when that did not help.",
    options.stop_time(),
    options.containers(),
)
def stop(session: Session, *, containers: tuple[str, ...], time: int | None) -> int:
    return for_each(session, containers, lambda name: session.runtime.get(name).stop(seconds(time)))


@command(
    "restart",
    "Stop containers and start them again.",
    options.stop_time(),
    options.containers(),
)
def restart(session: Session, *, containers: tuple[str, ...], time: int | None) -> int:
    return for_each(
        session, containers, lambda name: session.runtime.get(name).restart(seconds(time))
    )


def seconds(time: int | None) -> float | None:
    """What `Container.stop` takes."""
    return None if time is None else float(time)


@command(
    "kill",
    "Send a signal to running containers.",
    Option(
        "-s",
        "--signal",
        help="Signal by name or number (default KILL)",
        parse=parse_signal,
        metavar="SIGNAL",
        default=int(signals.SIGKILL),
    ),
    options.containers(),
)
def kill(session: Session, *, containers: tuple[str, ...], signal: int) -> int:
    return for_each(session, containers, lambda name: session.runtime.get(name).kill(signal))


@command(
    "rm",
    "Remove containers and what they wrote.",
    Switch("-f", "--force", help="Kill it first if it runs"),
    Switch("-v", "--volumes", help="Also remove its volumes (dockpy makes none)"),
    options.containers(),
)
def rm(session: Session, *, containers: tuple[str, ...], force: bool, volumes: bool) -> int:
    del volumes  # there are none, scripts pass it all the same

    def act(name: str) -> None:
        container = session.runtime.get(name)
        if container.state.running and not force:
            raise Conflict(f"container {name} is running; stop it first, or use rm -f")
        session.runtime.destroy(container, force=force)

    return for_each(session, containers, act)


@command(
    "wait",
    "Wait until containers end and print their exit codes.",
    options.containers(),
    interruptible=True,
)
def wait(session: Session, *, containers: tuple[str, ...]) -> int:
    code = 0
    for name in containers:
        try:
            container = session.runtime.get(name)
        except NoSuchContainer as error:
            gone = session.runtime.exit_code_of(name)
            if gone is None:
                session.error(f"dockpy: {error}")
                code = 1
            else:
                session.write(f"{gone}\n")
            continue
        left = wait_unless_left(session, container)
        if left is not None:
            return left
        session.write(f"{container.wait()}\n")
    return code


def wait_unless_left(session: Session, container: EngineContainer) -> int | None:
    """Block until the program ends (None), or the caller leaves: the exit code to leave with."""
    news: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def leave(number: int) -> None:
        if number in DEADLY:
            news.put(128 + number)

    container.on_exit(lambda _container: news.put(None))
    with session.events.listening(signal=leave, hang_up=lambda: news.put(LEFT_BY_PIPE)):
        return news.get()
