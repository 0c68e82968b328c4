"""Work that moves bytes ends with its caller, and nothing is left of it."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy.cli.interrupting import interruptible
from dockpy.cli.session import Session
from dockpy.cli.transfers import Interrupted
from dockpy.errors import BadArchive, KernelError
from end_to_end.client import Client, eventually

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")
FILES = 3000


@pytest.fixture(scope="module")
def client(daemon: object, tiny_archive: Path) -> Iterator[Client]:
    """A client with an image `wide` whose export takes a while, and a container `box` of it."""
    client: Client = daemon.client  # type: ignore[attr-defined]
    script = f"mkdir /w; cd /w; seq {FILES} | xargs touch; dd if=/dev/zero of=/w/z bs=1M count=64"
    client.ok("run", "--name", "box", "base", "sh", "-c", script)
    client.ok("commit", "box", "wide")
    eventually(lambda: not unplaced(client), "its files are made")
    yield client
    client.remove_all()
    client.remove_images("base")


def images(client: Client) -> str:
    return client.ok("images", "-aq").out


def unplaced(client: Client) -> list[str]:
    """What is on its way into the store, or left of it."""
    return [one for one in os.listdir(client.root / "layers") if len(one) != 64]


def begun(process: subprocess.Popen[bytes], pipe: int) -> None:
    """Wait until somebody reads the pipe empty, that is until the work is under way."""
    os.write(pipe, bytes(512))
    eventually(lambda: pending(pipe) == 0, "the stream is read")
    assert process.poll() is None


def pending(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


@pytest.mark.parametrize(
    "argv", [("import", "-", "broken"), ("load",), ("cp", "-", "box:/tmp")], ids=lambda one: one[0]
)
def test_a_stream_that_stalls_is_given_up(argv: tuple[str, ...], client: Client) -> None:
    before = images(client)
    reader, writer = os.pipe()
    with client.started(*argv, stdin=reader) as process:
        os.close(reader)
        header = b"some/file".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
        header += b"00010000000\0" + b"00000000000\0" + b" " * 8 + b"0"
        header = header.ljust(512, b"\0")
        total = b"%06o\0 " % sum(header)
        os.write(writer, header[:148] + total + header[156:])
        begun(process, writer)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(writer)
    assert images(client) == before
    assert client("cp", "box:/tmp/some/file", "-").code != 0
    assert unplaced(client) == []


@pytest.mark.parametrize("verb", ["export", "save", "cp"])
def test_a_reader_that_is_stuck_does_not_keep_the_caller(verb: str, client: Client) -> None:
    argv = {"export": ("export", "box"), "save": ("save", "wide"), "cp": ("cp", "box:/w", "-")}
    with client.started(*argv[verb]) as process:
        assert process.stdout is not None
        assert process.stdout.read(512)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        client.ok("run", "--rm", "base", "true")
        rest = process.stdout.read()  # what was in the pipe, and no more
        assert len(rest) < 32 << 20


@pytest.mark.parametrize("verb", ["export", "save"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_file_that_is_not_whole_is_removed(
    verb: str, how: signal.Signals, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "out.tar"
    what = {"export": "box", "save": "wide"}[verb]
    with client.started(verb, "-o", str(path), what) as process:
        eventually(lambda: path.exists() and path.stat().st_size > 0, "it is being written")
        process.send_signal(how)
        code = process.wait(20)
    if code == 0:  # it was quicker than we
        assert path.stat().st_size > 64 << 20
        return
    assert code in (128 + signal.SIGINT, -signal.SIGKILL)
    eventually(lambda: not path.exists(), "the file goes")


def test_a_commit_that_is_interrupted_makes_no_image_and_thaws(client: Client) -> None:
    script = "dd if=/dev/zero of=/big bs=1M count=200; while :; do echo x; usleep 10000; done"
    client.detached("--name", "busy", "base", "sh", "-c", script)
    eventually(lambda: "x" in client.ok("logs", "busy").out, "it has written")
    before = images(client)
    with client.started("commit", "busy", "half") as process:
        eventually(lambda: unplaced(client), "its files are being read")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT
    assert images(client) == before
    assert unplaced(client) == []
    length = len(client.ok("logs", "busy").out)
    eventually(lambda: len(client.ok("logs", "busy").out) > length, "it goes on")
    client.ok("rm", "-f", "busy")


def test_what_was_interrupted_has_one_outcome_whatever_failed(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    left: list[int] = []
    session = Session(runtime=None, cwd=directory, uid=0, gid=0, leave=left.append)  # type: ignore[arg-type]
    target = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.write(target, b"content")
    os.lseek(target, 0, os.SEEK_SET)
    with pytest.raises(Interrupted) as caught, interruptible(session) as work:  # noqa: PT012
        source, out = work.source(target), work.output(target, leaves=True)
        assert isinstance(source, int)
        assert os.read(source, 3) == b"con"
        threading.Thread(target=session.events.signal, args=(signal.SIGINT,)).start()
        eventually(lambda: left == [130], "the caller is let go")
        assert os.read(source, 3) == b""
        with pytest.raises(BrokenPipeError):
            os.write(out, b"x")
        raise KernelError("write archive", 32)
    assert caught.value.code == 130
    assert os.read(target, 10) == b"tent"  # the caller's own is as it was
    with pytest.raises(BadArchive), interruptible(session):
        raise BadArchive("nobody interrupted this")
    os.close(target)
    os.close(directory)
