"""The `dockpy` command: hands its arguments and descriptors to the daemon and does as it is told.

Every module imported here is time that every command pays: on the way of a plain command there are
`_socket` and modules built into the interpreter, nothing else; what a terminal, a missing daemon or
another root needs is imported when it is needed.

Signals: the kernel's handler writes the signal's number straight to the connection
(`set_wakeup_fd`), so none is lost between a check and a blocking call. The daemon answers: what a
signal means is the command's business. A terminal's keys are read here, and only when a command
takes them, so that job control works and a dead client leaves nobody reading the user's terminal.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import sys

from dockpy.api import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEFAULT_ROOT = "/var/lib/dockpy"
DEFAULT_RUN = "/run/dockpy"
DAEMON = frozenset({b"daemon", b"-d", b"-d=true", b"--daemon", b"-daemon"})
ENGINE_ERROR = 125
DEADLY = frozenset({1, 2, 3, 15})
"""HUP INT QUIT TERM."""
SIGCONT = 18
RELAYED = (1, 2, 3, 10, 12, 14, 15, 16, SIGCONT, 24, 25, 26, 27, 28, 29, 30, *range(34, 65))
"""All but those that tell of this process's own faults, of its terminal, children and pipes."""
INSISTENT = 3
INSISTING = 0.5
"""So many deadly signals end a client whose command does not answer them, when the last comes so
many seconds after the first: a burst can be quicker than what the daemon has just told us."""
PATIENCE = bytes(8) + (200_000).to_bytes(8, sys.byteorder)
"""A timeval: 0.2 s for a signal to find room in the connection."""
NEXT_DAEMON = 0.2
"""Seconds between looks for the successor of a daemon that was ended on purpose."""


class Leave(Exception):
    """Leave with this exit code and this text."""

    def __init__(self, code: int, text: str = "") -> None:
        self.code = code
        self.text = text


def main() -> None:
    """Run one command line and leave with its exit code. Does not return."""
    if _signal.getsignal(2) is _signal.default_int_handler:
        _signal.signal(2, _signal.SIG_DFL)
    fill_closed_descriptors()
    client = Client(DEFAULT_ROOT, DEFAULT_RUN)

    def work() -> int:
        argv, client.root, client.run = engine_options([encode(word) for word in sys.argv[1:]])
        if argv and argv[0] in DAEMON:
            become_daemon(client.root, client.run, argv[1:])
        return client.command(argv)

    leave(client, work)


def leave(client: "Client", work: "Callable[[], int]") -> None:
    """Do the client's work and leave with its exit code, the terminal as it was."""
    try:
        code = work()
    except Leave as end:
        code = end.code
        if end.text:
            say(f"dockpy: {end.text}\n".encode(errors="surrogateescape"))
    except BaseException as error:
        code = ENGINE_ERROR
        say(f"dockpy: internal error of the client: {type(error).__name__}: {error}\n".encode())
    finally:
        client.cook()
    posix._exit(code)


def go_on() -> None:
    """Go on where `quick.c` could not, and leave with the exit code. Does not return.

    The argument is a descriptor: root, run directory, and the numbers of the connection (-1: the
    daemon is gone), of the pipe for the terminal's keys (-1: none), whether CLOSING was told, and
    the length of the packet that is to be obeyed next, each with a NUL behind it; that packet; and
    what FOLLOW told. Signals are blocked until they are relayed again.
    """
    if _signal.getsignal(2) is _signal.default_int_handler:
        _signal.signal(2, _signal.SIG_DFL)
    descriptor = int(sys.argv[1])
    size = posix.lseek(descriptor, 0, 2)
    said = posix.pread(descriptor, size, 0)
    posix.close(descriptor)
    root, run, connection, keys, closing, length, rest = said.split(b"\0", 6)
    client = Client(decode(root), decode(run))
    client.closing = closing == b"1"
    client.keys_to = int(keys)
    packet, client.resumption = rest[: int(length)], rest[int(length) :]
    leave(client, lambda: client.take_over(int(connection), packet))


def encode(text: str) -> bytes:
    """An argument as the kernel handed it over."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def decode(word: bytes) -> str:
    return word.decode(sys.getfilesystemencoding(), "surrogateescape")


def say(text: bytes) -> None:
    """To standard error, if anybody reads it."""
    try:
        posix.write(2, text)
    except OSError:
        return


def show_trace(told: bytes) -> None:
    """The timeline of this command, with its last line: that we know."""
    from time import monotonic_ns

    now = monotonic_ns()
    head, _, table = told.partition(b"\n")
    first, last = map(int, head.split())
    at, took = (now - first) / 1e6, (now - last) / 1e6
    say(table + b"%8.3f %7.3f  %-10s  %s\n" % (at, took, b"client", b"has the answer"))


def fill_closed_descriptors() -> None:
    """0, 1 and 2 always exist: no socket lands there, and a closed stream reads as empty."""
    descriptor = posix.open("/dev/null", posix.O_RDWR)
    while descriptor <= 2:
        posix.set_inheritable(descriptor, True)
        descriptor = posix.open("/dev/null", posix.O_RDWR)
    posix.close(descriptor)


# -- which engine ------------------------------------------------------------------------------


def engine_options(argv: list[bytes]) -> tuple[list[bytes], str, str]:
    """--root and --run before the verb, or else DOCKPY_ROOT and DOCKPY_RUN. Leave.

    DOCKPY_RUN belongs to DOCKPY_ROOT: it says nothing about a root that is named here.
    """
    chosen = {b"--root": b"", b"--run": b""}
    while argv:
        name, equals, value = argv[0].partition(b"=")
        if name not in chosen:
            break
        argv = argv[1:]
        if not equals and argv:
            value, argv = argv[0], argv[1:]
        if not value:
            raise Leave(ENGINE_ERROR, f"{decode(name)} needs a directory")
        chosen[name] = value
    named, place = chosen[b"--root"], chosen[b"--run"]
    if not named:
        named = posix.environ.get(b"DOCKPY_ROOT", b"")
        place = place or posix.environ.get(b"DOCKPY_RUN", b"")
    root = absolute(decode(named)) if named else DEFAULT_ROOT
    run = absolute(decode(place)) if place else run_directory(root)
    return argv, root, run


def absolute(path: str) -> str:
    """As os.path.abspath has it."""
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{posix.getcwd()}/{path}").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def run_directory(root: str) -> str:
    """As dockpy.places.run_directory has it."""
    if root == DEFAULT_ROOT:
        return DEFAULT_RUN
    try:  # the interpreter's own, without OpenSSL: of 3.11, of later ones
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]
        except ImportError:
            from hashlib import sha256
    return f"/run/dockpy-{sha256(encode(root)).hexdigest()[:12]}"


def daemon_command(root: str, run: str, *rest: str) -> list[str]:
    """How this interpreter runs the daemon of this very package, wherever that lies.

    A daemon that breaks ends with ENGINE_ERROR: 1 means that its root has another owner.
    """
    package = absolute(__file__).rpartition("/dockpy/api/")[0]
    code = (
        "import sys; p = sys.argv.pop(1); p in sys.path or sys.path.insert(0, p)\n"
        "try: from dockpy.api.daemon import main; main()\n"
        f"except Exception: sys.excepthook(*sys.exc_info()); sys.exit({ENGINE_ERROR})"
    )
    return [sys.executable, "-I", "-c", code, package, "--root", root, "--run", run, *rest]


def become_daemon(root: str, run: str, arguments: list[bytes]) -> None:
    """The daemon in the foreground, in this process. Does not return."""
    command = daemon_command(root, run, *map(decode, arguments))
    posix.execv(command[0], command)


# -- one command -------------------------------------------------------------------------------


class Client:
    """One command's conversation with the daemon, or with its successors."""

    def __init__(self, root: str, run: str) -> None:
        self.root = root
        self.run = run
        self.connection: _socket.socket | None = None
        self.settings: list[Any] | None = None
        self.resumption = b""
        """What a successor needs to go on with the container in the foreground."""
        self.closing = False
        self.insisted: list[float] = []
        """When the deadly signals came that no container was there for."""
        self.missed: list[int] = []
        """Signals that came while there was no daemon."""
        self.keys_to = -1
        self.keys = b""
        self.reading = False
        self.listening = False

    def command(self, argv: list[bytes]) -> int:
        """The exit code of a command line. Blocks as long as it takes. Leave."""
        request = wire.Request(
            wire.RUN, 0, argv, [name + b"=" + value for name, value in posix.environ.items()]
        )
        if b"--trace" in argv or posix.environ.get(b"DOCKPY_TRACE", b"0") not in (b"", b"0"):
            from time import monotonic_ns

            request.flags |= wire.TRACED
            request.env.append(b"DOCKPY_TRACE_UP=%d" % monotonic_ns())
        stdin = 0
        if posix.isatty(0):
            request.flags |= wire.TERMINAL
            stdin, self.keys_to = posix.pipe2(posix.O_CLOEXEC)
            posix.set_blocking(self.keys_to, False)
        self.ask(request, stdin)
        if stdin:
            posix.close(stdin)
        return self.follow()

    def take_over(self, descriptor: int, packet: bytes) -> int:
        """Go on with a conversation that another program began; as `command`."""
        if descriptor < 0:
            self.resume()
        else:
            connection = _socket.socket(fileno=descriptor)
            posix.set_inheritable(descriptor, False)
            self.listen(connection)
        if self.keys_to >= 0:
            posix.set_inheritable(self.keys_to, False)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, RELAYED)
        code = self.obey(packet[:1], packet[1:]) if packet else -1
        return code if code >= 0 else self.follow()

    def follow(self) -> int:
        """Do as the daemon says until it gives the exit code."""
        while True:
            packet = self.next()
            if not packet:
                self.resume()
                continue
            code = self.obey(packet[:1], packet[1:])
            if code >= 0:
                return code

    def ask(self, request: wire.Request, stdin: int) -> None:
        """Send a request with our descriptors, and all signals from now on."""
        try:
            packet, words = wire.pack(request)
        except wire.WireError as error:
            raise Leave(ENGINE_ERROR, str(error)) from None
        try:
            cwd = posix.open(".", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except OSError:
            cwd = posix.open("/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        descriptors = [stdin, 1, 2, cwd]
        if request.flags & wire.TERMINAL:
            descriptors.append(0)
        if words:
            spilled = posix.memfd_create("dockpy-request", posix.MFD_CLOEXEC)
            descriptors.append(spilled)
            while words:
                words = words[posix.write(spilled, words) :]
        connection = self.connect()
        rights = b"".join([one.to_bytes(4, sys.byteorder) for one in descriptors])
        # The request goes first, and a signal that comes just after it is not lost.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, RELAYED)
        try:
            connection.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon died this moment: `next` finds out
        except OSError as error:
            raise Leave(ENGINE_ERROR, f"cannot send the request: {error.strerror}") from None
        self.listen(connection)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        for descriptor in descriptors[3:]:
            if descriptor:
                posix.close(descriptor)

    def next(self) -> bytes:
        """The daemon's next packet; b"" when it is gone."""
        while self.reading and not self.forward():
            pass
        if self.connection is None:
            return b""
        for _ in range(2):
            try:
                return self.connection.recv(wire.PACKET_LIMIT)
            except OSError:
                # Signals of ours that it did not read anymore; what it said is still there.
                continue
        return b""

    def obey(self, kind: bytes, rest: bytes) -> int:
        """Do what a packet says; the exit code if that is what it says, or -1."""
        if kind == wire.EXIT:
            return rest[0] if rest else ENGINE_ERROR
        if kind == wire.RAW:
            self.raw()
            if self.connection is not None:
                try:
                    self.connection.send(wire.IS_RAW)
                except OSError:
                    return -1  # the daemon is gone, which `next` finds out
        elif kind == wire.COOKED:
            self.cook()
        elif kind == wire.STDIN:
            self.reading = self.keys_to >= 0
        elif kind == wire.FOLLOW:
            self.resumption = rest
        elif kind == wire.SAY:
            say(rest)
        elif kind == wire.TRACE:
            show_trace(rest)
        elif kind == wire.CLOSING:
            self.closing = True
        return -1

    # -- daemons -------------------------------------------------------------------------------

    def connect(self) -> _socket.socket:
        """A connection to the daemon; starts one when there is none. Leave."""
        path = f"{self.run}/dockpy.sock"
        try:
            return reach(path)
        except PermissionError:
            raise Leave(
                ENGINE_ERROR, f"no permission for {path}; use sudo, or join the socket's group"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            pass
        except OSError as error:
            raise Leave(ENGINE_ERROR, f"cannot reach {path}: {error.strerror or error}") from None
        if posix.geteuid() != 0:
            raise Leave(
                ENGINE_ERROR, f"no daemon serves {path}, and only root can start one: sudo dockpy"
            )
        from dockpy.api.launch import CannotLaunch, launch

        try:
            command = daemon_command(self.root, self.run)
            return launch(self.root, self.run, command, lambda: reach(path))
        except CannotLaunch as error:
            raise Leave(ENGINE_ERROR, str(error)) from None

    def resume(self) -> None:
        """Our daemon is gone: go on with the next one. Leave when there is nothing to go on with.

        The container goes on meanwhile, and so does its output: both are a supervisor's.
        """
        _signal.set_wakeup_fd(-1)
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if not self.resumption:
            raise Leave(ENGINE_ERROR, "the daemon ended before it had answered")
        if self.closing:
            self.await_successor()
        self.closing = False
        flags = (wire.TERMINAL if posix.isatty(0) else 0) | (wire.READING if self.reading else 0)
        self.ask(wire.Request(wire.RESUME, flags, wire.split(self.resumption), []), 0)

    def await_successor(self) -> None:
        """Look until a daemon answers: who ended this one on purpose does not want it back yet."""
        import time

        while True:
            try:
                reach(f"{self.run}/dockpy.sock").close()
            except OSError:
                time.sleep(NEXT_DAEMON)
            else:
                return

    # -- signals -------------------------------------------------------------------------------

    def listen(self, connection: _socket.socket) -> None:
        """From now on the kernel's handler sends each signal's number to the daemon."""
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, PATIENCE)
        connection.setblocking(False)  # looked at by set_wakeup_fd, once
        _signal.set_wakeup_fd(connection.fileno(), warn_on_full_buffer=False)
        connection.setblocking(True)
        if not self.listening:
            self.listening = True
            for number in RELAYED:
                if _signal.getsignal(number) != _signal.SIG_IGN:
                    _signal.signal(number, self.noticed)
        self.connection = connection
        missed, self.missed = self.missed, []
        for number in missed:
            try:
                connection.send(bytes((number,)))
            except OSError:
                return

    def noticed(self, number: int, _frame: object) -> None:
        """In the interpreter, after the number was sent."""
        if number == SIGCONT and self.settings is not None:
            self.raw()
        deadly = number in DEADLY
        if self.connection is None:
            if deadly:
                raise Leave(128 + number)
            self.missed.append(number)
        elif deadly and not self.resumption:
            from time import monotonic

            self.insisted.append(monotonic())
            if len(self.insisted) >= INSISTENT and self.insisted[-1] - self.insisted[0] > INSISTING:
                raise Leave(128 + number)

    # -- the terminal --------------------------------------------------------------------------

    def forward(self) -> bool:
        """Move keys from the terminal to the command until the daemon says something: then True."""
        from select import POLLIN, POLLOUT, poll

        assert self.connection is not None
        waiting = poll()
        waiting.register(self.connection.fileno(), POLLIN)
        waiting.register(self.keys_to, POLLOUT if self.keys else 0)
        if not self.keys:
            waiting.register(0, POLLIN)
        ready = dict(waiting.poll())
        if self.connection.fileno() in ready:
            return True
        try:
            if not self.keys:
                if self.keys_to in ready:  # nobody takes them any more
                    return self.stop_reading()
                self.keys = posix.read(0, 4096)
                if not self.keys:
                    return self.stop_reading()
            self.keys = self.keys[posix.write(self.keys_to, self.keys) :]
        except BlockingIOError:
            return False
        except OSError:
            return self.stop_reading()
        return False

    def stop_reading(self) -> bool:
        """The end of the input: told to the command. False, for `forward`."""
        posix.close(self.keys_to)
        self.keys_to, self.reading = -1, False
        return False

    def raw(self) -> None:
        """Every key goes through as it is, until `cook`. A terminal that is gone stays so."""
        import termios as t

        try:
            mode = t.tcgetattr(0)
            if self.settings is None:
                self.settings = list(mode)
                self.settings[6] = list(mode[6])
            mode[0] &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL)
            mode[0] &= ~t.IXON
            mode[1] &= ~t.OPOST
            mode[2] = mode[2] & ~(t.CSIZE | t.PARENB) | t.CS8
            mode[3] &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
            mode[6][t.VMIN], mode[6][t.VTIME] = 1, 0
            t.tcsetattr(0, t.TCSANOW, mode)
        except t.error:
            return

    def cook(self) -> None:
        """The terminal as it was before `raw`.

        Also from the background, where it would stop us (SIGTTOU): another job's terminal is left
        alone there.
        """
        if self.settings is None:
            return
        import termios as t

        settings, self.settings = self.settings, None
        try:
            if posix.tcgetpgrp(0) == posix.getpgrp():
                t.tcsetattr(0, t.TCSANOW, settings)
        except (OSError, t.error):
            return


def reach(path: str) -> _socket.socket:
    """A connection to the socket at `path`, however long the path is. OSError."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        if len(path) < 100:
            connection.connect(path)
        else:
            directory, _, name = path.rpartition("/")
            below = posix.open(directory, posix.O_PATH | posix.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{below}/{name}")
            finally:
                posix.close(below)
    except BaseException:
        connection.close()
        raise
    return connection


if __name__ == "__main__":
    main()
