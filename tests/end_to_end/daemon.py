"""A real daemon for tests, that can be killed and started again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from end_to_end.client import Client, eventually
from patience import patient


class Daemon:
    """A daemon process over a root of its own; can be killed and started again."""

    def __init__(self, client: Client, log: Path) -> None:
        self.client = client
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.client.command, "daemon"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.client.environment,
                start_new_session=True,
            )
        eventually(self._answers, f"the daemon answers ({self.log})", 30)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()[-2000:]}"
        # Not before it owns the root: a client that finds no daemon would start another one.
        owner = self.client.root / "lock"
        ours = owner.exists() and owner.read_text().strip() == str(self.process.pid)
        return ours and self.client("ps", "-q").code == 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; its wait status as Popen tells it."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(patient(30))
        self.process = None
        return code


@contextlib.contextmanager
def running_daemon(
    root: Path, run: Path, archive: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """A daemon with the tiny image as `base`; ended, and everything of it removed."""
    root.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(Client(root, run), root.with_suffix(".daemon-log"))
    daemon.client.environment.update(environment or {})
    try:
        daemon.start()
        daemon.client.ok("import", str(archive), "base")
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.client.remove_all()
            daemon.stop()
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
