"""Registries that lie, break and stall: what is wrong never gets in, what is merely broken does."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from dockpy.errors import (
    BadArchive,
    Cancelled,
    DockpyError,
    NotInRegistry,
    RegistryError,
    Unauthorized,
)
from dockpy.graph import Graph
from dockpy.records import Flusher, Trash
from dockpy.registry import manifests
from dockpy.registry.auth import Credentials
from dockpy.registry.cancellation import Cancellation
from dockpy.registry.progress import Event
from dockpy.registry.service import Registries
from dockpy.registry.settings import Limits, Patience, RegistrySettings
from dockpy.tags import TagStore
from lying_registry import Exchange, LyingRegistry, cut, digest_of, lying_registry, stall
from patience import patient
from reference.tarblocks import END, file, header

pytestmark = pytest.mark.needs("root")

QUICK = Patience(
    connect=patient(2.0),
    silence=patient(0.5),
    attempts=3,
    backoff=0.01,
    backoff_limit=0.05,
    slow_time=patient(0.4),
    slowest=1000,
)
SECRET = "not-for-anybodys-eyes"


class Place:
    """An engine's images and registries on a root of their own."""

    def __init__(self, root: Path, settings: RegistrySettings) -> None:
        self.root = root
        self.flusher = Flusher()
        self.trash = Trash(root)
        self.graph = Graph(root, self.flusher, self.trash)
        self.tags = TagStore(root, self.graph, self.flusher)
        self.registries = Registries(root, self.graph, self.tags, self.flusher, settings)
        self.tags.by_digest = self.registries.find

    def close(self) -> None:
        self.registries.close()
        self.trash.close()
        self.flusher.close()

    def left(self) -> list[str]:
        """Layers, images and downloads there are."""
        return sorted(
            f"{name}/{one}"
            for name in ("layers", "graph", "downloads", "uploads")
            if (self.root / name).is_dir()
            for one in os.listdir(self.root / name)
        )

    def downloads(self) -> dict[str, int]:
        place = self.root / "downloads"
        return {one.name: one.stat().st_size for one in place.iterdir()} if place.exists() else {}


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying_registry() as running:
        yield running


@pytest.fixture
def root(short_run: Callable[[], Path]) -> Iterator[Path]:
    """On a tmpfs, where flushing costs nothing."""
    directory = short_run()
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place(root: Path) -> Iterator[Place]:
    opened = Place(root, RegistrySettings(patience=QUICK))
    yield opened
    opened.close()


def layer(name: bytes, data: bytes = b"content") -> bytes:
    return header(b"./", b"5", mode=0o755) + file(name, data) + END


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def known(_host: str) -> Credentials:
    return Credentials("somebody", SECRET)


# -- what should work --------------------------------------------------------------------------


def test_a_layer_with_a_name_that_comes_twice_can_be_written_again(
    registry: LyingRegistry, place: Place
) -> None:
    data = header(b"./", b"5", mode=0o755) + file(b"f", b"first") + file(b"f", b"again") + END
    registry.put_image("twice", data)
    pulled = place.registries.pull_image(f"{registry.host}/twice")
    layer_of_it = place.graph.layer(pulled.image.layers[0])
    assert layer_of_it is not None
    out = os.memfd_create("stream")
    try:
        place.graph.write_layer(layer_of_it, out)
        assert os.pread(out, len(data) + 1, 0) == data
    finally:
        os.close(out)


def test_an_image_arrives_with_the_registrys_id_and_its_layers_in_order(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, _ = registry.put_image("a/b", layer(b"one"), layer(b"two"), layer(b"one", b"new"))
    pulled = place.registries.pull_image(f"{registry.host}/a/b")
    assert pulled.image.id == image_id
    assert place.tags.lookup_image(f"{registry.host}/a/b:latest").id == image_id
    top_first = place.graph.lower_directories(pulled.image)
    assert [sorted(os.listdir(one)) for one in top_first] == [["one"], ["two"], ["one"]]
    assert (top_first[0] / "one").read_bytes() == b"new"
    assert place.downloads() == {}


@pytest.mark.parametrize(
    ("compress", "kind"),
    [
        (lambda data: data, manifests.OCI_LAYER),
        (gzip.compress, f"{manifests.OCI_LAYER}+gzip"),
        (zstandard.compress, f"{manifests.OCI_LAYER}+zstd"),
        (gzip.compress, f"{manifests.DOCKER_FOREIGN}.gzip"),
    ],
    ids=["tar", "gzip", "zstd", "foreign"],
)
def test_layers_of_every_compression_are_taken(
    registry: LyingRegistry, place: Place, compress: object, kind: str
) -> None:
    image_id, _ = registry.put_image("x", layer(b"f"), compress=compress, kind=kind)  # type: ignore[arg-type]
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id


def test_a_server_that_closes_after_every_answer_is_as_good(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, _ = registry.put_image("x", layer(b"f", noise(300_000)), layer(b"g"))

    def last(exchange: Exchange) -> bool:
        exchange.last = True
        return False

    registry.lie(".*", last)
    pulled = place.registries.pull_image(f"{registry.host}/x")
    assert pulled.image.id == image_id
    place.tags.set(f"{registry.host}/y", "latest", image_id)
    place.registries.push_image(f"{registry.host}/y")


def test_what_is_here_is_not_fetched_again(registry: LyingRegistry, place: Place) -> None:
    shared = layer(b"base", noise(5000))
    _, first = registry.put_image("one", shared)
    _, second = registry.put_image("two", shared, layer(b"top"))
    place.registries.pull_image(f"{registry.host}/one")
    place.registries.pull_image(f"{registry.host}/two")
    assert len(registry.requests(f"GET .*/blobs/{first[0]}")) == 1
    assert len(registry.requests(f"GET .*/blobs/{second[1]}")) == 1
    before = len(registry.requests("GET .*"))
    images = place.root / "graph"
    written = images.stat().st_mtime_ns
    again = place.registries.pull_image(f"{registry.host}/two")
    assert not again.new
    assert images.stat().st_mtime_ns == written  # and no wait for the disk
    paths = [one.path for one in registry.requests("GET .*")[before:]]
    assert paths == ["/v2/", "/v2/two/manifests/latest"]


def test_an_index_gives_the_image_of_the_platform_asked_for(
    registry: LyingRegistry, place: Place
) -> None:
    amd, _ = registry.put_image("x", layer(b"amd"), tag="amd")
    arm, _ = registry.put_image("x", layer(b"arm"), tag="arm", config={"architecture": "arm64"})
    digest = registry.put_index("x", "latest", {"linux/amd64": "amd", "linux/arm64/v8": "arm"})
    name = f"{registry.host}/x"
    assert place.registries.pull_image(name, platform="linux/amd64").image.id == amd
    pulled = place.registries.pull_image(name, platform="linux/arm64")
    assert (pulled.image.id, pulled.digest) == (arm, digest)
    assert place.tags.lookup_image(f"{name}@{digest}").id in (amd, arm)
    with pytest.raises(RegistryError, match=r"no image for linux/s390x, only for linux/amd64"):
        place.registries.pull_image(name, platform="linux/s390x")


@pytest.mark.parametrize("other", ["linux/arm64", "windows/amd64", "windows"])
def test_an_image_for_one_platform_is_not_taken_for_another(
    registry: LyingRegistry, place: Place, other: str
) -> None:
    one, _ = registry.put_image("x", layer(b"amd"), config={"architecture": "x86_64"})
    name = f"{registry.host}/x"
    with pytest.raises(RegistryError, match=f"the image is for linux/amd64, not for {other}"):
        place.registries.pull_image(name, platform=other)
    assert place.registries.pull_image(name, platform="linux/amd64").image.id == one


def test_all_tags_of_a_repository_are_pulled_page_by_page(
    registry: LyingRegistry, place: Place
) -> None:
    for number in range(3):
        registry.put_image("x", layer(b"f", b"%d" % number), tag=f"t{number}")

    def first_page(exchange: Exchange) -> bool:
        if "last=" in exchange.path:
            return exchange.answer(200, b'{"name":"x","tags":["t2"]}')
        link = '</v2/x/tags/list?last=t1&n=2>; rel="next"'
        return exchange.answer(200, b'{"name":"x","tags":["t0","t1"]}', Link=link)

    registry.lie("tags/list", first_page)
    pulled = place.registries.pull_repository(f"{registry.host}/x")
    assert [one.name.rpartition(":")[2] for one in pulled] == ["t0", "t1", "t2"]


# -- drops and delays --------------------------------------------------------------------------


def test_a_download_goes_on_after_drops_with_what_is_missing(
    registry: LyingRegistry, place: Place
) -> None:
    _, (blob,) = registry.put_image("x", layer(b"f", noise(3_000_000)))
    registry.lie(f"GET .*/blobs/{blob}", cut(500_000), times=4)  # more than `attempts` in all
    place.registries.pull_image(f"{registry.host}/x")
    ranges = [one.headers.get("Range") for one in registry.requests(f"GET .*/blobs/{blob}")]
    assert ranges[0] is None
    assert ranges[1:] == [f"bytes={500_000 * n}-" for n in range(1, 5)]


def test_a_download_that_never_comes_to_its_end_is_given_up_and_gone_on_with_next_time(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, (blob,) = registry.put_image("x", layer(b"f", noise(1_000_000)))
    registry.lie(f"GET .*/blobs/{blob}", cut(300_000), times=1)
    registry.lie(f"GET .*/blobs/{blob}", cut(0), times=2)
    with pytest.raises(RegistryError):
        place.registries.pull_image(f"{registry.host}/x")
    assert list(place.downloads().values()) == [300_000]
    assert place.graph.all() == []
    before = len(registry.requests(f"GET .*/blobs/{blob}"))
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id
    (last,) = registry.requests(f"GET .*/blobs/{blob}")[before:]
    assert last.headers["Range"] == "bytes=300000-"


def test_a_registry_that_does_not_know_ranges_sends_all_again(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, (blob,) = registry.put_image("x", layer(b"f", noise(1_000_000)))

    def no_range(exchange: Exchange) -> bool:
        return exchange.answer(200, registry.blobs[blob])

    registry.lie(f"GET .*/blobs/{blob}", cut(400_000), times=1)
    registry.lie(f"GET .*/blobs/{blob}", no_range)
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id


def test_what_was_kept_and_is_wrong_is_fetched_from_the_beginning(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, (blob,) = registry.put_image("x", layer(b"f", noise(1_000_000)))
    (place.root / "downloads").mkdir()
    (place.root / "downloads" / blob.partition(":")[2]).write_bytes(noise(200_000, seed=2))
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id
    ranges = [one.headers.get("Range") for one in registry.requests(f"GET .*/blobs/{blob}")]
    assert ranges == ["bytes=200000-", None]


def test_a_silent_server_is_given_up(registry: LyingRegistry, place: Place) -> None:
    registry.put_image("x", layer(b"f"))
    registry.lie("GET .*/manifests/", stall(patient(1.5)))
    with pytest.raises(RegistryError, match="no answer in time"):
        place.registries.pull_image(f"{registry.host}/x")


def test_a_server_that_drips_is_as_good_as_silent(registry: LyingRegistry, place: Place) -> None:
    _, (blob,) = registry.put_image("x", layer(b"f", noise(100_000)))

    def drip(exchange: Exchange) -> bool:
        exchange.answer(200, b"", length=len(registry.blobs[blob]))
        for byte in registry.blobs[blob]:
            exchange.wfile.write(bytes([byte]))
            exchange.wfile.flush()
            time.sleep(0.05)
        return exchange.hang_up()

    registry.lie(f"GET .*/blobs/{blob}", drip)
    with pytest.raises(RegistryError, match=r"only .* bytes in"):
        place.registries.pull_image(f"{registry.host}/x")


def test_too_many_requests_are_made_again_when_the_server_says(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, _ = registry.put_image("x", layer(b"f"))
    registry.lie("GET .*/manifests/", lambda e: e.refuse(429, "TOOMANY", Retry_After="0"), times=2)
    registry.lie("GET .*/blobs/", lambda e: e.refuse(503, "BUSY"), times=2)
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id


def test_a_wait_of_an_hour_is_told_instead_of_waited(registry: LyingRegistry, place: Place) -> None:
    registry.put_image("x", layer(b"f"))
    registry.lie("GET .*/manifests/", lambda e: e.refuse(429, "TOOMANY", Retry_After="3600"))
    with pytest.raises(RegistryError, match=r"too many requests.*in 3600 seconds"):
        place.registries.pull_image(f"{registry.host}/x")
    assert len(registry.requests("GET .*/manifests/")) == 1


# -- lies --------------------------------------------------------------------------------------


def wrong_content(exchange: Exchange) -> bool:
    data = exchange.registry.blobs[exchange.path.rpartition("/")[2]]
    return exchange.answer(200, data[:-1] + bytes([data[-1] ^ 1]))


def one_more(exchange: Exchange) -> bool:
    data = exchange.registry.blobs[exchange.path.rpartition("/")[2]]
    return exchange.answer(200, data + b"!")


def one_less(exchange: Exchange) -> bool:
    data = exchange.registry.blobs[exchange.path.rpartition("/")[2]]
    return exchange.answer(200, data[:-1])


def endless(exchange: Exchange) -> bool:
    exchange.send_response(200)
    exchange.send_header("Transfer-Encoding", "chunked")
    exchange.end_headers()
    for _ in range(10_000):
        exchange.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
    return exchange.hang_up()


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (wrong_content, "arrived as sha256:"),
        (one_more, "the manifest says .* bytes, the registry sends"),
        (one_less, "the manifest says .* bytes, the registry sends"),
        (endless, "sends more than the"),
    ],
    ids=["wrong content", "one byte more", "one byte less", "endless"],
)
def test_a_blob_that_is_not_what_the_manifest_says_never_gets_in(
    registry: LyingRegistry, place: Place, lie: object, words: str
) -> None:
    _, (blob,) = registry.put_image("x", layer(b"f", noise(70_000)))
    registry.lie(f"GET .*/blobs/{blob}", lie)  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match=words):
        place.registries.pull_image(f"{registry.host}/x")
    assert place.trash.wait(patient(10))
    assert place.left() == []


def test_a_layer_that_is_not_what_the_configuration_says_never_gets_in(
    registry: LyingRegistry, place: Place
) -> None:
    other = {"rootfs": {"type": "layers", "diff_ids": [digest_of(b"another")]}}
    registry.put_image("x", layer(b"f"), config=other)
    with pytest.raises(BadArchive, match="as promised"):
        place.registries.pull_image(f"{registry.host}/x")
    assert place.graph.all() == []
    assert os.listdir(place.root / "layers") == []


def test_a_configuration_with_more_layers_than_the_manifest_is_refused(
    registry: LyingRegistry, place: Place
) -> None:
    diff_ids = [digest_of(layer(b"f")), digest_of(b"more")]
    registry.put_image(
        "x", layer(b"f"), config={"rootfs": {"type": "layers", "diff_ids": diff_ids}}
    )
    with pytest.raises(RegistryError, match="1 layers in the manifest, 2 in the configuration"):
        place.registries.pull_image(f"{registry.host}/x")


def test_a_bomb_is_stopped_by_the_budget_and_leaves_nothing(
    registry: LyingRegistry, root: Path
) -> None:
    registry.put_image("x", layer(b"bomb", bytes(40 << 20)))
    small = RegistrySettings(patience=QUICK, limits=Limits(unpacked=8 << 20))
    place = Place(root, small)
    try:
        with pytest.raises(BadArchive):
            place.registries.pull_image(f"{registry.host}/x")
        assert os.listdir(place.root / "layers") == []
    finally:
        place.close()


def html(exchange: Exchange) -> bool:
    return exchange.answer(200, b"<html>Please log in</html>", Content_Type="text/html")


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (html, "not JSON .a web page"),
        (lambda e: e.answer(200, b"[]", Content_Type=manifests.OCI_MANIFEST), "not an object"),
        (lambda e: e.answer(200, b"{" * 100_000, Content_Type=manifests.OCI_MANIFEST), "not JSON"),
        (lambda e: e.answer(200, bytes(4 << 20) + b"x"), "more than 4194304 bytes"),
        (
            lambda e: e.answer(
                200, b'{"schemaVersion": 1}', Content_Type=f"{manifests.SCHEMA_1}+json"
            ),
            "schema 1",
        ),
        (
            lambda e: e.answer(
                200,
                e.registry.manifests["x", "latest"][1],
                Content_Type=manifests.OCI_INDEX,
            ),
            "sent as .*index.* but the content says",
        ),
        (
            lambda e: e.answer(
                200,
                b'{"schemaVersion": 2, "manifests": [], "layers": [], "config": {}}',
                Content_Type=manifests.OCI_INDEX,
            ),
            "a manifest and an index at once",
        ),
    ],
    ids=["html", "list", "deep", "large", "schema 1", "other type", "both"],
)
def test_a_manifest_that_is_none_is_refused_in_one_line(
    registry: LyingRegistry, place: Place, lie: object, words: str
) -> None:
    registry.put_image("x", layer(b"f"))
    registry.lie("GET .*/manifests/", lie)  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match=words) as caught:
        place.registries.pull_image(f"{registry.host}/x")
    assert "\n" not in str(caught.value)


def test_another_manifest_than_the_digest_asked_for_is_refused(
    registry: LyingRegistry, place: Place
) -> None:
    registry.put_image("x", layer(b"f"))
    registry.lie(
        "GET .*/manifests/sha256", lambda e: e.answer(200, registry.manifests["x", "latest"][1])
    )
    with pytest.raises(RegistryError, match=r"the registry sent sha256:.* instead"):
        place.registries.pull_image(f"{registry.host}/x@{digest_of(b'another')}")


def test_what_is_not_there_is_told_as_such(registry: LyingRegistry, place: Place) -> None:
    with pytest.raises(NotInRegistry, match="no such image"):
        place.registries.pull_image(f"{registry.host}/nothing:here")
    assert place.registries.lookup_remote_image(f"{registry.host}/nothing") is None


def test_circles_of_redirections_end(registry: LyingRegistry, place: Place) -> None:
    registry.put_image("x", layer(b"f"))
    registry.lie("GET .*/blobs/", lambda e: e.answer(307, Location=e.path))
    with pytest.raises(RegistryError, match="redirected in circles"):
        place.registries.pull_image(f"{registry.host}/x")
    assert len(registry.requests("GET .*/blobs/")) <= 12


# -- credentials -------------------------------------------------------------------------------


def demand_basic(exchange: Exchange) -> bool:
    if exchange.headers.get("Authorization"):
        return False
    return exchange.refuse(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="here"')


def test_a_redirection_to_another_host_takes_no_credentials_along(
    registry: LyingRegistry, place: Place
) -> None:
    with lying_registry() as other:
        image_id, (blob,) = registry.put_image("x", layer(b"f"))
        other.blobs = dict(registry.blobs)
        registry.lie(".*", demand_basic)
        signed = f"http://{other.host}/v2/x/blobs/{blob}?signature=secret"
        registry.lie(f"GET .*/blobs/{blob}", lambda e: e.answer(307, Location=signed))
        assert place.registries.pull_image(f"{registry.host}/x", known).image.id == image_id
        assert [one.headers.get("Authorization") for one in other.requests("GET")] == [None]
        assert all(
            "Authorization" in one.headers for one in registry.requests("GET .*/(blobs|manifests)/")
        )


def test_a_registry_that_is_never_content_is_left_after_a_few_requests(
    registry: LyingRegistry, place: Place
) -> None:
    registry.put_image("x", layer(b"f"))
    realm = f'Bearer realm="http://{registry.host}/token",service="s"'
    registry.lie("GET /token", lambda e: e.answer(200, b'{"token": "t", "expires_in": 300}'))
    registry.lie("GET /v2/", lambda e: e.refuse(401, "UNAUTHORIZED", WWW_Authenticate=realm))
    with pytest.raises(Unauthorized, match="access denied"):
        place.registries.pull_image(f"{registry.host}/x", known)
    assert len(registry.requests(".*")) < 10


def test_a_token_is_fetched_with_the_scope_of_the_repository_and_used_again(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, _ = registry.put_image("a/x", layer(b"f"), layer(b"g"))
    realm = f'Bearer realm="http://{registry.host}/token?a=b",service="the service"'

    def guard(exchange: Exchange) -> bool:
        if exchange.headers.get("Authorization") == "Bearer good":
            return False
        return exchange.refuse(401, "UNAUTHORIZED", WWW_Authenticate=realm)

    registry.lie("GET /token", lambda e: e.answer(200, b'{"access_token": "good"}'))
    registry.lie("GET /v2/", guard)
    assert place.registries.pull_image(f"{registry.host}/a/x", known).image.id == image_id
    (asked,) = registry.requests("GET /token")
    assert "a=b&service=the+service&scope=repository%3Aa%2Fx%3Apull" in asked.path
    assert asked.headers["Authorization"].startswith("Basic ")
    assert SECRET not in asked.path


def test_a_token_server_that_says_not_now_is_asked_again(
    registry: LyingRegistry, place: Place
) -> None:
    image_id, _ = registry.put_image("x", layer(b"f"))
    realm = f'Bearer realm="http://{registry.host}/token",service="s"'

    def guard(exchange: Exchange) -> bool:
        if exchange.headers.get("Authorization") == "Bearer good":
            return False
        return exchange.refuse(401, "UNAUTHORIZED", WWW_Authenticate=realm)

    registry.lie("GET /v2/", guard)
    registry.lie("GET /token", lambda e: e.refuse(429, "TOOMANY", Retry_After="0"), times=1)
    registry.lie("GET /token", lambda e: e.refuse(503, "BUSY"), times=1)
    registry.lie("GET /token", lambda e: e.answer(200, b'{"token": "good"}'), times=1)
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id
    assert len(registry.requests("GET /token")) == 3
    registry.lie("GET /token", lambda e: e.refuse(429, "TOOMANY", Retry_After="3600"))
    with pytest.raises(RegistryError, match=r"/token: too many requests; .* in 3600 seconds, or"):
        place.registries.pull_image(f"{registry.host}/x")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_no_error_holds_a_secret(registry: LyingRegistry, place: Place, status: int) -> None:
    registry.put_image("x", layer(b"f"))
    registry.lie("GET /v2/x", lambda e: e.refuse(status, "NO", WWW_Authenticate='Basic realm="r"'))
    with pytest.raises(DockpyError) as caught:
        place.registries.pull_image(f"{registry.host}/x", known)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__
    assert SECRET not in repr(known(""))


# -- at once, and not at all -------------------------------------------------------------------


def test_pulls_of_the_same_layer_share_one_download(registry: LyingRegistry, place: Place) -> None:
    shared = layer(b"base", noise(300_000))
    _, (blob,) = registry.put_image("one", shared)
    registry.put_image("two", shared, layer(b"top"))
    gate = threading.Event()

    def wait(exchange: Exchange) -> bool:
        gate.wait(patient(10))
        return False

    registry.lie(f"GET .*/blobs/{blob}", wait)
    failures: list[BaseException] = []
    slow = replace(QUICK, silence=patient(20.0))
    place.registries.close()
    place.registries = Registries(
        place.root, place.graph, place.tags, place.flusher, RegistrySettings(patience=slow)
    )

    def pull(name: str) -> None:
        try:
            place.registries.pull_image(f"{registry.host}/{name}")
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=pull, args=(name,)) for name in ("one", "two", "one")]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patient(10)
    while len(registry.requests("GET .*/manifests/")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(registry.requests(f"GET .*/blobs/{blob}")) == 1
    assert len(place.graph.all()) == 2


def test_a_cancelled_pull_ends_at_once_and_keeps_what_was_verified(
    registry: LyingRegistry, root: Path
) -> None:
    small, large = layer(b"small", noise(50_000)), layer(b"large", noise(400_000, seed=3))
    image_id, blobs = registry.put_image("x", small, large)
    held = threading.Event()

    def half(exchange: Exchange) -> bool:
        data = registry.blobs[blobs[1]]
        exchange.answer(200, data[:200_000], length=len(data))
        exchange.wfile.flush()
        held.wait(patient(20))
        return exchange.hang_up()

    registry.lie(f"GET .*/blobs/{blobs[1]}", half, times=1)
    place = Place(root, RegistrySettings(patience=replace(QUICK, silence=60.0)))
    cancellation = Cancellation()
    seen: list[Event] = []
    failures: list[BaseException] = []

    def pull() -> None:
        try:
            place.registries.pull_image(
                f"{registry.host}/x", listener=seen.append, cancellation=cancellation
            )
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=pull)
    thread.start()
    deadline = time.monotonic() + patient(10)
    wanted = {blobs[0].partition(":")[2]: len(registry.blobs[blobs[0]]), blobs[1][7:]: 200_000}
    while place.downloads() != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    cancellation.cancel()
    thread.join(patient(5))
    ended = not thread.is_alive()
    held.set()
    thread.join()
    assert ended
    assert [type(one) for one in failures] == [Cancelled]
    assert place.downloads() == wanted
    before = len(registry.requests("GET .*/blobs/"))
    assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id
    again = [
        (one.path[-64:], one.headers.get("Range"))
        for one in registry.requests("GET .*/blobs/")[before:]
    ]
    assert (blobs[1][-64:], "bytes=200000-") in again
    assert not any(path == blobs[0][-64:] for path, _ in again)
    place.close()


# -- pushing -----------------------------------------------------------------------------------


def test_a_pulled_image_is_pushed_back_byte_for_byte(registry: LyingRegistry, place: Place) -> None:
    _, blobs = registry.put_image("x", layer(b"f", noise(100_000)), layer(b"g"))
    pulled = place.registries.pull_image(f"{registry.host}/x")
    with lying_registry() as other:
        place.tags.set(f"{other.host}/y", "z", pulled.image.id)
        pushed = place.registries.push_image(f"{other.host}/y:z")
        assert pushed.digest == pulled.digest
        assert [other.blobs[one] for one in blobs] == [registry.blobs[one] for one in blobs]
        assert other.manifests["y", "z"] == registry.manifests["x", "latest"]


def test_a_layer_of_another_repository_is_mounted_and_one_that_is_there_is_not_sent(
    registry: LyingRegistry, place: Place
) -> None:
    _, (blob,) = registry.put_image("x", layer(b"f"))
    pulled = place.registries.pull_image(f"{registry.host}/x")
    registry.mountable.add(("x", blob))
    registry.lie("HEAD .*/y/blobs/", lambda e: e.refuse(404, "BLOB_UNKNOWN"), times=1)
    place.tags.set(f"{registry.host}/y", "latest", pulled.image.id)
    place.registries.push_image(f"{registry.host}/y")
    assert len(registry.requests("POST .*mount=")) == 1
    assert registry.requests("PATCH") == []
    place.registries.push_image(f"{registry.host}/y")
    assert len(registry.requests("POST .*mount=")) == 1


def test_an_upload_goes_on_after_drops_with_what_is_missing(
    registry: LyingRegistry, place: Place
) -> None:
    _, (blob,) = registry.put_image("x", layer(b"f", noise(3_000_000)))
    pulled = place.registries.pull_image(f"{registry.host}/x")

    def drop(exchange: Exchange) -> bool:
        session = exchange.path.rpartition("/")[2]
        if "Transfer-Encoding" in exchange.headers:
            exchange.rfile.readline()
        exchange.registry.uploads[session] += exchange.rfile.read(200_000)
        return exchange.hang_up()

    with lying_registry() as other:
        other.lie("PATCH", drop, times=4)
        place.tags.set(f"{other.host}/x", "latest", pulled.image.id)
        place.registries.push_image(f"{other.host}/x")
        assert other.blobs[blob] == registry.blobs[blob]
        assert len(other.requests("POST .*/uploads/$")) == 2  # the layer's and the configuration's


def test_an_image_made_here_is_pushed_to_the_same_bytes_every_time(
    registry: LyingRegistry, place: Place
) -> None:
    import io

    from dockpy.model import Config

    image = place.graph.import_archive(
        io.BytesIO(layer(b"f", noise(3_000_000))), config=Config(cmd=("/f",))
    )
    with lying_registry() as other:
        for one in (registry, other):
            place.tags.set(f"{one.host}/made", "latest", image.id)
        first = place.registries.push_image(f"{registry.host}/made")
        blobs = dict(registry.blobs)
        place.registries.origins.forget()
        second = place.registries.push_image(f"{other.host}/made")
        assert first.digest == second.digest
        assert other.blobs == blobs
    assert os.listdir(place.root / "uploads") == []


def test_an_image_that_is_removed_while_it_is_pushed_arrives_whole(
    registry: LyingRegistry, place: Place
) -> None:
    import io

    from dockpy.model import Config

    image = place.graph.import_archive(io.BytesIO(layer(b"f", noise(3_000_000))), config=Config())
    name = f"{registry.host}/made"
    place.tags.set(name, "latest", image.id)

    def remove(_exchange: Exchange) -> bool:
        place.tags.delete(name)
        place.graph.delete(image.id)
        return False

    registry.lie("POST .*/uploads/", remove, times=1)
    pushed = place.registries.push_image(name)
    assert os.listdir(place.root / "layers") == []
    pulled = place.registries.pull_image(name)
    assert (pulled.image.id, pulled.digest) == (image.id, pushed.digest)


def test_a_mirror_that_fails_is_passed_over(registry: LyingRegistry, root: Path) -> None:
    image_id, _ = registry.put_image("x", layer(b"f"))
    with lying_registry() as mirror:
        settings = RegistrySettings(
            patience=QUICK,
            mirrors={registry.host: ("http://127.0.0.1:1", f"http://{mirror.host}")},
        )
        place = Place(root, settings)
        try:
            assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id
            assert mirror.requests("GET .*/manifests/latest")
            place.graph.delete(image_id)
            mirror.blobs, mirror.manifests = dict(registry.blobs), dict(registry.manifests)
            before = len(registry.requests("GET"))
            assert place.registries.pull_image(f"{registry.host}/x").image.id == image_id
            assert len(registry.requests("GET")) == before
        finally:
            place.close()


# -- no room -----------------------------------------------------------------------------------

ON_A_SMALL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", place], check=True)
from dockpy.errors import RegistryError
from dockpy.registry.settings import RegistrySettings
from kernel.test_registry_lies import Place, layer, noise
from lying_registry import lying_registry
told = {}
opened = Place(place, RegistrySettings())
with lying_registry() as registry:
    registry.put_image("large", layer(b"f", noise(6 << 20)), layer(b"g"))
    registry.put_image("small", layer(b"f", noise(1 << 20)))
    try:
        opened.registries.pull_image(f"{registry.host}/large")
    except RegistryError as error:
        told["error"] = str(error)
    opened.trash.wait(10)
    told["left"] = opened.left()
    told["then"] = opened.registries.pull_image(f"{registry.host}/small").new
opened.close()
print(json.dumps(told))
"""


@pytest.mark.needs("mount_namespace")
def test_a_pull_that_fills_the_disk_says_so_and_gives_the_room_back(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *(sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tests.parent / 'src'}:{tests}"},
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "no room on the disk" in told["error"]
    assert "remove images or containers" in told["error"]
    assert (told["left"], told["then"]) == ([], True)
