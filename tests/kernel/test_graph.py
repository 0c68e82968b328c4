"""Images and their names on a real disk."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockpy import archive, image_config, records
from dockpy.errors import (
    AmbiguousPrefix,
    BadArchive,
    Conflict,
    KernelError,
    NoSuchImage,
    RequestError,
    StoreError,
    TornRecord,
    UsageError,
)
from dockpy.graph import Graph, Layer
from dockpy.image_config import ImageConfig, chain_ids
from dockpy.model import Config, Image
from dockpy.records import TEMPORARY, Flusher, Trash
from dockpy.tags import TagStore
from patience import patient
from reference.tarblocks import END, file, header

pytestmark = pytest.mark.needs("root")


class Store:
    """A graph and its tags on one root, as the runtime puts them together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flusher = Flusher()
        self.trash = Trash(root)
        self.graph = Graph(root, self.flusher, self.trash)
        self.tags = TagStore(root, self.graph, self.flusher)

    def close(self) -> None:
        self.trash.close()
        self.flusher.close()

    def layer_names(self) -> list[str]:
        return sorted(os.listdir(self.root / "layers"))

    def image_names(self) -> list[str]:
        return sorted(os.listdir(self.root / "graph"))

    def put(self, text: bytes, **config: object) -> Image:
        return self.graph.import_archive(tar(text), config=Config(**config))  # type: ignore[arg-type]


def tar(text: bytes, name: bytes = b"f") -> io.BytesIO:
    return io.BytesIO(header(b"./", b"5", mode=0o755) + file(name, text) + END)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def reopen(store: Store) -> Store:
    store.close()
    return Store(store.root)


def test_an_imported_archive_is_an_oci_image(store: Store) -> None:
    data = tar(b"hello").getvalue()
    before = time.time()
    image = store.graph.import_archive(
        io.BytesIO(gzip.compress(data)),
        config=Config(cmd=("sh",), env=("A=1",), labels={"x": "y"}),
        comment="first",
    )
    diff_id = hashlib.sha256(data).hexdigest()
    assert (image.diff_ids, image.layers) == ((diff_id,), (diff_id,))
    assert (image.size, image.comment, image.parent, image.os) == (5, "first", "", "linux")
    assert before <= image.created <= time.time()
    document = store.graph.configuration(image)
    assert hashlib.sha256(document).hexdigest() == image.id
    values = json.loads(document)
    assert values["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}
    assert values["config"] == {"Cmd": ["sh"], "Env": ["A=1"], "Labels": {"x": "y"}}
    assert values["history"][0]["comment"] == "first"
    [lower] = store.graph.lower_directories(image)
    assert (lower / "f").read_bytes() == b"hello"


def test_images_are_the_same_after_a_restart(store: Store) -> None:
    images = [store.put(b"%d" % n, cmd=("x", str(n)), volumes=("/v",)) for n in range(3)]
    again = reopen(store)
    assert again.graph.map() == {image.id: image for image in images}
    assert again.graph.all() == sorted(images, key=lambda i: -i.created)
    assert again.graph.check() == []
    again.close()


def test_an_image_is_found_by_id_and_unique_prefix_only(store: Store) -> None:
    images = [store.put(b"%d" % n) for n in range(17)]
    image = images[0]
    assert store.graph.get(image.id) == image
    assert store.graph.get(f"sha256:{image.id}") == image
    assert store.graph.get(image.id[:20]) == image
    first = [i.id[0] for i in images]
    shared = next(c for c in first if first.count(c) > 1)  # 17 ids, 16 digits
    with pytest.raises(AmbiguousPrefix):
        store.graph.get(shared)
    assert not store.graph.exists(shared)
    for wrong in ("", "sha256:", "xyz", image.id + "0", image.id[:10].upper() + "G", "../graph"):
        with pytest.raises(NoSuchImage):
            store.graph.get(wrong)
        assert not store.graph.exists(wrong)


def test_equal_layers_are_kept_once_and_removed_with_their_last_image(store: Store) -> None:
    one, two = store.put(b"same", cmd=("1",)), store.put(b"same", cmd=("2",))
    assert one.id != two.id
    assert one.layers == two.layers
    assert store.layer_names() == [one.layers[0]]
    store.graph.delete(one.id)
    assert (store.graph.lower_directories(two)[0] / "f").exists()
    store.graph.delete(two.id[:12])
    assert store.layer_names() == store.image_names() == []
    assert store.trash.wait(patient(10))
    assert os.listdir(store.root / "trash") == []
    with pytest.raises(NoSuchImage):
        store.graph.delete(one.id)


def stack(store: Store, texts: list[bytes]) -> list[Layer]:
    layers: list[Layer] = []
    for text in texts:
        parent = layers[-1].chain_id if layers else ""
        layers.append(store.graph.register_layer(tar(text), parent=parent))
    return layers


def test_a_stack_of_layers_is_given_top_most_first(store: Store) -> None:
    image = store.graph.create(stack(store, [b"0", b"1", b"2"]), Config())
    assert image.layers == chain_ids(image.diff_ids)
    lowers = store.graph.lower_directories(image)
    assert [(lower / "f").read_bytes() for lower in lowers] == [b"2", b"1", b"0"]
    assert image.size == 3


def test_the_same_layer_on_other_parents_is_another(store: Store) -> None:
    one, two = stack(store, [b"a", b"b"]), stack(store, [b"b"])
    assert one[1].diff_id == two[0].diff_id
    assert one[1].chain_id != two[0].chain_id


def test_layers_unpacked_at_the_same_time_come_to_one_place(store: Store) -> None:
    made: list[Layer] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.graph.register_layer(tar(b"x"))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert store.layer_names() == [made[0].chain_id]
    store.graph.release(made)
    assert store.layer_names() == []


def test_a_layer_kept_for_an_image_to_come_outlives_other_images(store: Store) -> None:
    old = store.put(b"shared")
    [layer] = stack(store, [b"shared"])
    store.graph.delete(old.id)
    image = store.graph.create([layer], Config(cmd=("new",)))
    assert store.graph.lower_directories(image)
    store.graph.delete(image.id)
    assert store.layer_names() == []


def test_a_layer_that_is_not_what_was_promised_is_refused(store: Store) -> None:
    with pytest.raises(BadArchive, match="promised"):
        store.graph.register_layer(tar(b"x"), expected="0" * 64)
    assert store.layer_names() == []
    good = hashlib.sha256(tar(b"x").getvalue()).hexdigest()
    assert store.graph.register_layer(tar(b"x"), expected=good).diff_id == good


def test_an_import_takes_files_then_the_layers_name_then_the_images_to_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    rename = os.rename

    def named(place: str) -> str:
        """What it is: a temporary or a final name below the root."""
        parts = Path(place).relative_to(store.root).parts
        return "/".join("TMP" if one.startswith(TEMPORARY) else one for one in parts)

    def flushed(what: str) -> Callable[[int], None]:
        return lambda fd: happened.append(f"{what} {named(os.readlink(f'/proc/self/fd/{fd}'))}")

    def moved(source: Path, target: Path) -> None:
        rename(source, target)
        happened.append(f"rename {named(str(target))}")

    monkeypatch.setattr(records, "_syncfs", flushed("syncfs"))
    monkeypatch.setattr(records.os, "fsync", flushed("fsync"))
    monkeypatch.setattr(records.os, "fdatasync", flushed("fdatasync"))
    monkeypatch.setattr(os, "rename", moved)
    image = store.put(b"new")
    [layer] = image.layers
    assert happened == [
        "rename graph/TMP/json",
        "rename graph/TMP/meta.json",
        "rename layers/TMP/meta.json",
        "syncfs layers",
        f"rename layers/{layer}",
        "fsync layers",
        f"rename graph/{image.id}",
        "fsync graph",
    ]


@pytest.mark.parametrize("failing", range(3))
def test_an_import_that_the_disk_does_not_take_leaves_nothing(
    failing: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = store.flusher.flush, 0

    def flush(*trees: Path) -> None:
        nonlocal count
        count += 1
        if count == failing + 1:
            raise KernelError("flush filesystem", errno.EIO)
        real(*trees)

    kept = store.put(b"kept")
    monkeypatch.setattr(store.flusher, "flush", flush)
    with pytest.raises(KernelError, match="flush filesystem: EIO"):
        store.put(b"new")
    monkeypatch.undo()
    if failing < 2:
        assert store.image_names() == [kept.id]
        assert store.layer_names() == list(kept.layers)
    else:  # it is there, and perhaps not for long: only its name is not on the disk
        [made] = [image for image in store.graph.all() if image != kept]
        assert (store.graph.lower_directories(made)[0] / "f").read_bytes() == b"new"
        store.graph.delete(made.id)
        assert store.layer_names() == list(kept.layers)


@pytest.mark.parametrize("data", [b"", b"junk" * 500, file(b"a", b"x") + file(b"../b", b"x")])
def test_a_failed_import_leaves_nothing(data: bytes, store: Store) -> None:
    with pytest.raises(BadArchive):
        store.graph.import_archive(io.BytesIO(data), config=Config())
    assert store.layer_names() == store.image_names() == []
    with pytest.raises(UsageError):
        store.graph.import_archive(tar(b"x"), config=Config(env=("\udcff",)))
    assert store.layer_names() == store.image_names() == []
    assert store.trash.wait(patient(10))
    assert os.listdir(store.root / "trash") == []


def test_a_configuration_from_elsewhere_is_kept_byte_for_byte(store: Store) -> None:
    [layer] = stack(store, [b"x"])
    document = json.dumps(
        {
            "unknown": {"kept": True},
            "rootfs": {"diff_ids": [f"sha256:{layer.diff_id}"], "type": "layers"},
            "config": {"Entrypoint": ["/x"], "Healthcheck": {"Test": ["NONE"]}},
        },
        indent=3,
    ).encode()
    image = store.graph.register(document, placed=[layer])
    assert image.id == hashlib.sha256(document).hexdigest()
    assert image.config.entrypoint == ("/x",)
    assert store.graph.configuration(image) == document
    assert store.graph.register(document) == image


def test_an_image_whose_layers_are_not_here_is_refused(store: Store) -> None:
    document = image_config.dump(ImageConfig(diff_ids=("a" * 64,)))
    with pytest.raises(RequestError, match="is not here"):
        store.graph.register(document)
    assert store.image_names() == []


def test_removing_its_parent_meanwhile_does_not_harm_a_new_image(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = store.put(b"base")
    [layer] = [store.graph.layer(one) for one in base.layers]
    assert layer is not None
    real = store.flusher.flush

    def flush(*trees: Path) -> None:
        if store.graph.exists(base.id):
            store.graph.delete(base.id)
        real(*trees)

    monkeypatch.setattr(store.flusher, "flush", flush)
    image = store.graph.create([layer], Config(cmd=("child",)), parent=base.id)
    assert not store.graph.exists(base.id)
    assert (store.graph.lower_directories(image)[0] / "f").read_bytes() == b"base"
    store.graph.delete(image.id)
    assert store.layer_names() == []


def test_parents_children_heads_and_history(store: Store) -> None:
    base = store.put(b"base")
    layers = [layer for one in base.layers if (layer := store.graph.layer(one))]
    more = store.graph.register_layer(tar(b"more"), parent=layers[-1].chain_id)
    child = store.graph.create(
        [*layers, more], Config(), parent=base.id, comment="c", container="d"
    )
    other = store.graph.create(layers, Config(cmd=("x",)), parent=base.id)
    assert store.graph.by_parent() == {base.id: [other, child]}
    assert store.graph.children(base) == [other, child]
    assert store.graph.heads() == {child.id: child, other.id: other}
    assert store.graph.history(child) == [child, base]
    assert (child.comment, child.container, child.parent) == ("c", "d", base.id)
    again = reopen(store)
    assert again.graph.history(again.graph.get(child.id)) == [child, base]
    again.graph.delete(base.id)
    assert again.graph.history(child) == [child]
    assert len(again.graph.lower_directories(child)) == 2
    again.close()


def test_five_hundred_layers_are_an_image(store: Store) -> None:
    staged = store.graph.stage_layer(tar(b"x"))
    bottom = store.graph.place_layer(staged)
    layers = [bottom]
    meta = json.loads((store.root / "layers" / bottom.chain_id / "meta.json").read_bytes())
    for _ in range(499):
        chain = image_config.chain_id(layers[-1].chain_id, bottom.diff_id)
        place = store.root / "layers" / chain
        (place / "diff").mkdir(parents=True)
        (place / "meta.json").write_text(json.dumps(meta | {"parent": layers[-1].chain_id}))
        layer = store.graph.layer(chain)
        assert layer is not None
        layers.append(layer)
    image = store.graph.create(layers, Config())
    assert len(store.graph.lower_directories(image)) == 500
    store.graph.delete(image.id)
    assert store.layer_names() == []


# -- what crashes and broken disks leave


def test_the_check_removes_what_was_left_unfinished(store: Store) -> None:
    image = store.put(b"kept")
    for parent in ("graph", "layers"):
        (store.root / parent / f"{TEMPORARY}123" / "diff").mkdir(parents=True)
    orphan = stack(store, [b"orphan"])[0]
    again = reopen(store)
    findings = again.graph.check()
    assert sorted(finding.problem for finding in findings) == [
        "a layer of no image",
        "left unfinished",
        "left unfinished",
    ]
    assert any(orphan.chain_id in str(finding) for finding in findings)
    assert again.layer_names() == list(image.layers)
    assert again.image_names() == [image.id]
    assert again.graph.check() == []
    again.close()


@pytest.mark.parametrize("name", ["json", "meta.json"])
@pytest.mark.parametrize("harm", ["empty", "changed", "missing", "other type"])
def test_a_torn_image_is_named_and_set_aside_and_the_others_load(
    name: str, harm: str, store: Store
) -> None:
    torn, good = store.put(b"torn"), store.put(b"good")
    path = store.root / "graph" / torn.id / name
    if harm == "missing":
        path.unlink()
    else:
        old = path.read_bytes()
        path.write_bytes({"empty": b"", "changed": old[:-5], "other type": b"[]"}[harm])
    again = reopen(store)
    assert again.graph.all() == [good]
    findings = again.graph.check()
    assert any(str(path) in str(finding) for finding in findings)
    assert any(entry.startswith(f"{torn.id}.torn-") for entry in again.image_names())
    # Its layer stays for who repairs it.
    assert torn.layers[0] in again.layer_names()
    again.close()


def test_a_missing_layer_is_named(store: Store) -> None:
    image = store.put(b"x")
    archive.remove(store.root / "layers" / image.layers[0])
    with pytest.raises(StoreError, match=image.layers[0]):
        store.graph.lower_directories(image)
    again = reopen(store)
    [finding] = again.graph.check()
    assert image.layers[0] in str(finding)
    assert image.short_id in str(finding)
    again.close()


def test_a_changed_configuration_is_noticed_when_it_is_read(store: Store) -> None:
    image = store.put(b"x")
    (store.root / "graph" / image.id / "json").write_bytes(b"{}")
    with pytest.raises(TornRecord, match="does not match"):
        store.graph.configuration(image)


@pytest.mark.parametrize("step", range(9))
def test_a_kill_at_any_persisted_step_loses_no_image(step: int, tmp_path: Path) -> None:
    """A child is killed at its nth step of an import, a tagging and a removal."""
    first = Store(tmp_path)
    kept = first.put(b"kept")
    old = first.put(b"old")
    first.tags.set("kept", "", kept.id)
    first.close()
    child = os.fork()
    if child == 0:
        _die_at(step)
        try:
            store = Store(tmp_path)
            new = store.put(b"new")
            store.tags.set("new", "", new.id)
            store.graph.delete(old.id)
            store.close()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    after = Store(tmp_path)
    findings = after.graph.check()
    assert not any("torn" in finding.repair for finding in findings)
    assert after.tags.findings == []
    assert after.tags.lookup_image("kept") == kept
    for image in after.graph.all():
        [lower] = after.graph.lower_directories(image)
        assert (lower / "f").read_bytes() in (b"kept", b"old", b"new")
    if after.tags.get("new"):
        assert after.tags.lookup_image("new").size == 3
    used = {layer for image in after.graph.all() for layer in image.layers}
    assert set(after.layer_names()) == used
    assert not any(name.startswith(TEMPORARY) for name in after.image_names())
    assert after.graph.check() == []
    after.trash.sweep()
    assert after.trash.wait(patient(10))
    assert not (tmp_path / "trash").exists() or os.listdir(tmp_path / "trash") == []
    after.close()


def _die_at(step: int) -> None:
    """Before the `step`th rename of this process, kill it."""
    real, count = os.rename, 0

    def rename(source: Path, target: Path) -> None:
        nonlocal count
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        real(source, target)

    os.rename = rename  # type: ignore[assignment]


# -- names


def test_a_name_finds_its_image_and_wins_over_a_prefix(store: Store) -> None:
    one, two = store.put(b"1"), store.put(b"2")
    store.tags.set("base", "", one.id)
    store.tags.set("host.example:5000/team/base", "v1", two.id[:15])
    store.tags.set(two.id[:8], "latest", one.id)
    assert store.tags.lookup_image("base") == one
    assert store.tags.lookup_image("base:latest") == one
    assert store.tags.lookup_image("host.example:5000/team/base:v1") == two
    assert store.tags.lookup_image(two.id[:8]) == one
    assert store.tags.lookup_image(two.id[:9]) == two
    assert store.tags.lookup_image(two.id) == two
    assert store.tags.lookup_image(f"sha256:{two.id}") == two
    assert store.tags.lookup_image(f"sha256:{two.id[:9]}") == two
    assert store.tags.lookup_image(f"base@sha256:{one.id}") == one
    for missing in (
        "none",
        "base:v2",
        "host.example:5000/team/base",
        f"base:latest@sha256:{two.id}",
    ):
        with pytest.raises(NoSuchImage):
            store.tags.lookup_image(missing)
    with pytest.raises(UsageError, match="lower case"):
        store.tags.lookup_image("Base")
    again = reopen(store)
    assert again.tags.lookup_image("base") == one
    assert again.tags.by_id()[one.id] == sorted(["base:latest", f"{two.id[:8]}:latest"])
    again.close()


def test_a_name_moves_only_by_force(store: Store) -> None:
    one, two = store.put(b"1"), store.put(b"2")
    store.tags.set("base", "x", one.id)
    store.tags.set("base", "x", one.id)
    with pytest.raises(Conflict, match="force"):
        store.tags.set("base", "x", two.id)
    assert store.tags.get_image("base", "x") == one
    store.tags.set("base", "x", two.id, force=True)
    assert store.tags.get("base") == {"x": two.id}
    store.tags.set("copy", "", "base:x")
    assert store.tags.image_name(two.id) == "base:x"
    assert store.tags.image_name(one.id) == one.short_id
    with pytest.raises(NoSuchImage):
        store.tags.set("base", "y", "nothing")
    with pytest.raises(UsageError):
        store.tags.set("Base", "y", one.id)


def test_the_long_and_the_short_name_of_a_repository_are_one(store: Store) -> None:
    one, two = store.put(b"1"), store.put(b"2")
    store.tags.set("here.example/old", "", one.id)  # when here.example was not the default yet
    store.tags.familiar = lambda reference: reference.repository.removeprefix("here.example/")
    store.tags.set("here.example/base", "v1", one.id)
    assert store.tags.repositories() == {
        "base": {"v1": one.id},
        "here.example/old": {"latest": one.id},
    }
    for name in ("base", "here.example/base"):
        assert store.tags.lookup_image(f"{name}:v1") == one
        assert store.tags.get(name) == {"v1": one.id}
    assert store.tags.lookup_image("here.example/old") == one
    with pytest.raises(NoSuchImage):
        store.tags.lookup_image("old")
    store.tags.set("here.example/old", "more", two.id)
    assert store.tags.delete("here.example/old", "latest") == ["here.example/old:latest"]
    store.tags.set("old", "", two.id)
    assert store.tags.lookup_image("here.example/old") == two  # the short one is the newer
    assert store.tags.delete("here.example/base") == ["base:v1"]


def test_no_name_looks_like_an_id(store: Store) -> None:
    one, two = store.put(b"1"), store.put(b"2")
    for name in ("sha256", "sha512"):
        with pytest.raises(UsageError, match="look like an id"):
            store.tags.set(name, two.id, one.id)
    store.tags.set("host.example/sha256", "x", one.id)
    assert store.tags.lookup_image(f"sha256:{two.id}") == two


def test_untagging_leaves_the_image(store: Store) -> None:
    image = store.put(b"1")
    for tag in ("a", "b", "c"):
        store.tags.set("base", tag, image.id)
    assert store.tags.delete("base", "a") == ["base:a"]
    with pytest.raises(NoSuchImage):
        store.tags.delete("base", "a")
    assert store.tags.delete("base") == ["base:b", "base:c"]
    assert store.tags.repositories() == {}
    with pytest.raises(NoSuchImage):
        store.tags.delete("base")
    assert store.graph.get(image.id) == image


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": 1}', b'{"a": {"b": "../x"}}', b'{"a":'])
def test_a_torn_record_of_names_is_set_aside_and_told(data: bytes, store: Store) -> None:
    (store.root / "repositories.json").write_bytes(data)
    again = reopen(store)
    [finding] = again.tags.findings
    assert "repositories.json" in str(finding)
    assert again.tags.repositories() == {}
    assert any(name.startswith("repositories.json.torn-") for name in os.listdir(store.root))
    again.close()


def test_names_stay_as_they_were_when_the_record_cannot_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = store.put(b"1")
    store.tags.set("base", "", image.id)

    def refuse(*_: object) -> None:
        raise StoreError("no")

    monkeypatch.setattr("dockpy.tags.write", refuse)
    with pytest.raises(StoreError):
        store.tags.set("base", "x", image.id)
    with pytest.raises(StoreError):
        store.tags.delete("base")
    assert store.tags.repositories() == {"base": {"latest": image.id}}
