"""Packed layers: the stream is the layer until its files are made, whatever comes between."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import Config, unpacking
from dockpy.archive import Budget, Extracted
from dockpy.committing import stage_upper
from dockpy.errors import Cancelled, KernelError, RequestError, StoreError
from dockpy.image_archive.saving import Selected, save
from dockpy.model import Image
from dockpy.unpacking import DIFF, PACKED, SKELETON, WORK
from patience import patient
from reference.tarblocks import END, file
from stores import ROOT, Store, all_is_well, descriptor, die_before, digest, in_child, stream_of

pytestmark = pytest.mark.needs("root")

FILES = 40
SIZE = sum(range(FILES)) + len("also")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    return make_upper(tmp_path / "upper")


def make_upper(place: Path, content: bytes = b"also") -> Path:
    """What a container wrote: files with sizes, a link, a deleted name."""
    (place / "d").mkdir(parents=True)
    for number in range(FILES):
        (place / "d" / str(number)).write_bytes(bytes(number))
    (place / "d/own").write_bytes(content)
    os.link(place / "d/own", place / "d/same")
    os.symlink("d", place / "link")
    os.mknod(place / "gone", 0o20000, 0)
    return place


def commit(store: Store, upper: Path, *, created: float = 1.0) -> Image:
    """An image of one packed layer; nobody unpacks it yet."""
    layer = store.graph.place_layer(stage_upper(store.graph, upper))
    return store.graph.create([layer], Config(), created=created)


def kept_of(store: Store, image: Image) -> list[str]:
    """What the only layer of an image consists of."""
    [chain] = image.layers
    return store.names(f"layers/{chain}")


class Gate:
    """Holds everybody who unpacks, until it is opened; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = threading.Event()
        self.opened = threading.Event()
        self.count = 0
        self._real = unpacking.archive.extract
        monkeypatch.setattr(unpacking.archive, "extract", self._extract)

    def _extract(
        self, source: io.RawIOBase, directory: Path, *, skeleton: int, write_back: bool
    ) -> Extracted:
        self.count += 1
        self.arrived.set()
        assert self.opened.wait(patient(10))
        return self._real(
            source,  # type: ignore[arg-type]
            directory,
            skeleton=skeleton,
            write_back=write_back,
        )


# -- as a stream -----------------------------------------------------------------------------------


def test_a_packed_layer_is_its_stream_and_nothing_else(store: Store, upper: Path) -> None:
    image = commit(store, upper)
    assert kept_of(store, image) == ["meta.json", PACKED]
    [chain] = image.layers
    data = (store.layers.directory / chain / PACKED).read_bytes()
    assert digest(data) == image.diff_ids[0]
    assert stream_of(store, chain) == data
    with descriptor(b"") as out:
        save(store.graph, [Selected(image, ("a:1",))], out)
        assert data in os.pread(out, 1 << 20, 0)
    assert kept_of(store, image) == ["meta.json", PACKED]


def test_its_size_is_that_of_the_files_that_are_made_of_it(store: Store, upper: Path) -> None:
    image = commit(store, upper)
    layer = store.graph.layer(image.layers[0])
    assert layer is not None
    [tree] = store.graph.lower_directories(image)
    again = store.layers.stage(io.BytesIO(stream_of(store, layer.chain_id)))
    assert (image.size, layer.size, layer.entries) == (SIZE, again.size, again.entries)
    assert layer.size == SIZE
    assert (tree / "d/own").stat().st_ino == (tree / "d/same").stat().st_ino
    store.layers.discard(again)


def test_whoever_asks_for_its_files_gets_them_and_the_stream_goes(
    store: Store, upper: Path
) -> None:
    image = commit(store, upper)
    [chain] = image.layers
    data = stream_of(store, chain)
    [tree] = store.graph.lower_directories(image)
    assert (tree / "d/39").read_bytes() == bytes(39)
    assert store.graph.wait_unpacked(patient(10))
    assert kept_of(store, image) == [DIFF, "meta.json", SKELETON]
    assert stream_of(store, chain) == data
    assert store.names("layers") == [chain]
    assert store.graph.check() == []


def test_its_files_are_made_in_the_background(store: Store, upper: Path) -> None:
    image = commit(store, upper)
    store.graph.unpack_soon(image)
    assert store.graph.wait_unpacked(patient(10))
    assert kept_of(store, image) == [DIFF, "meta.json", SKELETON]


def test_a_layer_that_is_here_packed_is_not_stored_again(store: Store, upper: Path) -> None:
    image = commit(store, upper)
    again = store.graph.place_layer(stage_upper(store.graph, upper))
    assert (again.chain_id,) == image.layers
    [chain] = image.layers
    tree = store.graph.register_layer(io.BytesIO(stream_of(store, chain)), expected=again.diff_id)
    store.graph.release([again, tree])
    assert kept_of(store, image) == ["meta.json", PACKED]
    assert store.names("layers") == [chain]


# -- several at once -------------------------------------------------------------------------------


def test_several_who_need_the_files_wait_for_the_same_work(
    store: Store, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = commit(store, upper)
    gate = Gate(monkeypatch)
    store.graph.unpack_soon(image)
    assert gate.arrived.wait(patient(10))
    found: list[bool] = []

    def need() -> None:
        [tree] = store.graph.lower_directories(image)
        found.append((tree / "d/39").exists())

    waiting = [threading.Thread(target=need) for _ in range(4)]
    for one in waiting:
        one.start()
    gate.opened.set()
    for one in waiting:
        one.join()
    assert (found, gate.count) == ([True] * 4, 1)
    assert store.graph.wait_unpacked(patient(10))
    assert kept_of(store, image) == [DIFF, "meta.json", SKELETON]


def test_an_image_is_removed_while_its_layer_is_unpacked(
    store: Store, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = commit(store, upper)
    gate = Gate(monkeypatch)
    store.graph.unpack_soon(image)
    assert gate.arrived.wait(patient(10))
    store.graph.delete(image.id)
    assert not store.graph.exists(image.id)
    gate.opened.set()
    assert store.graph.wait_unpacked(patient(10))
    assert store.names("layers") == []
    assert store.graph.check() == []


def test_who_waits_for_files_gets_them_though_the_image_is_removed_meanwhile(
    store: Store, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = commit(store, upper)
    gate = Gate(monkeypatch)
    told: list[object] = []
    waiting = threading.Thread(target=lambda: told.append(store.graph.lower_directories(image)))
    waiting.start()
    assert gate.arrived.wait(patient(10))
    store.graph.delete(image.id)
    gate.opened.set()
    waiting.join()
    assert told == [[store.layers.tree(image.layers[0])]]
    assert store.graph.wait_unpacked(patient(10))
    assert store.names("layers") == []


def test_closing_gives_up_and_the_next_start_up_goes_on(
    store: Store, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = commit(store, upper)
    gate = Gate(monkeypatch)
    store.graph.unpack_soon(image)
    assert gate.arrived.wait(patient(10))
    closing = threading.Thread(target=store.graph.close)
    closing.start()
    while not store.layers._unpacking._closing:
        time.sleep(0.001)
    gate.opened.set()
    closing.join()
    assert kept_of(store, image) == ["meta.json", PACKED]
    assert store.names("layers") == list(image.layers)
    again = Store(store.root)
    assert again.graph.check() == []
    assert again.graph.wait_unpacked(patient(10))
    assert kept_of(again, image) == [DIFF, "meta.json", SKELETON]
    again.close()


# -- refusals --------------------------------------------------------------------------------------


def test_a_full_disk_is_told_to_who_needs_the_files_and_the_stream_stays(
    store: Store, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise KernelError("write file", errno.ENOSPC, "d/1")

    image = commit(store, upper)
    with monkeypatch.context() as broken:
        broken.setattr(unpacking.archive, "extract", full)
        with pytest.raises(KernelError, match=r"unpack layer \w{12} on d/1: ENOSPC"):
            store.graph.lower_directories(image)
        store.graph.unpack_soon(image)
        assert store.graph.wait_unpacked(patient(10))
    assert kept_of(store, image) == ["meta.json", PACKED]
    assert store.names("layers") == list(image.layers)
    assert store.graph.lower_directories(image)[0].is_dir()


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_stream_that_is_not_the_layers_is_never_taken_for_it(
    store: Store, upper: Path, harm: str
) -> None:
    image = commit(store, upper)
    [chain] = image.layers
    path = store.layers.directory / chain / PACKED
    data = path.read_bytes()
    other = ROOT + file(b"a", b"x") + END
    path.write_bytes(data[: len(data) // 2] if harm == "cut" else other)
    with pytest.raises(StoreError, match="not on the disk as it was made"):
        store.graph.lower_directories(image)
    with pytest.raises(StoreError, match="remove its images"):
        stream_of(store, chain)
    assert store.names("layers") == [chain]


def test_a_packed_layer_that_is_gone_is_named(store: Store, upper: Path) -> None:
    image = commit(store, upper)
    [chain] = image.layers
    (store.layers.directory / chain / PACKED).unlink()
    with pytest.raises(StoreError, match=f"{chain}.* missing"):
        store.graph.lower_directories(image)
    [finding] = store.graph.check()
    assert "missing; image" in str(finding)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Budget(size=SIZE - 1), f"more than {SIZE - 1} bytes"),
        (Budget(entries=10), "more than 10 names"),
        (Budget(path=3), "a path longer than 3 bytes"),
        (Budget(metadata=20), "more than 20 bytes of extended attributes"),
    ],
)
def test_what_could_not_be_unpacked_is_not_packed(
    store: Store, upper: Path, limits: Budget, told: str
) -> None:
    os.setxattr(upper / "d/own", "user.much", bytes(100))
    with pytest.raises(RequestError, match=told):
        stage_upper(store.graph, upper, limits=limits)
    assert store.names("layers") == []
    within = Budget(size=SIZE, entries=100, path=10, metadata=1000)
    store.layers.discard(stage_upper(store.graph, upper, limits=within))


def test_a_stop_ends_the_packing_and_leaves_nothing(store: Store, upper: Path) -> None:
    stop = os.eventfd(1, os.EFD_CLOEXEC)
    try:
        with pytest.raises(Cancelled):
            stage_upper(store.graph, upper, stop)
    finally:
        os.close(stop)
    assert store.names("layers") == []


# -- kills -----------------------------------------------------------------------------------------


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A kill does not care for the disk, so one without waits."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dockpy-kill-", dir=place) as name:
        yield Path(name)


def begin(root: Path) -> Image:
    """A store with an image that stays, packed, and is called kept."""
    root.mkdir()
    made = Store(root)
    kept = commit(made, root.parent / "kept")
    made.tags.set("kept", "", kept.id)
    made.close()
    return kept


def job(root: Path) -> None:
    """One image is made and unpacked in the background, one is needed at once, one removed."""
    store = Store(root)
    one = commit(store, root.parent / "one", created=2.0)
    store.tags.set("one", "", one.id)
    store.graph.unpack_soon(one)
    store.graph.wait_unpacked()
    store.graph.lower_directories(store.tags.lookup_image("kept"))
    two = commit(store, root.parent / "two", created=3.0)
    store.graph.unpack_soon(two)
    store.graph.delete(two.id)
    store.graph.wait_unpacked()
    store.close()


@pytest.fixture
def uppers(quick_disk: Path) -> Path:
    for name in ("kept", "one", "two"):
        make_upper(quick_disk / name, name.encode())
    return quick_disk


def killed_in(root: Path, action: Callable[[], None], after: float | None = None) -> int:
    """How the child ended, which was killed after that many seconds, or killed itself."""
    child = in_child(action)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), root
    return status


def test_a_kill_before_any_step_leaves_a_packed_layer_or_its_files(uppers: Path) -> None:
    step, status = 0, -1
    left: set[bool] = set()
    while status != 0:
        root = uppers / f"store{step}"
        kept = begin(root)

        def work(step: int = step, root: Path = root) -> None:
            die_before(step)
            job(root)

        status = killed_in(root, work)
        left.add(any(name.startswith(WORK) for name in os.listdir(root / "layers")))
        all_is_well(root, kept)
        shutil.rmtree(root)
        step += 1
    assert step > 40
    assert left == {True, False}


def test_a_kill_at_any_time_leaves_a_packed_layer_or_its_files(uppers: Path) -> None:
    statuses = []
    for number in range(20):
        root = uppers / f"store{number}"
        kept = begin(root)
        statuses.append(killed_in(root, lambda root=root: job(root), 0.002 * number))  # type: ignore[misc]
        all_is_well(root, kept)
        shutil.rmtree(root)
    assert signal.SIGKILL in statuses
