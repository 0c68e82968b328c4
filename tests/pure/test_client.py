"""The client's own decisions, and what it costs to load it."""

from __future__ import annotations

import os
import posix
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

import dockpy
from dockpy import places
from dockpy.api import client
from dockpy.api.client import Client, Leave, engine_options


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/a/./b//c/", "/a/../../b", "relative", ".", "..", "a/../..", "/ä b/\udcff"],
)
def test_paths_become_absolute_as_the_library_has_it(path: str) -> None:
    expected = os.path.abspath(path)
    assert client.absolute(path) == expected.replace("//", "/")


@pytest.mark.parametrize("root", ["/var/lib/dockpy", "/var/lib/dockpy2", "/ä b/\udcff"])
def test_the_run_directory_is_the_one_the_engine_takes(root: str) -> None:
    assert client.run_directory(root) == str(places.run_directory(Path(root)))


def test_the_defaults_are_the_engines() -> None:
    assert Path(client.DEFAULT_ROOT) == places.DEFAULT_ROOT
    assert Path(client.DEFAULT_RUN) == places.DEFAULT_RUN


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        ("ps -a", {}, ("ps -a", "/var/lib/dockpy", "/run/dockpy")),
        ("", {}, ("", "/var/lib/dockpy", "/run/dockpy")),
        ("ps", {"DOCKPY_RUN": "/r"}, ("ps", "/var/lib/dockpy", "/r")),
        ("ps", {"DOCKPY_ROOT": "/a", "DOCKPY_RUN": "/r"}, ("ps", "/a", "/r")),
        ("ps", {"DOCKPY_ROOT": "", "DOCKPY_RUN": ""}, ("ps", "/var/lib/dockpy", "/run/dockpy")),
        ("--run /r ps", {"DOCKPY_ROOT": "/a", "DOCKPY_RUN": "/x"}, ("ps", "/a", "/r")),
        ("--run=/r --root=/a ps --root /b", {}, ("ps --root /b", "/a", "/r")),
        ("--root /a --run /r ps", {"DOCKPY_RUN": "/x"}, ("ps", "/a", "/r")),
        ("--root /a ps", {"DOCKPY_RUN": "/x"}, ("ps", "/a", "")),
    ],
)
def test_options_before_the_verb_name_the_engine(
    argv: str,
    environment: dict[str, str],
    expected: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {name.encode(): value.encode() for name, value in environment.items()}
    monkeypatch.setattr(posix, "environ", given)
    words, root, run = engine_options(argv.encode().split())
    wanted_run = expected[2] or client.run_directory(expected[1])
    assert (b" ".join(words).decode(), root, run) == (expected[0], expected[1], wanted_run)


@pytest.mark.parametrize("argv", [[b"--root"], [b"--run"], [b"--root="], [b"--run", b""]])
def test_an_option_without_its_directory_is_refused(argv: list[bytes]) -> None:
    with pytest.raises(Leave) as caught:
        engine_options(argv)
    assert (caught.value.code, "needs a directory" in caught.value.text) == (125, True)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> tuple[Client, list[float]]:
    """A client with a daemon, and the time it sees."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    found = Client("/root", "/run")
    found.connection = cast("Any", object())
    return found, clock


def test_a_burst_of_deadly_signals_is_no_insistence(connected: tuple[Client, list[float]]) -> None:
    waiting, clock = connected
    for _ in range(10):
        waiting.noticed(signal.SIGTERM, None)
    clock[0] += client.INSISTING + 0.1
    with pytest.raises(Leave) as caught:
        waiting.noticed(signal.SIGINT, None)
    assert caught.value.code == 130


def test_nobody_insists_beside_a_container(connected: tuple[Client, list[float]]) -> None:
    waiting, clock = connected
    waiting.resumption = b"id\0"
    for _ in range(10):
        waiting.noticed(signal.SIGTERM, None)
        clock[0] += 1
    assert waiting.insisted == []


def test_signals_without_a_daemon_are_kept_but_deadly_ones_end_the_client() -> None:
    alone = Client("/root", "/run")
    alone.noticed(signal.SIGUSR1, None)
    assert alone.missed == [signal.SIGUSR1]
    with pytest.raises(Leave) as caught:
        alone.noticed(signal.SIGTERM, None)
    assert caught.value.code == 143


def test_loading_the_client_loads_the_socket_and_the_wire_alone() -> None:
    package = Path(dockpy.__file__).parent
    boot = (
        f"import sys; p = type(sys)('dockpy'); p.__path__ = [{str(package)!r}];"
        "sys.modules['dockpy'] = p; before = set(sys.modules); import dockpy.api.client;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", boot], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {
        "_signal",
        "_socket",
        "posix",
        "dockpy.api",
        "dockpy.api.client",
        "dockpy.api.wire",
    }
