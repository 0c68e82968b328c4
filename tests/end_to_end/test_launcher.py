"""The `dockpy` program itself: wherever it lies and however it is called, the same bare client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dockpy
from end_to_end.client import Client
from end_to_end.door import LONG, Door, served

pytestmark = pytest.mark.needs("root")

PACKAGE = Path(dockpy.__file__).parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def there(_leaves_nothing: None, short_run: Callable[[], Path]) -> Iterator[Door]:
    with served(short_run()) as found:
        yield found


def build(directory: Path, *flags: str) -> Path:
    """The program, alone in `directory`."""
    directory.mkdir(parents=True)
    program = directory / "dockpy"
    flags = ("-Os", "-static", f'-DPYTHON_VERSION="{VERSION}"', *flags)
    compiler = os.environ.get("CC", "cc")
    sources = (PACKAGE / "launcher.c", PACKAGE / "quick.c")
    subprocess.run([compiler, *flags, "-o", program, *sources], check=True)
    return program


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment's layout, with a space in its name; its program."""
    top = tmp_path / "an environment"
    program = build(top / "bin")
    (top / "bin/python3").symlink_to(sys.executable)
    packages = top / "lib" / f"python{VERSION}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "dockpy").symlink_to(PACKAGE)
    return program


def test_it_works_through_links_and_hands_on_every_word(
    there: Door, environment: Path, tmp_path: Path
) -> None:
    link = tmp_path / "a link"
    link.symlink_to(environment)
    again = tmp_path / "a link to it"
    again.symlink_to(link.name)
    client = Client(there[0].root, there[0].run_directory, [str(again)])
    assert client("words", "", "a b", "'", "--", env={"WORD": "x"}).out == "4 6 x\n"
    assert client("leave", "77").code == 77


def test_a_plain_command_needs_no_interpreter(there: Door, environment: Path) -> None:
    (environment.parent / "python3").unlink()
    client = Client(there[0].root, there[0].run_directory, [str(environment)])
    assert client("leave", "9").code == 9
    assert client("words", *(str(n) for n in range(300)), env={"WORD": "y"}).out == "300 790 y\n"


def test_a_request_that_does_not_fit_one_packet_is_sent_all_the_same(
    there: Door, environment: Path
) -> None:
    client = Client(there[0].root, there[0].run_directory, [str(environment)])
    assert client("words", "x" * 70_000, env={"WORD": "z"}).out == "1 70000 z\n"


def test_nothing_of_the_callers_replaces_a_module_of_the_clients(
    there: Door, environment: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    (trap / "dockpy").mkdir(parents=True)
    for name in ("_socket", "site", "sitecustomize", "encodings", "dockpy/__init__"):
        (trap / f"{name}.py").write_text("raise SystemExit(99)")
    spoiled = {"PYTHONPATH": str(trap), "PYTHONHOME": str(trap), "PYTHONSTARTUP": str(trap)}
    client = Client(there[0].root, there[0].run_directory, [str(environment)])
    assert client("leave", "5", env=spoiled, cwd=trap).code == 5


def test_a_checkout_is_used_where_it_is(there: Door, tmp_path: Path) -> None:
    program = build(tmp_path / "bin", f'-DSOURCE="{PACKAGE}"')
    (tmp_path / "bin/python3").symlink_to(sys.executable)
    assert Client(there[0].root, there[0].run_directory, [str(program)])("leave", "6").code == 6


def called(program: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *argv], capture_output=True, text=True, timeout=LONG, check=False
    )


def test_in_any_other_layout_the_interpreter_looks_for_the_package(tmp_path: Path) -> None:
    program = build(tmp_path / "bin")
    python = tmp_path / "bin/python3"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    assert called(program, "ps", "-a").stdout == "-I -m dockpy ps -a\n"


def test_without_an_interpreter_beside_it_it_says_so(tmp_path: Path) -> None:
    program = build(tmp_path / "bin")
    done = called(program, "ps")
    expected = f"dockpy: cannot start {tmp_path}/bin/python3: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", expected)
