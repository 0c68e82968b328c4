"""Every compression there is, sources that fail, and what the kernel makes of the tree."""

from __future__ import annotations

import bz2
import ctypes
import errno
import gzip
import io
import lzma
import os
import stat
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from dockpy import archive
from dockpy.archive import Budget, extract
from dockpy.compression import Compression
from dockpy.errors import BadArchive, KernelError, RequestError
from hostile import Scene, folder
from reference.tarblocks import END, file, header, pax, pax_record, seal
from reference.untar import snapshot

pytestmark = pytest.mark.needs("root", "mknod")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.needs("user_attributes")
def test_overlay_attributes_of_an_archive_are_dropped_and_others_kept(scene: Scene) -> None:
    records = {
        b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
        b"SCHILY.xattr.trusted.overlay.opaque": b"y",
        b"SCHILY.xattr.user.overlay.whiteout": b"y",
        b"SCHILY.xattr.trusted.mine": b"1",
        b"SCHILY.xattr.user.binary": b"a\0\n=b",
    }
    scene.extract(pax(records) + folder(b"d") + pax(records) + file(b"f") + END)
    for name in ("d", "f"):
        found = {
            key: os.getxattr(scene.target / name, key) for key in os.listxattr(scene.target / name)
        }
        assert found == {"trusted.mine": b"1", "user.binary": b"a\0\n=b"}


@pytest.mark.needs("tar", "user_attributes")
def test_odd_attribute_names_that_gnu_tar_wrote_are_read(scene: Scene, tmp_path: Path) -> None:
    odd = {
        "user.a=b%c%3D%25%41": b"1",
        "user.%3d%": b"2",
        "user.%%%3D%2": b"3",
        "user." + "=" * 250: b"4",
    }
    (tmp_path / "f").touch()
    for name, value in odd.items():
        os.setxattr(tmp_path / "f", name, value)
    command = ["tar", "--xattrs", "-C", str(tmp_path), "-c", "f"]
    scene.extract(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    made = scene.target / "f"
    assert {name: os.getxattr(made, name) for name in os.listxattr(made)} == odd


@pytest.mark.needs("user_attributes")
def test_a_coded_name_is_no_way_to_an_overlay_attribute(scene: Scene) -> None:
    names = ("user.overlay.%3D", "trusted.overlay.a%25b", "user%2Eoverlay.opaque")
    data = b"".join(pax({b"SCHILY.xattr." + name.encode(): b"1"}) for name in names)
    assert scene.extract(data + file(b"f") + END).ignored_attributes == 1
    assert os.listxattr(scene.target / "f") == []


def test_attributes_the_filesystem_does_not_take_are_counted(scene: Scene) -> None:
    data = pax({b"SCHILY.xattr.strange.name": b"1"}) + file(b"f") + END
    assert scene.extract(data).ignored_attributes == 1


def test_a_capability_that_cannot_be_set_is_an_error(scene: Scene) -> None:
    data = pax({b"SCHILY.xattr.security.capability": b"nonsense"}) + file(b"f") + END
    with pytest.raises(BadArchive, match="extended attribute"):
        scene.extract(data)
    assert not scene.target.exists()


@pytest.mark.needs("mknod")
def test_whiteouts_become_overlay_marks(scene: Scene) -> None:
    data = b"".join(
        [
            file(b".wh.gone"),
            folder(b"d"),
            file(b"d/.wh..wh..opq"),
            file(b".wh.remade"),
            folder(b"remade"),
            folder(b"remade2"),
            file(b".wh.remade2"),
            file(b"kept", b"1"),
            file(b".wh.kept"),
            file(b".wh..wh.plnk/12.34", b"aufs"),
            END,
        ]
    )
    scene.extract(data)
    gone = (scene.target / "gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    for name in ("d", "remade", "remade2"):
        assert os.getxattr(scene.target / name, "trusted.overlay.opaque") == b"y"
    assert (scene.target / "kept").read_bytes() == b"1"
    assert sorted(os.listdir(scene.target)) == ["d", "gone", "kept", "remade", "remade2"]


def test_without_whiteouts_such_names_are_ordinary(scene: Scene) -> None:
    scene.extract(file(b".wh.x", b"1") + file(b".wh..wh..opq", b"2") + END, whiteouts=False)
    assert sorted(os.listdir(scene.target)) == [".wh..wh..opq", ".wh.x"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Budget(size=1999), "bytes"),
        (Budget(entries=2), "entries"),
        (Budget(path=3), "too long"),
        (Budget(metadata=20), "metadata"),
    ],
)
def test_what_goes_over_the_budget_is_refused(limits: Budget, words: str, scene: Scene) -> None:
    data = (
        file(b"a", b"x" * 1000)
        + file(b"b", b"x" * 1000)
        + pax({b"comment": b"something longer"})
        + file(b"long", b"")
        + END
    )
    with pytest.raises(BadArchive, match=words):
        scene.extract(data, limits=limits)
    assert not scene.target.exists()
    assert scene.extract(data).size == 2000


PACKERS: dict[str, tuple[Callable[[bytes], bytes], Compression]] = {
    "plain": (lambda data: data, Compression.NONE),
    "gzip": (gzip.compress, Compression.GZIP),
    "gzip members": (
        lambda data: b"".join(gzip.compress(data[i : i + 700]) for i in range(0, len(data), 700)),
        Compression.GZIP,
    ),
    "bzip2": (bz2.compress, Compression.BZIP2),
    "bzip2 streams": (
        lambda data: bz2.compress(data[:5000]) + bz2.compress(data[5000:]),
        Compression.BZIP2,
    ),
    "xz": (lzma.compress, Compression.XZ),
    "xz streams and padding": (
        lambda data: lzma.compress(data[:5000]) + bytes(8) + lzma.compress(data[5000:]) + bytes(4),
        Compression.XZ,
    ),
    "zstd": (zstandard.compress, Compression.ZSTD),
    "zstd frames": (
        lambda data: (
            b"\x50\x2a\x4d\x18\x03\0\0\0abc"
            + zstandard.compress(data[:5000])
            + zstandard.ZstdCompressor(write_checksum=True).compress(data[5000:])
            + b"\x5f\x2a\x4d\x18\0\0\0\0"
        ),
        Compression.ZSTD,
    ),
}


def sample() -> bytes:
    return b"".join(file(b"f%d" % i, os.urandom(3000) + bytes(3000)) for i in range(300)) + END


@pytest.mark.parametrize("name", PACKERS)
def test_every_compression_is_detected_and_gives_the_same_diff_id(name: str, scene: Scene) -> None:
    pack, compression = PACKERS[name]
    data = sample()
    plain = extract(io.BytesIO(data), scene.base / "target-plain")
    packed = pack(data)
    with tempfile.TemporaryFile() as disk:
        disk.write(packed)
        disk.seek(0)
        found = extract(disk.fileno(), scene.target)
    assert found.compression is compression
    assert (found.diff_id, found.entries, found.size) == (plain.diff_id, 300, 300 * 6000)
    assert snapshot(str(scene.target), times=False) == snapshot(
        str(scene.base / "target-plain"), times=False
    )


# Without a checksum zstd cannot tell; diff ids can.
HARMS = [
    (name, harm)
    for name in PACKERS
    for harm in ("cut", "cut at the end", "flipped")
    if name != "plain" and (name, harm) != ("zstd", "flipped")
]


@pytest.mark.parametrize(("name", "harm"), HARMS)
def test_damaged_compressed_data_is_refused(name: str, harm: str, scene: Scene) -> None:
    packed = PACKERS[name][0](sample())
    if harm == "cut":
        packed = packed[: len(packed) // 2]
    elif harm == "cut at the end":
        packed = packed.rstrip(b"\0")[:-2]
    else:
        middle = len(packed) // 2
        packed = (
            packed[:middle]
            + bytes(b ^ 0x5A for b in packed[middle : middle + 50])
            + packed[middle + 50 :]
        )
    with pytest.raises(BadArchive):
        scene.extract(packed)
    assert not scene.target.exists()


def test_an_endless_gzip_header_is_refused(scene: Scene) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            first = b"\x1f\x8b\x08\x08" + bytes(6) if self.given == 0 else b""
            count = len(buffer)
            buffer[:] = (first + b"n" * count)[:count]
            self.given += count
            return count

    source = Endless()
    with pytest.raises(BadArchive, match="gzip"):
        extract(source, scene.target)  # type: ignore[arg-type]
    assert source.given < 64 << 20


def test_a_bomb_stops_at_the_budget(scene: Scene) -> None:
    bomb = zstandard.compress(header(b"zeros", size=1 << 28) + bytes(1 << 28) + END)
    assert len(bomb) < 100_000
    with pytest.raises(BadArchive, match="bytes"):
        scene.extract(bomb, limits=Budget(size=1 << 20))
    assert not scene.target.exists()


def test_a_slow_pipe_is_read_as_it_comes(scene: Scene) -> None:
    data = sample()
    reader, writer = os.pipe()

    def feed() -> None:
        for at in range(0, len(data), 100_000):
            os.write(writer, data[at : at + 100_000])
        os.close(writer)

    thread = threading.Thread(target=feed)
    thread.start()
    found = extract(reader, scene.target)
    thread.join()
    os.close(reader)
    assert found.entries == 300


def test_a_failure_does_not_wait_for_a_silent_pipe(scene: Scene) -> None:
    reader, writer = os.pipe()
    os.write(writer, file(b"../evil", b"x"))
    threads = threading.active_count()
    with pytest.raises(BadArchive):
        extract(reader, scene.target)
    assert threading.active_count() == threads
    os.close(reader)
    os.close(writer)


def test_a_source_that_fails_is_told_apart_from_a_bad_archive(scene: Scene) -> None:
    directory = os.open(scene.base, os.O_RDONLY)
    with pytest.raises(KernelError) as caught:
        extract(directory, scene.target)
    os.close(directory)
    assert (caught.value.step, caught.value.errno) == ("read archive", errno.EISDIR)
    assert not scene.target.exists()


def test_a_directory_with_content_is_not_unpacked_into(scene: Scene) -> None:
    with pytest.raises(RequestError, match="not empty"):
        extract(io.BytesIO(file(b"f") + END), scene.base / "outside")
    scene.check_outside()


def test_a_failure_empties_a_directory_that_was_there(scene: Scene) -> None:
    scene.target.mkdir()
    with pytest.raises(BadArchive):
        scene.extract(file(b"a/b/c", b"x") + file(b"../x"))
    assert os.listdir(scene.target) == []


def in_own_mounts(action: Callable[[ctypes.CDLL], None]) -> None:
    """Run `action` in a child with a mount namespace of its own; all it mounts goes with it."""
    child = os.fork()
    if child == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
            assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
            action(libc)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_full_disk_is_the_kernels_refusal_and_leaves_nothing(scene: Scene) -> None:
    def fill(libc: ctypes.CDLL) -> None:
        assert libc.mount(b"none", bytes(scene.base), b"tmpfs", 0, b"size=1m") == 0
        with pytest.raises(KernelError) as caught:
            extract(io.BytesIO(file(b"big", bytes(4 << 20)) + END), scene.base / "t")
        assert (caught.value.step, caught.value.errno) == ("write file", errno.ENOSPC)
        assert os.listdir(scene.base) == []

    in_own_mounts(fill)


@pytest.mark.needs("mknod", "overlay")
def test_overlayfs_sees_layers_as_their_archives_mean_them(real_tmp: Path) -> None:
    with tempfile.TemporaryDirectory(dir=real_tmp) as name:
        base = Path(name)
        lower = folder(b"d") + file(b"d/old", b"1") + file(b"gone", b"1") + file(b"f", b"1")
        lower += folder(b"e") + file(b"e/old", b"1") + folder(b"remade") + file(b"remade/old", b"1")
        upper = folder(b"d") + file(b"d/.wh..wh..opq") + file(b"d/new", b"2") + file(b".wh.gone")
        upper += file(b"e/.wh.old") + file(b".wh.remade") + folder(b"remade") + file(b"f", b"2")
        for layer, data in (("lower", lower), ("upper", upper)):
            extract(io.BytesIO(data + END), base / layer)
        (base / "merged").mkdir()

        def look(libc: ctypes.CDLL) -> None:
            options = os.fsencode(f"lowerdir={base}/upper:{base}/lower")
            assert libc.mount(b"none", bytes(base / "merged"), b"overlay", 0, options) == 0
            merged = base / "merged"
            assert sorted(os.listdir(merged)) == ["d", "e", "f", "remade"]
            assert os.listdir(merged / "d") == ["new"]
            assert os.listdir(merged / "e") == []
            assert os.listdir(merged / "remade") == []
            assert (merged / "f").read_bytes() == b"2"

        in_own_mounts(look)


def test_nothing_stays_open(scene: Scene) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for data in (sample(), gzip.compress(sample()), file(b"d/f") + file(b"/x"), b"junk" * 1000):
        try:
            scene.extract(data)
        except BadArchive:
            pass
        else:
            archive.remove(scene.target)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_setuid_survives_the_change_of_owner(scene: Scene) -> None:
    data = (
        file(b"su", b"x", mode=0o6755, uid=1000, gid=1000) + header(b"p", b"6", mode=0o2644) + END
    )
    scene.extract(data)
    assert stat.S_IMODE((scene.target / "su").stat().st_mode) == 0o6755
    assert stat.S_IMODE((scene.target / "p").stat().st_mode) == 0o2644


def test_the_umask_of_the_process_does_not_matter(scene: Scene) -> None:
    old = os.umask(0o077)
    try:
        scene.extract(folder(b"d", mode=0o777) + file(b"d/f", mode=0o666) + END)
    finally:
        os.umask(old)
    assert stat.S_IMODE((scene.target / "d").stat().st_mode) == 0o777
    assert stat.S_IMODE((scene.target / "d" / "f").stat().st_mode) == 0o666


def test_a_record_helper_counts_its_own_length() -> None:
    assert pax_record(b"path", b"x" * 90) == b"99 path=" + b"x" * 90 + b"\n"
    assert len(pax_record(b"path", b"x" * 91)) == int(pax_record(b"path", b"x" * 91).split()[0])
    assert len(seal(bytes(512))) == 512
