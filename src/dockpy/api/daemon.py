"""The daemon: answers clients on a Unix socket, each in a thread of its own.

A client's frames are hostile until read: sizes and counts are bounded, a half-sent request times
out, descriptors are closed whatever happens. Who may connect is decided by the socket's mode (0660,
group `dockpy` where there is one); what files a command opens for its client, by the client's own
rights.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import grp
import logging
import os
import signal
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from dockpy.api.wire import (
    CONTAINER,
    EXIT,
    HEADER,
    LONGEST,
    RAW,
    RESUME,
    RUN,
    SIGNAL,
    STDIN,
    WINDOW,
    BadFrame,
    frame,
    length,
    parse_request,
)
from dockpy.cli.session import Events, Session
from dockpy.errors import DockpyError, NotFound
from dockpy.runtime import DEFAULT_ROOT, Runtime, run_directory

log = logging.getLogger(__name__)

GROUP = "dockpy"
REQUEST_PATIENCE = 10.0
"""Seconds a client has for its first frame."""
STACK = 512 << 10
ENGINE_ERROR = 125
_CREDENTIALS = struct.Struct("iII")

Handler = Callable[..., int]


class Server:
    """Accepts clients of one engine until it is told to stop."""

    def __init__(self, runtime: Runtime, path: Path, handler: Handler) -> None:
        self._runtime = runtime
        self._path = path
        self._handler = handler
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stopping = False
        path.unlink(missing_ok=True)  # of a killed daemon: the state's lock is ours
        old = os.umask(0o117)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(old)
        self._share(path)
        self._listener.listen(512)

    @staticmethod
    def _share(path: Path) -> None:
        try:
            gid = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            return
        os.chown(path, 0, gid)
        path.parent.chmod(0o711)

    def serve(self) -> None:
        """Block, one thread per client, until `stop`."""
        threading.stack_size(STACK)
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._stopping:
                    return
                raise
            if self._stopping:
                connection.close()
                return
            threading.Thread(
                target=self._answer, args=(connection,), name="client", daemon=True
            ).start()

    def stop(self) -> None:
        """End `serve`; may be called from a signal handler."""
        self._stopping = True
        self._listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            descriptors: list[int] = []
            try:
                connection.settimeout(REQUEST_PATIENCE)
                kind, payload = receive_request(connection, descriptors)
                connection.settimeout(None)
                conversation = Conversation(connection, self._runtime, descriptors)
                if kind == RUN:
                    code = conversation.run(payload, self._handler)
                elif kind == RESUME:
                    code = conversation.resume(payload)
                else:
                    raise BadFrame("a connection begins with a request")  # noqa: TRY301
                conversation.leave(code)
            except (BadFrame, UnicodeError) as error:
                refuse(connection, descriptors, str(error))
            except OSError as error:
                log.debug("a client went away: %s", error)
            except Exception:
                log.exception("a client's command failed")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)


def refuse(connection: socket.socket, descriptors: Sequence[int], text: str) -> None:
    """Say what was wrong with a request, if there is anybody to say it to."""
    with contextlib.suppress(OSError):
        if len(descriptors) > 2:
            os.write(descriptors[2], f"dockpy: {text}\n".encode())
        connection.sendall(frame(EXIT, b"%d" % ENGINE_ERROR))


def receive_request(connection: socket.socket, descriptors: list[int]) -> tuple[bytes, bytes]:
    """The first frame; its descriptors are added to the list, which the caller closes."""
    room = socket.CMSG_SPACE(16 * 4)
    data, ancillary, _flags, _ = connection.recvmsg(65536, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, packed in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found = array("i")
            found.frombytes(packed[: len(packed) - len(packed) % found.itemsize])
            descriptors.extend(found)
    while len(data) < HEADER:
        data += read_some(connection, HEADER - len(data))
    size = length(data)
    if size > LONGEST:
        raise BadFrame("the request is too long")
    parts, have = [data[HEADER:]], len(data) - HEADER
    while have < size:
        piece = read_some(connection, min(size - have, 1 << 20))
        parts.append(piece)
        have += len(piece)
    payload = b"".join(parts)
    if len(payload) > size:
        raise BadFrame("more than one frame at once")
    if len(descriptors) != 4:
        raise BadFrame("a request carries four descriptors")
    return data[:1], payload


def read_some(connection: socket.socket, size: int) -> bytes:
    piece = connection.recv(size)
    if not piece:
        raise BadFrame("the request ends too soon")
    return piece


class Conversation:
    """One client and its command."""

    def __init__(
        self, connection: socket.socket, runtime: Runtime, descriptors: Sequence[int]
    ) -> None:
        self._connection = connection
        self._runtime = runtime
        self._stdin, self._stdout, self._stderr, self._cwd = descriptors
        self._lock = threading.Lock()
        self._left = False

    def run(self, payload: bytes, handler: Handler) -> int:
        """Run a command line; the exit code."""
        argv, env, flags, rows, columns = parse_request(payload)
        packed = self._connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        pid, uid, gid = _CREDENTIALS.unpack(packed)
        session = Session(
            runtime=self._runtime,
            stdin=self._stdin,
            stdout=self._stdout,
            stderr=self._stderr,
            cwd=self._cwd,
            env=dict(os.fsdecode(entry).partition("=")[::2] for entry in env),
            uid=uid,
            gid=gid,
            groups=groups_of(pid) if uid else (),
            stdin_tty=b"i" in flags,
            stdout_tty=b"o" in flags,
            window=(rows, columns),
            set_raw=lambda on: self._send(RAW, b"1" if on else b"0"),
            leave=self.leave,
            staying_with=lambda identifier: self._send(CONTAINER, identifier.encode()),
            takes_stdin=lambda: self._send(STDIN),
        )
        listener = threading.Thread(
            target=self._listen, args=(session.events,), name="client-events", daemon=True
        )
        listener.start()
        return handler(session, [os.fsdecode(one) for one in argv])

    def resume(self, payload: bytes) -> int:
        """Wait for a container whose client lost its daemon; its exit code."""
        identifier = payload.split(b"\0")[-1].decode()
        try:
            container = self._runtime.get(identifier)
        except NotFound:
            code = self._runtime.exit_code_of(identifier)
            return ENGINE_ERROR if code is None else code
        for attachment in container.attachments:
            attachment.wait()
        return container.wait()

    def leave(self, code: int) -> None:
        """Tell the client to go; once."""
        with self._lock:
            if self._left:
                return
            self._left = True
        with contextlib.suppress(OSError):
            self._connection.sendall(frame(EXIT, b"%d" % code))
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(frame(kind, payload))

    def _listen(self, events: Events) -> None:
        """Pass on what the client sends, until it is gone."""
        try:
            while True:
                header = self._read(HEADER)
                payload = self._read(min(length(header), 64))
                if header[:1] == SIGNAL and payload.isdigit():
                    events.signal(int(payload))
                elif header[:1] == WINDOW:
                    rows, columns = payload.split(b" ")
                    events.resize(int(rows), int(columns))
        except (OSError, BadFrame, ValueError):
            if not self._left:
                events.hang_up()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += read_some(self._connection, size - len(data))
        return data


def groups_of(pid: int) -> tuple[int, ...]:
    """Supplementary groups of a process; none when it has gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("Groups:"):
                    return tuple(int(text) for text in line.split()[1:])
    except OSError:
        pass
    return ()


def main() -> None:
    """Run the daemon in the foreground; SIGTERM and SIGINT end it, containers go on."""
    parser = argparse.ArgumentParser(prog="dockpy daemon")
    parser.add_argument("--root", default=str(DEFAULT_ROOT))
    parser.add_argument("--run")
    parser.add_argument("--supervisors", type=int)
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    from dockpy.cli import main as cli

    run = Path(options.run) if options.run else run_directory(Path(options.root))
    try:
        runtime = Runtime(options.root, run=run, supervisors=options.supervisors)
    except (DockpyError, OSError) as error:
        sys.exit(f"dockpy: {error}")
    with runtime:
        server = Server(runtime, runtime.run / "dockpy.sock", cli.run)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: server.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.setswitchinterval(0.0005)
        gc.collect()
        gc.freeze()
        log.info("dockpy listens at %s", runtime.run / "dockpy.sock")
        try:
            server.serve()
        finally:
            server.close()


if __name__ == "__main__":
    main()
