"""The `dockpy` command: hands its arguments and descriptors to the daemon and does as it is told.

It is started as `python -IS` with this folder on the path and imports built-in modules only, since
every import is time that every command pays; what a terminal needs is imported when it is needed.
"""

import _socket
import posix
import sys

if __name__ == "client":  # by the launcher: this folder is on the path, the package is not
    from wire import (  # type: ignore[import-not-found]
        CONTAINER,
        EXIT,
        HEADER,
        RAW,
        RESUME,
        RUN,
        SIGNAL,
        STDIN,
        VERSION,
        WINDOW,
        frame,
        length,
        request,
    )
else:
    from dockpy.api.wire import (
        CONTAINER,
        EXIT,
        HEADER,
        RAW,
        RESUME,
        RUN,
        SIGNAL,
        STDIN,
        VERSION,
        WINDOW,
        frame,
        length,
        request,
    )

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ROOT = "/var/lib/dockpy"
DEFAULT_RUN = "/run/dockpy"
RELAYED = (1, 2, 3, 10, 12, 15, 18)
"""HUP INT QUIT USR1 USR2 TERM CONT."""
SIGWINCH = 28
TIOCGWINSZ = 0x5413
ENGINE_ERROR = 125


class Lost(Exception):
    """The daemon went away without an exit code."""


def main() -> None:
    """Run one command line and leave with its exit code."""
    fill_closed_descriptors()
    argv = [encode(text) for text in sys.argv[1:]]
    argv, root, run = engine_options(argv)
    if argv and argv[0] in (b"daemon", b"-d", b"-d=true", b"--daemon", b"-daemon"):
        become_daemon(root, run, argv[1:])
    client = Client(root, run)
    try:
        code = client.command(argv)
    finally:
        client.restore()
    posix._exit(code)


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def fill_closed_descriptors() -> None:
    """Descriptors 0 to 2 always exist, so that no socket lands there."""
    for number in (0, 1, 2):
        try:
            posix.fstat(number)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


def engine_options(argv: list[bytes]) -> tuple[list[bytes], str, str]:
    """--root and --run before the verb, or DOCKPY_ROOT and DOCKPY_RUN."""
    chosen = {
        b"--root": posix.environ.get(b"DOCKPY_ROOT", b""),
        b"--run": posix.environ.get(b"DOCKPY_RUN", b""),
    }
    while argv:
        name, equals, value = argv[0].partition(b"=")
        if name not in chosen:
            break
        if equals:
            argv = argv[1:]
        elif len(argv) > 1:
            value, argv = argv[1], argv[2:]
        else:
            fail(f"{name.decode()} needs a directory")
        chosen[name] = value
    root = absolute(chosen[b"--root"].decode("utf-8", "surrogateescape") or DEFAULT_ROOT)
    run = chosen[b"--run"].decode("utf-8", "surrogateescape")
    return argv, root, absolute(run) if run else run_directory(root)


def absolute(path: str) -> str:
    if not path.startswith("/"):
        path = posix.getcwd() + "/" + path
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def run_directory(root: str) -> str:
    """As `dockpy.runtime.run_directory` has it."""
    if root == DEFAULT_ROOT:
        return DEFAULT_RUN
    from hashlib import sha256

    return f"/run/dockpy-{sha256(encode(root)).hexdigest()[:12]}"


def fail(text: str, code: int = ENGINE_ERROR) -> None:
    posix.write(2, f"dockpy: {text}\n".encode())
    posix._exit(code)


def interpreter(module: str, *arguments: str) -> list[str]:
    """How a module of this package is run by this interpreter, wherever the package lies."""
    package = absolute(__file__).rpartition("/dockpy/")[0]
    code = f"import sys; sys.path.insert(0, {package!r}); from {module} import main; main()"
    return [sys.executable, "-I", "-c", code, *arguments]


def become_daemon(root: str, run: str, arguments: list[bytes]) -> None:
    """The daemon in the foreground, in this process."""
    rest = [one.decode("utf-8", "surrogateescape") for one in arguments]
    command = interpreter("dockpy.api.daemon", "--root", root, "--run", run, *rest)
    posix.execv(command[0], command)


class Client:
    """One conversation with the daemon, or with its successors."""

    def __init__(self, root: str, run: str) -> None:
        self.root = root
        self.run = run
        self.socket: _socket.socket | None = None
        self.terminal: list[Any] | None = None
        self.container = b""
        self.input = -1

    def command(self, argv: list[bytes]) -> int:
        """The exit code of a command line."""
        flags = (b"i" if posix.isatty(0) else b"") + (b"o" if posix.isatty(1) else b"")
        rows, columns = self.window() if flags else (0, 0)
        env = [name + b"=" + value for name, value in posix.environ.items()]
        stdin = 0
        if b"i" in flags:
            # The terminal is read here alone, and only when a container takes input.
            ours, theirs = _socket.socketpair()
            self.input, stdin = ours.detach(), theirs.detach()
        cwd = posix.open(".", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        payload = request(argv, env, flags, rows, columns)
        self.connect()
        self.listen_to_signals(b"o" in flags or b"i" in flags)
        self.send(frame(RUN, payload), [stdin, 1, 2, cwd])
        posix.close(cwd)
        if stdin:
            posix.close(stdin)
        while True:
            try:
                return self.converse()
            except Lost:
                if not self.container:
                    fail("the daemon went away before the command ended; try again")
                self.connect()
                self.send(frame(RESUME, VERSION + b"\0" + self.container), [0, 1, 2, 0])

    def connect(self) -> None:
        """Reach the daemon; start one when there is none."""
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        path = f"{self.run}/dockpy.sock"
        try:
            connection.connect(path)
        except PermissionError:
            fail(f"no permission for {path}; use root or a member of the socket's group")
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            self.start_daemon()
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                connection.connect(path)
            except OSError as error:
                fail(f"the daemon does not answer at {path}: {error.strerror}")
        except OSError as error:
            fail(f"cannot reach {path}: {error.strerror}")
        self.socket = connection

    def start_daemon(self) -> None:
        if posix.geteuid() != 0:
            fail("no daemon runs, and only root can start one: try sudo dockpy daemon")
        command = interpreter("dockpy.api.launch", self.root, self.run)
        pid = posix.posix_spawn(command[0], command, posix.environ)
        _, status = posix.waitpid(pid, 0)
        if status:
            posix._exit(ENGINE_ERROR)

    def send(self, data: bytes, descriptors: list[int]) -> None:
        if self.socket is None:
            return
        packed = b"".join(one.to_bytes(4, sys.byteorder) for one in descriptors)
        try:
            sent = self.socket.sendmsg(
                [data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if packed else []
            )
            if sent < len(data):
                self.socket.sendall(data[sent:])
        except OSError:
            return  # noticed where frames are read

    # -- signals -------------------------------------------------------------------------------

    def listen_to_signals(self, window: bool) -> None:
        import _signal  # type: ignore[import-not-found]

        def relay(number: int, _frame: object) -> None:
            self.send(frame(SIGNAL, b"%d" % number), [])

        def resized(_number: int, _frame: object) -> None:
            rows, columns = self.window()
            self.send(frame(WINDOW, b"%d %d" % (rows, columns)), [])

        for number in RELAYED:
            if _signal.getsignal(number) != _signal.SIG_IGN:
                _signal.signal(number, relay)
        if window:
            _signal.signal(SIGWINCH, resized)

    def window(self) -> tuple[int, int]:
        from fcntl import ioctl

        for descriptor in (0, 1, 2):
            try:
                size = ioctl(descriptor, TIOCGWINSZ, bytes(8))
            except OSError:
                continue
            return (
                int.from_bytes(size[0:2], sys.byteorder),
                int.from_bytes(size[2:4], sys.byteorder),
            )
        return 0, 0

    # -- what the daemon says ------------------------------------------------------------------

    def converse(self) -> int:
        """Do as the daemon says until it tells the exit code. Lost."""
        while True:
            kind, payload = self.next_frame()
            if kind == EXIT:
                return int(payload)
            if kind == RAW:
                self.raw() if payload == b"1" else self.restore()
            elif kind == CONTAINER:
                self.container = payload
            elif kind == STDIN and self.input >= 0:
                self.forward_input()

    def next_frame(self) -> tuple[bytes, bytes]:
        header = self.read(HEADER)
        return header[:1], self.read(length(header))

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data)) if self.socket else b""
            except OSError:
                piece = b""
            if not piece:
                raise Lost
            data += piece
        return data

    # -- the terminal --------------------------------------------------------------------------

    def raw(self) -> None:
        import termios

        if self.terminal is None:
            self.terminal = termios.tcgetattr(0)
        mode = termios.tcgetattr(0)
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        termios.tcsetattr(0, termios.TCSANOW, mode)

    def restore(self) -> None:
        if self.terminal is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self.terminal)
            self.terminal = None

    def forward_input(self) -> None:
        """A thread that reads the terminal and passes it on; it ends with the process."""
        import _thread

        source, target, self.input = 0, self.input, -1

        def forward() -> None:
            while True:
                try:
                    data = posix.read(source, 4096)
                except OSError:
                    data = b""
                if not data:
                    posix.close(target)
                    return
                try:
                    while data:
                        data = data[posix.write(target, data) :]
                except OSError:
                    return

        _thread.start_new_thread(forward, ())


if __name__ == "__main__":
    main()
