"""Driving the real command line: plain runs, long runs, and a terminal of our own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dockpy.places import cgroup_name
from patience import patient

SECONDS = patient(60.0)
"""How long any one command may take; a test that needs it all is broken anyway."""
HEX_ID = re.compile(r"/[0-9a-f]{64}$")
SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Result:
    """How a command ended and what it wrote."""

    code: int
    raw: bytes
    raw_error: bytes

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def err(self) -> str:
        return self.raw_error.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def client_command() -> list[str]:
    """The client as users start it: the installed launcher when it runs these sources, else the
    module. DOCKPY_CLIENT names another program."""
    given = os.environ.get("DOCKPY_CLIENT")
    if given:
        return given.split()
    return [sys.executable, "-m", "dockpy"]


def eventually(check: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until `check` is true; fails with `what` after (patient) `seconds`."""
    deadline = time.monotonic() + patient(seconds)
    while not check():
        assert time.monotonic() < deadline, f"{what}: still not so after {seconds:.0f} s"
        time.sleep(0.02)


class Client:
    """The command line of one engine. Calling it runs one command to its end."""

    def __init__(self, root: Path, run: Path, command: Sequence[str] | None = None) -> None:
        self.root = root
        self.run_directory = run
        self.command = list(command or client_command())
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOCKPY_")},
            "DOCKPY_ROOT": str(root),
            "DOCKPY_RUN": str(run),
            "PYTHONPATH": str(SOURCE),
        }

    def __call__(
        self,
        *argv: str,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = SECONDS,
    ) -> Result:
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [*self.command, *argv],
            input=data,
            capture_output=True,
            env={**self.environment, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *argv: str, input: bytes | str = b"", timeout: float = SECONDS) -> Result:
        """A command that must succeed."""
        result = self(*argv, input=input, timeout=timeout)
        assert result.code == 0, f"dockpy {' '.join(argv)}: {result.code}: {result.err}"
        return result

    @contextlib.contextmanager
    def started(
        self,
        *argv: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        **options: object,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A client that goes on; killed at the end if it still does."""
        process = subprocess.Popen(  # type: ignore[call-overload]
            [*self.command, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=self.environment,
            **options,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    @contextlib.contextmanager
    def terminal(self, *argv: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
        """A client with a terminal as its stdin, stdout and stderr."""
        terminal = Terminal([*self.command, *argv], self.environment, rows, columns)
        try:
            yield terminal
        finally:
            terminal.close()

    # -- short cuts --------------------------------------------------------------------------------

    def detached(self, *argv: str) -> str:
        """`run -d ...`: the new container's id."""
        return self.ok("run", "-d", *argv).out.strip()

    def field(self, container: str, template: str) -> str:
        """One value of `inspect --format`."""
        return self.ok("inspect", "--format", template, container).out.strip()

    def ids(self) -> list[str]:
        """Full ids of all containers."""
        return self.ok("ps", "-a", "-q", "--no-trunc").lines

    def wait_for_log(self, container: str, text: str) -> None:
        eventually(lambda: text in self.ok("logs", container).out, f"{text!r} in the log")

    def remove_all(self) -> None:
        ids = self.ids()
        if ids:
            self.ok("rm", "-f", *ids)

    def remove_images(self, *kept: str) -> None:
        """Remove every image but those of the kept names."""
        stay = {line for name in kept for line in self.ok("images", "-q", name).lines}
        others = [each for each in self.ok("images", "-q").lines if each not in stay]
        if others:
            self.ok("rmi", "-f", *others)

    def traces(self) -> dict[str, list[str]]:
        """Everything on disk and in the kernel that belongs to containers of this engine."""
        return {
            "containers": _names(self.root / "containers"),
            "run state": _names(self.run_directory / "containers"),
            "cgroups": sorted(
                directory
                for directory, _, _ in os.walk("/sys/fs/cgroup")
                if f"/{cgroup_name(self.root)}/" in directory and HEX_ID.search(directory)
            ),
        }


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


class Terminal:
    """A process on a pseudo-terminal, and the person in front of it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], rows: int, columns: int
    ) -> None:
        self.master, self.slave = os.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def expect(self, text: str, seconds: float = 20.0) -> str:
        """Read until `text` has come; what came before it. Fails naming what was seen."""
        wanted = text.encode()
        deadline = time.monotonic() + patient(seconds)
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; seen: {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(wanted)
        return before.decode(errors="replace")

    def wait(self, seconds: float = 20.0) -> int:
        """The client's exit code; reads what it still writes."""
        deadline = time.monotonic() + patient(seconds)
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running; seen: {self.seen!r}"
            ready, _, _ = select.select([self.master], [], [], 0.02)
            if ready:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.returncode

    def settings(self) -> list[object]:
        """The terminal's settings now; compare with `before`."""
        return termios.tcgetattr(self.slave)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)
