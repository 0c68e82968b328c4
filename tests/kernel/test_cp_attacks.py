"""Containers that want a copy to read or change something of the host's: none gets it."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dockpy import Bind, Config, copying
from dockpy.copying import Side
from dockpy.errors import DockpyError, RequestError
from patience import patient

if TYPE_CHECKING:
    from dockpy import Container, Runtime

pytestmark = pytest.mark.needs("root", "overlay", "busybox", "cgroups")

SECRET = b"the host's"
DECOY = b"the container's own"


@pytest.fixture
def engine(module_engine: Runtime) -> Runtime:
    """One engine for all attacks: the second must not find a door the first one opened."""
    return module_engine


class Victim:
    """A directory of the host's that nobody but the test may read or change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "f").write_bytes(SECRET)
        self._before = self._look()

    def _look(self) -> list[tuple[object, ...]]:
        places = [self.path, *sorted(self.path.rglob("*"))]
        found = [(str(one), os.lstat(one)) for one in places]
        return [
            (name, one.st_mode, one.st_uid, one.st_gid, one.st_size, one.st_mtime_ns, one.st_ino)
            for name, one in found
        ]

    def check(self) -> None:
        assert self._look() == self._before
        assert (self.path / "f").read_bytes() == SECRET


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    """Looked at before and after the test."""
    made = Victim(tmp_path / "victim")
    yield made
    made.check()


@contextlib.contextmanager
def box(
    engine: Runtime, script: str, *, running: bool = True, **settings: object
) -> Iterator[Container]:
    """A container that ran `script`; it still runs then, or not."""
    end = "touch /ready; exec sleep 1000" if running else ":"
    config = Config(image="base", cmd=("sh", "-c", f"{script}\n{end}"), **settings)  # type: ignore[arg-type]
    container = engine.create(config)
    try:
        container.start()
        if running:
            until_ready(container)
        else:
            assert container.wait(patient(20)) == 0
        yield container
    finally:
        engine.destroy(container, force=True)


def until_ready(container: Container) -> None:
    deadline = time.monotonic() + patient(20)
    while not os.path.exists(container.directory / "upper" / "ready"):
        assert time.monotonic() < deadline, "the container is not ready"
        assert container.state.running, container.output()
        time.sleep(0.01)


@contextlib.contextmanager
def host(path: Path) -> Iterator[Side]:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        yield Side(root, str(path), str(path))
    finally:
        os.close(root)


def bring_out(container: Container, path: str, target: Path, *, follow: bool = False) -> None:
    with container.root(writable=False) as root, host(target) as there:
        copying.copy(Side(root.directory, path, path), there, follow=follow, owner=(0, 0))


def bring_in(container: Container, source: Path, path: str) -> None:
    with container.root(writable=True) as root, host(source) as here:
        copying.copy(here, Side(root.directory, path, path), owner=(0, 0))


def streamed(container: Container, path: str, *, follow: bool = False) -> dict[str, bytes]:
    """The regular files in a copy as a stream."""
    with container.root(writable=False) as root, open(os.memfd_create("tar"), "w+b") as out:
        copying.copy_out(Side(root.directory, path, path), out.fileno(), follow=follow)
        out.seek(0)
        with tarfile.open(fileobj=out) as archive:
            files = [one for one in archive if one.isreg()]
            return {one.name: archive.extractfile(one).read() for one in files}  # type: ignore[union-attr]


def contents(place: Path) -> set[bytes]:
    """Of all files below a directory; links are not followed."""
    return {
        Path(above, name).read_bytes()
        for above, _, names in os.walk(place)
        for name in names
        if not os.path.islink(os.path.join(above, name))
    }


LINKS = {
    "absolute": "{victim}",
    "up": "../../../../../../../../../../../..{victim}",
    "through proc": "/proc/1/root{victim}",
    "through self": "/proc/self/root{victim}",
    "through cwd": "/proc/1/cwd/../../../../..{victim}",
}


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_no_link_in_a_container_leads_to_the_host(
    engine: Runtime, victim: Victim, tmp_path: Path, running: bool
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "f").write_bytes(b"new")
    (tmp_path / "out").mkdir()
    script = "mkdir /l\n" + "\n".join(
        f"ln -s {text.format(victim=victim.path)} /l/{name.replace(' ', '-')}"
        for name, text in LINKS.items()
    )
    with box(engine, script, running=running) as container:
        for name in LINKS:
            link = f"/l/{name.replace(' ', '-')}"
            for path in (link, f"{link}/", f"{link}/.", f"{link}/f", f"{link}/../victim/f"):
                for follow in (False, True):
                    with contextlib.suppress(DockpyError):
                        bring_out(container, path, tmp_path / "out", follow=follow)
                    with contextlib.suppress(DockpyError):
                        assert SECRET not in streamed(container, path, follow=follow).values()
                for source in ("mine", "mine/.", "mine/f"):
                    with contextlib.suppress(DockpyError):
                        bring_in(container, tmp_path / source, path)
        bring_out(container, "/l", tmp_path / "out")
    victim.check()
    assert SECRET not in contents(tmp_path / "out")
    assert os.readlink(tmp_path / "out" / "l" / "absolute") == str(victim.path)


SWAPPING = """
mkdir -p /w/real {victim}; echo -n mine > /w/real/f; echo -n "{decoy}" > {victim}/f
ln -s {victim} /w/evil
swap() {{ while :; do
mv /w/real /w/at; mv /w/at /w/real; mv /w/evil /w/at; mv /w/at /w/evil
done; }}
swap &
"""


def test_a_directory_that_is_a_link_every_other_moment_gives_nothing_away(
    engine: Runtime, victim: Victim, tmp_path: Path
) -> None:
    # The link leads somewhere inside the container, too, so that we see that it was there in time.
    script = SWAPPING.format(victim=victim.path, decoy=DECOY.decode())
    with box(engine, script) as container:
        seen: set[bytes] = set()
        deadline = time.monotonic() + patient(30)
        for number in range(100_000):
            out = tmp_path / f"out{number}"
            path = ("/w/at/f", "/w/at/.", "/w/at")[number % 3]
            out.mkdir()
            with contextlib.suppress(DockpyError):
                bring_out(container, path, out, follow=bool(number % 2))
            seen |= contents(out)
            if number > 60 and {b"mine", DECOY} <= seen:
                break
            assert time.monotonic() < deadline, f"only {seen} was ever there"
    assert seen == {b"mine", DECOY}


def test_a_directory_that_is_a_link_every_other_moment_is_no_way_to_write(
    engine: Runtime, victim: Victim, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "new").write_bytes(b"new")
    (tree / "f").write_bytes(b"new")
    jobs = (tree / "f", "/w/at/f"), (tree / ".", "/w/at/d"), (tree, "/w/at/deep")
    script = SWAPPING.format(victim=victim.path, decoy=DECOY.decode())
    with box(engine, script) as container:
        arrived: set[str] = set()
        deadline = time.monotonic() + patient(30)
        for number in range(100_000):
            # The directory to copy into is always another's: a copy never makes /w/at itself.
            source, path = jobs[number % 3]
            with contextlib.suppress(DockpyError):
                bring_in(container, source, path)
            upper = container.directory / "upper"
            places = {"real": upper / "w/real", "link": inside(upper, victim)}
            arrived |= {name for name, place in places.items() if is_new(place)}
            if number > 60 and arrived == {"real", "link"}:
                break
            assert time.monotonic() < deadline, f"it arrived at {arrived} only"
    victim.check()


def is_new(place: Path) -> bool:
    """Whether the copy arrived in a directory, which may be elsewhere the next moment."""
    try:
        return not place.is_symlink() and (place / "f").read_bytes() == b"new"
    except OSError:
        return False


def inside(upper: Path, victim: Victim) -> Path:
    """The directory of the same name in a container."""
    return upper / str(victim.path).lstrip("/")


def test_what_proc_and_dev_hold_is_neither_followed_nor_written(
    engine: Runtime, victim: Victim, tmp_path: Path
) -> None:
    knobs = {
        Path(one): Path(one).read_bytes()
        for one in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname")
    }
    new = tmp_path / "new"
    new.write_bytes(b"|/evil")
    for privileged in (False, True):
        with box(engine, ":", privileged=privileged) as container:
            for path in ("/proc/1/root", "/proc/1/cwd", "/proc/1/fd/0", "/proc/1/ns/mnt"):
                with pytest.raises(DockpyError):
                    bring_in(container, new, f"{path}/f")
                with contextlib.suppress(DockpyError):
                    assert streamed(container, f"{path}/", follow=True) == {}
            for knob in (*map(str, knobs), "/proc/sysrq-trigger", "/proc/1/oom_score_adj"):
                with pytest.raises(DockpyError):
                    bring_in(container, new, knob)
            with pytest.raises(DockpyError):
                bring_in(container, new, "/proc/new")
            with contextlib.suppress(DockpyError):
                bring_in(container, new, "/dev/null")
            with contextlib.suppress(DockpyError):
                bring_in(container, new, "/dev/new")
    assert {one: one.read_bytes() for one in knobs} == knobs
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert not os.path.exists("/dev/new")


def test_a_volume_is_written_but_not_left(engine: Runtime, victim: Victim, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "link").symlink_to(victim.path)
    (volume / "up").symlink_to("../victim")
    (tmp_path / "new").write_bytes(b"new")
    bind = Bind(str(volume), "/data")
    with box(engine, ":", binds=(bind,)) as container:
        bring_in(container, tmp_path / "new", "/data/f")
        for link in ("link", "up"):
            with pytest.raises(DockpyError):
                bring_in(container, tmp_path / "new", f"/data/{link}/f")
            with pytest.raises(DockpyError):
                streamed(container, f"/data/{link}/f", follow=True)
    assert (volume / "f").read_bytes() == b"new"


def test_a_link_that_an_earlier_copy_brought_out_is_not_written_through(
    engine: Runtime, victim: Victim, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with box(engine, f"mkdir /d; ln -s {victim.path} /d/x") as container:
        bring_out(container, "/d", out)
    with (
        box(engine, "mkdir -p /d/x; echo bad > /d/x/f; echo bad > /d/x/new") as container,
        pytest.raises(DockpyError, match="cannot overwrite"),
    ):
        bring_out(container, "/d/.", out)
    assert os.readlink(out / "x") == str(victim.path)


def hostile_stream(victim: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind, link in (
            ("out", tarfile.SYMTYPE, str(victim)),
            ("out/f", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, f"out{victim}/f"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
    return made.getvalue()


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_hostile_stream_changes_the_container_at_most(
    engine: Runtime, victim: Victim, running: bool
) -> None:
    data = hostile_stream(victim.path)
    with box(engine, ":", running=running) as container:
        for name in ("../f", f"../../../../../..{victim.path}/f", "a/../../f"):
            member = tarfile.TarInfo(name)
            with pytest.raises(DockpyError):
                put(container, member.tobuf() + bytes(1024))
        with pytest.raises(DockpyError):
            put(container, data)


def put(container: Container, data: bytes) -> None:
    stream = os.memfd_create("stream")
    try:
        os.write(stream, data)
        os.lseek(stream, 0, os.SEEK_SET)
        with container.root(writable=True) as root:
            copying.copy_in(stream, Side(root.directory, "/tmp", "/tmp"))
    finally:
        os.close(stream)


def test_a_link_that_comes_and_goes_is_told_as_missing_at_worst(
    engine: Runtime, tmp_path: Path
) -> None:
    script = "echo -n mine > /f; flicker() { while :; do ln -s /f /l; rm /l; done; }; flicker &"
    with box(engine, script) as container:
        found = set()
        deadline = time.monotonic() + patient(30)
        while found != {"there", "missing"}:
            try:
                assert streamed(container, "/l", follow=True) == {"l": b"mine"}
                found.add("there")
            except RequestError:
                found.add("missing")
            assert time.monotonic() < deadline, found


def test_a_name_too_long_for_the_disk_is_a_request_error(engine: Runtime, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with box(engine, ":", running=False) as container:
        for path in (f"/{'x' * 300}", f"/{'x' * 300}/f", "/" + "x/" * 3000, "/etc/passwd/f"):
            with pytest.raises(RequestError):
                streamed(container, path)
            with pytest.raises(RequestError):
                bring_in(container, tmp_path / "f", path)
