"""The daemon: answers clients on a Unix socket, each command in a thread of its own.

One thread (the one that calls `serve`) accepts clients and reads what they send: requests, signals,
their end. It never blocks: a packet of a SEQPACKET socket comes whole or not at all, and what is in
it, and the descriptors with it, the command's own thread looks at. A client's packets are hostile
until read: sizes and counts are bounded, whoever connects and asks nothing is dropped, descriptors
are closed whatever comes of them. Who may connect is decided by the socket's
mode and group and asked of the kernel again (SO_PEERCRED, SO_PEERGROUPS, unix(7)); what files a
command opens for its client, by the client's own rights (cli/session).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import grp
import logging
import os
import select
import signal
import socket
import stat
import struct
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dockpy.api import wire
from dockpy.api.workers import Workers
from dockpy.cli import foreground
from dockpy.cli import main as cli
from dockpy.cli.engine import Engine, EngineAttachment, EngineContainer
from dockpy.cli.session import Session
from dockpy.errors import Conflict, DockpyError, Locked, NotFound, RequestError
from dockpy.model import Status
from dockpy.places import DEFAULT_ROOT, network_settings, run_directory
from dockpy.runtime import Runtime
from dockpy.trace import CLIENT, DAEMON, Trace

log = logging.getLogger(__name__)

GROUP = "dockpy"
"""Its members may use the daemon, which makes them root on this host."""
REQUEST_PATIENCE = 10.0
"""Seconds a client has for its request."""
CLOSING_PATIENCE = 3.0
"""Seconds commands have to end when the daemon does."""
RAW_PATIENCE = 2.0
"""Seconds a client has to switch its terminal."""
CLIENTS_MOMENTS = {
    "DOCKPY_TRACE_BEGAN": "process has begun",
    "DOCKPY_TRACE_UP": "interpreter is up, client imported",
}
LONGEST_MOMENT = 20
"""Digits; 18 of nanoseconds are 30 years."""
STACK = 512 << 10
ENGINE_ERROR = 125
LOCKED = 1
_RELAYED = frozenset(range(1, signal.SIGRTMAX + 1)) - {signal.SIGKILL, signal.SIGSTOP}
"""What a process can be told and pass on. A kill is a command of its own, and waits for the end."""
_SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("iII")
_ROOM = socket.CMSG_SPACE(wire.DESCRIPTOR_LIMIT * 4)

Handler = Callable[[Session, Sequence[str]], int]


class Server:
    """Serves clients of one engine at one socket.

    `handler` runs a command line (cli.main.run). Raises Conflict when a living daemon answers at
    `path` already; what a dead one left there is replaced.
    """

    def __init__(self, engine: Engine, path: Path, handler: Handler) -> None:
        self._engine = engine
        self._path = path
        self._handler = handler
        self._workers = Workers(STACK)
        self._clients: dict[int, Client] = {}
        self._silent: dict[Client, None] = {}
        """Those who have not asked yet, longest waiting first."""
        self._lock = threading.Lock()
        self._stopping = False
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll = select.epoll()
        try:
            self.group = group_id(GROUP)
            self._listener = listen(path, self.group)
        except BaseException:
            self._epoll.close()
            os.close(self._wake)
            os.close(self._waker)
            raise
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)

    @property
    def waker(self) -> int:
        """Any byte written here ends `serve`: for signal.set_wakeup_fd."""
        return self._waker

    def serve(self) -> None:
        """Block until `stop`; clients that are being served then are told that we go."""
        while not self._stopping:
            for descriptor, _events in self._epoll.poll(self._nap()):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._wake:
                    self._stopping = True
                elif (client := self._clients.get(descriptor)) is not None:
                    client.readable()
            self._drop_silent()

    def stop(self) -> None:
        """End `serve`, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def close(self) -> bool:
        """Take the socket away and let clients go; False when commands still run after a while.

        Containers in the foreground go on, and their clients come back to the next daemon.
        """
        self._path.unlink(missing_ok=True)
        self._listener.close()
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.tell(wire.CLOSING)
        staying = sum(1 for client in clients if client.staying)
        deadline = time.monotonic() + CLOSING_PATIENCE
        while self._workers.busy > staying and time.monotonic() < deadline:
            time.sleep(0.02)
        for client in clients:
            client.drop()
        quiet = self._workers.close(0 if staying else CLOSING_PATIENCE / 10)
        self._epoll.close()
        os.close(self._wake)
        os.close(self._waker)
        return quiet

    # -- clients ---------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # it is gone already, or we have no descriptors left
            log.warning("cannot accept a client: %s", error)
            time.sleep(0.01)
            return
        connection.setblocking(False)
        try:
            peer = Peer(connection)
            allowed = peer.allowed(self.group)
        except OSError:
            connection.close()
            return
        client = Client(self, connection, peer)
        if not allowed:
            client.refuse("permission denied; use sudo, or join the group dockpy")
            return
        with self._lock:
            self._clients[connection.fileno()] = client
            self._silent[client] = None
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def begin(self, client: Client, packet: bytes, descriptors: list[int]) -> None:
        """Run what a client asks, in a thread of its own, which then owns the descriptors."""
        try:
            self._workers.run(lambda: client.work(packet, descriptors, self._engine, self._handler))
        except RuntimeError:
            close_all(descriptors)
            client.refuse("the daemon cannot start another thread; try again later")

    def forget(self, connection: socket.socket) -> None:
        """Close a client's connection, if no other thread has.

        Its descriptor is the next client's as soon as it is closed: so it is asked for, and given
        up, where nobody else can be.
        """
        with self._lock:
            number = connection.fileno()
            if self._clients.pop(number, None) is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._epoll.unregister(number)
            connection.close()

    def heard(self, client: Client) -> None:
        """A client has asked something, or is gone."""
        with self._lock:
            self._silent.pop(client, None)

    def _longest_silent(self) -> Client | None:
        with self._lock:
            return next(iter(self._silent), None)

    def _nap(self) -> float | None:
        """Seconds until somebody has to be dropped for saying nothing; None: for ever."""
        first = self._longest_silent()
        if first is None:
            return None
        return max(0.0, first.since + REQUEST_PATIENCE - time.monotonic()) + 0.01

    def _drop_silent(self) -> None:
        limit = time.monotonic() - REQUEST_PATIENCE
        while (client := self._longest_silent()) is not None and client.since < limit:
            client.refuse("no request came")


class Peer:
    """Who is at the other end of a connection, by the kernel's word."""

    def __init__(self, connection: socket.socket) -> None:
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, self.gid = _CREDENTIALS.unpack(packed)
        found = array("I")
        with contextlib.suppress(OSError):  # more than 256 groups: none of them counts
            found.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024))
        self.groups = tuple(found)

    def allowed(self, group: int | None) -> bool:
        """Root, the daemon's own user, and members of the group."""
        return self.uid in (0, os.geteuid()) or (
            group is not None and group in (self.gid, *self.groups)
        )


class Client:
    """One client's connection. `readable` is the serving thread's; the rest is thread-safe."""

    def __init__(self, server: Server, connection: socket.socket, peer: Peer) -> None:
        self._server = server
        self._connection = connection
        self._peer = peer
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._early: list[int] = []
        self._gone = False
        self._left = False
        self._terminal = -1
        self.since = time.monotonic()
        self.asked = False
        self._asked_at = 0
        self._is_raw = threading.Event()
        self.staying = False
        """It is with a container that goes on without us."""

    # -- the serving thread ----------------------------------------------------------------------

    def readable(self) -> None:
        """Read one packet."""
        descriptors: list[int] = []
        try:
            packet = receive(self._connection, descriptors)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            close_all(descriptors)
            self._hang_up()
        elif self.asked:
            close_all(descriptors)
            self._signal(packet[0])
        else:
            self.asked = True
            self._asked_at = time.monotonic_ns()
            self._server.heard(self)
            self._server.begin(self, packet, descriptors)

    def _hang_up(self) -> None:
        with self._lock:
            self._gone = True
            session = self._session
        self._is_raw.set()  # whoever waits for it waits in vain
        self.drop()
        if session is not None and not self._left:
            session.events.hang_up()

    def _signal(self, number: int) -> None:
        with self._lock:
            if self._session is None:
                self._early.append(number)
                return
        self._pass_on(self._session, number)

    def _pass_on(self, session: Session, number: int) -> None:
        if number == wire.IS_RAW[0]:
            self._is_raw.set()
        elif number == signal.SIGWINCH:
            rows, columns = window_size(self._terminal)
            if rows and columns:
                session.events.resize(rows, columns)
        elif number in _RELAYED:
            session.events.signal(number)

    # -- the command's thread --------------------------------------------------------------------

    def work(self, packet: bytes, descriptors: list[int], engine: Engine, handler: Handler) -> None:
        """Run the command to its end, and tell the client. Closes the descriptors."""
        try:
            request = read_request(packet, descriptors)
        except (wire.WireError, OSError) as error:
            close_all(descriptors)
            self.refuse(str(error))
            return
        try:
            with self._served(request, descriptors, engine) as session:
                if request.kind == wire.RUN:
                    code = handler(session, [os.fsdecode(word) for word in request.argv])
                else:
                    code = resume(session, request)
                if session.show_trace:
                    self._tell_trace(session.trace)
        except Exception:
            log.exception("a client's command failed")
            code = ENGINE_ERROR
        finally:
            close_all(descriptors)
        self.leave(code)
        self.drop()

    @contextlib.contextmanager
    def _served(
        self, request: wire.Request, descriptors: Sequence[int], engine: Engine
    ) -> Iterator[Session]:
        """A session that gets this client's signals while inside."""
        terminal = descriptors[4] if request.flags & wire.TERMINAL else -1
        stdin, stdout, stderr, cwd = descriptors[:4]
        terminals = [one for one in (stdout, stderr, terminal) if one >= 0 and os.isatty(one)]
        window = terminals[0] if terminals else -1
        session = Session(
            runtime=engine,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=dict(os.fsdecode(entry).partition("=")[::2] for entry in request.env),
            uid=self._peer.uid,
            gid=self._peer.gid,
            groups=self._peer.groups,
            stdin_tty=terminal >= 0 and os.isatty(terminal),
            stdout_tty=os.isatty(stdout),
            window=window_size(window),
            set_raw=self._set_raw,
            leave=self.leave,
            staying_with=self._stay,
            takes_stdin=lambda: self.tell(wire.STDIN),
        )
        if request.flags & wire.TRACED:
            session.trace = self._begun_trace(session.env)
            session.show_trace = session.env.get("DOCKPY_TRACE", "0") not in ("", "0")
        with self._lock:
            self._terminal = window
            self._session = session
            early, self._early = self._early, []
            gone = self._gone
        for number in early:
            self._pass_on(session, number)
        if gone:
            session.events.hang_up()
        try:
            yield session
        finally:
            with self._lock:
                self._terminal = -1

    def _begun_trace(self, env: Mapping[str, str]) -> Trace:
        """What was done for this client so far, by itself too."""
        trace = Trace()
        for name, what in CLIENTS_MOMENTS.items():
            text = env.get(name, "")
            if text.isascii() and text.isdigit() and len(text) < LONGEST_MOMENT:
                trace.at(int(text), CLIENT, what)
        trace.at(int(self.since * 1e9), DAEMON, "client accepted")
        trace.at(self._asked_at, DAEMON, "request received")
        trace.mark(DAEMON, "a thread has read the request")
        return trace

    def _tell_trace(self, trace: Trace) -> None:
        if trace.on:
            trace.mark(DAEMON, "command done")
            self.tell(wire.TRACE + trace.message(wire.PACKET_LIMIT - 1))

    def _set_raw(self, on: bool) -> None:
        """Switch the client's terminal, and wait until raw mode is on, as long as it takes it."""
        self._is_raw.clear()
        self.tell(wire.RAW if on else wire.COOKED)
        if on and not self._is_raw.wait(RAW_PATIENCE):
            log.warning("client %d does not switch its terminal; it goes on", self._peer.pid)

    def _stay(self, identifier: str, sig_proxy: bool, number: int) -> None:
        self.staying = bool(identifier)
        words = [identifier.encode(), b"%d" % sig_proxy, b"%d" % number] if identifier else []
        self.tell(wire.FOLLOW + wire.join(words))

    def leave(self, code: int) -> None:
        """Tell the client to go with an exit code; the first time counts."""
        with self._lock:
            left, self._left = self._left, True
        if not left:
            self.tell(wire.EXIT + bytes((code & 0xFF,)))

    def refuse(self, text: str) -> None:
        """Say in one line why nothing comes of it, and let the client go."""
        self.tell(wire.SAY + f"dockpy: {text}\n".encode())
        self.leave(ENGINE_ERROR)
        self.drop()

    def tell(self, packet: bytes) -> None:
        """Send a packet. A client that does not read is given up, as is one that is gone."""
        try:
            self._connection.send(packet)
        except BlockingIOError:
            log.warning("client %d does not read what it is told", self._peer.pid)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def drop(self) -> None:
        """Close the connection."""
        self._server.heard(self)
        self._server.forget(self._connection)


def resume(session: Session, request: wire.Request) -> int:
    """Go on with a container whose client lost its daemon; the exit code."""
    if len(request.argv) != 3:
        session.error("dockpy: the request makes no sense")
        return ENGINE_ERROR
    identifier, proxy, number = (os.fsdecode(word) for word in request.argv)
    try:
        container = session.runtime.get(identifier)
    except NotFound:
        code = session.runtime.exit_code_of(identifier)
        if code is None:
            session.error(f"dockpy: container {identifier[:12]} is gone, its exit code with it")
            return ENGINE_ERROR
        return code
    if container.state.status is Status.CREATED:
        session.error(f"dockpy: the daemon ended before container {identifier[:12]} was started")
        return ENGINE_ERROR
    attachment = attachment_of(container, number)
    wanted = ("stdin",) if request.flags & wire.READING else ()
    return foreground.stay(session, container, lambda: attachment, wanted, sig_proxy=proxy == "1")


def attachment_of(container: EngineContainer, number: str) -> EngineAttachment:
    """The caller's attachment: the newest when the daemon died before it could tell the number."""
    attachments = sorted(container.attachments, key=lambda one: one.number)
    if number == "-1" and attachments:
        return attachments[-1]
    return next(
        (one for one in attachments if str(one.number) == number),
        foreground.NothingConnected(container),
    )


def receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """One packet; its descriptors are added to the list, which the caller closes. OSError."""
    packet, ancillary, flags, _ = connection.recvmsg(
        wire.PACKET_LIMIT + 1, _ROOM, socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found = array("i")
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
            descriptors.extend(found)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ConnectionAbortedError("a packet of a client's is too large")
    return packet


def read_request(packet: bytes, descriptors: list[int]) -> wire.Request:
    """The request in a client's first packet. The memfd is closed, the others are left.

    Raises WireError, and OSError for descriptors that are not what they should be.
    """
    flags = wire.flags_of(packet)
    if len(descriptors) != wire.descriptors_of(flags):
        raise wire.WireError("the request brings the wrong descriptors")
    spilled = b""
    if flags & wire.SPILLED:
        words = descriptors.pop()
        try:
            spilled = read_memfd(words)
        finally:
            os.close(words)
    if not stat.S_ISDIR(os.fstat(descriptors[3]).st_mode):
        raise wire.WireError("the working directory is none")
    return wire.unpack(packet, spilled)


def read_memfd(descriptor: int) -> bytes:
    """What a memfd holds. Only memfds know of seals, and none of them makes a reader wait."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise wire.WireError("the words are not in a memfd") from None
    size = os.fstat(descriptor).st_size
    if size > wire.REQUEST_LIMIT:
        raise wire.WireError("the request is too large")
    return os.pread(descriptor, size, 0)


def window_size(terminal: int) -> tuple[int, int]:
    """Rows and columns of a terminal; zeros for anything else."""
    if terminal < 0:
        return 0, 0
    try:
        rows, columns, _, _ = struct.unpack(
            "4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
        )
    except OSError:
        return 0, 0
    return rows, columns


def close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def group_id(name: str) -> int | None:
    """A group's number; None when the host has no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def listen(path: Path, group: int | None) -> socket.socket:
    """A listening socket at `path`, mode 0660 from its first moment, for root and the group.

    Its directory lets the group's members through if there is a group. Conflict when a daemon
    answers there.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        place = f"/proc/self/fd/{directory}"  # paths of sockets end after 107 bytes
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(f"{place}/{path.name}")
            except OSError:
                pass
            else:
                raise Conflict(f"another daemon serves {path}; name another run directory")
        fresh = f"{place}/{path.name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        listener.bind(fresh)
        os.chmod(fresh, 0o660)
        if group is not None:
            os.chown(fresh, -1, group)
        path.parent.chmod(0o700 if group is None else 0o711)
        listener.listen(1024)
        listener.setblocking(False)
        os.rename(fresh, f"{place}/{path.name}")
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


# -- the process -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the daemon in the foreground; SIGTERM and SIGINT end it, containers go on.

    Exit status 0 then, 1 when another engine owns the root, 125 when it cannot start.
    """
    parser = argparse.ArgumentParser(
        prog="dockpy daemon",
        description="Run the daemon in the foreground. SIGTERM ends it; containers go on.",
    )
    parser.add_argument("--root", default=str(DEFAULT_ROOT), help="where images and containers are")
    parser.add_argument("--run", help="where sockets are (default: by the root)")
    parser.add_argument("--supervisors", type=int, help="processes that parent the containers")
    parser.add_argument("--bridge", help="name of the default network's bridge")
    parser.add_argument("--bip", help="its address and range, such as 172.30.0.1/16")
    parser.add_argument("--fixed-cidr-v6", help="IPv6 range of the default network")
    parser.add_argument("--mtu", type=int, help="largest packet of the default network")
    parser.add_argument("--debug", action="store_true", help="write down more")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    run = Path(options.run) if options.run else run_directory(Path(options.root))
    own_signals()
    try:
        runtime = Runtime(
            options.root,
            run=run,
            supervisors=options.supervisors,
            network=network_settings(Path(options.root)).told(
                bridge=options.bridge,
                bip=options.bip,
                subnet6=options.fixed_cidr_v6,
                mtu=options.mtu,
                environment=os.environ.get("DOCKPY_BRIDGE", ""),
            ),
        )
    except Locked as error:
        refuse(error, LOCKED)
    except (DockpyError, OSError) as error:
        refuse(error, ENGINE_ERROR)
    try:
        server = Server(runtime, runtime.run / "dockpy.sock", cli.run)
    except (RequestError, OSError) as error:
        runtime.close()
        refuse(error, ENGINE_ERROR)
    with ending_signals(server):
        tune()
        log.info("dockpy serves %s at %s", runtime.root, runtime.run / "dockpy.sock")
        try:
            server.serve()
        finally:
            server.close()
            runtime.close()
    log.info("dockpy ends; containers go on")
    logging.shutdown()
    os._exit(0)  # threads that stay with containers neither hold us nor see the interpreter end


def refuse(error: Exception, status: int) -> NoReturn:
    """One line, and the end."""
    sys.stderr.write(f"dockpy: {' '.join(str(error).splitlines())}\n")
    sys.exit(status)


def own_signals() -> None:
    """Undo what a process inherits: blocked signals, and children whose ends are not told."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextlib.contextmanager
def ending_signals(server: Server) -> Iterator[None]:
    """SIGTERM and SIGINT end `serve`; SIGHUP of a lost terminal does not."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(server.waker)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)


def tune() -> None:
    """Threads take turns more often, and the collector leaves alone what start-up made."""
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
