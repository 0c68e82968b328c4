"""Starts the daemon for a client that found none: one daemon, however many clients ask at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

PATIENCE = 10.0
"""Seconds a daemon may take until it answers."""
ENGINE_ERROR = 125


def main() -> None:
    """Arguments: root and run directory. Leaves with 0 once a daemon answers."""
    sys.exit(launch(sys.argv[1], Path(sys.argv[2])))


def launch(root: str, run: Path) -> int:
    """The exit code; one line on standard error when no daemon comes up."""
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(run / "launch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return complain(f"cannot use {run}: {error.strerror}; name another run directory")
    fcntl.flock(lock, fcntl.LOCK_EX)
    path = run / "dockpy.sock"
    if answers(path):
        return 0
    log = run / "daemon.log"
    with open(log, "ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-c",
                "import sys; sys.path.insert(0, sys.argv.pop(1));"
                "from dockpy.api.daemon import main; main()",
                str(Path(__file__).resolve().parents[2]),
                "--root",
                root,
                "--run",
                str(run),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answers(path):
            return 0
        if process.poll() is not None:
            break
        time.sleep(0.01)
    with open(log, "rb") as said:
        said.seek(begin)
        lines = said.read().decode(errors="replace").strip().splitlines()
    why = lines[-1].removeprefix("dockpy: ") if lines else "it does not answer"
    return complain(f"the daemon did not start: {why}")


def answers(path: Path) -> bool:
    """Whether a daemon listens at `path`."""
    with socket(AF_UNIX, SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def complain(text: str) -> int:
    print(f"dockpy: {text}", file=sys.stderr)
    return ENGINE_ERROR
