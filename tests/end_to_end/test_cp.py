"""`dockpy cp`: files in and out, by docker's rules, and never a byte of another place."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.client import Client, eventually

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")


@pytest.fixture(params=["running", "stopped"])
def box(request: pytest.FixtureRequest, dockpy: Client) -> Iterator[Client]:
    """A client with a container `box` that runs, or does not."""
    if request.param == "running":
        dockpy.ok("run", "-d", "--name", "box", "base", "sleep", "1000")
    else:
        dockpy.ok("create", "--name", "box", "base", "true")
    yield dockpy
    dockpy.remove_all()


def read(client: Client, path: str) -> bytes:
    """A file of the container, by way of a tar stream."""
    with tarfile.open(fileobj=io.BytesIO(client.ok("cp", f"box:{path}", "-").raw)) as one:
        found = one.extractfile(one.next())  # type: ignore[arg-type]
        assert found is not None
        return found.read()


def tree(place: Path) -> list[str]:
    return sorted(str(one.relative_to(place)) for one in place.rglob("*"))


def test_a_file_goes_in_and_comes_out(box: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    box.ok("cp", str(tmp_path / "a"), "box:/tmp")  # into a directory
    box.ok("cp", str(tmp_path / "a"), "box:/tmp/b")  # under another name
    (tmp_path / "a").write_bytes(b"again")
    box.ok("cp", str(tmp_path / "a"), "box:/tmp/a")  # over a file
    assert (read(box, "/tmp/a"), read(box, "tmp/b")) == (b"again", b"hello")
    box.ok("cp", "box:/tmp/b", str(tmp_path / "c"))
    assert (tmp_path / "c").read_bytes() == b"hello"
    box.ok("cp", "box:/tmp/b", str(tmp_path))
    assert (tmp_path / "b").read_bytes() == b"hello"


def test_a_directory_goes_into_one_that_is_there_and_becomes_one_that_is_not(
    box: Client, tmp_path: Path
) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "deep" / "f").write_bytes(b"1")
    (tmp_path / "src" / "link").symlink_to("deep/f")
    box.ok("cp", str(tmp_path / "src"), "box:/tmp")
    box.ok("cp", str(tmp_path / "src"), "box:/tmp/new")
    box.ok("cp", f"{tmp_path}/src/.", "box:/srv")
    for place in ("/tmp/src", "/tmp/new", "/srv"):
        assert read(box, f"{place}/deep/f") == b"1"
    (tmp_path / "out").mkdir()
    box.ok("cp", "box:/tmp/src", str(tmp_path / "out"))
    box.ok("cp", "box:/tmp/src", str(tmp_path / "new"))
    box.ok("cp", "box:/tmp/src/.", str(tmp_path / "out"))
    names = ["deep", "deep/f", "link"]
    assert tree(tmp_path / "new") == names
    assert tree(tmp_path / "out") == sorted([*names, "src", *(f"src/{one}" for one in names)])
    assert os.readlink(tmp_path / "new" / "link") == "deep/f"


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("box:/nowhere", "{}", "no such file"),
        ("{}/nowhere", "box:/tmp", "no such file"),
        ("{}/file", "box:/tmp/nodir/", "no such directory"),
        ("{}/file", "box:/nodir/x/y", "no such directory"),
        ("{}/dir", "box:/etc/passwd", "onto the file"),
        ("{}/file/", "box:/tmp", "not a directory"),
        ("{}/file", "box:/etc/passwd/", "not a directory"),
        ("box:/etc", "box:/tmp", "one side"),
        ("{}/file", "{}/other", "one side"),
        ("absent:/etc", "{}", "absent"),
        ("box:", "{}", "name a path"),
    ],
)
def test_what_cannot_be_copied_is_one_clear_line(
    dockpy: Client, tmp_path: Path, source: str, target: str, words: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dir").mkdir()
    dockpy.ok("create", "--name", "box", "base", "true")
    before = tree(tmp_path)
    result = dockpy("cp", source.format(tmp_path), target.format(tmp_path))
    assert result.code != 0
    assert result.err.count("\n") == 1
    assert words in result.err
    assert tree(tmp_path) == before
    dockpy.remove_all()


def test_owners_are_roots_in_there_unless_they_are_kept(box: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.chown(tmp_path / "a", 1234, 567)
    box.ok("cp", str(tmp_path / "a"), "box:/tmp/plain")
    box.ok("cp", "-a", str(tmp_path / "a"), "box:/tmp/kept")
    found = {}
    for name in ("plain", "kept"):
        stream = box.ok("cp", f"box:/tmp/{name}", "-").raw
        with tarfile.open(fileobj=io.BytesIO(stream)) as one:
            member = one.next()
            assert member is not None
            found[name] = (member.uid, member.gid)
    assert found == {"plain": (0, 0), "kept": (1234, 567)}


def test_streams_go_in_and_out(box: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"by a stream")
    packed = subprocess.run(
        ["tar", "-C", str(tmp_path), "-c", "a"], capture_output=True, check=True
    ).stdout
    box.ok("cp", "-", "box:/tmp", input=packed)
    assert read(box, "/tmp/a") == b"by a stream"
    result = box("cp", "-", "box:/tmp", input=b"this is no tar" * 100)
    assert result.code != 0
    assert result.err.count("\n") == 1


def test_links_are_copied_or_followed_inside_the_container_only(
    dockpy: Client, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's")
    script = f"ln -s {secret} /out; ln -s /etc/passwd /in; ln -s / /top; mkdir /d; exec sleep 1000"
    dockpy.ok("run", "-d", "--name", "box", "base", "sh", "-c", script)
    eventually(lambda: dockpy("exec", "box", "test", "-d", "/d").code == 0, "it is ready")
    dockpy.ok("cp", "box:/out", str(tmp_path / "link"))
    assert os.readlink(tmp_path / "link") == str(secret)
    assert dockpy("cp", "-L", "box:/out", str(tmp_path / "followed")).code != 0
    dockpy.ok("cp", "-L", "box:/in", str(tmp_path / "passwd"))
    assert (tmp_path / "passwd").read_bytes() == read(dockpy, "/etc/passwd")
    (tmp_path / "new").write_bytes(b"mine")
    dockpy.ok("cp", str(tmp_path / "new"), "box:/top/tmp/new")
    assert read(dockpy, "/tmp/new") == b"mine"
    assert dockpy("cp", str(tmp_path / "new"), "box:/out").code != 0
    assert secret.read_bytes() == b"the host's"
    dockpy.remove_all()


def test_a_container_that_swaps_links_meanwhile_gains_nothing(
    dockpy: Client, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "f").write_bytes(b"the host's")
    script = (
        f"mkdir /w /w/real; echo mine > /w/real/f; ln -s {victim} /w/evil; touch /ready; "
        "while :; do mv /w/real /w/at; mv /w/at /w/real; mv /w/evil /w/at; mv /w/at /w/evil; done"
    )
    dockpy.ok("run", "-d", "--name", "box", "base", "sh", "-c", script)
    eventually(lambda: dockpy("exec", "box", "test", "-e", "/ready").code == 0, "it is ready")
    (tmp_path / "f").write_bytes(b"from the host")
    for number in range(25):
        dockpy("cp", str(tmp_path / "f"), "box:/w/at/f")
        out = tmp_path / f"out{number}"
        if dockpy("cp", "box:/w/at/f", str(out)).code == 0:
            assert out.read_bytes() != b"the host's"
    assert tree(victim) == ["f"]
    assert (victim / "f").read_bytes() == b"the host's"
    dockpy.remove_all()


def test_what_was_copied_into_a_stopped_container_is_there_when_it_starts(
    dockpy: Client, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"before the start")
    dockpy.ok("create", "--name", "box", "base", "cat", "/tmp/a")
    dockpy.ok("cp", str(tmp_path / "a"), "box:/tmp/a")
    assert dockpy.field("box", "{{.State.Status}}") == "created"
    assert dockpy("start", "-a", "box").out == "before the start"
    assert dockpy.ok("diff", "box").out == "C /tmp\nA /tmp/a\n"
    dockpy.remove_all()


SILENT = "given up in the middle"


@pytest.mark.parametrize("verb", [("start",), ("rm", "-f")], ids=lambda one: one[0])
def test_a_silent_stream_into_a_container_holds_nobody_up(
    box: Client, verb: tuple[str, ...]
) -> None:
    verb = ("restart", "-t", "0") if verb == ("start",) and runs(box) else verb
    reader, writer = os.pipe()
    with box.started("cp", "-", "box:/tmp", stdin=reader) as copy:
        os.close(reader)
        os.write(writer, bytes(512))
        eventually(lambda: pending(writer) == 0, "the stream is read")
        box.ok(*verb, "box")
        assert copy.wait(20) == 1
        assert copy.stderr is not None
        told = copy.stderr.read().decode()
        assert SILENT in told
        assert told.count("\n") == 1
    os.close(writer)


def test_a_stream_that_flows_is_waited_for(dockpy: Client, tmp_path: Path) -> None:
    dockpy.ok("create", "--name", "box", "base", "cat", "/tmp/late")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        member = tarfile.TarInfo("late")
        member.size = 12
        packed.addfile(member, io.BytesIO(b"came in time"))
    content = stream.getvalue()
    reader, writer = os.pipe()
    with dockpy.started("cp", "-", "box:/tmp", stdin=reader) as copy:
        os.close(reader)
        os.write(writer, content[:256])
        eventually(lambda: pending(writer) == 0, "the stream is read")
        with dockpy.started("start", "-a", "box") as start:
            for place in range(256, 1024, 256):
                time.sleep(0.2)
                os.write(writer, content[place : place + 256])
            assert start.poll() is None
            os.write(writer, content[1024:])
            os.close(writer)
            assert copy.wait(20) == 0
            assert start.communicate(timeout=20)[0] == b"came in time"


@pytest.fixture
def wide(dockpy: Client) -> Client:
    """A client with a container `box` that runs and has more in /w than pipes hold."""
    script = "mkdir /w; dd if=/dev/zero of=/w/z bs=1M count=16; touch /ready; exec sleep 1000"
    dockpy.ok("run", "-d", "--name", "box", "base", "sh", "-c", script)
    eventually(lambda: dockpy("exec", "box", "test", "-e", "/ready").code == 0, "it is ready")
    return dockpy


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_root_that_nobody_reads_on_is_let_go_of_before_the_next_start(
    wide: Client, kind: str
) -> None:
    ours, theirs = os.pipe() if kind == "pipe" else (s.detach() for s in socket.socketpair())
    with wide.started("cp", "box:/w", "-", stdout=theirs) as copy:
        os.close(theirs)
        assert os.read(ours, 512)
        wide.ok("kill", "box")
        wide.ok("start", "box")
        assert copy.wait(20) == 1
        assert copy.stderr is not None
        assert SILENT in copy.stderr.read().decode()
    os.close(ours)


def test_a_root_that_is_read_on_is_waited_for(wide: Client) -> None:
    with wide.started("cp", "box:/w", "-") as copy:
        assert copy.stdout is not None
        begin = copy.stdout.read(512)
        wide.ok("kill", "box")
        with wide.started("start", "box") as start:
            whole = begin + copy.stdout.read()
            assert copy.wait(20) == 0
            assert start.wait(20) == 0
    with tarfile.open(fileobj=io.BytesIO(whole)) as packed:
        assert [(one.name, one.size) for one in packed] == [("w", 0), ("w/z", 16 << 20)]


def runs(client: Client) -> bool:
    return client.field("box", "{{.State.Running}}") == "true"


def pending(pipe: int) -> int:
    """Bytes in a pipe that nobody has read."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])
