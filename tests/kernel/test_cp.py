"""Copies between two roots: what is kept, what is left out, and what a failure leaves."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import stat
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dockpy import Config
from dockpy.archive import extract_into
from dockpy.cli.rights import rights_of
from dockpy.copying import Owner, Side, copy, copy_in, copy_out, hidden_by
from dockpy.errors import BadArchive, Cancelled, Conflict, KernelError, RequestError
from dockpy.stoppable import StoppableSource

if TYPE_CHECKING:
    from dockpy import Runtime

pytestmark = pytest.mark.needs("root")

CAPABILITY = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)  # NET_BIND_SERVICE, permitted


@dataclass(frozen=True)
class Roots:
    """Two directories taken for the roots of two worlds."""

    here: Path
    there: Path
    here_fd: int
    there_fd: int

    def copy(self, source: str, target: str, owner: Owner = (0, 0), **options: object) -> None:
        copy(
            Side(self.here_fd, source, f"here:{source}"),
            Side(self.there_fd, target, f"there:{target}"),
            owner=owner,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def roots(real_tmp: Path) -> Iterator[Roots]:
    place = real_tmp / "copies"
    place.mkdir()
    for name in ("here", "there"):
        (place / name).mkdir()
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    here, there = (os.open(place / name, flags) for name in ("here", "there"))
    yield Roots(place / "here", place / "there", here, there)
    os.close(here)
    os.close(there)
    shutil.rmtree(place)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_for_a_new_owner_nothing_is_setuid_or_has_capabilities(roots: Roots) -> None:
    tool = roots.here / "tool"
    tool.write_bytes(b"#!")
    os.chown(tool, 1000, 1000)
    tool.chmod(0o6755)
    os.setxattr(tool, "security.capability", CAPABILITY)
    os.setxattr(tool, "user.note", b"kept")
    roots.copy("/tool", "/plain")
    roots.copy("/tool", "/kept", owner=None)
    plain, kept = roots.there / "plain", roots.there / "kept"
    assert (plain.stat().st_uid, mode(plain)) == (0, 0o755)
    assert os.listxattr(plain) == ["user.note"]
    assert (kept.stat().st_uid, mode(kept)) == (1000, 0o6755)
    assert os.getxattr(kept, "security.capability") == CAPABILITY


@pytest.mark.needs("mknod")
def test_a_device_is_copied_with_its_owner_only(roots: Roots) -> None:
    (roots.here / "d").mkdir()
    os.mknod(roots.here / "d" / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 200))
    with pytest.raises(BadArchive, match="a device is not copied"):
        roots.copy("/d", "/d")
    assert os.listdir(roots.there) == []
    roots.copy("/d", "/d", owner=None)
    assert stat.S_ISBLK((roots.there / "d" / "disk").stat().st_mode)


def test_directories_that_are_there_keep_their_mode_owner_and_times(roots: Roots) -> None:
    (roots.here / "d" / "sub").mkdir(parents=True)
    (roots.here / "d" / "sub" / "new").write_bytes(b"1")
    place = roots.there / "tmp"
    (place / "sub").mkdir(parents=True)
    for one in (place, place / "sub"):
        os.chown(one, 33, 44)
        one.chmod(0o1777)
    roots.copy("/d/.", "/tmp")
    for one in (place, place / "sub"):
        assert (one.stat().st_uid, one.stat().st_gid, mode(one)) == (33, 44, 0o1777)
    assert (place / "sub" / "new").read_bytes() == b"1"


@pytest.mark.parametrize("follow", [True, False])
def test_a_link_at_the_target_is_gone_through_to_a_file_that_may_be_missing(
    follow: bool, roots: Roots
) -> None:
    (roots.here / "f").write_bytes(b"new")
    (roots.there / "sub").mkdir()
    (roots.there / "link").symlink_to("/sub/../sub/file")
    if follow:
        (roots.there / "sub" / "file").write_bytes(b"old")
    roots.copy("/f", "/link")
    assert (roots.there / "link").is_symlink()
    assert (roots.there / "sub" / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("/f", "/null", "is a device, fifo or socket"),
        ("/f", "/fifo", "is a device, fifo or socket"),
        ("/f", "/loop", "too many symbolic links"),
        ("/loop/x", "/y", "Too many levels"),
        ("/d", "/mixed", "overwrite a directory"),
        ("/e", "/mixed", "overwrite a file"),
        ("/nul\0l", "/x", "null byte"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    source: str, target: str, words: str, roots: Roots
) -> None:
    (roots.here / "f").write_bytes(b"x")
    (roots.here / "loop").symlink_to("loop")
    (roots.here / "d").mkdir()
    (roots.here / "d" / "one").write_bytes(b"a file")
    (roots.here / "e" / "two").mkdir(parents=True)
    os.mkfifo(roots.there / "fifo")
    os.mknod(roots.there / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (roots.there / "loop").symlink_to("loop")
    for name in ("d", "e"):
        (roots.there / "mixed" / name).mkdir(parents=True)
    (roots.there / "mixed" / "d" / "one").mkdir()
    (roots.there / "mixed" / "e" / "two").write_bytes(b"a file")
    before = sorted(str(one) for one in roots.there.rglob("*"))
    with pytest.raises((RequestError, ValueError), match=words):
        roots.copy(source, target)
    assert sorted(str(one) for one in roots.there.rglob("*")) == before


def test_a_failed_copy_removes_the_new_name_and_a_cut_stream_half_a_file(roots: Roots) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as one:
        for name, size in (("whole", 10), ("half", 1 << 20)):
            info = tarfile.TarInfo(name)
            info.size = size
            one.addfile(info, io.BytesIO(bytes(size)))
    directory = os.open(roots.there, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BadArchive, match="in the middle"):
            extract_into(io.BytesIO(out.getvalue()[:500_000]), directory)
    finally:
        os.close(directory)
    assert os.listdir(roots.there) == ["whole"]
    (roots.here / "d").mkdir()
    (roots.here / "d" / "a").write_bytes(b"x")
    os.mknod(roots.here / "d" / "z", stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(BadArchive):
        roots.copy("/d", "/new")
    assert os.listdir(roots.there) == ["whole"]


def test_a_copy_ends_when_it_is_told_to_and_leaves_nothing(roots: Roots) -> None:
    (roots.here / "big").write_bytes(bytes(8 << 20))
    stop = os.eventfd(1, os.EFD_CLOEXEC)
    try:
        with pytest.raises(Cancelled):
            roots.copy("/big", "/big", stop=stop)
    finally:
        os.close(stop)
    assert os.listdir(roots.there) == []


def test_a_silent_stream_is_given_up_when_it_is_told_to(roots: Roots) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            source = StoppableSource(reader, stop)
            copy_in(source, Side(roots.there_fd, "/", "there"))  # type: ignore[arg-type]
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    os.write(writer, b"x" * 100)
    os.eventfd_write(stop, 1)
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(failures[0], Cancelled)
    for one in (reader, writer, stop):
        os.close(one)


def test_another_users_rights_count_on_his_side(roots: Roots) -> None:
    (roots.here / "secret").write_bytes(b"root's")
    (roots.here / "secret").chmod(0o600)
    (roots.here / "open").write_bytes(b"for all")
    (roots.there / "his").mkdir()
    os.chown(roots.there / "his", 1000, 1000)
    (roots.there / "mine").mkdir(mode=0o755)

    def his() -> object:
        return rights_of(1000, 1000, ())

    def attempt(source: Side, target: Side) -> None:
        copy(source, target, owner=(1000, 1000))

    attempt(
        Side(roots.here_fd, "/secret", "s"),
        Side(roots.there_fd, "/his/copy", "t", his),  # type: ignore[arg-type]
    )
    copied = roots.there / "his" / "copy"
    assert (copied.read_bytes(), copied.stat().st_uid) == (b"root's", 1000)
    with pytest.raises((RequestError, KernelError)) as caught:
        attempt(
            Side(roots.here_fd, "/open", "s"),
            Side(roots.there_fd, "/mine/copy", "t", his),  # type: ignore[arg-type]
        )
    assert isinstance(caught.value, KernelError)
    assert caught.value.errno == errno.EACCES
    with pytest.raises(KernelError) as caught_again:
        attempt(
            Side(roots.here_fd, "/secret", "s", his),  # type: ignore[arg-type]
            Side(roots.there_fd, "/x", "t"),
        )
    assert caught_again.value.errno == errno.EACCES
    assert os.listdir(roots.there / "mine") == []
    (roots.there / "after").write_bytes(b"")
    assert (roots.there / "after").stat().st_uid == 0  # our rights are back


def test_a_socket_in_a_directory_is_left_out_and_alone_is_refused(roots: Roots) -> None:
    (roots.here / "d").mkdir()
    (roots.here / "d" / "f").write_bytes(b"1")
    with socket.socket(socket.AF_UNIX) as one:
        directory = os.open(roots.here / "d", os.O_PATH)
        one.bind(f"/proc/self/fd/{directory}/sock")
        os.close(directory)
    roots.copy("/d", "/d")
    assert os.listdir(roots.there / "d") == ["f"]
    with pytest.raises(RequestError, match="socket"):
        roots.copy("/d/sock", "/s")
    assert os.listdir(roots.there) == ["d"]


def test_a_path_below_a_mount_point_is_known_by_its_text() -> None:
    mounts = ["/data/", "/var/lib/db", "/"]
    assert hidden_by("/data", mounts[:2]) == "/data"
    assert hidden_by("data/x/../y", mounts[:2]) == "/data"
    assert hidden_by("/database", mounts[:2]) is None
    assert hidden_by("/x/../var/lib/db/z", mounts[:2]) == "/var/lib/db"
    assert hidden_by("/var/lib", mounts[:2]) is None
    assert hidden_by("/anything", mounts) == "/"


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_who_reads_slowly_holds_nobody_up_and_learns_of_a_removal(
    module_engine: Runtime,
) -> None:
    container = module_engine.create(Config(image="base", cmd=("true",)))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            with container.root(writable=False) as root:
                copy_out(Side(root.directory, "/bin", "c"), writer)
        except BaseException as failure:
            failures.append(failure)
        finally:
            os.close(writer)

    thread = threading.Thread(target=read)
    thread.start()
    os.read(reader, 512)  # it is under way, and waits for us now
    assert container.run() == 0  # nobody waits for it
    module_engine.destroy(container)
    while os.read(reader, 1 << 20):
        pass
    thread.join(20)
    os.close(reader)
    assert len(failures) == 1
    assert isinstance(failures[0], Conflict)
