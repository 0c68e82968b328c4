"""The front door for tests: served with small commands of our own, spoken to without a client."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from dockpy.api import daemon as door
from dockpy.cli.session import Session
from end_to_end.client import Client, eventually
from patience import patient

LONG = patient(30)
"""Seconds after which a test calls it a hang."""


class Commands:
    """The commands that the door's clients may run here, and what they saw."""

    def __init__(self) -> None:
        self.seen: list[Session] = []
        self.left = threading.Event()

    def __call__(self, session: Session, argv: Sequence[str]) -> int:
        self.seen.append(session)
        return int(getattr(self, argv[0])(session, *argv[1:]))

    def leave(self, session: Session, code: str) -> int:
        return int(code)

    def words(self, session: Session, *argv: str) -> int:
        session.write(f"{len(argv)} {sum(map(len, argv))} {session.env.get('WORD')}\n")
        return 0

    def where(self, session: Session) -> int:
        session.write(session.directory())
        return 0

    def copy(self, session: Session) -> int:
        session.takes_stdin()
        while data := os.read(session.stdin, 4096):
            session.write(data.decode())
        session.error("copied")
        return 0

    def signals(self, session: Session, last: str) -> int:
        done = threading.Event()

        def take(number: int) -> None:
            session.write(f"{number}\n")
            if number == int(last):
                done.set()

        session.staying_with("a container's id", True, -1)
        with session.events.listening(signal=take):
            session.write("ready\n")
            assert done.wait(LONG)
        return 0

    def ignores(self, session: Session) -> int:
        session.events.let_go()
        session.write("ready\n")
        assert self.left.wait(LONG)
        return 0

    def until_gone(self, session: Session) -> int:
        with session.events.listening(hang_up=self.left.set):
            session.write("ready\n")
            assert self.left.wait(LONG)
        return 0

    def raw(self, session: Session) -> int:
        session.set_raw(True)
        session.takes_stdin()
        session.write("raw")
        while (data := os.read(session.stdin, 64)) != b"q":
            session.write(data.hex() + "\r\n")
        session.set_raw(False)
        return 5

    def window(self, session: Session) -> int:
        told = threading.Event()

        def resize(rows: int, columns: int) -> None:
            session.write(f"now {rows} {columns}\n")
            told.set()

        with session.events.listening(resize=resize):
            session.write("first {} {}\n".format(*session.window))
            assert told.wait(LONG)
        return 0

    def says_nothing(self, session: Session) -> int:
        assert self.left.wait(LONG)
        return 0


@contextlib.contextmanager
def served(run: Path) -> Iterator[tuple[Client, Commands, door.Server]]:
    """A door with our commands behind it, and a client for it."""
    run.mkdir(parents=True, exist_ok=True)
    commands = Commands()
    server = door.Server(cast("Any", None), run / "dockpy.sock", commands)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield Client(run / "root", run), commands, server
    finally:
        commands.left.set()
        server.stop()
        thread.join(LONG)
        server.close()


Door = tuple[Client, Commands, door.Server]


@contextlib.contextmanager
def stranger(there: Door) -> Iterator[socket.socket]:
    """A connection to the door, with nothing said yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(there[0].run_directory / "dockpy.sock"))
        connection.settimeout(LONG)
        yield connection


def send(connection: socket.socket, packet: bytes, descriptors: Sequence[int]) -> None:
    rights = array("i", descriptors).tobytes()
    connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def answer(connection: socket.socket) -> tuple[str, bytes]:
    """What the daemon says, and all it sends after that."""
    said = connection.recv(4096)
    rest = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(4096):
            rest += piece
    return said[1:].decode(), rest


@contextlib.contextmanager
def client_without_daemon(directory: Path, run: Path) -> Iterator[Client]:
    """A client of a new root without a daemon; one that it starts is ended afterwards."""
    root = Path(tempfile.mkdtemp(prefix="door-", dir=directory))
    client = Client(root, run)
    try:
        yield client
    finally:
        if (root / "lock").exists():
            client.remove_all()
            end_daemon_of(client)
        shutil.rmtree(root)
        shutil.rmtree(client.run_directory, ignore_errors=True)


def end_daemon_of(client: Client, number: int = signal.SIGTERM) -> int:
    """End the daemon that owns the client's root; its pid."""
    pid = int((client.root / "lock").read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    eventually(lambda: not alive(pid), f"daemon {pid} ends")
    return pid


def alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return Path(f"/proc/{pid}").exists()


def serving_lines(client: Client) -> list[str]:
    """One line for each daemon that clients have started."""
    path = client.run_directory / "daemon.log"
    log = path.read_text() if path.exists() else ""
    return [line for line in log.splitlines() if " serves " in line]
