"""Layers on a real disk: their own streams again, placing several, and what kills leave."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockpy import Config, Runtime
from dockpy.container import Record
from dockpy.container_files import ContainerFiles
from dockpy.errors import KernelError, NoSuchImage, StoreError
from dockpy.image_archive.loading import load
from dockpy.image_archive.saving import Selected, save
from dockpy.image_config import chain_ids
from dockpy.layer_streams import STREAM
from dockpy.layers import META, StagedLayer
from dockpy.model import Image
from dockpy.spares import Spare
from dockpy.unpacking import DIFF
from reference.tarblocks import END, file
from stores import (
    PLAIN,
    ROOT,
    Store,
    all_is_well,
    descriptor,
    die_before,
    digest,
    in_child,
    stream_of,
)

pytestmark = pytest.mark.needs("root")

TWICE = ROOT + file(b"a", b"first") + file(b"b", b"other") + file(b"a", b"second, longer") + END
"""A name that comes twice: the tree keeps the second only."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def stage_once(store: Store, data: bytes) -> StagedLayer:
    """From a pipe."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        return store.layers.stage(reader, expected=digest(data))
    finally:
        os.close(reader)


# -- the same bytes again --------------------------------------------------------------------------


@pytest.mark.parametrize("data", [PLAIN, TWICE], ids=["plain", "twice"])
@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
def test_a_layer_with_a_known_digest_gives_its_own_bytes_again(
    store: Store, data: bytes, packed: bool
) -> None:
    with descriptor(b"before" + (gzip.compress(data) if packed else data)) as source:
        os.lseek(source, len(b"before"), os.SEEK_SET)
        staged = store.layers.stage(source, expected=digest(data))
    assert staged.repeatable
    [layer] = store.layers.place([(staged, "")])
    assert stream_of(store, layer.chain_id) == data
    assert (store.layers.directory / layer.chain_id / STREAM).exists() == (data is TWICE)
    store.layers.drop([layer.chain_id])


def test_a_stream_that_cannot_go_back_is_kept_when_it_is_given_again(store: Store) -> None:
    staged = stage_once(store, TWICE)
    assert not staged.repeatable
    with descriptor(gzip.compress(TWICE)) as again:
        staged = store.layers.keep_stream(staged, again)
    [layer] = store.layers.place([(staged, "")])
    assert stream_of(store, layer.chain_id) == TWICE
    store.layers.drop([layer.chain_id])


def test_a_stream_that_nobody_kept_is_one_clear_error(store: Store) -> None:
    staged = stage_once(store, TWICE)
    [layer] = store.layers.place([(staged, "")])
    with pytest.raises(StoreError, match="not on the disk as it came"):
        stream_of(store, layer.chain_id)
    store.layers.drop([layer.chain_id])


def test_a_layer_of_no_known_digest_is_named_by_the_stream_its_tree_gives(store: Store) -> None:
    staged = store.layers.stage(io.BytesIO(TWICE))
    assert staged.diff_id != digest(TWICE)
    [layer] = store.layers.place([(staged, "")])
    assert digest(stream_of(store, layer.chain_id)) == staged.diff_id
    store.layers.drop([layer.chain_id])


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_stream_is_noticed_when_it_is_written(store: Store, harm: str) -> None:
    with descriptor(TWICE) as source:
        staged = store.layers.stage(source, expected=digest(TWICE))
    [layer] = store.layers.place([(staged, "")])
    path = store.layers.directory / layer.chain_id / STREAM
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if harm == "cut" else gzip.compress(PLAIN))
    with pytest.raises(StoreError, match="remove its images"):
        stream_of(store, layer.chain_id)
    store.layers.drop([layer.chain_id])


def test_a_changed_file_is_noticed_when_the_layer_is_written(store: Store) -> None:
    [layer] = store.layers.place([(store.layers.stage(io.BytesIO(PLAIN)), "")])
    (store.layers.tree(layer.chain_id) / "a").write_bytes(b"FIRST")
    with pytest.raises(StoreError, match="not on the disk as it came"):
        stream_of(store, layer.chain_id)
    store.layers.drop([layer.chain_id])


# -- placing ---------------------------------------------------------------------------------------


def staged(store: Store, number: int) -> StagedLayer:
    return store.layers.stage(io.BytesIO(ROOT + file(b"n", b"%d" % number) + END))


def test_several_layers_are_placed_with_one_wait_for_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    real = store.flusher.flush

    def flush(*trees: Path) -> None:
        waits.append(len(trees))
        real(*trees)

    monkeypatch.setattr(store.flusher, "flush", flush)
    stack = [staged(store, number) for number in range(5)]
    chain = chain_ids([one.diff_id for one in stack])
    placed = store.layers.place(list(zip(stack, ("", *chain), strict=False)))
    assert [one.chain_id for one in placed] == list(chain)
    assert waits == [5]
    store.layers.drop(chain)
    assert store.names("layers") == []


@pytest.mark.parametrize("failing", range(3))
def test_layers_are_placed_all_or_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    real, places = os.rename, []

    def rename(source: Path, target: Path) -> None:
        if Path(target).parent == store.layers.directory:
            places.append(target)
            if len(places) == failing + 1:
                raise OSError(28, "full")
        real(source, target)

    stack = [(staged(store, number), "") for number in range(3)]
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KernelError, match="ENOSPC"):
        store.layers.place(stack)
    monkeypatch.undo()
    assert store.names("layers") == []


@pytest.mark.parametrize("lost", [DIFF, META])
def test_a_broken_layer_is_mended_by_bringing_it_again(store: Store, lost: str) -> None:
    image = store.graph.import_archive(io.BytesIO(PLAIN), config=Config())
    [chain] = image.layers
    os.rename(store.layers.directory / chain / lost, store.root / "lost")
    assert store.layers.get(chain) is None
    again = store.graph.register_layer(io.BytesIO(PLAIN), expected=digest(PLAIN))
    assert again.chain_id == chain
    store.graph.release([again])
    assert (store.graph.lower_directories(image)[0] / "a").read_bytes() == b"first"
    assert stream_of(store, chain) == PLAIN
    assert store.graph.check() == []


def test_a_layer_stays_until_the_last_who_holds_it(store: Store) -> None:
    [layer] = store.layers.place([(staged(store, 1), "")])
    store.layers.hold([layer.chain_id])
    store.layers.drop([layer.chain_id])
    assert store.names("layers") == [layer.chain_id]
    store.layers.drop([layer.chain_id])
    assert store.names("layers") == []


def test_an_unfinished_mktemp_is_found_at_the_next_start(store: Store) -> None:
    place = store.graph.mktemp()
    (place / "x").write_text("y")
    [finding] = store.graph.check()
    assert finding.path == place
    assert not place.exists()
    seen: list[Image] = []
    store.graph.walk_all(seen.append)
    assert seen == store.graph.all() == []


# -- kills -----------------------------------------------------------------------------------------


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A kill does not care for the disk, so one without waits."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dockpy-kill-", dir=place) as name:
        yield Path(name)


def two_images(directory: Path) -> bytes:
    """An archive of two images with a layer in common, one of them with a name that comes twice."""
    directory.mkdir()
    made = Store(directory)
    base = made.graph.register_layer(io.BytesIO(PLAIN))
    with descriptor(TWICE) as source:
        twice = made.graph.register_layer(source, parent=base.chain_id, expected=digest(TWICE))
    one = made.graph.create([base], Config(cmd=("one",)), created=1.0)
    [shared] = [layer for layer in [made.graph.layer(base.chain_id)] if layer]
    two = made.graph.create([shared, twice], Config(cmd=("two",)), created=2.0)
    with descriptor(b"") as out:
        save(made.graph, [Selected(one, ("one:1",)), Selected(two, ("two:1",))], out)
        data = os.pread(out, 1 << 20, 0)
    made.close()
    return data


def begin(root: Path) -> Image:
    """A store with an image that stays, called kept, and one that a job will remove."""
    made = Store(root)
    kept = made.graph.import_archive(io.BytesIO(ROOT + file(b"kept", b"k") + END), config=Config())
    made.graph.import_archive(io.BytesIO(PLAIN), config=Config(cmd=("old",)))
    made.tags.set("kept", "", kept.id)
    made.close()
    return kept


def job(root: Path, archive: bytes) -> None:
    """A load, names, an image made from another, and two removals."""
    store = Store(root)
    found = load(store.graph, io.BytesIO(archive))
    for one in found:
        store.tags.set("loaded", one.names[0].partition(":")[0], one.image.id)
    kept = store.tags.lookup_image("kept")
    below = [layer for chain in kept.layers if (layer := store.graph.layer(chain))]
    with descriptor(TWICE) as source:
        stage = store.graph.stage_layer(source, expected=digest(TWICE))
    top = store.graph.place_layer(stage, kept.layers[-1])
    child = store.graph.create([*below, top], Config(), parent=kept.id, created=3.0)
    store.tags.set("child", "", child.id)
    store.tags.delete("loaded", "one")
    store.graph.delete(found[0].image.id)
    for image in store.graph.all():
        if image.config.cmd == ("old",):
            store.graph.delete(image.id)
    store.close()


def test_a_kill_before_any_step_loses_nothing(quick_disk: Path) -> None:
    archive = two_images(quick_disk / "from")
    step, status = 0, -1
    while status != 0:
        root = quick_disk / f"store{step}"
        root.mkdir()
        kept = begin(root)

        def killed(step: int = step, root: Path = root) -> None:
            die_before(step)
            job(root, archive)

        _, status = os.waitpid(in_child(killed), 0)
        assert status in (0, signal.SIGKILL), step
        all_is_well(root, kept)
        shutil.rmtree(root)
        step += 1
    assert step > 50


def test_a_kill_at_any_time_loses_nothing(quick_disk: Path) -> None:
    archive = two_images(quick_disk / "from")
    statuses = []
    for number in range(25):
        root = quick_disk / f"store{number}"
        root.mkdir()
        kept = begin(root)
        child = in_child(lambda root=root: job(root, archive))  # type: ignore[misc]
        time.sleep(0.002 * number)
        os.kill(child, signal.SIGKILL)
        statuses.append(os.waitpid(child, 0)[1])
        all_is_well(root, kept)
        shutil.rmtree(root)
    assert signal.SIGKILL in statuses


# -- deep stacks -----------------------------------------------------------------------------------


def lays_detached() -> bool:
    """Whether this kernel lays an overlay on one that is mounted nowhere."""
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_a_container_reads_every_layer_of_a_deep_stack(engine: Runtime, tiny_archive: Path) -> None:
    count = 600 if lays_detached() else 499
    with open(tiny_archive, "rb") as source:
        stack = [engine.graph.stage_layer(source)]
    for number in range(1, count):
        gone = file(b".wh.n%d" % (number - 100), b"") if number > 100 else b""
        data = ROOT + file(b"top", b"%d" % number) + file(b"n%d" % number, b"x") + gone + END
        stack.append(engine.graph.stage_layer(io.BytesIO(data)))
    chain = chain_ids([one.diff_id for one in stack])
    layers = engine.graph.place_layers(list(zip(stack, ("", *chain), strict=False)))
    image = engine.graph.create(layers, Config())
    container = engine.create(
        Config(image=image.id, cmd=("sh", "-c", "cat /top; ls / | grep -c '^n[0-9]'"))
    )
    assert container.run() == 0
    assert b"".join(one.message for one in container.read_log()).split() == [b"%d100" % (count - 1)]


@pytest.mark.needs("overlay", "busybox", "cgroups")
def test_an_image_removed_while_a_container_is_made_of_it_leaves_no_half_container(
    engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = engine.tags.lookup_image("base")
    real = ContainerFiles.make

    def make(
        files: ContainerFiles, record: Record, top: os.stat_result, spare: Spare | None
    ) -> None:
        real(files, record, top, spare)
        monkeypatch.undo()
        with engine.graph.steady_users():
            engine.tags.delete("base")
            engine.graph.delete(base.id)

    monkeypatch.setattr(ContainerFiles, "make", make)
    with pytest.raises(NoSuchImage):
        engine.create(Config(image="base", cmd=("true",)), "half")
    assert engine.list() == []
    assert not engine.exists("half")
    assert os.listdir(engine.root / "containers") == []
    assert not engine.graph.exists(base.id)
