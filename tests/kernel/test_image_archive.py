"""Images written to an archive and read again, by us and by the tools that people have."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dockpy.errors import BadArchive, DockpyError, NoSuchImage
from dockpy.graph import Graph, Layer
from dockpy.image_archive.loading import Loaded, load
from dockpy.image_archive.saving import Selected, save
from dockpy.model import Config, Image
from dockpy.records import Flusher, Trash
from patience import patient
from reference.tarblocks import END, file, header

Way = Callable[[Graph, bytes], list[Loaded]]

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def graphs(tmp_path: Path) -> Iterator[Callable[[], Graph]]:
    """Makes stores that share nothing."""
    with contextlib.ExitStack() as opened:

        def make() -> Graph:
            root = tmp_path / f"store{len(os.listdir(tmp_path))}"
            root.mkdir()
            flusher = Flusher()
            opened.callback(flusher.close)
            trash = Trash(root)
            opened.callback(trash.close)
            return Graph(root, flusher, trash)

        yield make


def layer(*files: bytes) -> bytes:
    return header(b"./", b"5", mode=0o755) + b"".join(file(*one.split(b"=")) for one in files) + END


def image(graph: Graph, *layers: bytes, **config: object) -> Image:
    placed: list[Layer] = []
    for data in layers:
        parent = placed[-1].chain_id if placed else ""
        placed.append(graph.register_layer(io.BytesIO(data), parent=parent))
    return graph.create(placed, Config(**config), comment="made here")  # type: ignore[arg-type]


def saved(graph: Graph, *selected: Selected) -> bytes:
    reader = os.memfd_create("archive")
    try:
        save(graph, selected, reader)
        size = os.lseek(reader, 0, os.SEEK_CUR)
        return os.pread(reader, size, 0)
    finally:
        os.close(reader)


def loaded(graph: Graph, data: bytes) -> list[Loaded]:
    """From a file, where it is read as it lies when it is plain."""
    descriptor = os.memfd_create("archive")
    try:
        os.write(descriptor, b"before" + data)
        os.lseek(descriptor, len(b"before"), os.SEEK_SET)
        return load(graph, descriptor)
    finally:
        os.close(descriptor)


def streamed(graph: Graph, data: bytes) -> list[Loaded]:
    """From what cannot be sought: it is unpacked first."""
    return load(graph, io.BytesIO(data))


WAYS = pytest.mark.parametrize("way", [loaded, streamed])


def content(graph: Graph, of: Image, name: str) -> bytes:
    for place in graph.lower_directories(of):
        with contextlib.suppress(FileNotFoundError):
            return (place / name).read_bytes()
    raise AssertionError(f"no {name}")


def left_in(graph: Graph) -> list[str]:
    places = (graph._directory, graph._layers.directory)
    return sorted(name for place in places for name in os.listdir(place))


# -- ours to ours ------------------------------------------------------------------------------


@WAYS
def test_what_was_saved_is_loaded_with_ids_names_and_files(
    graphs: Callable[[], Graph], way: Way
) -> None:
    first, second = graphs(), graphs()
    base = image(first, layer(b"a=1"), cmd=("/a",))
    top = image(first, layer(b"a=1"), layer(b"b=2", b".wh.a="), env=("X=1",))
    data = saved(
        first, Selected(base, ("base:latest",)), Selected(top, ("top:1", "host:5000/top:2"))
    )
    found = way(second, data)
    assert [(one.image.id, one.names) for one in found] == [
        (base.id, ("base:latest",)),
        (top.id, ("top:1", "host:5000/top:2")),
    ]
    assert content(second, found[0].image, "a") == b"1"
    assert content(second, found[1].image, "b") == b"2"
    assert len(os.listdir(second._layers.directory)) == 2  # shared
    assert found[1].image.config.env == ("X=1",)


@WAYS
def test_the_same_images_give_the_same_bytes(graphs: Callable[[], Graph], way: Way) -> None:
    first, second = graphs(), graphs()
    made = image(first, layer(b"a=1"), layer(b"c=3"))
    data = saved(first, Selected(made, ("x:1",)))
    again = way(second, data)[0].image
    assert saved(second, Selected(again, ("x:1",))) == data


def test_an_image_that_is_removed_while_it_is_saved_is_saved_whole(
    graphs: Callable[[], Graph],
) -> None:
    first, second = graphs(), graphs()
    made = image(first, layer(b"a=" + bytes(3 << 20)), layer(b"b=2"))
    reader, writer = os.pipe()

    def write() -> None:
        try:
            save(first, [Selected(made, ("made:1",))], writer)
        finally:
            os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, "rb") as stream:
        data = stream.read(512)  # it has begun, and the pipe is too small for the rest
        first.delete(made.id)
        data += stream.read()
    thread.join()
    [one] = streamed(second, data)
    assert one.image.id == made.id
    assert content(second, one.image, "b") == b"2"
    assert left_in(first) == []
    with pytest.raises(NoSuchImage):
        saved(first, Selected(made, ()))


def test_an_image_without_a_name_is_loaded_by_its_id(graphs: Callable[[], Graph]) -> None:
    made = image(first := graphs(), layer(b"a=1"))
    found = loaded(graphs(), saved(first, Selected(made, ())))
    assert [(one.image.id, one.names) for one in found] == [(made.id, ())]


def test_loading_what_is_there_changes_nothing(graphs: Callable[[], Graph]) -> None:
    graph = graphs()
    made = image(graph, layer(b"a=1"), layer(b"b=2"))
    before = left_in(graph)
    assert loaded(graph, saved(graph, Selected(made, ("x:1",))))[0].image.id == made.id
    assert left_in(graph) == before


@pytest.mark.parametrize("pack", [["gzip"], ["xz", "-T1"], ["zstd", "-q"]], ids=lambda one: one[0])
def test_compressed_archives_are_read(graphs: Callable[[], Graph], pack: Sequence[str]) -> None:
    made = image(first := graphs(), layer(b"a=1"))
    data = saved(first, Selected(made, ("x:1",)))
    if not any(os.access(f"{place}/{pack[0]}", os.X_OK) for place in ("/bin", "/usr/bin")):
        pytest.skip(f"{pack[0]} is not installed")
    packed = subprocess.run([*pack, "-c"], input=data, capture_output=True, check=True).stdout
    assert loaded(graphs(), packed)[0].image.id == made.id


def test_five_hundred_layers(graphs: Callable[[], Graph]) -> None:
    first, second = graphs(), graphs()
    made = image(first, *(layer(b"n=%d" % number) for number in range(500)))
    found = loaded(second, saved(first, Selected(made, ("deep:1",))))
    assert len(found[0].image.layers) == 500
    assert content(second, found[0].image, "n") == b"499"


# -- OCI layouts -------------------------------------------------------------------------------


def oci(*listed: dict[str, object]) -> bytes:
    """A layout of one image, listed as told; `digest` and `size` are added where it has none."""
    configuration = config(DIFF_ID)
    blobs = {hashlib.sha256(data).hexdigest(): data for data in (LAYER, configuration)}

    def described(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": described(configuration, "config.v1+json"),
            "layers": [described(LAYER, "layer.v1.tar")],
        }
    ).encode()
    blobs[hashlib.sha256(manifest).hexdigest()] = manifest
    image_in_it = described(manifest, "manifest.v1+json")
    index = json.dumps({"manifests": [{**image_in_it, **one} for one in listed]}).encode()
    members: dict[str, bytes | str] = {f"blobs/sha256/{key}": data for key, data in blobs.items()}
    return archive(**{"oci-layout": b"{}", "index.json": index, **members})


FULL, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"
NOTE: dict[str, object] = {
    "platform": {"os": "unknown", "architecture": "unknown"},
    "digest": "sha256:" + "f" * 64,
}


@WAYS
@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ([{}], ()),
        ([{"annotations": {REF: "host/some/name:2"}}], ("host/some/name:2",)),
        ([{"annotations": {REF: "v1"}}], ("v1",)),
        ([{"annotations": {REF: "Any Text @ all"}}], ()),
        ([{"annotations": {FULL: "docker.io/x/y:1", REF: "1"}}], ("docker.io/x/y:1",)),
        ([{"annotations": {REF: "a:1"}}, {"annotations": {REF: "b:2"}}], ("a:1", "b:2")),
        ([{"annotations": {REF: "a:1"}}, NOTE], ("a:1",)),
    ],
    ids=str,
)
def test_names_in_an_oci_layout(
    graphs: Callable[[], Graph],
    way: Way,
    listed: list[dict[str, object]],
    names: tuple[str, ...],
) -> None:
    [found] = way(graph := graphs(), oci(*listed))
    assert found.names == names
    assert content(graph, found.image, "a") == b"1"


def test_names_are_what_the_caller_calls_them(graphs: Callable[[], Graph]) -> None:
    data = oci({"annotations": {REF: "a:1"}}, {"annotations": {REF: "b:1"}})
    [found] = load(graphs(), io.BytesIO(data), lambda name: f"called:{name[-1]}")
    assert found.names == ("called:1",)


# -- hostile archives --------------------------------------------------------------------------


def archive(**members: bytes | str) -> bytes:
    """A tar; a text is the target of a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as one:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                one.addfile(info)
            else:
                info.size = len(data)
                one.addfile(info, io.BytesIO(data))
    return out.getvalue()


def docker(config: str = "config", layers: Sequence[str] = ("layer",)) -> bytes:
    return json.dumps([{"Config": config, "RepoTags": ["x:1"], "Layers": layers}]).encode()


LAYER = layer(b"a=1")
DIFF_ID = "sha256:" + hashlib.sha256(LAYER).hexdigest()


def config(*diff_ids: str) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
    ).encode()


GOOD = {"manifest.json": docker(), "config": config(DIFF_ID), "layer": LAYER}
HOSTILE: dict[str, dict[str, bytes | str]] = {
    "nothing": {"x": b"1"},
    "empty list": {"manifest.json": b"[]"},
    "no json": {"manifest.json": b"{"},
    "deep json": {"manifest.json": b"[" * 100_000},
    "no object": {"manifest.json": b"[1]"},
    "huge manifest": {**GOOD, "manifest.json": b" " * (5 << 20) + docker()},
    "missing config": {**GOOD, "manifest.json": docker(config="absent")},
    "missing layer": {**GOOD, "manifest.json": docker(layers=["absent"])},
    "too few layers": {**GOOD, "manifest.json": docker(layers=[])},
    "another layer": {**GOOD, "layer": layer(b"a=2")},
    "layer is no tar": {**GOOD, "layer": b"x" * 2000},
    "config is a link to the host": {**GOOD, "config": "/etc/hostname"},
    "layer is a link to the host": {**GOOD, "layer": "../../../../../../etc/passwd"},
    "layer is a link to itself": {**GOOD, "layer": "layer"},
    "path to the host": {**GOOD, "manifest.json": docker(layers=["../../../../../etc/passwd"])},
    "nul in a path": {**GOOD, "manifest.json": docker(layers=["layer\0"])},
    "name that is none": {**GOOD, "manifest.json": docker().replace(b"x:1", b"X:1")},
    "name with a digest": {
        **GOOD,
        "manifest.json": docker().replace(b"x:1", b"x@sha256:" + b"0" * 64),
    },
    "bad diff id": {**GOOD, "config": config("sha256:../../x")},
    "index without end": {
        "index.json": (
            loop := json.dumps(
                {
                    "manifests": [
                        {
                            "mediaType": "application/vnd.oci.image.index.v1+json",
                            "digest": "sha256:" + "0" * 64,
                        }
                    ]
                }
            ).encode()
        ),
        "blobs/sha256/" + "0" * 64: loop,
    },
    "digest that lies": {
        "index.json": json.dumps(
            {
                "manifests": [
                    {
                        "mediaType": "application/vnd.oci.image.manifest.v1+json",
                        "digest": "sha256:" + "1" * 64,
                    }
                ]
            }
        ).encode(),
        "blobs/sha256/" + "1" * 64: b"{}",
    },
}


@WAYS
def test_the_good_twin_of_the_hostile_ones_is_read(graphs: Callable[[], Graph], way: Way) -> None:
    assert way(graphs(), archive(**GOOD))[0].names == ("x:1",)


@WAYS
@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_one_clear_error_and_leaves_nothing(
    graphs: Callable[[], Graph], way: Way, members: dict[str, bytes | str]
) -> None:
    graph = graphs()
    with pytest.raises(DockpyError) as caught:
        way(graph, archive(**members))
    assert isinstance(caught.value, BadArchive)
    assert "\n" not in str(caught.value)
    assert left_in(graph) == []


@WAYS
def test_a_truncated_archive_leaves_nothing(graphs: Callable[[], Graph], way: Way) -> None:
    graph = graphs()
    data = archive(**GOOD)
    for cut in range(512, len(data.rstrip(b"\0")), 512):
        with pytest.raises(BadArchive):
            way(graph, data[: cut - 1])
        assert left_in(graph) == []


@WAYS
def test_an_image_that_fails_leaves_those_before_it(graphs: Callable[[], Graph], way: Way) -> None:
    graph = graphs()
    manifest = json.loads(docker()) + json.loads(docker(config="absent"))
    with pytest.raises(BadArchive):
        way(graph, archive(**{**GOOD, "manifest.json": json.dumps(manifest).encode()}))
    assert len(graph.all()) == 1


# -- before there were manifests ----------------------------------------------------------------


def old_archive(**changes: bytes | str) -> bytes:
    """Two layers as Docker wrote them before 1.10; `top` and `base` replace their documents."""
    base, top = "b" * 64, "a" * 64
    documents: dict[str, object] = {
        base: {
            "id": base,
            "created": "2013-04-01T10:00:00Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", "make it"]},
        },
        top: {
            "id": top,
            "parent": base,
            "created": "2013-05-01T10:00:00.5Z",
            "comment": "on top",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/run"], "Env": ["A=1"]},
            "Size": 3,
        },
    }
    members: dict[str, bytes | str] = {
        "repositories": json.dumps({"old/name": {"1": top, "2": top}}).encode()
    }
    for name, data in ((base, LAYER), (top, layer(b"b=2", b".wh.a="))):
        members[f"{name}/VERSION"] = b"1.0"
        members[f"{name}/json"] = json.dumps(documents[name]).encode()
        members[f"{name}/layer.tar"] = data
    return archive(**{**members, **changes})


@WAYS
def test_an_archive_from_before_manifests_is_read(graphs: Callable[[], Graph], way: Way) -> None:
    graph = graphs()
    [found] = way(graph, old_archive())
    assert found.names == ("old/name:1", "old/name:2")
    assert found.image.config == Config(cmd=("/run",), env=("A=1",))
    assert "sha256:" + found.image.diff_ids[0] == DIFF_ID
    assert content(graph, found.image, "b") == b"2"
    assert found.image.created == 1367402400.5
    steps = json.loads(graph.configuration(found.image))["history"]
    assert [one.get("created_by") for one in steps] == ["/bin/sh -c make it", None]
    assert steps[1]["comment"] == found.image.comment == "on top"
    assert [one.image.id for one in way(graph, old_archive())] == [found.image.id]


@WAYS
@pytest.mark.parametrize(
    "changes",
    [
        {"repositories": b"{}"},
        {"repositories": b"[]"},
        {"repositories": b'{"x": ["1"]}'},
        {"repositories": json.dumps({"X": {"1": "a" * 64}}).encode()},
        {"repositories": b'{"x": {"1": "../../etc"}}'},
        {"repositories": json.dumps({"x": {"1": "c" * 64}}).encode()},
        {f"{'a' * 64}/json": b"5"},
        {f"{'a' * 64}/json": json.dumps({"parent": "a" * 64}).encode()},
        {f"{'a' * 64}/json": json.dumps({"parent": "../x"}).encode()},
        {f"{'a' * 64}/json": json.dumps({"config": {"Cmd": 5}}).encode()},
        {f"{'b' * 64}/json": json.dumps({"parent": "a" * 64}).encode()},
        {f"{'b' * 64}/layer.tar": "/etc/passwd"},
        {f"{'a' * 64}/layer.tar": b"junk" * 500},
    ],
    ids=str,
)
def test_an_old_archive_that_is_hostile_is_one_clear_error_and_leaves_nothing(
    graphs: Callable[[], Graph], way: Way, changes: dict[str, bytes | str]
) -> None:
    graph = graphs()
    with pytest.raises(BadArchive) as caught:
        way(graph, old_archive(**changes))
    assert "\n" not in str(caught.value)
    assert left_in(graph) == []


# -- with other tools --------------------------------------------------------------------------


def tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


SKOPEO = ("skopeo", "--insecure-policy", "copy")


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeo_reads_ours_and_we_read_what_it_writes(
    graphs: Callable[[], Graph], tmp_path: Path, kind: str
) -> None:
    first = graphs()
    made = image(first, layer(b"a=1"), layer(b"b=2"), cmd=("/run",))
    (tmp_path / "ours.tar").write_bytes(saved(first, Selected(made, ("some/name:1",))))
    out = tmp_path / "theirs.tar"
    tool(*SKOPEO, f"docker-archive:{tmp_path}/ours.tar:some/name:1", f"{kind}:{out}:some/name:2")
    graph = graphs()
    found = loaded(graph, out.read_bytes())[0].image
    assert found.diff_ids == made.diff_ids
    assert found.config.cmd == ("/run",)
    assert content(graph, found, "b") == b"2"
    if kind == "docker-archive":
        assert found.id == made.id


@pytest.mark.needs("skopeo")
def test_our_archive_is_an_oci_layout_too(graphs: Callable[[], Graph], tmp_path: Path) -> None:
    made = image(first := graphs(), layer(b"a=1"))
    (tmp_path / "ours.tar").write_bytes(saved(first, Selected(made, ("name:one",))))
    out = tmp_path / "theirs.tar"
    tool(*SKOPEO, f"oci-archive:{tmp_path}/ours.tar:one", f"docker-archive:{out}:name:two")
    assert loaded(graphs(), out.read_bytes())[0].image.diff_ids == made.diff_ids


@pytest.mark.needs("podman")
def test_podman_loads_ours_and_we_load_what_it_saves(
    graphs: Callable[[], Graph], tmp_path: Path, short_run: Callable[[], Path]
) -> None:
    first = graphs()
    made = image(first, layer(b"a=1"), layer(b"b=2"), cmd=("/run",))
    (tmp_path / "ours.tar").write_bytes(saved(first, Selected(made, ("name:1",))))
    podman = ["podman", "--root", f"{tmp_path}/data", "--runroot", str(short_run())]
    podman += ["--storage-driver", "vfs"]
    try:
        tool(*podman, "load", "-q", "-i", f"{tmp_path}/ours.tar")
        listed = tool(
            *podman, "images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"
        )
        assert listed.split() == [f"sha256:{made.id}", "localhost/name:1"]
        for form in ("docker-archive", "oci-archive"):
            out = tmp_path / form
            tool(*podman, "save", "-q", "--format", form, "-o", str(out), "localhost/name:1")
            found = loaded(graphs(), out.read_bytes())[0]
            assert found.image.diff_ids == made.diff_ids
            assert found.names == ("localhost/name:1",)
    finally:
        subprocess.run([*podman, "rmi", "-af"], capture_output=True, check=False, timeout=60)


@pytest.fixture
def docker_engine(tmp_path: Path) -> Iterator[list[str]]:
    """The command that talks to a dockerd of this test, which makes no network and no container."""
    socket = tmp_path / "docker.sock"
    server = subprocess.Popen(
        [
            *("dockerd", "--data-root", f"{tmp_path}/data", "--exec-root", f"{tmp_path}/exec"),
            *("-H", f"unix://{socket}", "-p", f"{tmp_path}/pid", "--storage-driver", "vfs"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = [shutil.which("docker", path="/usr/bin:/bin") or "docker", "-H", f"unix://{socket}"]
    try:
        deadline = time.monotonic() + patient(30)
        while subprocess.run([*client, "version"], capture_output=True, check=False).returncode:
            assert server.poll() is None, "dockerd ended"
            assert time.monotonic() < deadline, "dockerd does not answer"
            time.sleep(0.1)
        yield client
    finally:
        server.terminate()
        try:
            server.wait(patient(20))
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.mark.needs("dockerd")
def test_docker_loads_ours_and_we_load_what_it_saves(
    graphs: Callable[[], Graph], tmp_path: Path, docker_engine: list[str]
) -> None:
    first = graphs()
    base = image(first, layer(b"a=1"), cmd=("/a",))
    top = image(first, layer(b"a=1"), layer(b"b=2", b".wh.a="), layer(b"b=2", b".wh.a="))
    ours = tmp_path / "ours.tar"
    selected = (Selected(base, ("base:1", "host.example/base:2")), Selected(top, ("top:1",)))
    ours.write_bytes(saved(first, *selected))
    tool(*docker_engine, "load", "-q", "-i", str(ours))
    listed = tool(
        *docker_engine, "images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"
    )
    assert sorted(listed.split("\n")[:-1]) == sorted(
        f"sha256:{one.image.id} {name}" for one in selected for name in one.names
    )
    theirs = tmp_path / "theirs.tar"
    tool(*docker_engine, "save", "-o", str(theirs), "base:1", "host.example/base:2", "top:1")
    found = loaded(second := graphs(), theirs.read_bytes())
    assert {one.image.id: set(one.names) for one in found} == {
        one.image.id: set(one.names) for one in selected
    }
    assert saved(second, *selected) == ours.read_bytes()
    with tarfile.open(theirs) as both:
        kinds = {one.name: one for one in both if one.name != "manifest.json"}
        if "repositories" not in kinds:
            return  # Docker 25 and later: an OCI layout instead
        old = io.BytesIO()
        with tarfile.open(fileobj=old, mode="w") as one:
            for member in kinds.values():
                one.addfile(member, both.extractfile(member) if member.isfile() else None)
    found = loaded(graphs(), old.getvalue())
    assert {one.image.diff_ids: set(one.names) for one in found} == {
        one.image.diff_ids: set(one.names) for one in selected
    }


@pytest.mark.needs("skopeo", "umoci")
def test_what_umoci_repacks_is_read(graphs: Callable[[], Graph], tmp_path: Path) -> None:
    made = image(first := graphs(), layer(b"a=1"))
    (tmp_path / "ours.tar").write_bytes(saved(first, Selected(made, ("name:1",))))
    place = tmp_path / "layout"
    tool(*SKOPEO, f"docker-archive:{tmp_path}/ours.tar:name:1", f"oci:{place}:one")
    tool("umoci", "unpack", "--image", f"{place}:one", str(tmp_path / "bundle"))
    (tmp_path / "bundle" / "rootfs" / "new").write_text("n")
    tool("umoci", "repack", "--image", f"{place}:two", str(tmp_path / "bundle"))
    tool("umoci", "rm", "--image", f"{place}:one")
    packed = tool_bytes("tar", "-C", str(place), "-cf", "-", ".")
    graph = graphs()
    found = loaded(graph, packed)[0].image
    assert content(graph, found, "a") == b"1"
    assert content(graph, found, "new") == b"n"


def tool_bytes(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
