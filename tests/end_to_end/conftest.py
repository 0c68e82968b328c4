"""A real daemon, driven by the real client; one per module, on a root of its own."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually
from roots import pack


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
        return any(self.client.run_directory.glob("dockpy.sock")) and (
            self.client("ps", "-q").code == 0
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; its wait status as Popen tells it."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code


@contextlib.contextmanager
def running_daemon(root: Path, run: Path, archive: Path) -> Iterator[Daemon]:
    """A daemon with the tiny image as `base`; ended, and everything of it removed."""
    root.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(Client(root, run), root.with_suffix(".daemon-log"))
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


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(module_leaves_nothing: None) -> None:
    """Counts before and after each module's daemon."""


@pytest.fixture(autouse=True)
def _leaves_nothing(leaves_nothing: None) -> None:
    """Counts before and after each test."""


@pytest.fixture(scope="module")
def daemon(
    real_tmp: Path,
    short_run: Callable[[], Path],
    tiny_archive: Path,
    _module_leaves_nothing: None,
) -> Iterator[Daemon]:
    """The module's daemon, with the image `base`."""
    root = Path(tempfile.mkdtemp(prefix="daemon-", dir=real_tmp))
    with running_daemon(root, short_run(), tiny_archive) as running:
        yield running


@pytest.fixture
def own_daemon(
    _leaves_nothing: None, real_tmp: Path, short_run: Callable[[], Path], tiny_archive: Path
) -> Iterator[Daemon]:
    """A daemon for one test that is going to hurt it."""
    root = Path(tempfile.mkdtemp(prefix="daemon-", dir=real_tmp))
    with running_daemon(root, short_run(), tiny_archive) as running:
        yield running


@pytest.fixture
def dockpy(daemon: Daemon, _leaves_nothing: None) -> Iterator[Client]:
    """The client of the module's daemon. The test's containers are removed after it."""
    yield daemon.client
    daemon.client.remove_all()
    eventually(
        lambda: not any(daemon.client.traces().values()),
        f"nothing is left of the test's containers ({daemon.client.traces()})",
    )


@pytest.fixture
def packed_root(tiny_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a tar of the tiny root; the argument is tar's own letter for the compression."""

    def make(letter: str) -> Path:
        target = tmp_path / f"root.tar{letter}"
        return pack(tiny_root, target, *([f"-{letter}"] if letter else []))

    return make
