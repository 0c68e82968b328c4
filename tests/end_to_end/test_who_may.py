"""Who gets in at the front door, and how many at once."""

from __future__ import annotations

import contextlib
import grp
import os
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dockpy.api import daemon as door
from dockpy.api import wire
from end_to_end.door import LONG, Door, served, stranger

pytestmark = pytest.mark.needs("root")

NOBODY = 65534
LEAVE = wire.pack(wire.Request(wire.RUN, 0, [b"leave", b"3"], []))[0]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> int:
    """A group of the host's that is taken for the one of dockpy's users."""
    found = next(one for one in grp.getgrall() if one.gr_gid not in (0, NOBODY))
    monkeypatch.setattr(door, "GROUP", found.gr_name)
    return found.gr_gid


@pytest.fixture
def there(_leaves_nothing: None, short_run: Callable[[], Path], group: int) -> Iterator[Door]:
    with served(short_run()) as found:
        yield found


def told(run: Path, gid: int, groups: Sequence[int]) -> bytes:
    """What the daemon says last to nobody with these groups; an exception's name when it is that.

    A child of ours, from the run directory: what is above it is not the daemon's.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(run)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(theirs, ask())
        except OSError as error:
            os.write(theirs, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours, "rb") as end:
        return end.read()


def ask() -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(LONG)
        connection.connect("dockpy.sock")
        null = os.open("/dev/null", os.O_RDWR)
        directory = os.open("/", os.O_PATH)
        with contextlib.suppress(BrokenPipeError):  # refused already
            socket.send_fds(connection, [LEAVE], [null, null, null, directory])
        try:
            return connection.recv(4096)
        except ConnectionResetError:  # told once, before what was said earlier
            return connection.recv(4096)


def test_a_member_of_the_group_gets_in(there: Door, group: int) -> None:
    run = there[0].run_directory
    assert told(run, group, []) == wire.EXIT + b"\3"
    assert told(run, NOBODY, [NOBODY, group]) == wire.EXIT + b"\3"
    assert [(one.uid, one.gid, tuple(one.groups)) for one in there[1].seen] == [
        (NOBODY, group, ()),
        (NOBODY, NOBODY, (group, NOBODY)),
    ]


def test_anybody_else_does_not_even_connect(there: Door) -> None:
    assert told(there[0].run_directory, NOBODY, []) == b"PermissionError"
    assert there[1].seen == []


def test_the_sockets_mode_is_not_the_only_guard(there: Door) -> None:
    (there[0].run_directory / "dockpy.sock").chmod(0o666)
    assert b"permission denied" in told(there[0].run_directory, NOBODY, [])
    assert there[1].seen == []


def test_without_the_group_the_directory_is_closed(
    short_run: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    group: int,
) -> None:
    monkeypatch.setattr(door, "GROUP", "no group has this name")
    with served(short_run()) as (client, commands, _):
        assert told(client.run_directory, group, [group]) == b"PermissionError"
        assert client("leave", "3").code == 3
        assert len(commands.seen) == 1


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_who_say_nothing_hold_up_nobody(many_descriptors: None, there: Door) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(stranger(there)) for _ in range(1200)]
        assert there[0]("leave", "4").code == 4
        assert len(silent) == 1200
        assert len(there[2]._clients) >= 1200
