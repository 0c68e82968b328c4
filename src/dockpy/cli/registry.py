"""pull login logout: images from registries, and who we are there."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import time
from collections.abc import Sequence

from dockpy.cli.command import Operand, Option, Switch, command
from dockpy.cli.secrets import CallersKeeper, asking
from dockpy.cli.session import Session
from dockpy.cli.transfers import Interrupted, watch
from dockpy.errors import DockpyError, NoSuchImage, RequestError, UsageError
from dockpy.references import parse
from dockpy.registry import credentials as kept
from dockpy.registry.auth import Credentials
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.names import registry_host
from dockpy.registry.progress import Listener
from dockpy.registry.pull import Pulled
from dockpy.registry.push import Pushed

ECHO_SECONDS = 5.0
"""How long the client may take to switch its terminal's echo off."""
PASSWORD_LIMIT = 64 << 10
"""Bytes; identity tokens are long."""


@command(
    "pull",
    "Bring an image here from a registry.\n\n"
    "Layers that are here are not fetched again, and an interrupted pull goes on where it stopped. "
    "A name without a registry's host belongs to the default registry.",
    Switch("-a", "--all-tags", help="All tags of the repository"),
    Option(
        "--platform",
        help="Another platform than this machine's, such as linux/arm64",
        metavar="OS/ARCH",
        default="",
    ),
    Switch("-q", "--quiet", help="Only the image's name at the end"),
    Operand("name", "name[:tag|@digest]"),
    interruptible=True,
)
def pull(session: Session, *, name: str, all_tags: bool, platform: str, quiet: bool) -> int:
    registries = session.runtime.registries
    ask = asking(session)
    if all_tags:
        pulled = watch(
            session,
            lambda listener, cancellation: registries.pull_repository(
                name, ask, platform=platform, listener=listener, cancellation=cancellation
            ),
            quiet=quiet,
        )
    else:
        pulled = [pull_one(session, name, platform=platform, quiet=quiet)]
    session.write("".join(f"{one.name}\n" for one in pulled))
    return 0


def pull_one(
    session: Session, name: str, *, platform: str = "", quiet: bool = False, aside: bool = False
) -> Pulled:
    """Pull one image with progress on the caller's streams. Interrupted, RegistryError ..."""
    registries = session.runtime.registries
    ask = asking(session)
    return watch(
        session,
        lambda listener, cancellation: registries.pull_image(
            name, ask, platform=platform, listener=listener, cancellation=cancellation
        ),
        quiet=quiet,
        aside=aside,
    )


@command(
    "push",
    "Put an image into the registry its name says.\n\nLayers the registry has are not sent again.",
    Switch("-a", "--all-tags", help="All tags of the repository"),
    Switch("-q", "--quiet", help="Only the image's name at the end"),
    Operand("name", "name[:tag]"),
    interruptible=True,
)
def push(session: Session, *, name: str, all_tags: bool, quiet: bool) -> int:
    registries = session.runtime.registries
    ask = asking(session)

    def work(listener: Listener, cancellation: Cancellation) -> Sequence[Pushed]:
        if all_tags:
            return registries.push_repository(
                name, ask, listener=listener, cancellation=cancellation
            )
        return [registries.push_image(name, ask, listener=listener, cancellation=cancellation)]

    pushed = watch(session, work, quiet=quiet)
    session.write("".join(f"{one.name}\n" for one in pushed) if quiet else "")
    return 0


@command(
    "login",
    "Log in to a registry.\n\n"
    "Checks the name and the password and keeps them in config.json, or with the credential helper "
    "that file names. Without a server: the default registry.",
    Option("-u", "--username", help="Name at the registry", metavar="NAME", default=""),
    Option(
        "-p",
        "--password",
        help="Password; others can see it in the list of processes: --password-stdin is safer",
        metavar="PASSWORD",
    ),
    Switch("--password-stdin", help="Read the password from stdin"),
    Operand("server", "server", required=False),
)
def login(
    session: Session,
    *,
    server: str | None,
    username: str,
    password: str | None,
    password_stdin: bool,
) -> int:
    registries = session.runtime.registries
    host = registry_host(server or "", registries.settings)
    if password is not None and password_stdin:
        raise UsageError("--password and --password-stdin are two ways to say it; give one")
    if password is not None:
        session.error("dockpy: others can see a password on the command line; use --password-stdin")
    if password_stdin:
        if not username:
            raise UsageError("--password-stdin needs --username")
        password = read_secret(session)
    if not username:
        username = prompt(session, f"Username for {host}: ")
    if password is None:
        password = prompt(session, "Password: ", hidden=True)
    if not username or not password:
        raise RequestError("a name and a password are needed")
    credentials = Credentials(username, password)
    registries.login(host, credentials)
    where = kept.keep(CallersKeeper(session), host, credentials)
    session.write(f"Login Succeeded; kept {where}\n")
    return 0


@command(
    "logout",
    "Forget the name and the password for a registry.",
    Operand("server", "server", required=False),
)
def logout(session: Session, *, server: str | None) -> int:
    host = registry_host(server or "", session.runtime.registries.settings)
    if kept.forget(CallersKeeper(session), host):
        session.write(f"Removed the login credentials for {host}\n")
    else:
        session.write(f"Not logged in to {host}\n")
    return 0


def read_secret(session: Session) -> str:
    """A password from standard input, without the line feed at its end."""
    if session.stdin < 0 or session.stdin_tty:
        raise UsageError("--password-stdin: pipe the password into it")
    data = b""
    while len(data) <= PASSWORD_LIMIT and (piece := os.read(session.stdin, 65536)):
        data += piece
    if len(data) > PASSWORD_LIMIT:
        raise RequestError(f"the password has more than {PASSWORD_LIMIT} bytes")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError as failure:
        raise RequestError("the password is not UTF-8 text") from failure


def prompt(session: Session, text: str, *, hidden: bool = False) -> str:
    """A line the caller types. UsageError without a terminal, Interrupted by Ctrl-C."""
    if not session.stdin_tty:
        raise UsageError("stdin is no terminal; give --username and --password-stdin")
    if hidden:
        session.set_raw(True)
        await_silence(session)
    session.write(text)
    session.takes_stdin()
    try:
        return read_line(session, raw=hidden)
    finally:
        if hidden:
            session.write("\r\n")
            session.set_raw(False)


def await_silence(session: Session) -> None:
    """Wait until the caller's terminal does not show what is typed any more. RequestError."""
    deadline = time.monotonic() + ECHO_SECONDS
    while session.stdout >= 0 and os.isatty(session.stdout):
        with contextlib.suppress(termios.error):
            if not termios.tcgetattr(session.stdout)[3] & termios.ECHO:
                return
        if time.monotonic() > deadline:
            raise RequestError("the terminal would show the password; use --password-stdin")
        time.sleep(0.005)


def read_line(session: Session, *, raw: bool) -> str:
    """One line from standard input; `raw`: its keys come as they are typed. Interrupted."""
    line = bytearray()
    while len(line) < PASSWORD_LIMIT:
        key = os.read(session.stdin, 1)
        if key in (b"", b"\n") or (raw and key in (b"\r", b"\x04")):
            break
        if raw and key == b"\x03":
            raise Interrupted(128 + signal.SIGINT)
        if raw and key in (b"\x7f", b"\x08"):
            text = line.decode(errors="ignore")[:-1]
            line = bytearray(text.encode())
        elif raw and key == b"\x15":
            line.clear()
        else:
            line += key
    return line.decode(errors="replace").rstrip("\r")


def pull_for_run(session: Session, name: str, *, quiet: bool) -> str:
    """Pull an image a container is to be made from; the name to make it by.

    Progress goes to standard error. NoSuchImage, Interrupted.
    """
    try:
        parse(name)
        pulled = pull_one(session, name, quiet=quiet, aside=True)
    except DockpyError as failure:
        raise NoSuchImage(name, f"cannot pull it: {failure}") from failure
    with contextlib.suppress(DockpyError):
        if session.runtime.tags.lookup_image(name).id == pulled.image.id:
            return name
    return f"sha256:{pulled.image.id}"
